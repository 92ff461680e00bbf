"""File Processor: Sends the rows of files, CSV, JSON Lines or Parquet, to any backend, without a
line of code."""

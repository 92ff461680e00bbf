"""SQL Processor: Sends the rows of a query to any backend, on a schedule, incrementally by a
watermark column."""

"""Singer Processor: Sends the streams of any Singer tap to any backend, on a schedule, without a
line of code."""

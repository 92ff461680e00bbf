"""Contract suites and doubles for the authors of handlers."""

"""Contract suites and doubles for the authors of handlers."""

from catalogzero.testing.clocks import ManualClock
from catalogzero.testing.handlers import Serving, serving

__all__ = ["ManualClock", "Serving", "serving"]

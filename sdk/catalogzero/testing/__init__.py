"""Contract suites and doubles for the authors of handlers."""

from catalogzero.testing.backend import FaultyBackend
from catalogzero.testing.clocks import ManualClock
from catalogzero.testing.contract import HandlerContract, ProcessorContract
from catalogzero.testing.handlers import Serving, serving
from catalogzero.testing.lab import Lab

__all__ = [
    "FaultyBackend",
    "HandlerContract",
    "Lab",
    "ManualClock",
    "ProcessorContract",
    "Serving",
    "serving",
]

"""Contract suites and doubles for the authors of handlers.

It owns the checks that every handler and every processor must pass, the clock and the backend
with faults that tests play against, and pytest's plugin. It never reaches into the runtime's
private parts: a check sees what a caller, a backend or an operator sees.
"""

from catalogzero.testing.backend import FaultyBackend
from catalogzero.testing.clocks import ManualClock
from catalogzero.testing.contract import HandlerContract, ProcessorContract
from catalogzero.testing.handlers import Serving, serving
from catalogzero.testing.lab import Lab
from catalogzero.testing.processor_runs import Uploads, write_tap
from catalogzero.testing.standing_in import in_run

__all__ = [
    "FaultyBackend",
    "HandlerContract",
    "Lab",
    "ManualClock",
    "ProcessorContract",
    "Serving",
    "Uploads",
    "in_run",
    "serving",
    "write_tap",
]

"""`catalogzero` on a machine whose wall clock a test sets while it runs.

    python -m tests.scheduler.stepped FILE scheduler …

The clock is ahead by as many seconds as the file says.
"""

from __future__ import annotations

import runpy
import sys
from datetime import datetime, timedelta
from pathlib import Path

from catalogzero.clock import SystemClock

right = SystemClock.now


def main() -> None:
    """Set the clock, and be `catalogzero` from there on."""
    ahead = Path(sys.argv.pop(1))

    def now(self: SystemClock) -> datetime:
        return right(self) + timedelta(seconds=float(ahead.read_text()))

    SystemClock.now = now  # type: ignore[method-assign]
    runpy.run_module("catalogzero", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

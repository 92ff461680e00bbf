"""Ctrl-C while the `catalogzero` command is still being imported: an end without a traceback.

Imported first of all, and for the command's own process alone: a program that imports the package
keeps its signals.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from itertools import pairwise
from pathlib import Path

EXIT_INTERRUPTED = 130


def begin() -> None:
    """From now on Ctrl-C ends this process at once, where it is the command and nothing else."""
    given = sys.orig_argv
    is_module = ("-m", "catalogzero") in pairwise(given)
    is_command = is_module or Path(sys.argv[0]).stem == "catalogzero"
    is_main = threading.current_thread() is threading.main_thread()
    if is_command and is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)


def end() -> None:
    """From now on Ctrl-C is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end_at_once(*_: object) -> None:
    """Nothing was begun: an exception would come up in the middle of somebody's module."""
    os._exit(EXIT_INTERRUPTED)


begin()

"""How a process of the storm dies when it comes by a place: at once, as by kill -9."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def die_at(order: Path, here: str) -> None:
    """Die when the file `order` names this place; the file goes first, so that it is once."""
    try:
        wanted = order.read_text()
    except OSError:
        return
    if wanted == here:
        order.unlink()
        os.kill(os.getpid(), signal.SIGKILL)

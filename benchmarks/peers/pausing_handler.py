"""A catalogzero handler whose jobs wait, as one does that asks another service."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from catalogzero import Handler


class Pauser(Handler):
    """Its jobs note that they began and ended, and wait in between."""

    async def wait(self, notes: str, name: str, seconds: float) -> dict[str, Any]:
        """Wait for a while."""
        note(Path(notes), f"began {name}\n")
        await asyncio.sleep(seconds)
        note(Path(notes), f"ended {name}\n")
        return {}


def note(notes: Path, line: str) -> None:
    """Append a line."""
    with notes.open("a") as file:
        file.write(line)

"""A handler that notes each run in a file, so that a test can count what really happened."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

from catalogzero import Handler, HandlerSettings, job
from catalogzero.runtime.runs import current_run


class ChoreSettings(HandlerSettings):
    """Where it notes its runs."""

    notes: Path


class Chore(Handler):
    """Notes that a run began, does nothing for a while, notes that it ended."""

    settings_model = ChoreSettings

    async def note(self, text: str = "", seconds: float = 0.0) -> dict[str, Any]:
        """One run."""
        self._write("began", text)
        await asyncio.sleep(seconds)
        self._write("ended", text)
        return {"text": text}

    @job(retry_safe=True)
    async def again(self, text: str = "", seconds: float = 0.0) -> dict[str, Any]:
        """One run that may be repeated."""
        return await self.note(text, seconds)

    def hold(self, text: str = "") -> dict[str, Any]:
        """One run that ends once a file beside the notes is there."""
        self._write("began", text)
        never = threading.Event()
        while not self.settings.notes.with_suffix(".go").exists():
            never.wait(0.05)
        self._write("ended", text)
        return {"text": text}

    @job(retry_safe=True)
    def hold_again(self, text: str = "") -> dict[str, Any]:
        """One such run that may be repeated."""
        return self.hold(text)

    @job(retry_safe=True)
    def list_items(self, data_source: str) -> dict[str, Any]:
        """Items `a` to `f`; those of `hold` are listed once the file beside the notes is there."""
        if data_source == "hold":
            self.hold("list")
        return {"items": [{"name": name} for name in "abcdef"]}

    @job(retry_safe=True)
    def part(self, data_source: str, item: dict[str, str]) -> dict[str, Any]:
        """One item; of a data_source `part` it ends once the file beside the notes is there."""
        name = item["name"]
        if data_source == "part":
            return self.hold(name)
        self._write("began", name)
        self._write("ended", name)
        return {"text": name}

    async def fail(self) -> None:
        """Fail."""
        raise ValueError("on purpose")

    def _write(self, what: str, text: str) -> None:
        """One whole line, also under kill -9: what, the call's request_id, and the text."""
        settings, run = self.settings, current_run.get()
        assert isinstance(settings, ChoreSettings)
        assert run
        descriptor = os.open(settings.notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, f"{what} {run.call.request_id} {text}\n".encode())
        finally:
            os.close(descriptor)

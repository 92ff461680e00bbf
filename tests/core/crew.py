"""Handlers with isolated jobs; the worker process imports this module by name."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path
from typing import Any

from catalogzero import BadParamsError, FailedError, Handler, HandlerSettings, job
from pydantic import SecretStr


class CrewSettings(HandlerSettings):
    """A secret and a plain setting."""

    api_key: SecretStr = SecretStr("none")
    desk: str = "a"
    wanted: bool = False


class Crew(Handler):
    """Isolated work of every kind."""

    settings_model = CrewSettings
    settings: CrewSettings

    @job(isolate=True)
    def facts(self) -> dict[str, Any]:
        """What the child is."""
        return {
            "pid": os.getpid(),
            "parent": os.getppid(),
            "in_worker": self.in_worker,
            "handler_id": self.handler_id,
            "key": self.settings.api_key.get_secret_value(),
            "desk": self.settings.desk,
            "state_dir": str(self.state_dir),
            "thread": threading.current_thread() is threading.main_thread(),
        }

    @job(isolate=True)
    async def on_the_loop(self, value: int) -> int:
        """Async, in the child."""
        await asyncio.to_thread(int)
        return value + 1

    @job(isolate=True)
    def work_until(self, path: Path) -> str:
        """Reports its pid and waits for a file that never comes."""
        self.report_progress(pid=os.getpid())
        self.report_progress(step=1)
        while not path.exists():
            threading.Event().wait(0.01)
        return "found"

    @job(isolate=True)
    def write_forever(self, path: Path) -> None:
        """Makes a file grow for as long as it lives."""
        self.report_progress(pid=os.getpid())
        while True:
            with path.open("a") as file:
                file.write("x")
            threading.Event().wait(0.005)

    @job(isolate=True, quiet=True)
    def glance(self) -> int:
        """A quiet isolated job: beside the others."""
        return os.getpid()

    @job(isolate=True, quiet=True)
    def watch_until(self, path: Path) -> str:
        """As `work_until`, quiet."""
        return self.work_until(path)

    @job(isolate=True)
    def die(self, how: str) -> None:
        """Ends the child."""
        if how == "exit":
            os._exit(7)
        if how == "sys.exit":
            sys.exit(3)
        os.abort()

    @job(isolate=True)
    def fails(self, how: str) -> None:
        """Raises."""
        if how == "on purpose":
            raise FailedError("no data", details={"rows": 0})
        if how == "bad":
            raise BadParamsError("not so")
        if how == "missing":
            raise FileNotFoundError("no such export")
        raise ValueError(f"key {self.settings.api_key.get_secret_value()}")

    @job(isolate=True)
    def prints(self) -> object:
        """Prints where the protocol would be, and returns no JSON."""
        print("{not a line of ours")  # noqa: T201 - that it does no harm is what is tested
        return object()

    @job(isolate=True)
    def reports(self, status: dict[str, Any]) -> None:
        """Reports a status."""
        self.report_status(status)

    async def ask_child(self, value: int) -> Any:
        """Through the port, as a base class does."""
        return await self.worker.call("_hidden", value=value)

    def _hidden(self, value: int) -> dict[str, Any]:
        return {"twice": 2 * value, "pid": os.getpid()}

    def _worker_wanted(self) -> bool:
        return self.settings.wanted

"""Handlers whose code does what no code should; the worker process imports this by name."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from pathlib import Path
from typing import Any

from catalogzero import FailedError, Handler, job

UNDECODABLE = "caf\udce9.csv"  # what the system gives for a file name that is no UTF-8


class UnprintableError(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise ValueError("no text")


def hiding(function: Any) -> Any:
    """A decorator under which an async method looks like a plain one."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


class Rough(Handler):
    """Raises what is hard to catch, in a thread, on the loop and in the worker."""

    def __init__(self, anything: Any = None) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.begun = 0
        self.releases = 0
        self.wakings = 0
        self.rough_hook = False
        self.rough_metrics = ""
        self.held = asyncio.Event()
        self.held.set()
        self.opening = asyncio.Event()
        self.opening.set()
        self.stopping = asyncio.Event()
        self.may_stop = asyncio.Event()
        self.may_stop.set()

    async def fine(self) -> str:
        """Nothing wrong."""
        return "fine"

    async def wait(self) -> str:
        """Until the test says so."""
        self.begun += 1
        await self.gate.wait()
        return "waited"

    def spoil(self, params):  # type: ignore[no-untyped-def]
        """Changes what it was given."""
        params["inner"].clear()
        return params.pop("x")

    async def spoil_inside(self, inner: dict[str, Any]) -> int:
        """Changes what lies deep in what it was given."""
        inner["list"].append(1)
        return len(inner["list"])

    def raise_plain(self, what: str) -> None:
        """In a thread."""
        _raise(what)

    async def raise_async(self, what: str) -> None:
        """On the loop."""
        _raise(what)

    @hiding
    async def decorated(self, value: int) -> int:
        """Async, and nobody sees it."""
        await asyncio.to_thread(int)
        return value

    @job(isolate=True)
    @hiding
    async def decorated_isolated(self, value: int) -> int:
        """The same in the worker."""
        await asyncio.to_thread(int)
        return value

    async def returns_no_json(self) -> None:
        """Progress that has no JSON form."""
        self.report_progress(at=object())

    @job(isolate=True)
    def too_long(self, size: int) -> str:
        """More than a line between worker and handler may hold."""
        return "x" * size

    @job(isolate=True)
    def raise_isolated(self, what: str) -> None:
        """In a thread of the worker."""
        _raise(what)

    @job(isolate=True)
    async def raise_isolated_async(self, what: str) -> None:
        """On the worker's loop."""
        _raise(what)

    @job(isolate=True)
    def hang(self) -> None:
        """For ever."""
        threading.Event().wait()

    @job(isolate=True)
    def pid(self) -> int:
        """The worker."""
        return os.getpid()

    @job(isolate=True)
    def leave_a_child_behind(self, note: Path) -> None:
        """Forks one that keeps every pipe open, and dies."""
        child = os.fork()
        if child == 0:
            threading.Event().wait(30)
            os._exit(0)
        note.write_text(str(child))
        os._exit(9)

    @job(isolate=True)
    def block_the_loop(self) -> int:
        """From now on the worker's loop answers nothing."""
        self._loop.call_soon_threadsafe(self._loop.call_later, 0.05, self._block)
        return os.getpid()

    def _block(self) -> None:
        self.report_status({"blocked": True})
        threading.Event().wait()

    async def _worker_main(self) -> None:
        self._loop = asyncio.get_running_loop()

    async def _release_resources(self) -> None:
        self.releases += 1
        await self.held.wait()
        if self.rough_hook:
            poller = asyncio.create_task(asyncio.Event().wait())
            poller.cancel()
            await poller

    async def get_metrics(self) -> dict[str, Any]:
        """Rough where the test says so."""
        if self.rough_metrics:
            _raise(self.rough_metrics)
        return await super().get_metrics()

    async def _ensure_resources(self) -> None:
        self.wakings += 1
        await self.opening.wait()

    async def _on_stop(self) -> None:
        self.stopping.set()
        await self.may_stop.wait()
        await super()._on_stop()


def _raise(what: str) -> None:
    if what == "StopIteration":
        next(iter(()))
    if what == "undecodable":
        raise ValueError(f"cannot read {UNDECODABLE}")
    if what == "details":
        raise FailedError("odd", details={"value": object()})
    if what == "BaseExceptionGroup":
        raise BaseExceptionGroup("two", [KeyboardInterrupt(), ValueError("one")])
    if what == "unprintable":
        raise UnprintableError
    raise {
        "CancelledError": asyncio.CancelledError,
        "GeneratorExit": GeneratorExit,
        "KeyboardInterrupt": KeyboardInterrupt,
        "SystemExit": SystemExit,
    }[what]

"""Where a contract is examined: a handler class, served for real, and what was seen of it.

Owns the folder, the recordings (each made once per class, whatever many checks look at it) and
the process's own figures. A recording that does not come to its end fails the check that owns it;
the others that need it are skipped, so that one fault is reported once.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, cast

import psutil

from catalogzero.clock import SystemClock
from catalogzero.runtime.handler import Handler
from catalogzero.wire.messages import JsonObject

T = TypeVar("T")
RECORDING_TIMEOUT_S = 60.0
BLOCKED_S = 2.0
"""An event loop that does not answer for so long is blocked."""


class Contract(Protocol):
    """What the lab needs of a contract class."""

    handler_class: type[Handler]

    def config(self, lab: Lab) -> JsonObject:
        """The settings to make the handler with."""


class BrokenError(AssertionError):
    """A check does not hold; the message says what was seen."""


class UnfinishedError(Exception):
    """A recording that a check needs did not come to its end."""

    def __init__(self, owner: str) -> None:
        super().__init__(f"cannot be looked at: see the check {owner!r}")


@dataclass
class Lab:
    """One contract class under examination.

    Attributes:
        contract: The author's contract class.
        folder: A folder of its own, taken away at the end.
    """

    contract: Contract
    folder: Path
    _recordings: dict[str, object] = field(default_factory=dict)

    @property
    def handler_class(self) -> type[Handler]:
        """The class under examination."""
        return self.contract.handler_class

    def make(self, **config: Any) -> Handler:
        """A handler of the class, with the contract's settings and those given."""
        return self.handler_class(**{**self.contract.config(self), **config})

    def recording(self, owner: str, record: Callable[[Lab], Awaitable[T]], *, mine: bool) -> T:
        """What was seen in one run, made at the first need.

        Args:
            owner: The check that fails when the run does not come to its end.
            record: The run.
            mine: Whether the caller is that check.

        Raises:
            UnfinishedError: The run failed, and the caller is another check.
        """
        if owner not in self._recordings:
            try:
                self._recordings[owner] = asyncio.run(bounded(record(self)))
            except Exception as error:  # noqa: BLE001 - reported by the check that owns it
                self._recordings[owner] = error
        seen = self._recordings[owner]
        if isinstance(seen, Exception):
            raise seen if mine else UnfinishedError(owner)
        return cast("T", seen)

    def new_folder(self, name: str) -> Path:
        """A fresh folder of that name."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))


async def bounded(work: Awaitable[T]) -> T:
    """A run that ends in time, or fails."""
    async with asyncio.timeout(RECORDING_TIMEOUT_S):
        return await work


@dataclass(frozen=True)
class Footprint:
    """What this process holds."""

    descriptors: int
    threads: int
    children: int
    memory_mb: float

    @classmethod
    def now(cls) -> Footprint:
        """Measured now, rubbish collected first."""
        # Else what is about to be freed would look like a leak.
        gc.collect()
        process = psutil.Process()
        return cls(
            descriptors=process.num_fds(),
            threads=threading.active_count(),
            children=len(process.children()),
            memory_mb=process.memory_info().rss / 1_048_576,
        )


class Heartbeat:
    """Watches from a thread how long the event loop does not answer."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()

    def _watch(self) -> None:
        """Ask the loop again and again; time is the machine's, as a caller would feel it."""
        clock = SystemClock()
        while not self._end.is_set():
            beat, asked_s = threading.Event(), clock.monotonic()
            self._loop.call_soon_threadsafe(beat.set)
            # Counted while it waits, so that a loop that never answers shows, too.
            while not beat.wait(0.05) and not self._end.is_set():
                self.longest_s = max(self.longest_s, clock.monotonic() - asked_s)
            self._end.wait(0.05)


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Send everything that this process and its children write to standard error to a file."""
    sys.stderr.flush()
    # The descriptor, not `sys.stderr` alone: children and libraries in C write to it, too.
    descriptor = os.dup(2)
    with path.open("a", encoding="utf-8") as file, redirect_stderr(file):
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(descriptor, 2)
            os.close(descriptor)


def shown(value: object) -> str:
    """A value for a message, cut after 300 characters."""
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}…"


def demand(holds: object, what: str) -> None:
    """Fail the check unless something holds.

    Raises:
        BrokenError: It does not.
    """
    if not holds:
        raise BrokenError(what)


def demand_keys(found: object, keys: tuple[str, ...], where: str) -> None:
    """Fail the check unless an answer is an object with these keys."""
    demand(isinstance(found, Mapping), f"{where} is {shown(found)}, not an object")
    missing = [key for key in keys if isinstance(found, Mapping) and key not in found]
    demand(not missing, f"{where} has no {', '.join(missing)}; it is {shown(found)}")

"""What `process` and `read` may ask of the run that they are called in, and report to it.

Each run has a context of its own, so that several may go on at once in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from catalogzero.errors import FailedError


@dataclass(frozen=True, slots=True)
class SourceItem:
    """What is read: a file, a query, or what an own `read` gives.

    Attributes:
        name: Its name in the source's identity, such as `exports/orders.csv` or `sql:orders`.
        stream: What its results are named at the backend.
        path: The file; of other sources None, as are `size` and `modified`.
        size: Bytes of the file, packed as it lies.
        modified: When the file was last written, in UTC.
    """

    name: str
    stream: str
    path: Path | None = None
    size: int | None = None
    modified: datetime | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """In an own `read` of mode `append`: what came before it is whole, and is sealed by itself.

    A run that is killed goes on after the last one; `process` is called again for what follows.

    Attributes:
        value: Where reading may go on, as `read` gets it in `after`: JSON of at most 4 KiB.
    """

    value: Any


@dataclass(frozen=True, slots=True)
class RunContext:
    """Where `process` or `read` is called: what `self.run` is.

    Attributes:
        item: What is read now; with `unit = "run"` the one of its items that is at hand.
        attempt: 1, and more where the source changed while it was read.
        full: Whether all is sent again, also what is unchanged.
        since: The watermark from which on rows are read; None for all of them.
    """

    item: SourceItem
    attempt: int = 1
    full: bool = False
    since: Any = None


@dataclass(frozen=True, slots=True)
class ActiveRun:
    """What an author's code reaches of a run: its context, and where to report to."""

    context: Callable[[], RunContext]
    reject: Callable[[Any, str], None]
    progress: Callable[[int, int | None], None] = lambda rows, of: None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make it the run of what this thread calls."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)


_ACTIVE: ContextVar[ActiveRun] = ContextVar("_ACTIVE")


def active_run() -> ActiveRun:
    """The run that the running thread is in.

    Raises:
        FailedError: It is in none.
    """
    try:
        return _ACTIVE.get()
    except LookupError:
        raise FailedError(
            "no run is under way here: `process` and `read` have one; in a thread of their own "
            "call by `contextvars.copy_context().run`, in a test by `catalogzero.testing.in_run`"
        ) from None

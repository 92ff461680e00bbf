"""What a run needs of an author's class, and the author's own source as an item of a run.

Owns no data: `read` is the author's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from catalogzero.clock import Clock
from catalogzero.cloud.reading.items import Item, RowReading
from catalogzero.cloud.reading.records import BadRecords
from catalogzero.cloud.rows.batches import lists_of, parts_of
from catalogzero.cloud.settings import Batch, CloudSettings
from catalogzero.config.logs import Logger
from catalogzero.config.settings import RuntimeSettings
from catalogzero.errors import FailedError
from catalogzero.protocol.identities import Identity, Mode


class RunAuthor(Protocol):
    """What a run needs of a `CloudProcessor`."""

    unit: ClassVar[Any]
    batch_type: ClassVar[Any]
    batch_rows: ClassVar[int]
    mode: ClassVar[Any]
    output_version: ClassVar[int]
    settings: CloudSettings
    runtime: RuntimeSettings
    clock: Clock
    log: Logger

    def process(self, batches: Iterator[Batch], params: Any) -> Iterator[Batch]:
        """The author's work."""

    def read(self, data_source: str, params: Any, after: Any = None) -> Iterator[Batch]:
        """The author's own source."""

    @property
    def mask(self) -> Callable[[str], str]:
        """Hides the secrets of the handler's settings in a text."""

    @property
    def reads_itself(self) -> bool:
        """Whether `read` is the author's."""

    @property
    def state_dir(self) -> Path:
        """The handler's state folder."""

    @property
    def cancelled(self) -> bool:
        """Whether the run is to stop."""

    def identity(self) -> Identity:
        """Who sends."""

    @classmethod
    def callable_methods(cls) -> Collection[str]:
        """The names of the handler's methods, for its registration."""


@dataclass(frozen=True)
class OwnItem(Item):
    """A data_source that the author's `read` reads, each time."""

    author: RunAuthor
    name: str
    params: Any

    @property
    def mode(self) -> Mode:
        """What the class says."""
        mode: Mode = self.author.mode
        return mode

    def open(self, after: Any, bad: BadRecords) -> OwnReading:
        """See `Item.open`."""
        return OwnReading(self, after)


class OwnReading(RowReading):
    """One pass of the author's `read`; in append mode it returns the new watermark."""

    def __init__(self, item: OwnItem, after: Any) -> None:
        super().__init__(item.mode, after)
        self._item = item

    def batches(self) -> Iterator[Batch]:
        """See `Reading.batches`."""
        item = self._item
        append = item.mode == "append"
        extra = (self.after,) if append else ()
        batches = iter(item.author.read(item.name, item.params, *extra))
        self._stack.callback(getattr(batches, "close", lambda: None))
        while True:
            try:
                batch = next(batches)
            except StopIteration as end:
                if append:
                    self.until = end.value
                return
            once = hasattr(batch, "read_next_batch")  # a stream can be read a single time
            for part in parts_of(batch) if once else (batch,):
                for rows in () if append else lists_of(part):
                    self.digest(rows)
                yield part


def refuse_no_progress(name: str, after: Any, until: Any, rows: int) -> None:
    """Refuse a range that would be added without an end of its own.

    Raises:
        FailedError: It ends at no value, or holds rows and ends where the last one did.
    """
    if until is None and (rows or after is not None):
        raise FailedError(
            f"{name}: the watermark is null after {rows} rows: return the value up to which rows "
            "were read, the last one where there is nothing new"
        )
    if rows and until == after:
        raise FailedError(
            f"{name}: {rows} rows were read, and the watermark is still {until!r}: rows behind the "
            "last value would be missing or twice; return a higher one, or call with full: true"
        )

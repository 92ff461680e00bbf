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
from catalogzero.cloud.run_context import Checkpoint
from catalogzero.cloud.settings import Batch, CloudSettings, ProcessOutput
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

    def process(self, batches: Iterator[Batch], params: Any) -> Iterator[ProcessOutput]:
        """The author's work."""

    def read(
        self, data_source: str, params: Any, after: Any = None
    ) -> Iterator[Batch | Checkpoint]:
        """The author's own source."""

    @property
    def mask(self) -> Callable[[str], str]:
        """Hides the secrets of the handler's settings in a text."""

    @property
    def reads_itself(self) -> bool:
        """Whether `read` is the author's."""

    @property
    def handler_id(self) -> str:
        """The handler's name."""

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

    def batches(self) -> Iterator[Batch | Checkpoint]:
        """See `Reading.batches`.

        Raises:
            FailedError: A checkpoint where nothing goes on from one, or without a value.
        """
        item = self._item
        append = item.mode == "append"
        extra = (self.after,) if append else ()
        batches = iter(item.author.read(item.name, item.params, *extra))
        self._stack.callback(getattr(batches, "close", lambda: None))
        checkpoint: Checkpoint | None = None
        while True:
            try:
                batch = next(batches)
            except StopIteration as end:
                if append:
                    # Where nothing was read behind a checkpoint, it says where the source was left.
                    left = checkpoint.value if checkpoint is not None else None
                    self.until = left if end.value is None else end.value
                return
            if isinstance(batch, Checkpoint):
                refuse_checkpoint(item, batch)
                checkpoint = batch
                yield batch
                continue
            checkpoint = None
            once = hasattr(batch, "read_next_batch")  # a stream can be read a single time
            for part in parts_of(batch) if once else (batch,):
                for rows in () if append else lists_of(part):
                    self.digest(rows)
                yield part


def refuse_checkpoint(item: OwnItem, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint from which nothing can go on.

    Raises:
        FailedError: The class replaces its sources, or the checkpoint has no value.
    """
    if item.mode != "append":
        raise FailedError(
            f'{item.name}: `read` yields a Checkpoint, and mode is "replace": what is replaced is '
            'sent whole; write `mode = "append"`'
        )
    if checkpoint.value is None:
        raise FailedError(f"{item.name}: a Checkpoint's value is None: give where reading goes on")

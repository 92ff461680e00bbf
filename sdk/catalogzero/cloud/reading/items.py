"""Items: what one upload holds, and one pass over it.

An item is a file (`sources`), a named query (`queries`), what an author's `read` gives (`authors`),
or all items of a run as one. Never opens anything itself.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from catalogzero.cloud.reading.records import BadRecords, Found
from catalogzero.cloud.rows.streams import Stream
from catalogzero.cloud.rows.values import Row, fingerprint
from catalogzero.cloud.run_context import Checkpoint, SourceItem
from catalogzero.cloud.settings import Batch
from catalogzero.protocol.identities import Keyed, Mode, digest_of

MAX_POSITION_BYTES = 4_096
"""The longest value from which reading may go on, as JSON."""


@dataclass(frozen=True, slots=True)
class StreamRows:
    """Rows of one stream of a source that has several."""

    stream: str
    batch: Batch


@dataclass(frozen=True, slots=True)
class Plan:
    """What an item sends to one stream, and how."""

    stream: Stream
    mode: Mode

    @property
    def keyed(self) -> Keyed | None:
        """The key by which its rows are merged; None in the other modes."""
        if self.mode != "merge":
            return None
        return {"key": list(self.stream.key), "tombstone": self.stream.tombstone}


class Item(ABC):
    """One source item: what one upload of each stream holds.

    Attributes:
        name: Its name in the source's identity.
        positions_each: Whether each of its streams is read from a position of its own, in one pass:
            positions and checkpoints are then dicts by stream.
    """

    name: str
    positions_each: ClassVar[bool] = False

    @property
    def mode(self) -> Mode:
        """Whether an upload replaces what the source had, or appends to it."""
        return "replace"

    def plans(self, declared: Sequence[Stream]) -> tuple[Plan, ...]:
        """What it sends to each stream; a key makes `merge` of `append`."""
        return tuple(
            Plan(stream, "merge" if stream.key and self.mode == "append" else self.mode)
            for stream in declared
        )

    @property
    def bound(self) -> dict[str, str] | None:
        """What its watermark's values are of: `column`, `database`, `query`; None without."""
        return None

    def stamp(self) -> Any:
        """JSON that stays equal while the item is unchanged, got without reading it; or None."""
        return None

    def shown(self, stream: str) -> SourceItem:
        """What an author's code sees of it."""
        return SourceItem(self.name, stream)

    @abstractmethod
    def open(self, after: Any, bad: BadRecords) -> Reading:
        """A pass over it, from a watermark on where it has one."""


class Reading(ABC):
    """One pass over a source item; a context manager that closes what it opened.

    Attributes:
        after: The watermark that it begins at.
        until: The one that it ends at, once the batches are through.
    """

    def __init__(self, after: Any = None) -> None:
        self.after = self.until = after
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @abstractmethod
    def batches(self) -> Iterator[Batch | StreamRows | Checkpoint]:
        """The records, in batches, and where reading may go on."""

    def content_of(self, stream: str) -> str | None:  # only where each has its own
        """The content of what one stream was given."""
        return self.content()

    @abstractmethod
    def content(self) -> str | None:
        """The digest of all that was read, once the batches are through; None where it has none."""

    def bytes_read(self) -> int:
        """How far a file is read, packed as it is; 0 where it is no file."""
        return 0

    def check(self) -> None:  # noqa: B027  # most sources cannot change under a pass
        """Raise `SourceChangedError` when the source is no longer what was opened."""

    def found(self) -> Sequence[Found]:
        """What its files were read as, as far as they were read."""
        return []


class RowReading(Reading):
    """A pass over rows that have no other identity than what they hold."""

    def __init__(self, mode: Mode, after: Any) -> None:
        super().__init__(after)
        self._sha = hashlib.sha256() if mode == "replace" else None

    def digest(self, rows: Sequence[Row]) -> None:
        """Take rows into the digest; those of a range that is appended have none."""
        if self._sha is not None:
            self._sha.update(fingerprint(rows))

    def content(self) -> str | None:
        """See `Reading.content`: of the rows, in their order."""
        return None if self._sha is None else self._sha.hexdigest()


@dataclass(frozen=True)
class Group(Item):
    """All items of a run as one: `unit = "run"`."""

    name: str
    items: Collection[Item]

    def stamp(self) -> Any:
        """The stamps of all, where each has one."""
        stamps = [[item.name, item.stamp()] for item in self.items]
        return None if any(stamp is None for _, stamp in stamps) else stamps

    def open(self, after: Any, bad: BadRecords) -> GroupReading:
        """See `Item.open`."""
        return GroupReading([(item, item.open(None, bad)) for item in self.items])


class GroupReading(Reading):
    """The passes over all items of a run, one after another; each closes itself as it ends."""

    def __init__(self, readings: list[tuple[Item, Reading]]) -> None:
        super().__init__()
        self._readings, self._begun = readings, list[tuple[Item, Reading]]()
        self._digests: list[tuple[str, str | None]] = []

    def __exit__(self, *error: object) -> None:
        for _, reading in self._begun[-1:]:  # the one in which an error met the pass
            reading.__exit__(*error)

    @property
    def item(self) -> Item:
        """The item that is read now."""
        return self._begun[-1][0] if self._begun else self._readings[0][0]

    def batches(self) -> Iterator[Batch | StreamRows | Checkpoint]:
        """See `Reading.batches`."""
        for item, reading in self._readings:
            with reading:
                self._begun.append((item, reading))
                yield from reading.batches()
                self._digests.append((item.name, reading.content()))

    def content(self) -> str:
        """See `Reading.content`."""
        return digest_of(self._digests)

    def bytes_read(self) -> int:
        """See `Reading.bytes_read`."""
        return sum(reading.bytes_read() for _, reading in self._begun)

    def check(self) -> None:
        """See `Reading.check`."""
        for _, reading in self._begun:
            reading.check()

    def found(self) -> Sequence[Found]:
        """See `Reading.found`."""
        return [found for _, reading in self._readings for found in reading.found()]

"""Writing: what a pass over an item has for each stream, and where `process` is called again.

Owns when a range is due to be sealed, and by which rows a keyed source counts as unchanged. Never
reads a source, never opens the outbox.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from catalogzero.cloud.encoding import ChunkEncoder
from catalogzero.cloud.outbox.outbox import Opening
from catalogzero.cloud.outbox.stored import Mark
from catalogzero.cloud.reading.items import MAX_POSITION_BYTES, Plan, StreamRows
from catalogzero.cloud.rows.batches import lists_of, row_count
from catalogzero.cloud.rows.streams import RowCheck
from catalogzero.cloud.rows.values import fingerprints
from catalogzero.cloud.run_context import Checkpoint
from catalogzero.cloud.settings import Batch
from catalogzero.errors import FailedError

RECENT_ROWS, DIGEST_BYTES = 50_000, 16
"""How many rows of the last sealed read a keyed source remembers, the last; digests of this size.

Of rows beyond them it is not known that they were sent: they are sent again, which changes nothing.
"""


class OpenUpload:
    """Where the records of one upload go, until it is sealed.

    Attributes:
        opening: What it is begun as.
        encoder: Makes its chunks.
        check: Holds its rows against their schema.
        is_begun: Whether the outbox knows it: a small one is begun as it is sealed.
    """

    def __init__(self, opening: Opening, encoder: ChunkEncoder, check: RowCheck) -> None:
        self.opening, self.encoder, self.check = opening, encoder, check
        self.is_begun = False


@dataclass(slots=True, eq=False)
class StreamWriter:
    """What a pass over an item has for one stream.

    Attributes:
        plan: The stream, and how it is sent.
        source_key: The item's, in this stream.
        mark: What was sealed last of it, before the pass.
        full: Whether all is sent again.
        watermark: Of a range where it begins, as the mark gives it: what was sealed last.
        rows: How many rows were read since.
        output: Of the upload that is building; None before the pass, and after it.
        is_sealed: Whether the pass has sealed anything for it.
    """

    plan: Plan
    source_key: str
    mark: Mark
    full: bool
    watermark: Any = None
    rows: int = 0
    output: OpenUpload | None = None
    is_sealed: bool = False
    _recent: deque[bytes] = field(default_factory=lambda: deque(maxlen=RECENT_ROWS))
    _known: set[bytes] = field(default_factory=set)
    _is_known: bool = True

    def __post_init__(self) -> None:
        """Begin where the mark is; a full one begins before all."""
        self.watermark = None if self.full else self.mark.watermark
        found = b"" if self.full else self.mark.recent or b""
        self._known = {found[at : at + DIGEST_BYTES] for at in range(0, len(found), DIGEST_BYTES)}

    @property
    def name(self) -> str:
        """The stream's."""
        return self.plan.stream.name

    @property
    def value(self) -> Any:
        """The value from which on the range is read; None for all."""
        return Mark(watermark=self.watermark).value

    @property
    def is_range(self) -> bool:
        """Whether it goes on where the last one ended."""
        return self.plan.mode != "replace"

    @property
    def recent(self) -> bytes | None:
        """What the mark is to remember of the rows of a keyed source."""
        return b"".join(self._recent) if self.plan.mode == "merge" else None

    def read(self, rows: int, digests: Sequence[bytes]) -> None:
        """Note rows that the source gave: how many, and in merge the digest of each."""
        self.rows += rows
        if self.plan.mode == "merge":
            self._is_known = self._is_known and self._known.issuperset(digests)
            self._recent.extend(digests)

    def is_behind(self, value: Any) -> bool:
        """Whether a value is above the range's beginning; other than numbers, whether it differs.

        What ends at the same value is no part of its own: a read from there would begin with rows
        that are older than what it sealed.
        """
        if isinstance(value, int | float) and isinstance(self.value, int | float):
            return value > self.value
        return bool(value != self.value)

    def is_due(self, name: str, until: Any) -> bool:
        """Whether what was read makes an upload of the range.

        Args:
            name: The item's.
            until: The value at which the source was left.

        Raises:
            FailedError: The range would have no end of its own.
        """
        keyed = self.plan.mode == "merge"
        refuse_no_progress(name, self.value, until, self.rows, keyed=keyed)
        if self.full or until != self.value:
            return True
        return not self._is_known if keyed else self.rows > 0

    def sealed(self, watermark: Any) -> None:
        """Go on behind what was sealed."""
        self.watermark, self.rows, self.is_sealed, self.output = watermark, 0, True, None
        # Rows of before the value rose are no part of what is remembered: one that came back as it
        # was would count as sent, while a later state of it is the newest.
        self._recent.clear()
        self._is_known = True


def note_read(writers: Sequence[StreamWriter], batch: Batch) -> None:
    """Note rows that the source gave for some streams; each row is digested once for all."""
    is_merged = any(writer.plan.mode == "merge" for writer in writers)
    digests = [
        hashlib.blake2b(one, digest_size=DIGEST_BYTES).digest()
        for rows in (lists_of(batch) if is_merged else ())
        for one in fingerprints(rows)
    ]
    for writer in writers:
        writer.read(row_count(batch), digests)


class Stretches:
    """Cuts what a reading gives where `process` is to be called again.

    That is after each checkpoint, and where the rows of another stream begin. A source that gives
    nothing is one stretch, and nothing is read past a checkpoint before the next one is asked for.

    Attributes:
        checkpoint: The one at which the last stretch ended; None where it ended without.
    """

    def __init__(self, given: Iterator[Batch | StreamRows | Checkpoint]) -> None:
        self._given = given
        self._held: Batch | StreamRows | Checkpoint | None = None
        self._is_read = False
        self.checkpoint: Checkpoint | None = None

    def __iter__(self) -> Iterator[tuple[str | None, Iterator[Batch]]]:
        """The stretches, each with its stream (None: of all), to be read to their ends."""
        is_first = True
        while (held := self._peek()) is not None or is_first:
            is_first, self.checkpoint = False, None
            stream = held.stream if isinstance(held, StreamRows) else None
            yield stream, self._stretch(stream)

    def _stretch(self, stream: str | None) -> Iterator[Batch]:
        while (held := self._peek()) is not None:
            if isinstance(held, StreamRows) and held.stream != stream:
                return
            self._held, self._is_read = None, False
            if isinstance(held, Checkpoint):
                self.checkpoint = held
                return
            yield held.batch if isinstance(held, StreamRows) else held

    def _peek(self) -> Batch | StreamRows | Checkpoint | None:
        if not self._is_read:
            self._held, self._is_read = next(self._given, None), True
        return self._held


def refuse_no_progress(
    name: str, after: Any, until: Any, rows: int, *, keyed: bool = False
) -> None:
    """Refuse a range that would be added without an end of its own, or with one that cannot be.

    Raises:
        FailedError: It ends at no value, at one that is no short JSON, or, without a key, holds
            rows and ends where the last one did.
    """
    if until is None and (rows or after is not None):
        raise FailedError(
            f"{name}: the watermark is null after {rows} rows: return the value up to which rows "
            "were read, the last one where there is nothing new"
        )
    try:
        size = len(orjson.dumps(until))
    except orjson.JSONEncodeError as error:
        raise FailedError(
            f"{name}: the watermark {until!r} cannot be kept: {error}; give a text or a number"
        ) from error
    if size > MAX_POSITION_BYTES:
        raise FailedError(
            f"{name}: the watermark has {size} bytes of JSON, and at most {MAX_POSITION_BYTES} are "
            "kept: give where reading goes on, not what was read"
        )
    if rows and until == after and not keyed:
        raise FailedError(
            f"{name}: {rows} rows were read, and the watermark is still {until!r}: rows behind the "
            "last value would be missing or twice; return a higher one, or call with full: true"
        )

"""What a run has done so far, and where it stands: counts, refusals, failures with their place.

Owns how a failure is worded to people on this machine; nothing of it leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from catalogzero.cloud.reading.items import GroupReading, Item, Reading
from catalogzero.cloud.reading.records import Found, FoundFile
from catalogzero.cloud.rows.batches import row_count
from catalogzero.cloud.rows.values import Row
from catalogzero.cloud.run_context import RunContext
from catalogzero.cloud.settings import Batch
from catalogzero.errors import (
    BadParamsError,
    CatalogZeroError,
    FailedError,
    PermanentError,
    SourceChangedError,
    failure_of,
    place_of,
    text_of,
    traceback_of,
    type_of,
)
from catalogzero.wire.messages import utf8

LISTED = 20
"""The most that a list in a result holds; its count stands beside it."""
_NAMED_FAILURES = 5
_MAX_FAILURE_CHARS = 1_000


class ItemFailure(TypedDict):
    """One item that failed: which, at which row (None: not at one), and by what."""

    source: str
    row: int | None
    type: str
    error: str


class OtherParams(TypedDict):
    """A source of the call that is stored under other params, too."""

    source: str
    params: Any


class ItemName(TypedDict):
    """An item of a data_source, as a run names the one that it reads.

    `root` is the token of its data root, where instances on several hosts read it.
    """

    name: str
    root: NotRequired[str]


class ItemList(TypedDict):
    """What `list_items` returns: the items in a stable order, and what is no item."""

    items: list[ItemName]
    left_out: int
    left_out_files: list[str]


class RunSummary(TypedDict):
    """What `process_and_upload` returns: the sum over the run's uploads, and what to look at."""

    status: str
    records: int
    skipped: int
    bad_records: int
    files: list[FoundFile]
    files_read: int
    left_out: int
    left_out_files: list[str]
    bytes_sent: int
    cloud_job_id: str | None
    uploads: int
    upload_ids: list[str]
    timestamp: str
    unmatched: NotRequired[int]
    unmatched_rules: NotRequired[list[str]]
    other_params: NotRequired[list[OtherParams]]
    changed_queries: NotRequired[list[str]]
    sources_under_other_policy: NotRequired[int]
    success: NotRequired[bool]
    error: NotRequired[str]


class WatchedRows(list[Any]):
    """A batch of dicts as `process` gets it; it knows which row was taken last."""

    __slots__ = ("_taken",)
    _taken: Iterator[Any]

    def __iter__(self) -> Iterator[Any]:
        self._taken = super().__iter__()
        return self._taken

    @property
    def at(self) -> int | None:
        """The index of the row that was taken last; None where all were, -1 where none was.

        Raises:
            AttributeError: Nobody has asked for the rows.
        """
        # The iterator knows its place, so that a row costs no call: (iter, (rows,), next index).
        place: tuple[Any, ...] = self._taken.__reduce__()  # type: ignore[assignment]
        return place[2] - 1 if len(place) == 3 else None


@dataclass(slots=True)
class RowPair:
    """A row that `process` took, and what it yielded before it took the next one.

    Attributes:
        source: The file or query.
        row: Its number, from 1; None for what was yielded before the first or after the last.
        given: The row, as it came.
        made: The rows that were yielded, as they may leave.
        rejected: Why it, or what was made of it, was rejected.
    """

    source: str
    row: int | None = None
    given: Row | None = None
    made: list[Row] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Place:
    """Where a pass over an item stands: what `process` was given last, for errors."""

    item: Item
    attempt: int = 1
    full: bool = False
    reading: Reading | None = None
    batch: Batch | None = None
    count: int = 0
    before: int = 0
    stream: str = ""
    """Of the rows at hand: the tap's stream, or the handler's."""
    _last: str = ""
    _context: RunContext | None = None

    @property
    def _item(self) -> Item:
        """The file or query that is read now."""
        return self.reading.item if isinstance(self.reading, GroupReading) else self.item

    @property
    def name(self) -> str:
        """Its name."""
        return self._item.name

    def context(self) -> RunContext:
        """What an author's code sees of the run here; the file is looked at once."""
        context = self._context
        if context is None or (context.item.name, context.item.stream) != (self.name, self.stream):
            since = self.reading.after if self.reading else None
            since = since.get(self.stream) if self.item.positions_each and since else since
            shown = self._item.shown(self.stream)
            context = self._context = RunContext(shown, self.attempt, self.full, since)
        return context

    @property
    def untaken(self) -> int:
        """How many rows of the batch at hand `process` has not come to, as far as that is known."""
        batch = self.batch
        at = getattr(batch, "at", -1) if isinstance(batch, WatchedRows) else None
        return 0 if at is None else self.count - at - 1

    @property
    def row(self) -> int | None:
        """The number of the row at hand, from 1; None where it cannot be known."""
        at = 0 if self.count == 1 else getattr(self.batch, "at", None)
        return None if self.batch is None or at is None else self.before + at + 1

    def given(self, batch: Batch) -> None:
        """Note what `process` is given now."""
        self.before = self.before + self.count if self._last == self.name else 0
        self.count = row_count(batch)
        self.batch, self._last = batch, self.name

    def __str__(self) -> str:
        if self.row is not None:
            return f"{self.name}, row {self.row}"
        first, last = self.before + 1, self.before + self.count
        return self.name if self.batch is None else f"{self.name}, rows {first} to {last}"


@dataclass(slots=True)
class Counters:
    """What a run has done so far; of refusals and failures, the first."""

    uploads: list[str] = field(default_factory=list)
    skipped: int = 0
    bad_records: int = 0
    rows_read: int = 0
    records: int = 0
    items_done: int = 0
    found: list[Found] = field(default_factory=list)
    files_read: int = 0
    bytes_total: int = 0
    bytes_before: int = 0
    refused: list[str] = field(default_factory=list)
    waiting: set[str] = field(default_factory=set)
    changed_queries: list[str] = field(default_factory=list)
    failed: int = 0
    failures: list[ItemFailure] = field(default_factory=list)
    traceback: str = ""
    """Of the first item at which an author's code raised."""

    kinds: set[type[CatalogZeroError]] = field(default_factory=set)

    def refuse(self, why: str) -> None:
        """Note that the backend refused what an item had."""
        self.refused += [why] if len(self.refused) < LISTED else []

    def fail(self, place: Place, error: Exception) -> None:
        """Note that an item failed, where, and by what; the error itself may hold much memory."""
        message = f"{text_of(error)}{place_of(error)}"
        if isinstance(error, CatalogZeroError):
            message = error.message
        self.failed += 1
        self.traceback = self.traceback or traceback_of(error)
        self.kinds.add(type(error if isinstance(error, CatalogZeroError) else failure_of(error)))
        if len(self.failures) < LISTED:
            source, message = utf8(place.name), utf8(message)
            message = message if source in message else f"{utf8(str(place))}: {message}"
            shown = message[:_MAX_FAILURE_CHARS]
            self.failures.append(
                {"source": source, "row": place.row, "type": type_of(error), "error": shown}
            )

    def failure(self, items: int, result: RunSummary) -> CatalogZeroError:
        """The error of a run in which items failed; `result` is that of the others.

        Its `details` is that result with the status `failed`, and the failures.
        """
        shown = [failure["error"] for failure in self.failures]
        text = shown[0]
        if items > 1:
            more = self.failed - _NAMED_FAILURES
            named = "; ".join(
                [*shown[:_NAMED_FAILURES], *([f"and {more} more"] if more > 0 else [])]
            )
            stored = f"{result['uploads']} stored for upload"
            text = f"{self.failed} of {items} items failed ({stored}): {named}"
        kind = next(iter(self.kinds)) if len(self.kinds) == 1 else FailedError
        own = {SourceChangedError, BadParamsError, PermanentError}
        kind = kind if kind in own else FailedError
        text += f"; {result['error']}" if "error" in result else ""
        counts = {"items": items, "failed": self.failed, "failures": self.failures}
        ended = {"status": "failed", "success": False, "error": text}
        error = kind(text, details={**result, **ended, **counts})
        types = {failure["type"] for failure in self.failures}
        error.cause_type = types.pop() if len(types) == 1 else ""
        error.cause_traceback = self.traceback
        return error

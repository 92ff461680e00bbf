"""One run of `process_and_upload`: items, attempts, sealed uploads, and the result.

Runs in a thread of the worker: source → batches → `process` → egress filter → chunks → outbox. The
sender takes them from there meanwhile. Never talks to a backend.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import orjson

from catalogzero.clock import Clock
from catalogzero.cloud.encoding import ColumnFilter, encoder_for, rows_of
from catalogzero.cloud.outbox import Outbox, UploadEndedError
from catalogzero.cloud.outbox_contents import Mark, Upload
from catalogzero.cloud.outbox_file import is_disk_full
from catalogzero.cloud.records import BadRecords, ReadOptions, require_extra
from catalogzero.cloud.sender import new_upload_id
from catalogzero.cloud.settings import Batch, CloudSettings, Params
from catalogzero.cloud.sources import FileItem, Group, Item, Reading, Roots
from catalogzero.config.settings import RuntimeSettings
from catalogzero.errors import BadParamsError, CatalogZeroError, FailedError, SourceChangedError
from catalogzero.protocol.identities import Identity, Mode, digest_of, source_key, upload_key

ATTEMPTS = 3
_WORST_FIRST = ("rejected", "queued", "uploaded", "unchanged")
_TOLD_FAILURES = 5
LISTED = 20
WATERMARK_OF_CHARS = 32


class Author(Protocol):
    """What a run needs of a `CloudProcessor`."""

    unit: ClassVar[Any]
    batch_type: ClassVar[Any]
    batch_rows: ClassVar[int]
    mode: ClassVar[Any]
    output_version: ClassVar[int]

    def process(self, batches: Iterator[Batch], params: Params) -> Iterator[Batch]:
        """The author's work."""

    def read(self, data_source: str, params: Params, after: Any = None) -> Iterator[Batch]:
        """The author's own source."""

    @property
    def reads_itself(self) -> bool:
        """Whether `read` is the author's."""


class Sending(Protocol):
    """What a run needs of the sender."""

    def wake(self) -> None:
        """Look at the outbox now."""

    def wait_ended(self, upload_ids: Sequence[str], timeout_s: float) -> None:
        """Wait until the uploads have ended, a pause begins, or the time is up."""


@dataclass(slots=True, kw_only=True)
class Ways:
    """What a run works with."""

    author: Author
    settings: CloudSettings
    runtime: RuntimeSettings
    identity: Identity
    outbox: Outbox
    sender: Sending
    columns: ColumnFilter
    names_key: bytes | None
    folder: Path
    clock: Clock
    progress: Callable[..., None]


@dataclass(slots=True)
class Tally:
    """What a run has done so far."""

    uploads: dict[str, Item] = field(default_factory=dict)
    skipped: int = 0
    bad_records: int = 0
    rows_read: int = 0
    records: int = 0
    items_done: int = 0
    bytes_total: int = 0
    bytes_before: int = 0
    refused: list[str] = field(default_factory=list)
    waiting: set[str] = field(default_factory=set)
    changed_queries: list[str] = field(default_factory=list)
    failures: list[CatalogZeroError] = field(default_factory=list)


class UploadRun:
    """One run over one data_source."""

    def __init__(
        self, ways: Ways, data_source: str, params: Params, chunk_format: str, *, full: bool
    ) -> None:
        self._ways, self._source, self._full = ways, data_source, full
        self._params = {k: v for k, v in params.items() if k not in {"format", "full"}}
        self._format = "ndjson" if chunk_format == "json" else chunk_format
        self._tally = Tally()
        encoder_for(self._format, ways.runtime.chunk_bytes)

    def __call__(self) -> dict[str, Any]:
        """Read, process, store; wait a while for the backend; the run's result.

        Raises:
            BadParamsError: The data_source may not or cannot be read.
            FailedError: The outbox is full, `process` raised, or a source is malformed.
            SourceChangedError: A source changed in each of three attempts.
        """
        self._ways.outbox.refuse_when_full()
        self._tally.waiting = self._ways.outbox.waiting(self._source, self._params)
        items = self._items()
        self._tally.bytes_total = sum(map(_size_of, items))
        self._tell(items=len(items))
        for item in items:
            self._take(item)
            self._tally.items_done += 1
            self._tally.bytes_before += _size_of(item)
            self._tell()
        self._ways.outbox.gone(self._tally.waiting)
        if self._tally.failures:
            raise self._failure(len(items))
        self._wait()
        if self._tally.failures:
            raise self._failure(len(items))
        return self._result()

    def _wait(self) -> None:
        """Wait a while for the backend; what came too late there is read and sealed again."""
        tally, ways = self._tally, self._ways
        for _ in range(ATTEMPTS):
            ways.sender.wait_ended(list(tally.uploads), ways.runtime.upload_wait_s)
            late = ways.outbox.held(tally.uploads)
            if not late:
                return
            for upload_id in late:
                self._take(tally.uploads.pop(upload_id))

    def _items(self) -> list[Item]:
        """What is to be read."""
        author, settings = self._ways.author, self._ways.settings
        options = ReadOptions(
            author.batch_rows, author.batch_type == "arrow", settings.encoding, settings.delimiter
        )
        items: list[Item]
        if author.reads_itself:
            items = [OwnItem(author, self._source, self._params)]
        elif self._source.startswith("sql:"):
            require_extra("sql")
            from catalogzero.cloud.queries import query_item

            items = [query_item(settings, self._source, options)]
        else:
            items = self._files(options)
        return [Group(self._source, items)] if author.unit == "run" else items

    def _files(self, options: ReadOptions) -> list[Item]:
        """The files of a path, a folder or a pattern; one that is gone is noted as such."""
        roots = self._ways.settings.data_roots
        try:
            return list(Roots(roots).items(self._source, options))
        except BadParamsError:
            if any(root.is_dir() for root in roots):
                self._ways.outbox.gone(self._tally.waiting)
            raise

    def _take(self, item: Item) -> None:
        """Read and seal one item; one that cannot be read does not stop the others."""
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    return self._attempt(item)
                except SourceChangedError:
                    if attempt == ATTEMPTS:
                        raise
                except UploadEndedError as error:
                    if attempt == ATTEMPTS or not (error.details or {}).get("compared"):
                        raise
        except UploadEndedError as error:
            self._tally.refused.append(error.message)
        except CatalogZeroError as error:
            self._tally.failures.append(error)
        except sqlite3.OperationalError as error:
            if not is_disk_full(error):
                raise
            where = self._ways.folder
            told = f"the disk is full at {where}: make room, or set another state_dir"
            self._tally.failures.append(FailedError(told))

    def _attempt(self, item: Item) -> None:
        """One pass over an item, to its sealed upload, or to the finding that it is unchanged."""
        ways = self._ways
        key = source_key(
            ways.identity.installation_id,
            ways.identity.stream,
            item.name,
            self._params,
            ways.names_key,
        )
        if not (isinstance(item, FileItem) and item.is_gone()):
            self._tally.waiting.discard(key)
        self._settle(item)
        mark = ways.outbox.mark(key)
        full = self._full or mark.owed or mark.mode not in (None, item.mode)
        if not full and self._stands_still(item, mark):
            return
        if not full and self._is_unchanged(item, key, mark):
            self._tally.skipped += 1
            return
        upload_id = new_upload_id()
        name = ways.columns.hash_of(item.name) if ways.names_key else item.name
        ways.outbox.begin(upload_id, key, str(name), item.mode, full=full, params=self._params)
        bad = BadRecords(
            ways.settings.on_bad_record, ways.folder / "bad_records" / f"{upload_id}.jsonl"
        )
        try:
            sealed = self._fill(upload_id, item, key, mark, bad, full=full)
        except BaseException:
            ways.outbox.abandon(upload_id)
            bad.restart()
            raise
        if not sealed:
            return bad.restart()
        self._tally.bad_records += bad.count
        self._tally.uploads[upload_id] = item
        ways.sender.wake()

    def _stands_still(self, item: Item, mark: Mark) -> bool:
        """Whether an appended source is not read on, as a refused range is in its way.

        Raises:
            BadParamsError: Its watermark is of another column or database now.
        """
        if item.mode != "append":
            return False
        if mark.dead is not None:
            self._tally.refused.append(
                f"{item.name} is not read on: upload {mark.dead} was refused; see `catalogzero "
                "outbox show`, then retry it, purge it (with --skip where its rows are given "
                "up), or call with full: true"
            )
            return True
        bound, before = item.bound, mark.bound
        if bound is not None and before is not None:
            if any(bound[name] != before[name] for name in ("column", "database")):
                message = (
                    f"{item.name}: its watermark was of column {before['column']} in "
                    f"{before['database']}, and is of {bound['column']} in {bound['database']} "
                    "now: rows would be missing or twice; call it once with full: true"
                )
                raise BadParamsError(message, details=[{"field": "full", "message": message}])
            if bound["query"] != before["query"]:
                self._tally.changed_queries.append(item.name)
        return False

    def _fill(
        self, upload_id: str, item: Item, key: str, mark: Mark, bad: BadRecords, *, full: bool
    ) -> bool:
        """Produce an upload's chunks and seal it; False when nothing new was there."""
        ways, stamp, before = self._ways, self._stamp(item), self._tally.rows_read
        with item.open(None if full else mark.value, bad) as reading:
            self._produce(upload_id, reading)
            content = reading.content()
            reading.check()
            after, until = reading.after, reading.until
        if item.mode == "append":
            rows = self._tally.rows_read - before
            refuse_no_progress(item.name, after, until, rows)
            after = None if full else mark.watermark
            content_key = upload_key(key, [after, until], ways.author.output_version)
            unchanged = rows == 0 and until == reading.after
        else:
            content_key = upload_key(key, content, ways.author.output_version)
            unchanged = content_key == mark.upload_key
        if unchanged and not full:
            ways.outbox.abandon(upload_id)
            if item.mode == "replace":
                ways.outbox.restamp(key, content_key, stamp)
            self._tally.skipped += 1
            return False
        bound = item.bound
        of = digest_of([bound["column"], bound["database"]], ways.names_key) if bound else ""
        ways.outbox.seal(
            upload_id,
            content_key,
            stamp=stamp,
            after=after,
            until=until,
            bound=bound,
            watermark_of=of[:WATERMARK_OF_CHARS],
            found_by=self._source,
        )
        return True

    def _produce(self, upload_id: str, reading: Reading) -> None:
        """Run `process` over the batches, and store what it yields."""
        ways = self._ways
        encoder = encoder_for(self._format, ways.runtime.chunk_bytes)

        def store(chunks: Iterator[Any]) -> None:
            for chunk in chunks:
                ways.outbox.add(upload_id, chunk)
                self._tally.records += chunk.records
                ways.sender.wake()
                self._tell(reading)

        batches = self._counted(reading.batches())
        for batch in ways.author.process(batches, self._params):
            store(encoder.add(ways.columns(batch)))
        store(encoder.finish())
        for _ in batches:  # what `process` left unread belongs to the content all the same
            pass

    def _counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, counted for the progress."""
        for batch in batches:
            self._tally.rows_read += batch.num_rows if hasattr(batch, "num_rows") else len(batch)
            yield batch

    def _is_unchanged(self, item: Item, key: str, mark: Mark) -> bool:
        """Whether the item's content is the last sealed one: by its stamp, else by a first read.

        A first read is made only of a file whose size is that of the last sealed content.
        """
        if self._full or mark.upload_key is None or mark.stamp is None:
            return False
        stamp = self._stamp(item)
        if stamp == mark.stamp:
            return True
        if not isinstance(item, FileItem) or stamp[0] != mark.stamp[0]:
            return False
        if stamp[1][0] != mark.stamp[1][0]:
            return False
        found = upload_key(key, item.digest(), self._ways.author.output_version)
        if found != mark.upload_key:
            return False
        self._ways.outbox.restamp(key, found, stamp)
        return True

    def _stamp(self, item: Item) -> Any:
        """The item's stamp under this output_version; None where it has none."""
        stamp = item.stamp()
        return None if stamp is None else [self._ways.author.output_version, stamp]

    def _settle(self, item: Item) -> None:
        """Wait until a file is `settle_s` old."""
        files = item.items if isinstance(item, Group) else [item]
        ages = [
            self._ways.clock.now().timestamp() - file.modified_at()
            for file in files
            if isinstance(file, FileItem)
        ]
        wait_s = min(self._ways.runtime.settle_s - min(ages, default=1e9), 60.0)
        if wait_s > 0:
            threading.Event().wait(min(wait_s, self._ways.runtime.settle_s))

    def _tell(self, reading: Reading | None = None, **fields: Any) -> None:
        tally = self._tally
        if tally.bytes_total:
            here = reading.bytes_read() if reading else 0
            fields |= {
                "bytes_read": min(tally.bytes_before + here, tally.bytes_total),
                "bytes_total": tally.bytes_total,
            }
        self._ways.progress(
            rows_read=tally.rows_read,
            records=tally.records,
            items_done=tally.items_done,
            **fields,
        )

    def _failure(self, items: int) -> CatalogZeroError:
        """The error of a run in which items failed."""
        failures = self._tally.failures
        if len(failures) == 1 and items == 1:
            return failures[0]
        told = "; ".join(error.message for error in failures[:_TOLD_FAILURES])
        sealed = len(self._tally.uploads)
        text = f"{len(failures)} of {items} items failed ({sealed} are stored and sent): {told}"
        if all(isinstance(error, SourceChangedError) for error in failures):
            return SourceChangedError(text)
        if all(isinstance(error, BadParamsError) for error in failures):
            return BadParamsError(text, details=failures[0].details)
        return FailedError(text, details=[error.message for error in failures])

    def _result(self) -> dict[str, Any]:
        """The sum over the run's uploads."""
        uploads = [self._final(upload_id) for upload_id in self._tally.uploads]
        states = {_status(upload) for upload in uploads}
        states |= {"rejected"} if self._tally.refused else set()
        states |= set() if states else {"unchanged"}
        status = next(word for word in _WORST_FIRST if word in states)
        job_ids = [upload.job_id for upload in uploads if upload.job_id]
        result = {
            "status": status,
            "records": sum(upload.records for upload in uploads),
            "skipped": self._tally.skipped,
            "bad_records": self._tally.bad_records,
            "bytes_sent": sum(upload.bytes_sent for upload in uploads),
            "cloud_job_id": job_ids[-1] if job_ids else None,
            "upload_ids": [upload.upload_id for upload in uploads],
            "timestamp": self._ways.clock.now().isoformat(),
        }
        elsewhere = self._ways.outbox.also_under(self._source, self._params, LISTED)
        if elsewhere:
            result["other_params"] = elsewhere
        if self._tally.changed_queries:
            result["changed_queries"] = self._tally.changed_queries[:LISTED]
        if status == "rejected":
            dead = [str((u.answer or {}).get("reason")) for u in uploads if u.state == "dead"]
            reasons = "; ".join([*self._tally.refused, *dead])
            result |= {"success": False, "error": f"the backend refused: {reasons}"}
        return result

    def _final(self, upload_id: str) -> Upload:
        """An upload, or what it was sealed again as."""
        upload = self._ways.outbox.upload(upload_id)
        while isinstance(upload.answer, Mapping) and "sealed_again_as" in upload.answer:
            upload = self._ways.outbox.upload(upload.answer["sealed_again_as"])
        return upload


def _size_of(item: Item) -> int:
    """The bytes of an item's files; 0 where it has none, or they cannot be looked at."""
    if isinstance(item, Group):
        return sum(map(_size_of, item.items))
    with suppress(BadParamsError):
        return item.stamp()[0] if isinstance(item, FileItem) else 0
    return 0


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


@dataclass(frozen=True, slots=True)
class OwnItem:
    """A data_source that the author's `read` reads."""

    bound: ClassVar[None] = None

    author: Author
    name: str
    params: Params

    @property
    def mode(self) -> Mode:
        """What the class says."""
        mode: Mode = self.author.mode
        return mode

    def stamp(self) -> None:
        """There is none: it is read each time."""

    def open(self, after: Any, bad: BadRecords) -> OwnReading:
        """See `Item.open`."""
        return OwnReading(self, after)


class OwnReading:
    """One pass of the author's `read`; in append mode it returns the new watermark."""

    def __init__(self, item: OwnItem, after: Any) -> None:
        self._item, self.after, self.until = item, after, after
        self._sha = hashlib.sha256()
        self._batches: Iterator[Batch] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()

    def batches(self) -> Iterator[Batch]:
        """See `Reading.batches`."""
        item = self._item
        append = item.mode == "append"
        extra = (self.after,) if append else ()
        self._batches = iter(item.author.read(item.name, item.params, *extra))
        while True:
            try:
                batch = next(self._batches)
            except StopIteration as end:
                if append:
                    self.until = end.value
                return
            for row in () if append else rows_of(batch):
                self._sha.update(orjson.dumps(row, default=str, option=orjson.OPT_NON_STR_KEYS))
            yield batch

    def content(self) -> str | None:
        """See `Reading.content`."""
        return None if self._item.mode == "append" else self._sha.hexdigest()

    def bytes_read(self) -> int:
        """See `Reading.bytes_read`."""
        return 0

    def check(self) -> None:
        """An own source has no other identity than what was read."""


def _status(upload: Upload) -> str:
    """What an upload's state means for the run."""
    if upload.state in {"done", "superseded"}:
        return "uploaded"
    waits = {"building", "sealed", "completing", "held"}
    return "queued" if upload.state in waits else "rejected"

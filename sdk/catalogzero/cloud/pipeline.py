"""One run of `process_and_upload`: items, attempts, sealed uploads, and the result.

Runs in a thread of the worker: source → batches → `process` → egress filter → chunks → outbox. The
sender takes them from there meanwhile. Never talks to a backend.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from catalogzero.cloud.counters import LISTED, Counters, Place, RowPair, RunSummary, WatchedRows
from catalogzero.cloud.egress import name_below, policy_digest, shown_params
from catalogzero.cloud.encoding import ColumnFilter, encoder_for
from catalogzero.cloud.extras import require_extra
from catalogzero.cloud.outbox.outbox import BuildingUpload, Outbox, UploadEndedError
from catalogzero.cloud.outbox.store import is_disk_full
from catalogzero.cloud.outbox.stored import Mark
from catalogzero.cloud.params import params_of
from catalogzero.cloud.reading.authors import OwnItem, RunAuthor, refuse_no_progress
from catalogzero.cloud.reading.items import Group, Item
from catalogzero.cloud.reading.records import BadRecords, ReadOptions
from catalogzero.cloud.reading.sources import FileItem, Files, Roots
from catalogzero.cloud.rows.batches import parts_of, rows_of
from catalogzero.cloud.rows.streams import RowCheck, streams_of
from catalogzero.cloud.rows.values import UnfitError, where
from catalogzero.cloud.run_context import ActiveRun
from catalogzero.cloud.settings import Batch, Params
from catalogzero.errors import (
    BadParamsError,
    FailedError,
    RunCancelledError,
    SourceChangedError,
)
from catalogzero.protocol.identities import Identity, digest_of, source_key, upload_key
from catalogzero.wire.messages import utf8

ATTEMPTS = 3
PROGRESS_S = 1.0
WATERMARK_OF_CHARS = 32
_WORST_FIRST = ("rejected", "queued", "superseded", "uploaded", "unchanged")
_ANY = orjson.OPT_NON_STR_KEYS
_FACT_MATCHED = "egress_matched"
_STATUS = {
    "done": "uploaded",
    "superseded": "superseded",
    **dict.fromkeys(("building", "sealed", "completing", "held"), "queued"),
}
"""What an upload's state means for its run; any other is `rejected`."""


@dataclass(kw_only=True)
class UploadRun:
    """One run over one data_source.

    Attributes:
        author: The class that processes, with its settings and clock.
        identity: Who sends.
        outbox: Where sealed uploads go.
        wake: Has the sender look at the outbox now.
        wait_ended: Waits until uploads have ended, a pause begins, or a number of seconds is up.
        key: Hashes what the egress policy has hashed.
        folder: Where `bad_records` are kept; the handler's state folder.
        progress: Takes figures after each step.
        data_source: What is read.
        params: What the call gave; once made, what of it is part of a source's identity.
        chunk_format: ndjson, json (the same), csv or parquet.
        full: Send all again, also what is unchanged.
        limit: How many rows are read, by the bytes of all files (0 for other sources); None: all.
        pairs: Takes each row beside what was made of it; rows then come one at a time.

    Raises:
        BadParamsError: There is no such format, or the params do not fit the author's model.
    """

    author: RunAuthor
    identity: Identity
    outbox: Outbox
    wake: Callable[[], None]
    wait_ended: Callable[[Sequence[str], float], None]
    key: bytes
    folder: Path
    progress: Callable[..., None]
    data_source: str
    params: Params
    chunk_format: str
    full: bool
    limit: Callable[[int], int | None] = lambda size: None
    pairs: list[RowPair] | None = None
    from_file: bool = False

    def __post_init__(self) -> None:
        taken = params_of(type(self.author))
        self._given, self.params = taken(self.params), taken.identity(self.params)
        self._counters = Counters()
        self._unsealed: dict[str, Callable[[], int]] = {}
        self._place: Place | None = None
        self._own: dict[str, int | None] = {}
        self._rows_shown = 0
        self._rows_left: int | None = None
        policy = self.author.runtime.egress
        self.columns = ColumnFilter(policy, self.key)
        self.names_key = self.key if policy.hash_sources else None
        self._policy = policy_digest(policy)
        self._files: Files | None = None
        encoder_for(self.chunk_format, self.author.runtime.chunk_bytes)

    def __call__(self) -> RunSummary:
        """Read, process, store; wait a while for the backend; the run's result.

        Raises:
            BadParamsError: The data_source may not or cannot be read.
            FailedError: The outbox is full, or an item failed; `details` is the result of the
                others, with `failed` (how many) and `failures` (the first 20).
            SourceChangedError: Sources changed in each of three attempts, and nothing else failed.
        """
        self.outbox.refuse_when_full()
        self._counters.waiting = self.outbox.store.waiting(self.data_source, self.params)
        items = self._items()
        self._counters.bytes_total = sum(map(size_of, items))
        self._rows_left = self.limit(self._counters.bytes_total)
        self._report(items=len(items))
        try:
            with self.outbox.keeping(), self._reporting():
                for item in items:
                    if self.is_cut:
                        break
                    self._take(item)
                    self._place = None
                    self._counters.items_done += 1
                    self._counters.bytes_before += size_of(item)
                    self._report()
                self._seal_all()
                self.outbox.gone(self._counters.waiting)
                self._wait(items)
                result = self._result()
        finally:
            for upload_id in self._unsealed:
                self.outbox.abandon(upload_id)
        if self._counters.failed:
            raise self._counters.failure(len(items), result)
        return result

    def _wait(self, items: Collection[Item]) -> None:
        """Wait a while for the backend; what came too late there is read and sealed again."""
        counters = self._counters
        for _ in range(ATTEMPTS):
            self.wait_ended(counters.uploads, self.author.runtime.upload_wait_s)
            late = self.outbox.store.held(counters.uploads)
            if not late:
                return
            counters.uploads = [one for one in counters.uploads if one not in late]
            keys = set(late.values())
            for item in items:
                if self._key(item) in keys:
                    self._take(item)
            self._seal_all()

    def _items(self) -> Collection[Item]:
        """What is to be read."""
        author, settings = self.author, self.author.settings
        options = ReadOptions(
            author.batch_rows,
            author.batch_type == "arrow",
            settings.encoding,
            settings.delimiter,
            settings.allow_empty,
        )
        items: Collection[Item]
        if author.reads_itself and not self.from_file:
            items = [OwnItem(author, self.data_source, self._given)]
        elif self.data_source.startswith("sql:"):
            require_extra("sql")
            from catalogzero.cloud.reading.queries import query_item

            query = query_item(settings, self.data_source, options)
            mark = query.query.watermark
            if mark is not None and not self.columns.in_clear(mark):
                raise BadParamsError(
                    f"{query.name}: the egress policy keeps back its watermark {mark!r}, whose "
                    "values leave with each upload: let it leave, or take `watermark` out"
                )
            items = [query]
        else:
            roots = settings.data_roots
            try:
                items = self._files = Roots(roots).items(self.data_source, options)
            except BadParamsError:
                # An unmounted share is no proof that its files are gone.
                if any(root.is_dir() for root in roots):
                    self.outbox.gone(self._counters.waiting)
                raise
        return [Group(self.data_source, items)] if author.unit == "run" else items

    def _take(self, item: Item) -> None:
        """Read and seal one item; whatever it raises, the others go on."""
        for attempt in range(1, ATTEMPTS + 1):
            self._place = place = Place(item, attempt)
            try:
                return self._attempt(item, place)
            except UploadEndedError as error:
                if attempt == ATTEMPTS or not (error.details or {}).get("compared"):
                    return self._counters.refuse(error.message)
            except SourceChangedError as error:
                if attempt == ATTEMPTS:
                    self._counters.fail(place, error)
            except RunCancelledError:
                raise
            except Exception as error:  # noqa: BLE001  # an author's, a reader's: this item's alone
                full = isinstance(error, sqlite3.OperationalError) and is_disk_full(error)
                text = f"the disk is full at {self.folder}: make room, or set another state_dir"
                return self._counters.fail(place, FailedError(text) if full else error)

    def _seal_all(self) -> None:
        """With `strict`: seal what the run made, unless a rule of the policy matched nothing.

        Raises:
            FailedError: One did; nothing of the run was sent.
        """
        if self._unsealed and (unmatched := self._unmatched()):
            raise FailedError(
                f"egress.strict: no column of this run matched {', '.join(unmatched[:LISTED])}: "
                "correct the rule, or take it out; nothing was sent"
            )
        for upload_id, seal in self._unsealed.items():
            self._seal(upload_id, seal)
        self._unsealed.clear()

    def _seal(self, upload_id: str, seal: Callable[[], int]) -> None:
        seal()
        self._counters.uploads.append(upload_id)
        self.wake()

    def _unmatched(self) -> list[str]:
        """The policy's rules that matched no column of what this run read.

        Where sources were unchanged, what an earlier run matched under this policy counts too.
        """
        columns, outbox = self.columns, self.outbox
        matched = set(columns.matched())
        known = outbox.store.fact(_FACT_MATCHED) or {}
        if known.get("policy") == self._policy:
            before = set(known["rules"])
            if before - matched or matched - before:
                outbox.remember(_FACT_MATCHED, {**known, "rules": sorted(before | matched)})
            matched |= before if self._counters.skipped else set()
        elif matched:
            outbox.remember(_FACT_MATCHED, {"policy": self._policy, "rules": sorted(matched)})
        rules = [f"{kind}: {name}" for kind, name in columns.rules]
        return [rule for rule in rules if rule not in matched]

    def _attempt(self, item: Item, place: Place) -> None:
        """One pass over an item, to its sealed upload, or to the finding that it is unchanged."""
        files = item.items if isinstance(item, Group) else [item]
        for name in (file.name for file in files):
            if name != utf8(name):
                raise FailedError(f"{utf8(name)}: the file's name is not UTF-8: rename it")
        key = self._key(item)
        if not (isinstance(item, FileItem) and item.is_gone()):
            self._counters.waiting.discard(key)
        now, min_age_s = self.author.clock.now().timestamp(), self.author.runtime.min_file_age_s
        ages = [now - file.modified_at() for file in files if isinstance(file, FileItem)]
        # A file from the future would be waited for until then: never longer than the minimum age.
        wait_s = min(min_age_s - min(ages, default=1e9), min_age_s, 60.0)
        if wait_s > 0:
            threading.Event().wait(wait_s)
        mark = self.outbox.store.mark(key)
        place.full = full = self.full or mark.owed or mark.mode not in (None, item.mode)
        if not full and (self._stands_still(item, mark) or self._is_unchanged(item, key, mark)):
            return self._skip(item, mark)
        shown, params = self._shown(item.name), shown_params(self.params, self._shown)
        building = self.outbox.building(key, shown, item.mode, full=full, params=params)
        is_new = False
        with building as upload:
            kept = self.folder / "bad_records" / f"{upload.upload_id}.jsonl"
            bad = BadRecords(self.author.settings.on_bad_record, kept)
            try:
                is_new = self._fill(upload, place, key, mark, bad)
            finally:
                if not is_new:
                    bad.restart()
        if not is_new:
            return self._skip(item, mark)
        self._counters.bad_records += bad.count

    def _fill(
        self,
        upload: BuildingUpload,
        place: Place,
        key: str,
        mark: Mark,
        bad: BadRecords,
    ) -> bool:
        """Read an item into an upload, and seal that; False when nothing new was there."""
        item, counters, author, full = place.item, self._counters, self.author, place.full
        before = counters.rows_read
        # Taken before the content: a source that changes later differs from its stamp.
        stamp = self._stamp(item)
        content: Any
        with item.open(None if full else mark.value, bad) as reading:
            place.reading = reading
            try:
                self._produce(upload, bad, place)
            except Exception:
                reading.check()  # a source that changed meanwhile explains any other fault
                raise
            # Of a part there is no content; to read the rest for it would take long.
            content = None if self.is_cut else reading.content()
            reading.check()
            after, until, found = reading.after, reading.until, reading.found()
        counters.files_read += len(found)
        counters.found += found[: LISTED - len(counters.found)]
        if item.mode == "append":
            rows = counters.rows_read - before
            if not self.is_cut:
                refuse_no_progress(item.name, after, until, rows)
            unchanged = rows == 0 and until == after
            after = None if full else mark.watermark
            content = [after, until]
        content_key = upload_key(key, content, author.output_version)
        if item.mode == "replace":
            unchanged = content_key == mark.upload_key
        if unchanged and not full:
            if item.mode == "replace":
                self.outbox.restamp(key, content_key, stamp)
            return False
        bound = item.bound
        of = digest_of([bound["column"], bound["database"]], self.names_key) if bound else ""
        seal = partial(
            self.outbox.seal,
            upload.upload_id,
            content_key,
            stamp=stamp,
            after=after,
            until=until,
            bound=bound,
            watermark_of=of[:WATERMARK_OF_CHARS],
            found_by=self.data_source,
            policy=self._policy,
        )
        upload.is_finished = True
        if author.runtime.egress.strict:
            # A rule that matches nothing shows only at the end of the run: nothing may have left.
            self._unsealed[upload.upload_id] = seal
        else:
            self._seal(upload.upload_id, seal)
        return True

    def _key(self, item: Item) -> str:
        """The item's source_key."""
        identity = self.identity
        return source_key(
            identity.installation_id, identity.stream, item.name, self.params, self.names_key
        )

    def _skip(self, item: Item, mark: Mark) -> None:
        """An item without anything new; while what it had was refused, it is not `unchanged`."""
        if mark.dead is None:
            self._counters.skipped += 1
            return
        refused = self.outbox.store.upload(mark.dead)
        why = (refused.answer or {}).get("reason")
        what = "retry or purge it"
        if item.mode == "append":
            what = "until then the source is not read on; retry it, purge it (with --skip where "
            what += "its rows are given up), or call with full: true"
        self._counters.refuse(
            f"{item.name}: {why} (upload {mark.dead}, see catalogzero outbox show: {what})"
        )

    def _stands_still(self, item: Item, mark: Mark) -> bool:
        """Whether an appended source is not read on, as a refused range is in its way.

        Raises:
            BadParamsError: Its watermark is of another column or database now.
        """
        if item.mode != "append" or mark.dead is not None:
            return item.mode == "append"
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
                self._counters.changed_queries.append(item.name)
        return False

    def _shown(self, text: str) -> str:
        """A source's name, or a text of the call's params, as it leaves."""
        if self.names_key:
            return self.columns.hash_of(text) or ""
        return name_below(text, self.author.settings.data_roots)

    def _produce(self, upload: BuildingUpload, bad: BadRecords, place: Place) -> None:
        """Run `process` over the batches, and store what it yields."""

        def refuse(row: int, error: UnfitError, record: Any) -> None:
            self._pair(place).rejected.append(where(row, error))
            bad.take(place.name, None, where(row, error), repr(record))

        encoder = encoder_for(self.chunk_format, self.author.runtime.chunk_bytes, refuse)
        schema = next((stream.schema for stream in streams_of(type(self.author))), None)
        check = RowCheck(schema, refuse, as_tables=self.chunk_format == "parquet")

        def store(chunks: Iterator[Any]) -> None:
            for chunk in chunks:
                self.outbox.add(upload.upload_id, chunk)
                self._counters.records += chunk.records
                self.wake()
                self._report()

        def reject(row: Any, why: str) -> None:
            self._pair(place).rejected.append(why)
            bad.take(str(place), None, why, orjson.dumps(row, default=str, option=_ANY).decode())

        def progress(rows: int, of: int | None) -> None:
            self._refuse_cancelled()
            self._own = {"rows": rows, "of": of}

        self._own = dict.fromkeys(self._own)  # of the item before
        batches = self._counted(place)
        self.columns.begin()
        context = partial(place.context, self.identity.stream)
        with ActiveRun(context, reject, progress).entered():
            for batch in self.author.process(batches, self._given):
                for piece in (batch,) if self.pairs is None else parts_of(batch):
                    if self.pairs is not None:
                        self._pair(place).made += rows_of(self.columns(piece))
                    for start, part in check(piece):
                        store(encoder.add(self.columns(part), start))
            store(encoder.finish())
            for _ in batches:  # what `process` left unread belongs to the content all the same
                pass
        self._refuse_cancelled()  # both of which the author's code may have caught
        if bad.failure is not None:
            raise bad.failure
        self.columns.refuse_empty(place.name)

    def _counted(self, place: Place) -> Iterator[Batch]:
        """The batches, counted for the progress, each noted as the one that `process` has."""
        assert place.reading is not None  # noqa: S101  # opened by `_fill`
        for batch in self._cut(place.reading.batches()):
            self._refuse_cancelled()
            given = WatchedRows(batch) if isinstance(batch, list) else batch
            place.given(given)
            self._counters.rows_read += place.count
            if self.pairs is not None:
                row = next(rows_of(given))
                self.pairs.append(RowPair(place.name, place.before + 1, row))
            yield given
            place.batch = None
        if self.pairs is not None:
            self.pairs.append(RowPair(place.name))

    def _cut(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches up to the limit, row by row where each is to be seen."""
        if self._rows_left is None and self.pairs is None:
            yield from batches
            return
        for part in (part for batch in batches for part in parts_of(batch)):
            size = len(part) if self.pairs is None else 1
            for start in range(0, len(part), size or 1):
                if self.is_cut:
                    return
                wanted = min(size, len(part) if self._rows_left is None else self._rows_left)
                yield part[start : start + wanted]
                if self._rows_left is not None:
                    self._rows_left -= wanted

    @property
    def is_cut(self) -> bool:
        """Whether as many rows were read as may be, which need not be all."""
        return self._rows_left == 0

    def _pair(self, place: Place) -> RowPair:
        """The row at hand, beside what is made of it; one that nobody sees unless that is asked."""
        if self.pairs and self.pairs[-1].source == place.name:
            return self.pairs[-1]
        pair = RowPair(place.name)
        if self.pairs is not None:
            self.pairs.append(pair)
        return pair

    def _refuse_cancelled(self) -> None:
        """Raise `RunCancelledError` where the run is to stop."""
        if self.author.cancelled:
            raise RunCancelledError("the run was cancelled")

    def _is_unchanged(self, item: Item, key: str, mark: Mark) -> bool:
        """Whether the item's content is the last sealed one: by its stamp, else by a first read.

        A first read is made only of a file whose size is that of the last sealed content.
        """
        if self.full or mark.upload_key is None or mark.stamp is None:
            return False
        stamp = self._stamp(item)
        if stamp == mark.stamp:
            return True
        if not isinstance(item, FileItem) or stamp[0] != mark.stamp[0]:
            return False
        if stamp[1][0] != mark.stamp[1][0]:
            return False
        found = upload_key(key, item.digest(), self.author.output_version)
        if found != mark.upload_key:
            return False
        self.outbox.restamp(key, found, stamp)
        return True

    def _stamp(self, item: Item) -> Any:
        """The item's stamp under this output_version; None where it has none."""
        stamp = item.stamp()
        return None if stamp is None else [self.author.output_version, stamp]

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Report every second, however long a batch or a chunk takes."""
        ended = threading.Event()

        def report() -> None:
            while not ended.wait(PROGRESS_S):
                self._report()

        # The run's context, in which its progress is known as its own.
        reporter = threading.Thread(target=copy_context().run, args=(report,), daemon=True)
        reporter.start()
        try:
            yield
        finally:
            ended.set()
            reporter.join()

    def _report(self, **fields: Any) -> None:
        counters, place = self._counters, self._place
        if counters.bytes_total:
            here = place.reading.bytes_read() if place and place.reading else 0
            fields |= {
                "bytes_read": min(counters.bytes_before + here, counters.bytes_total),
                "bytes_total": counters.bytes_total,
            }
        untaken = place.untaken if place else 0
        self._rows_shown = max(self._rows_shown, counters.rows_read - untaken)
        self.progress(
            rows_read=self._rows_shown,
            records=counters.records,
            items_done=counters.items_done,
            **self._own,
            **fields,
        )

    def _result(self) -> RunSummary:
        """The sum over the run's uploads."""
        counters, outbox = self._counters, self.outbox
        found = outbox.store.summary(counters.uploads, LISTED)
        states = {_STATUS.get(state, "rejected") for state in found.states}
        states |= {"rejected"} if counters.refused else set()
        states |= set() if states else {"unchanged"}
        status = next(word for word in _WORST_FIRST if word in states)
        result: RunSummary = {
            "status": status,
            "records": found.records,
            "skipped": counters.skipped,
            "bad_records": counters.bad_records,
            "files": [file.shown() for file in counters.found],
            "files_read": counters.files_read,
            "left_out": self._files.left_out if self._files else 0,
            "left_out_files": self._files.left_out_names if self._files else [],
            "bytes_sent": found.bytes_sent,
            "cloud_job_id": found.job_id,
            "uploads": len(counters.uploads),
            "upload_ids": found.upload_ids,
            "timestamp": self.author.clock.now().isoformat(),
        }
        if self.columns.any_seen:
            unmatched = self._unmatched()
            result["unmatched"] = len(unmatched)
            result["unmatched_rules"] = unmatched[:LISTED]
        if elsewhere := outbox.store.also_under(self.data_source, self.params, LISTED):
            result["other_params"] = elsewhere
        if counters.changed_queries:
            result["changed_queries"] = counters.changed_queries[:LISTED]
        if older := outbox.store.under_other_policy(self._policy):
            result["sources_under_other_policy"] = older
        if status == "rejected":
            dead = [str((answer or {}).get("reason")) for answer in found.refusals]
            reasons = "; ".join([*counters.refused, *dead][:LISTED])
            result["success"] = False
            result["error"] = f"the backend refused: {reasons}"
        return result


def size_of(item: Item) -> int:
    """The bytes of an item's files; 0 where it has none, or they cannot be looked at."""
    if isinstance(item, Group):
        return sum(map(size_of, item.items))
    with suppress(BadParamsError):
        return item.stamp()[0] if isinstance(item, FileItem) else 0
    return 0

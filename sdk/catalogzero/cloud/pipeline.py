"""One run of `process_and_upload`: items, attempts, sealed uploads, and the result.

Runs in a thread of the worker: source → batches → `process` → egress filter → chunks → outbox. The
sender takes them from there meanwhile. Never talks to a backend.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from itertools import chain

from catalogzero.cloud.counters import LISTED, ItemList, ItemName, Place, RunSummary
from catalogzero.cloud.extras import require_extra
from catalogzero.cloud.item_pass import ItemPass, passes_of
from catalogzero.cloud.outbox.outbox import UploadEndedError
from catalogzero.cloud.outbox.outbox_file import is_disk_full
from catalogzero.cloud.reading.ahead import BATCHES_AHEAD
from catalogzero.cloud.reading.authors import OwnItem
from catalogzero.cloud.reading.items import Group, Item, Plan
from catalogzero.cloud.reading.network_mounts import min_file_age_s
from catalogzero.cloud.reading.records import ReadOptions
from catalogzero.cloud.reading.root_tokens import read_token, root_of
from catalogzero.cloud.reading.sources import FileItem, Files, Roots
from catalogzero.cloud.run_base import RunBase
from catalogzero.cloud.writing import StreamWriter
from catalogzero.errors import (
    BadParamsError,
    FailedError,
    RunCancelledError,
    SourceChangedError,
    TooLargeError,
)
from catalogzero.protocol.identities import upload_key
from catalogzero.protocol.outcomes import WORST_FIRST
from catalogzero.wire.messages import encode_json, utf8

ATTEMPTS = 3
AGAIN = frozenset({"compared", "lapsed"})
"""Why an upload that was building has ended, where its item is read again."""
PROGRESS_S = 1.0
_FACT_MATCHED = "egress_matched"
_STATUS = {
    "done": "uploaded",
    "superseded": "superseded",
    **dict.fromkeys(("building", "sealed", "completing", "held"), "queued"),
}
"""What an upload's state means for its run; any other is `rejected`."""


@dataclass(kw_only=True)
class UploadRun(RunBase):
    """One run over one data_source: see `RunBase` for what it takes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._files: Files | None = None

    def __call__(self) -> RunSummary:
        """Read, process, store; wait a while for the backend; the run's result.

        Raises:
            BadParamsError: The data_source may not or cannot be read.
            FailedError: The outbox is full, or an item failed; `details` is the result of the
                others, with `failed` (how many) and `failures` (the first 20).
            SourceChangedError: Sources changed in each of three attempts, and nothing else failed.
        """
        self.outbox.refuse_when_full()
        # A run of one item sees nothing of the others: whoever lists them knows which are gone.
        if self.only is None or not is_path(self.data_source):
            self.counters.waiting = self.outbox.store.waiting(self.data_source, self.params)
        items = self._items()
        self.counters.bytes_total = sum(map(size_of, items))
        self._rows_left = self.limit(self.counters.bytes_total) if self.limit else None
        self.report(items=len(items))
        try:
            with self.outbox.keeping(), self._reporting():
                for item in items:
                    if self.is_cut:
                        break
                    self._take(item)
                    self._meet_unsealed(all_of_them=False)
                    self.place = None
                    self.counters.items_done += 1
                    self.counters.bytes_before += size_of(item)
                    self.report()
                self._meet_unsealed(all_of_them=True)
                self._seal_all()
                self.outbox.gone(self.counters.waiting)
                self._wait(items)
                result = self._result()
        finally:
            self.seals.close()
            for sealing in chain.from_iterable(self.unsealed):
                self.outbox.abandon(sealing.upload_id)
        if self.counters.failed:
            raise self.counters.failure(len(items), result)
        return result

    def list_items(self, max_bytes: int) -> ItemList:
        """The items by name, for runs that read one each; what waits of any that is gone is over.

        Args:
            max_bytes: Of their names, as JSON.

        Raises:
            BadParamsError: The data_source may not or cannot be read.
            TooLargeError: The names are longer.
        """
        if not is_path(self.data_source):  # one item, which its run opens
            return {"items": [{"name": self.data_source}], "left_out": 0, "left_out_files": []}
        self.counters.waiting = self.outbox.store.waiting(self.data_source, self.params)
        found, size, roots = dict[str, ItemName](), 0, self.author.settings.data_roots
        is_shared = self.outbox.membership is not None
        tokens = {root: read_token(root) or "" for root in roots} if is_shared else {}
        for item in self._items():
            self.refuse_cancelled()
            for key in (self.source_key(item, plan) for plan in self.plans(item)):
                self.counters.waiting.discard(key)
            named: ItemName = {"name": utf8(item.name)}
            if isinstance(item, FileItem) and (token := root_of(item.root, tokens)):
                named["root"] = token
            found[named["name"]] = named
            size += len(encode_json(named)) + 1
            if size > max_bytes:
                raise TooLargeError(
                    f"{self.data_source}: the names of its items are longer than one reply may be "
                    f"({max_bytes:,} bytes, at {len(found):,} items): raise max_message_bytes, or "
                    "divide the folder among several schedules"
                )
        self.outbox.gone(self.counters.waiting)
        left_out = self._files.left_out_names if self._files else []
        return {
            "items": [*found.values()],
            "left_out": self._files.left_out if self._files and len(self._files) else 0,
            "left_out_files": left_out,
        }

    def _wait(self, items: Collection[Item]) -> None:
        """Wait a while for the backend; what came too late there is read and sealed again."""
        counters = self.counters
        for _ in range(ATTEMPTS):
            self.wait_ended(counters.uploads, self.author.runtime.upload_wait_s)
            late = self.outbox.store.held(counters.uploads)
            if not late:
                return
            counters.uploads = [one for one in counters.uploads if one not in late]
            keys = set(late.values())
            for item in items:
                if keys.intersection(self.source_key(item, plan) for plan in self.plans(item)):
                    self._take(item)
            self._meet_unsealed(all_of_them=True)
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
            batches_ahead=BATCHES_AHEAD if self.limit is None else 0,
        )
        items: Collection[Item]
        if self.only not in (None, self.data_source) and not is_path(self.data_source):
            raise BadParamsError(f"{self.data_source} is one item, and has no {self.only!r}")
        if author.reads_itself and not self.from_file:
            items = [OwnItem(author, self.data_source, self.given)]
        elif self.data_source.startswith("sql:"):
            require_extra("sql")
            from catalogzero.cloud.reading.queries import query_item

            query = query_item(settings, self.data_source, options, self.streams)
            mark = query.query.watermark
            if author.unit == "run":  # all of it is one upload, each time
                query = replace(query, query=query.query.model_copy(update={"watermark": None}))
            if mark is not None and not self.columns.in_clear(mark):
                raise BadParamsError(
                    f"{query.name}: the egress policy keeps back its watermark {mark!r}, whose "
                    "values leave with each upload: let it leave, or take `watermark` out"
                )
            items = [query]
        elif self.data_source.startswith("singer:"):
            from catalogzero.cloud.singer.taps import tap_item

            tap = tap_item(author, self.data_source, options)
            for name, mark in tap.watermarks.items():
                if not self.columns.in_clear(mark):
                    raise BadParamsError(
                        f"{tap.name}: the egress policy keeps back the replication key {mark!r} of "
                        f"stream {name!r}, whose values leave with each upload: let it leave, or "
                        "read the stream as FULL_TABLE"
                    )
            items = [tap]
        else:
            roots = settings.data_roots
            try:
                if self.only is not None:
                    return [Roots(roots).item(self.data_source, self.only, options)]
                items = self._files = Roots(roots).items(self.data_source, options)
            except BadParamsError:
                # An unmounted share is no proof that its files are gone.
                if any(root.is_dir() for root in roots):
                    self.outbox.gone(self.counters.waiting)
                raise
        return [Group(self.data_source, items)] if author.unit == "run" else items

    def _take(self, item: Item, first: int = 1) -> None:
        """Read and seal one item, from an attempt on; whatever it raises, the others go on."""
        for attempt in range(first, ATTEMPTS + 1):
            self.place = place = Place(item, attempt)
            try:
                return self._attempt(item, place)
            except RunCancelledError:
                raise
            except Exception as error:  # noqa: BLE001  # an author's, a reader's: this item's alone
                if not self._is_tried_again(place, error):
                    return None

    def _is_tried_again(self, place: Place, error: Exception) -> bool:
        """Meet what an attempt failed of: count it, unless another one is to come."""
        is_last = place.attempt == ATTEMPTS
        if isinstance(error, UploadEndedError):
            if not is_last and not AGAIN.isdisjoint(error.details or ()):
                return True
            self.counters.refuse(error.message)
            return False
        if isinstance(error, SourceChangedError) and not is_last:
            return True
        full = isinstance(error, sqlite3.OperationalError) and is_disk_full(error)
        text = f"the disk is full at {self.folder}: make room, or set another state_dir"
        self.counters.fail(place, FailedError(text) if full else error)
        return False

    def _meet_unsealed(self, *, all_of_them: bool) -> None:
        """Meet what the sealing of small items failed of, as if each had been sealed by itself.

        Args:
            all_of_them: Wait until nothing is held.
        """
        if all_of_them:
            self.seals.drain()
        for held, error in self.seals.failed():
            self.counters.bad_records -= held.bad.count
            held.bad.restart()
            if self._is_tried_again(held.place, error):
                self._take(held.place.item, held.place.attempt + 1)
                self._meet_unsealed(all_of_them=all_of_them)

    def _seal_all(self) -> None:
        """With `strict`: seal what the run made, unless a rule of the policy matched nothing.

        Raises:
            FailedError: One did; nothing of the run was sent.
        """
        if self.unsealed and (unmatched := self._unmatched()):
            raise FailedError(
                f"egress.strict: no column of this run matched {', '.join(unmatched[:LISTED])}: "
                "correct the rule, or take it out; nothing was sent"
            )
        for sealings in self.unsealed:
            self.seal(sealings)
        self.unsealed.clear()

    def _unmatched(self) -> list[str]:
        """The policy's rules that matched no column of what this run read.

        Where sources were unchanged, or one item alone was read, what an earlier run matched under
        this policy counts too.
        """
        columns, outbox = self.columns, self.outbox
        matched = set(columns.matched())
        known = outbox.store.fact(_FACT_MATCHED) or {}
        if known.get("policy") == self.policy:
            before = set(known["rules"])
            if before - matched or matched - before:
                outbox.remember(_FACT_MATCHED, {**known, "rules": sorted(before | matched)})
            matched |= before if self.counters.skipped or self.only is not None else set()
        elif matched:
            outbox.remember(_FACT_MATCHED, {"policy": self.policy, "rules": sorted(matched)})
        rules = [f"{kind}: {name}" for kind, name in columns.rules]
        return [rule for rule in rules if rule not in matched]

    def _attempt(self, item: Item, place: Place) -> None:
        """Read an item to its sealed uploads, or to the finding that it is unchanged."""
        files = item.items if isinstance(item, Group) else [item]
        for name in (file.name for file in files):
            if name != utf8(name):
                raise FailedError(f"{utf8(name)}: the file's name is not UTF-8: rename it")
        plans = self.plans(item)
        for fault in filter(None, (self.columns.key_fault(plan.stream) for plan in plans)):
            raise BadParamsError(": ".join((item.name, *fault)))  # before anything is read
        writers = [self._writer(item, plan) for plan in plans]
        if not (isinstance(item, FileItem) and item.is_gone()):
            self.counters.waiting.difference_update(writer.source_key for writer in writers)
        paths = [os.path.join(one.root, one.relative) for one in files if isinstance(one, FileItem)]
        now, min_age_s = (
            self.author.clock.now().timestamp(),
            min_file_age_s(self.author.runtime, paths),
        )
        ages = [now - file.modified_at() for file in files if isinstance(file, FileItem)]
        # A file from the future would be waited for until then: never longer than the minimum age.
        wait_s = min(min_age_s - min(ages, default=1e9), min_age_s, 60.0)
        if wait_s > 0:
            threading.Event().wait(wait_s)
        read_on = [one for one in writers if one.full or not self._stands_still(item, one)]
        if read_on and not all(self._is_unchanged(item, one) for one in read_on):
            for group in passes_of(item, read_on):
                ItemPass(self, place, group)()
        self._leave(item, writers)

    def _writer(self, item: Item, plan: Plan) -> StreamWriter:
        """What a pass has for one stream, from its mark on."""
        key = self.source_key(item, plan)
        mark = self.outbox.store.mark(key)
        is_other = mark.mode not in (None, plan.mode) or mark.keyed not in (None, plan.keyed)
        return StreamWriter(plan, key, mark, full=self.full or mark.owed or is_other)

    def _leave(self, item: Item, writers: Collection[StreamWriter]) -> None:
        """Count an item without anything new; one whose upload was refused is not unchanged."""
        left = [writer for writer in writers if not writer.is_sealed]
        dead = [writer for writer in left if writer.mark.dead is not None]
        if len(left) == len(writers) and not dead:
            self.counters.skipped += 1
        for writer in dead:
            refused = self.outbox.store.upload(writer.mark.dead or "")
            why = (refused.answer or {}).get("reason")
            what = "retry or purge it"
            if writer.is_range:
                what = (
                    "until then the source is not read on; retry it, purge it (with --skip "
                    "where its rows are given up), or call with full: true"
                )
            self.counters.refuse(
                f"{item.name}: {why} (upload {refused.upload_id}, see catalogzero outbox show: "
                f"{what})"
            )

    def _stands_still(self, item: Item, writer: StreamWriter) -> bool:
        """Whether an appended source is not read on, as a refused range is in its way.

        Raises:
            BadParamsError: Its watermark is of another column or database now.
        """
        mark = writer.mark
        if not writer.is_range or mark.dead is not None:
            return writer.is_range
        bound, before = item.bound, mark.bound
        if bound is not None and before is not None:
            if any(bound[name] != before[name] for name in ("column", "database")):
                message = (
                    f"{item.name}: its watermark was of column {before['column']} in "
                    f"{before['database']}, and is of {bound['column']} in {bound['database']} "
                    "now: rows would be missing or twice; call it once with full: true"
                )
                raise BadParamsError(message, details=[{"field": "full", "message": message}])
            if bound["query"] != before["query"] and item.name not in self.counters.changed_queries:
                self.counters.changed_queries.append(item.name)
        return False

    def _is_unchanged(self, item: Item, writer: StreamWriter) -> bool:
        """Whether the item's content is the last sealed one: by its stamp, else by a first read.

        A first read is made only of a file whose size is that of the last sealed content.
        """
        mark, key = writer.mark, writer.source_key
        if writer.full or mark.upload_key is None or mark.stamp is None:
            return False
        stamp = self.stamp(item)
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

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Report every second, however long a batch or a chunk takes."""
        ended = threading.Event()

        def report() -> None:
            with suppress(RunCancelledError):  # the run itself meets it at its next batch
                while not ended.wait(PROGRESS_S):
                    self.report()

        # The run's context, in which its progress is known as its own.
        reporter = threading.Thread(target=copy_context().run, args=(report,), daemon=True)
        reporter.start()
        try:
            yield
        finally:
            ended.set()
            reporter.join()

    def _result(self) -> RunSummary:
        """The sum over the run's uploads."""
        counters, outbox = self.counters, self.outbox
        found = outbox.store.summary(counters.uploads, LISTED)
        states = {_STATUS.get(state, "rejected") for state in found.states}
        states |= {"rejected"} if counters.refused else set()
        states |= set() if states else {"unchanged"}
        status = next(word for word in WORST_FIRST if word in states)
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
        elsewhere = []
        if self.only is None:
            elsewhere = outbox.store.also_under(self.data_source, self.params, LISTED)
        if elsewhere:
            result["other_params"] = elsewhere
        if counters.changed_queries:
            result["changed_queries"] = counters.changed_queries[:LISTED]
        if older := outbox.store.under_other_policy(self.policy):
            result["sources_under_other_policy"] = older
        if status == "rejected":
            dead = [str((answer or {}).get("reason")) for answer in found.refusals]
            reasons = "; ".join([*counters.refused, *dead][:LISTED])
            result["success"] = False
            result["error"] = f"the backend refused: {reasons}"
        return result


def is_path(data_source: str) -> bool:
    """Whether it names files: of anything else it is one item."""
    return not data_source.startswith(("sql:", "singer:"))


def size_of(item: Item) -> int:
    """The bytes of an item's files; 0 where it has none, or they cannot be looked at."""
    if isinstance(item, Group):
        return sum(map(size_of, item.items))
    with suppress(BadParamsError):
        return item.stamp()[0] if isinstance(item, FileItem) else 0
    return 0

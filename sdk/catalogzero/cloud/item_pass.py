"""One pass over an item: its rows through `process`, into an upload for each stream, sealed.

What is sealed of an item is sealed in one transaction: a range at each checkpoint and at the end,
what is replaced at the end.
"""

from __future__ import annotations

import json
import os
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import orjson

from catalogzero.cloud.counters import LISTED, Place
from catalogzero.cloud.egress import shown_params
from catalogzero.cloud.encoding import Chunk, Encode, encoder_for
from catalogzero.cloud.outbox.outbox import Opening, Sealing, WholeUpload
from catalogzero.cloud.reading.items import Item, Reading
from catalogzero.cloud.reading.records import BadRecords
from catalogzero.cloud.rows.batches import parts_of, rows_of
from catalogzero.cloud.rows.streams import RowCheck, with_stream
from catalogzero.cloud.rows.values import UnfitError, where
from catalogzero.cloud.run_base import RunBase
from catalogzero.cloud.run_context import ActiveRun
from catalogzero.cloud.settings import Batch, ProcessOutput
from catalogzero.cloud.shared_seals import SMALL_BYTES, HeldItem
from catalogzero.cloud.writing import OpenUpload, StreamWriter, Stretches
from catalogzero.errors import FailedError
from catalogzero.protocol.identities import digest_of, upload_key

WATERMARK_OF_CHARS = 32
ENCODERS = min(2, os.cpu_count() or 1)
"""Threads of a pass that encode."""
CHUNKS_WAITING = ENCODERS + 2
"""Chunks at most that are encoded or stored while the next one is gathered."""
_ANY = orjson.OPT_NON_STR_KEYS


class ItemPass:
    """One pass over an item.

    Args:
        run: The run that it is part of.
        place: The item, and where the pass stands.
        writers: The streams that it seals; rows of other streams are dropped.
    """

    def __init__(self, run: RunBase, place: Place, writers: Sequence[StreamWriter]) -> None:
        self._run, self._place, self._writers = run, place, writers
        self._item, self._author = place.item, run.author
        self._modes = {plan.stream.name: plan.mode for plan in run.plans(place.item)}
        self._strict = run.author.runtime.egress.strict
        self._first = uuid.uuid4().hex
        kept = run.folder / "bad_records" / f"{self._first}.jsonl"
        self._bad = BadRecords(run.author.settings.on_bad_record, kept)
        self._encoders = ThreadPoolExecutor(ENCODERS, "catalogzero-encoding")
        self._storer = ThreadPoolExecutor(1, "catalogzero-storing")
        self._waiting = deque[Future[int]]()

    def __call__(self) -> None:
        """Read, process and seal; what is not sealed at the end, or on an error, is abandoned."""
        place, item, writers = self._place, self._item, self._writers
        place.full = all(writer.full for writer in writers)
        # Taken before the content: a source that changes later differs from its stamp.
        stamp = self._run.stamp(item)
        try:
            self._open(writers[0], self._first)
            for writer in writers[1:]:
                self._open(writer)
            with item.open(after_of(item, writers), self._bad) as reading:
                place.reading = reading
                try:
                    self._produce(reading)
                except Exception:
                    reading.check()  # a source that changed meanwhile explains any other fault
                    self._await_stored(0)  # an error in these came before
                    raise
                # Of a part there is no content; to read the rest for it would take long.
                contents = {} if self._run.is_cut else contents_of(reading, writers)
                reading.check()
                found = reading.found()
            counters = self._run.counters
            counters.files_read += len(found)
            counters.found += found[: LISTED - len(counters.found)]
            self._seal(self._due(reading.until, contents, stamp), stamp)
        finally:
            for pool in (self._encoders, self._storer):
                pool.shutdown(cancel_futures=True)
            for writer in writers:
                if writer.output is not None and writer.output.is_begun:
                    self._run.outbox.abandon(writer.output.opening.upload_id)
            if any(writer.is_sealed for writer in writers):
                self._run.counters.bad_records += self._bad.count
            else:
                self._bad.restart()

    def _open(self, writer: StreamWriter, upload_id: str = "") -> OpenUpload:
        """Begin an upload of one stream."""
        run, plan, upload_id = self._run, writer.plan, upload_id or uuid.uuid4().hex
        name, stream = self._item.name, plan.stream
        as_tables = run.chunk_format == "parquet"
        encoder = encoder_for(run.chunk_format, self._author.runtime.chunk_bytes, self._refuse)
        check = RowCheck(stream.schema, self._refuse, as_tables=as_tables, key=stream.key)
        is_held = plan.mode == "replace" and not self._strict
        opening = Opening(
            upload_id,
            writer.source_key,
            run.shown(name),
            plan.mode,
            full=writer.full,
            params=shown_params(run.params, run.shown),
            stream=stream.name,
            keyed=plan.keyed,
            base=writer.mark.base if plan.mode == "replace" or writer.full else None,
        )
        writer.output = OpenUpload(opening, encoder, check)
        if not is_held:
            self._begin(writer.output)
        return writer.output

    def _begin(self, output: OpenUpload) -> None:
        """Have the outbox know an upload, whose chunks may then be sent."""
        if not output.is_begun:
            self._run.outbox.begin(output.opening)
            output.is_begun = True

    def _refuse(self, row: int, error: UnfitError, record: Any) -> None:
        """Meet a record that does not fit."""
        self._run.pair(self._place).rejected.append(where(row, error))
        self._bad.take(self._place.name, None, where(row, error), repr(record))

    def _reject(self, row: Any, why: str) -> None:
        """Meet a row that the author rejects."""
        self._run.pair(self._place).rejected.append(why)
        text = orjson.dumps(row, default=str, option=_ANY).decode()
        self._bad.take(str(self._place), None, why, text)

    def _progress(self, rows: int, of: int | None) -> None:
        """Take the author's own figures."""
        self._run.refuse_cancelled()
        self._run.own = {"rows": rows, "of": of}

    def _produce(self, reading: Reading) -> None:
        """Run `process` over the batches, store what it yields, seal at each checkpoint."""
        run, place = self._run, self._place
        run.own = dict.fromkeys(run.own)  # of the item before
        run.columns.begin()
        place.stream = run.identity.stream
        with ActiveRun(place.context, self._reject, self._progress).entered():
            stretches = Stretches(run.cut(reading.batches()))
            for stream, stretch in stretches:
                place.stream = stream or run.identity.stream
                concerned = [one for one in self._writers if stream in (None, one.name)]
                batches = run.counted(place, stretch, concerned)
                for made in self._author.process(batches, run.given):
                    self._take(*self._named(made, stream))
                for _ in batches:  # what `process` left unread belongs to the content all the same
                    pass
                run.refuse_cancelled()  # both of which the author's code may have caught
                if self._bad.failure is not None:
                    raise self._bad.failure
                if stretches.checkpoint is not None:
                    self._checkpoint(stretches.checkpoint.value)
        run.columns.refuse_empty(place.name)

    def _named(self, made: ProcessOutput, given: str | None) -> tuple[str, Batch]:
        """What `process` yielded, with its stream: the one that is named, the only one, or a tap's.

        Raises:
            FailedError: The stream is not declared, or several are and none is named, or what is
                made of a tap's stream would be sealed with another one.
        """
        streams = list(self._modes)
        named, batch = with_stream(made)
        if named is None and given is None and len(streams) > 1:
            raise FailedError(
                "process yields rows without a stream, and the class declares "
                f"{', '.join(streams)}: write `yield {json.dumps(streams[0])}, rows`"
            )
        name = named or given or streams[0]
        if name not in streams:
            raise FailedError(
                f"process yields rows of stream {name!r}; declared are: {', '.join(streams)}"
            )
        modes = {self._modes[name], self._modes.get(given or name)}
        if given not in (None, name) and modes != {"replace"}:
            raise FailedError(
                f"process yields rows of stream {name!r} for rows of {given!r}: each is sealed "
                "with its own position, and a run that is killed would lose them"
            )
        return name, batch

    def _take(self, stream: str, batch: Batch) -> None:
        """Check a batch of results, and store what of it may leave."""
        run = self._run
        writer = next((one for one in self._writers if one.name == stream), None)
        if writer is None:  # another pass seals it
            return
        output = writer.output or self._open(writer)
        for piece in (batch,) if run.pairs is None else parts_of(batch):
            if run.pairs is not None:
                run.pair(self._place).made += rows_of(run.columns(piece))
            for start, part in output.check(piece):
                self._store(output, output.encoder.add(run.columns(part), start))

    def _store(self, output: OpenUpload, chunks: Iterator[Encode]) -> None:
        """Have chunks of an upload encoded and stored by other threads, in order."""
        for encode in chunks:
            if self._run.pairs is not None:  # there each row is seen by itself
                self._count(self._add(output, encode()))
                continue
            self._await_stored(CHUNKS_WAITING - 1)
            encoded = self._encoders.submit(encode)
            self._waiting.append(self._storer.submit(self._add_encoded, output, encoded))

    def _add_encoded(self, output: OpenUpload, encoded: Future[Chunk]) -> int:
        return self._add(output, encoded.result())

    def _add(self, output: OpenUpload, chunk: Chunk) -> int:
        """Store a chunk of an upload; how many records it has."""
        self._begin(output)
        self._run.outbox.add(output.opening.upload_id, chunk)
        self._run.wake()
        return chunk.records

    def _await_stored(self, left: int) -> None:
        """Wait until at most `left` chunks are not stored; raises what the first of them met."""
        while len(self._waiting) > left:
            self._count(self._waiting.popleft().result())

    def _count(self, records: int) -> None:
        """Report what was stored."""
        self._run.counters.records += records
        self._run.report()

    def _due(self, until: Any, contents: Mapping[str, Any], stamp: Any) -> dict[StreamWriter, Any]:
        """The streams that have something new, each with its content or where its range ends."""
        due: dict[StreamWriter, Any] = {}
        for writer in self._writers:
            content = contents.get(writer.name)
            if writer.is_range:
                content = until_of(self._item, until, writer)
                is_part = self._run.is_cut and writer.output is not None
                if is_part or (not self._run.is_cut and writer.is_due(self._item.name, content)):
                    due[writer] = content
                elif writer.mark.missing:
                    self._run.outbox.nothing_new(writer.source_key, writer.watermark)
            elif writer.full or self._content_key(writer, content) != writer.mark.upload_key:
                due[writer] = content
            else:
                self._run.outbox.restamp(writer.source_key, writer.mark.upload_key or "", stamp)
        return due

    def _checkpoint(self, value: Any) -> None:
        """Seal what came before a checkpoint, of each stream where that is behind the last one.

        What is sent again in full is sealed as one, and under `strict` nothing before the run's
        end: there a checkpoint is progress only.
        """
        due: dict[StreamWriter, Any] = {}
        for writer in self._writers:
            until = until_of(self._item, value, writer)
            parts = writer.is_range and not writer.full and not self._strict
            if parts and writer.is_behind(until) and writer.is_due(self._item.name, until):
                due[writer] = until
        self._seal(due, None)

    def _content_key(self, writer: StreamWriter, content: Any) -> str:
        """The identity of one content of a stream."""
        return upload_key(writer.source_key, content, self._author.output_version)

    def _seal(self, due: Mapping[StreamWriter, Any], stamp: Any) -> None:
        """Seal the uploads of some streams in one transaction.

        Args:
            due: Each with its content, or the value at which its range ends.
            stamp: The item's.
        """
        run, bound = self._run, self._item.bound
        of = digest_of([bound["column"], bound["database"]], run.names_key) if bound else ""
        made = list[tuple[OpenUpload, WholeUpload]]()
        self._await_stored(0)
        for writer, content in due.items():
            output = writer.output or self._open(writer)
            after, is_range = writer.watermark, writer.is_range
            key = self._content_key(writer, [after, content] if is_range else content)
            sealing = Sealing(
                upload_id=output.opening.upload_id,
                upload_key=key,
                stamp=stamp,
                after=after,
                until=content if is_range else None,
                bound=bound,
                watermark_of=of[:WATERMARK_OF_CHARS],
                found_by=run.data_source,
                policy=run.policy,
                recent=writer.recent,
            )
            chunks = [encode() for encode in output.encoder.finish()]
            upload = WholeUpload(opening=output.opening, chunks=chunks, sealing=sealing)
            made.append((output, upload))
        numbers = self._store_sealed(made) if made else []
        for (writer, content), number in zip(due.items(), numbers, strict=True):
            writer.sealed([content, number] if writer.is_range else None)

    def _store_sealed(self, made: Sequence[tuple[OpenUpload, WholeUpload]]) -> Sequence[int]:
        """Seal uploads that are whole: small ones soon, with those of other items.

        Returns:
            The source_seq of each; 0 where it is not known yet.
        """
        run, uploads = self._run, [upload for _, upload in made]
        held = HeldItem(place=self._place, bad=self._bad, uploads=uploads)
        if held.size <= SMALL_BYTES and not any(output.is_begun for output, _ in made):
            run.counters.records += sum(c.records for upload in uploads for c in upload.chunks)
            run.seals.add(held)
            return [0] * len(made)
        for output, upload in made:
            self._begin(output)
            for chunk in upload.chunks:
                self._count(self._add(output, chunk))
        sealings = [upload.sealing for upload in uploads]
        if self._strict:
            # A rule that matches nothing shows only at the end of the run: nothing may have left.
            run.unsealed.append(sealings)
            return [0] * len(made)
        return run.seal(sealings)


def after_of(item: Item, writers: Sequence[StreamWriter]) -> Any:
    """From where an item is read: one value, or for each stream that is read its own."""
    if item.positions_each:
        return {writer.name: writer.value for writer in writers}
    return writers[0].value


def until_of(item: Item, until: Any, writer: StreamWriter) -> Any:
    """Where a stream is left by a position of its item; where it was, if that names others."""
    return until.get(writer.name, writer.value) if item.positions_each else until


def contents_of(reading: Reading, writers: Sequence[StreamWriter]) -> dict[str, str | None]:
    """The content of each stream that is replaced."""
    return {one.name: reading.content_of(one.name) for one in writers if not one.is_range}


def passes_of(item: Item, writers: Sequence[StreamWriter]) -> list[list[StreamWriter]]:
    """The streams of an item by where they are read from: a pass for each such position.

    They stand at one position unless the backend lost an upload, or a refused one was purged.
    """
    groups: dict[bytes, list[StreamWriter]] = {}
    for writer in writers:
        of_its_own = writer.is_range and not item.positions_each
        position = [writer.full, writer.value] if of_its_own else None
        groups.setdefault(orjson.dumps(position), []).append(writer)
    return list(groups.values())

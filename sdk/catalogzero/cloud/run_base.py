"""What a run has at hand while it reads: its call, its counts, what may leave, what it reports.

Owns the limit of a preview and the figures of progress. Never opens a source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from catalogzero.cloud.counters import Counters, Place, RowPair, WatchedRows
from catalogzero.cloud.egress import name_below, policy_digest
from catalogzero.cloud.encoding import ColumnFilter, encoder_for
from catalogzero.cloud.outbox.outbox import Outbox, Sealing
from catalogzero.cloud.params import params_of
from catalogzero.cloud.reading.authors import RunAuthor
from catalogzero.cloud.reading.items import Item, Plan, StreamRows
from catalogzero.cloud.rows.batches import parts_of, rows_of
from catalogzero.cloud.rows.streams import Stream, streams_of
from catalogzero.cloud.run_context import Checkpoint
from catalogzero.cloud.settings import Batch, Params
from catalogzero.cloud.shared_seals import SharedSeals
from catalogzero.cloud.writing import StreamWriter, note_read
from catalogzero.errors import RunCancelledError
from catalogzero.protocol.identities import Identity, source_key


@dataclass(kw_only=True)
class RunBase:
    """What a run has at hand.

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
        limit: Says how many rows are read, by the bytes of all files (0 for other sources), or None
            for all of them. Without it all are read, and some of them ahead of `process`.
        pairs: Takes each row beside what was made of it; rows then come one at a time.
        from_file: data_source is a file, also for an author with a `read`.
        only: The name of the one item of data_source that is read; None for all of them.

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
    limit: Callable[[int], int | None] | None = None
    pairs: list[RowPair] | None = None
    from_file: bool = False
    only: str | None = None

    def __post_init__(self) -> None:
        taken = params_of(type(self.author))
        self.given, self.params = taken(self.params), taken.identity(self.params)
        self.counters = Counters()
        self.unsealed: list[Sequence[Sealing]] = []
        self.seals = SharedSeals(self.outbox, self._note_sealed)
        self._declared = streams_of(type(self.author))
        self.streams = self._declared or (Stream(""),)
        if not self.streams[0].name:
            self.streams = (replace(self.streams[0], name=self.identity.stream),)
        self.place: Place | None = None
        self.own: dict[str, int | None] = {}
        self._rows_shown = 0
        self._rows_left: int | None = None
        policy = self.author.runtime.egress
        self.columns = ColumnFilter(policy, self.key)
        self.names_key = self.key if policy.hash_sources else None
        self.policy = policy_digest(policy)
        encoder_for(self.chunk_format, self.author.runtime.chunk_bytes)

    def shown(self, text: str) -> str:
        """A source's name, or a text of the call's params, as it leaves."""
        if self.names_key:
            return self.columns.hash_of(text) or ""
        return name_below(text, self.author.settings.data_roots)

    def plans(self, item: Item) -> tuple[Plan, ...]:
        """What an item sends to each stream; one with streams of its own knows them itself."""
        return item.plans(self._declared if item.positions_each else self.streams)

    def source_key(self, item: Item, plan: Plan) -> str:
        """The item's identity in a stream."""
        installation_id, stream = self.identity.installation_id, plan.stream.name
        return source_key(installation_id, stream, item.name, self.params, self.names_key)

    def stamp(self, item: Item) -> Any:
        """The item's stamp under this output_version; None where it has none."""
        stamp = item.stamp()
        return None if stamp is None else [self.author.output_version, stamp]

    def seal(self, sealings: Sequence[Sealing]) -> list[int]:
        """Seal uploads in one transaction; the source_seq of each."""
        numbers = self.outbox.seal(*sealings)
        self._note_sealed([sealing.upload_id for sealing in sealings])
        return numbers

    def _note_sealed(self, upload_ids: Sequence[str]) -> None:
        self.counters.uploads += upload_ids
        self.wake()

    def counted(
        self, place: Place, batches: Iterator[Batch], writers: Sequence[StreamWriter]
    ) -> Iterator[Batch]:
        """The batches, counted for the progress, each noted as the one that `process` has.

        Args:
            place: Where the pass stands.
            batches: What is read.
            writers: Of the streams that are sealed by it.
        """
        for batch in batches:
            self.refuse_cancelled()
            note_read(writers, batch)
            given = WatchedRows(batch) if isinstance(batch, list) else batch
            place.given(given)
            self.counters.rows_read += place.count
            if self.pairs is not None:
                row = next(rows_of(given))
                self.pairs.append(RowPair(place.name, place.before + 1, row))
            yield given
            place.batch = None
        if self.pairs is not None:
            self.pairs.append(RowPair(place.name))

    def cut(
        self, batches: Iterator[Batch | StreamRows | Checkpoint]
    ) -> Iterator[Batch | StreamRows | Checkpoint]:
        """The batches up to the limit, row by row where each is to be seen."""
        if self._rows_left is None and self.pairs is None:
            yield from batches
            return
        for batch in batches:
            if isinstance(batch, Checkpoint):
                yield batch
                continue
            stream = batch.stream if isinstance(batch, StreamRows) else None
            for part in parts_of(batch.batch if isinstance(batch, StreamRows) else batch):
                size = len(part) if self.pairs is None else 1
                for start in range(0, len(part), size or 1):
                    if self.is_cut:
                        return
                    wanted = min(size, len(part) if self._rows_left is None else self._rows_left)
                    piece = part[start : start + wanted]
                    yield piece if stream is None else StreamRows(stream, piece)
                    if self._rows_left is not None:
                        self._rows_left -= wanted

    @property
    def is_cut(self) -> bool:
        """Whether as many rows were read as may be, which need not be all."""
        return self._rows_left == 0

    def pair(self, place: Place) -> RowPair:
        """The row at hand, beside what is made of it; one that nobody sees unless that is asked."""
        if self.pairs and self.pairs[-1].source == place.name:
            return self.pairs[-1]
        pair = RowPair(place.name)
        if self.pairs is not None:
            self.pairs.append(pair)
        return pair

    def refuse_cancelled(self) -> None:
        """Raise `RunCancelledError` where the run is to stop."""
        if self.author.cancelled:
            raise RunCancelledError("the run was cancelled")

    def report(self, **fields: Any) -> None:
        """Report how far the run is, with further figures."""
        counters, place = self.counters, self.place
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
            **self.own,
            **fields,
        )

"""What was seen of a processor: `process` on its sample, and uploads to a faulty backend."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import orjson

from catalogzero.cloud.params import params_of
from catalogzero.cloud.processor import CloudProcessor
from catalogzero.cloud.reading.items import StreamRows
from catalogzero.cloud.reading.records import BadRecords, ReadOptions
from catalogzero.cloud.rows.batches import lists_of, rows_of
from catalogzero.cloud.rows.streams import with_stream
from catalogzero.cloud.rows.values import Row, json_lines
from catalogzero.cloud.run_context import Checkpoint
from catalogzero.cloud.settings import Batch
from catalogzero.testing.backend import FaultyBackend
from catalogzero.testing.handlers import serving
from catalogzero.testing.lab import Contract, Lab, bounded, demand, output_to, shown
from catalogzero.wire.client import HandlerClient
from catalogzero.wire.messages import JsonObject, Reply

CALL_TIMEOUT_S = 50.0


class SourceContract(Contract, Protocol):
    """What a processor's checks need of its contract class."""

    params: ClassVar[Mapping[str, Any]]

    def data_source(self, lab: Lab) -> str:
        """What is processed."""


def processor(lab: Lab, **config: Any) -> CloudProcessor:
    """A processor of the class."""
    made = lab.make(**config)
    demand(isinstance(made, CloudProcessor), f"{type(made).__name__} is not a CloudProcessor")
    return cast("CloudProcessor", made)


def source_of(lab: Lab) -> str:
    """The data_source that the contract names."""
    return cast("SourceContract", lab.contract).data_source(lab)


def params_of_call(lab: Lab) -> dict[str, Any]:
    """The params that the contract names."""
    return dict(cast("SourceContract", lab.contract).params)


def params_of_process(lab: Lab) -> Any:
    """The same as they reach `process`."""
    taken = params_of(cast("Any", lab.handler_class))
    return taken(params_of_call(lab))


def sample_rows(lab: Lab) -> list[Row]:
    """The rows of the sample, as they reach `process`."""
    found = _batches_of_source(processor(lab), source_of(lab), params_of_process(lab))
    rows = [dict(row) for batch in found for row in rows_of(batch)]
    where = "name another file as `sample`, or override `data_source` and `config`"
    demand(rows, f"{source_of(lab)} has no rows to look at: {where}")
    return rows


def _batches_of_source(made: CloudProcessor, source: str, params: Any) -> Iterator[Batch]:
    """The batches of a source, read as a run reads them."""
    options = ReadOptions(made.batch_rows, arrow=made.batch_type == "arrow")
    if made.reads_itself:
        yield from (one for one in made.read(source, params) if not isinstance(one, Checkpoint))
        return
    if source.startswith("sql:"):
        from catalogzero.cloud.reading.queries import query_item

        items: Collection[Any] = [query_item(made.settings, source, options, ())]
    elif source.startswith("singer:"):
        from catalogzero.cloud.singer.taps import tap_item

        items = [tap_item(made, source, options)]
    else:
        from catalogzero.cloud.reading.sources import Roots

        items = Roots(made.settings.data_roots).items(source, options)
    for item in items:
        with item.open(None, BadRecords("fail", Path("unused"))) as reading:
            for one in reading.batches():
                if not isinstance(one, Checkpoint):
                    yield one.batch if isinstance(one, StreamRows) else one


def batches(made: CloudProcessor, rows: Sequence[Row], size: int) -> Iterator[Batch]:
    """Rows in batches of the class's kind; each has its own copies."""
    for start in range(0, len(rows), size):
        # A class that changes its rows in place must not change what the next check gives.
        part = [dict(row) for row in rows[start : start + size]]
        if made.batch_type == "arrow":
            from catalogzero.cloud.rows.tables import table_of_rows

            yield table_of_rows(part)
        else:
            yield part


def processed(lab: Lab, made: CloudProcessor, rows: Sequence[Row], size: int = 10_000) -> list[Row]:
    """What `process` makes of rows, as it would arrive at the backend."""
    yielded = made.process(batches(made, rows, size), params_of_process(lab))
    return [row for one in yielded for row in arrived(with_stream(one)[1])]


def arrived(batch: Batch) -> list[Row]:
    """A batch's rows after their way through JSON."""
    texts = map(json_lines, lists_of(batch, texts=True))
    return [orjson.loads(line) for text in texts for line in text.splitlines()]


def sorted_rows(rows: Iterable[Mapping[str, Any]]) -> list[bytes]:
    """Rows in an order of their own, for comparison."""
    return sorted(orjson.dumps(row, option=orjson.OPT_SORT_KEYS) for row in rows)


@dataclass
class Uploaded:
    """What a served processor answered, and what its backend got.

    Attributes:
        replies: Answers, by the step that was asked for.
        rows: Visible rows, after each step.
        reports: Health reports that had arrived before it stopped.
        longest_block_s: How long the event loop did not answer while jobs ran, at most.
        params: What each upload is called with.
        backend: The backend.
        log: Everything written to standard error.
        state: The state folder.
    """

    backend: FaultyBackend
    log: Path
    state: Path
    replies: dict[str, Reply] = field(default_factory=dict)
    rows: dict[str, list[Row]] = field(default_factory=dict)
    reports: list[JsonObject] = field(default_factory=list)
    longest_block_s: float = 0.0
    params: JsonObject = field(default_factory=dict)

    async def upload(self, client: HandlerClient, step: str, source: str, **more: Any) -> None:
        """Ask for an upload, and keep the answer and what is visible then."""
        params = {"params": self.params} if self.params else {}
        call = {"data_source": source, **params, **more}
        reply = await client.request("process_and_upload", call, timeout_s=CALL_TIMEOUT_S)
        self.replies[step] = reply
        self.rows[step] = self.backend.rows

    def result(self, step: str) -> JsonObject:
        """The result of an upload that succeeded."""
        reply = self.replies[step]
        demand(reply.success, f"process_and_upload failed: {reply.error}")
        demand(
            isinstance(reply.result, dict), f"its result is {shown(reply.result)}, not an object"
        )
        return cast("JsonObject", reply.result)


@asynccontextmanager
async def uploading(
    lab: Lab, backend: FaultyBackend, **runtime: Any
) -> AsyncIterator[tuple[Uploaded, HandlerClient]]:
    """Serve the processor against a backend; yields the record and a client."""
    folder = lab.new_folder("uploads")
    seen = Uploaded(backend, folder / "log", folder / "state", params=params_of_call(lab))
    async with backend:
        with output_to(seen.log):
            handler = processor(lab, endpoint=backend.url)
            given = {"state_dir": seen.state, "min_file_age_s": 0, "installation_id": "contract"}
            async with serving(handler, **{**given, **runtime}) as served:
                yield seen, served.client


def uploaded_once(lab: Lab, backend: FaultyBackend, source: str = "", **runtime: Any) -> Uploaded:
    """What one upload to a backend came to, as the step `upload`; by default of the sample."""

    async def upload() -> Uploaded:
        async with uploading(lab, backend, **runtime) as (seen, client):
            await seen.upload(client, "upload", source or source_of(lab))
        return seen

    return asyncio.run(bounded(upload()))


@contextmanager
def connections_watched() -> Iterator[list[str]]:
    """The addresses that this process connects to meanwhile, by Python's audit events."""
    seen: list[str] = []
    _WATCHERS.append(seen.append)
    _add_hook_once(_on_audit)
    try:
        yield seen
    finally:
        _WATCHERS.remove(seen.append)


_WATCHERS: list[Callable[[str], None]] = []
_add_hook_once = cache(sys.addaudithook)


def _on_audit(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook cannot be taken away again: it does nothing while nobody watches."""
    if _WATCHERS and event in ("socket.connect", "socket.getaddrinfo"):
        address = arguments[1] if event == "socket.connect" else arguments[0]
        for watcher in _WATCHERS:
            watcher(str(address))

"""What a run would send: every request with its bytes, made without a backend.

Reads the sources and the marks of the handler's outbox; writes nothing outside a temporary folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from catalogzero.cloud.counters import RowPair, RunSummary
from catalogzero.cloud.egress import egress_key
from catalogzero.cloud.outbox.outbox import Outbox
from catalogzero.cloud.outbox.store import looked_at
from catalogzero.cloud.outbox.stored import SharedStore
from catalogzero.cloud.pipeline import UploadRun
from catalogzero.cloud.processor import CloudProcessor
from catalogzero.cloud.sending.upload_requests import chunk_request, complete_body, whole_request
from catalogzero.config.settings import shown_url
from catalogzero.protocol.bodies import AS_JSON
from catalogzero.protocol.codings import decoded
from catalogzero.protocol.identities import url_under
from catalogzero.wire.messages import JsonObject, encode_json

LARGE_BYTES, FEW_ROWS = 100_000_000, 20
NEXT_EPOCH = 0
"""Stands for the epoch that the next start is given."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it would leave."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes
    plain: bytes


@dataclass(frozen=True, slots=True)
class Previewed:
    """What a run would do.

    Attributes:
        result: What it would answer.
        requests: What it would ask of the backend.
        is_cut: Whether the limit was reached.
    """

    result: RunSummary
    requests: list[Request]
    is_cut: bool


def preview_run(
    handler: CloudProcessor,
    data_source: str,
    params: JsonObject,
    *,
    full: bool = False,
    limit: int | None = None,
    pairs: list[RowPair] | None = None,
    from_file: bool = False,
) -> Previewed:
    """What a run would do; reads the source, touches no state.

    Args:
        handler: Whose run.
        data_source: As in the call.
        params: As in the call.
        full: Also what was sent before.
        limit: How many rows are read; 0 for all. By default all of files up to `LARGE_BYTES`, and
            `FEW_ROWS` of anything else.
        pairs: Takes each row beside what is made of it, up to the one that fails.
        from_file: data_source is a file, also for a handler with a `read` of its own.
    """

    def few(size: int) -> int | None:
        if limit is None:
            return None if 0 < size <= LARGE_BYTES else FEW_ROWS
        return limit or None

    policy, state = handler.runtime.egress, handler.state_dir
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        key = egress_key(policy, state if (state / "egress.key").exists() else folder)
        outbox = stack.enter_context(closing(Outbox(folder, handler.clock, max_bytes=1 << 50)))
        shared = SharedStore.of(handler.runtime, handler.handler_id)
        if shared is not None:
            with looked_at(state, handler.clock, shared) as store:
                if store is not None:
                    outbox.store.copy_sources(store)
        elif (state / "outbox.sqlite").exists():
            outbox.store.copy_sources_of_file(state / "outbox.sqlite")
        run = UploadRun(
            author=handler,
            identity=handler.identity(),
            outbox=outbox,
            wake=lambda: None,
            wait_ended=lambda upload_ids, timeout_s: None,
            key=key,
            folder=folder,
            progress=lambda **fields: None,
            data_source=data_source,
            params=params,
            chunk_format=str(params.get("format") or "ndjson"),
            full=full or bool(params.get("full")),
            limit=few,
            pairs=pairs,
            from_file=from_file,
        )
        result = run()
        return Previewed(result, list(requests_of(handler, outbox)), run.is_cut)


def hash_key_is_missing(handler: CloudProcessor) -> bool:
    """Whether the egress policy hashes with a key that is not there yet."""
    policy = handler.runtime.egress
    made = policy.hash_key_file or (handler.state_dir / "egress.key").exists()
    return bool(policy.hash or policy.hash_sources) and not made


def requests_of(handler: CloudProcessor, outbox: Outbox) -> Iterator[Request]:
    """Every request of the sealed uploads, in order."""
    base, identity = shown_url(handler.settings.endpoint), handler.identity()
    common = {"Authorization": "Bearer (the API key)", "User-Agent": identity.user_agent}
    for upload in reversed(outbox.store.uploads(("sealed",))):
        chunks = list(outbox.store.bodies(upload.upload_id))
        if handler.settings.upload_form == "simple":
            body, headers = whole_request(upload, chunks, identity, NEXT_EPOCH)
            yield Request("POST", base, {**common, **headers}, body, body)
            continue
        for chunk in chunks:
            path, headers = chunk_request(upload.upload_id, chunk, chunk.body, chunk.coding)
            plain = decoded(chunk.body, chunk.coding)
            yield Request("PUT", url_under(base, *path), {**common, **headers}, chunk.body, plain)
        body = encode_json(complete_body(upload, identity, NEXT_EPOCH))
        url = url_under(base, "uploads", upload.upload_id, "complete")
        yield Request("POST", url, {**common, **AS_JSON}, body, body)

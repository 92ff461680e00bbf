"""The requests of an upload: paths, headers and bodies, made of what the outbox holds.

Pure functions, shared by the sender and by a preview, so that a preview shows what is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from catalogzero.cloud.encoding import Chunk, json_array
from catalogzero.cloud.outbox.stored import Upload
from catalogzero.protocol.bodies import (
    AS_JSON,
    CONTENT_TYPES,
    EPOCH,
    INSTALLATION,
    content_digest,
)
from catalogzero.protocol.codings import recode
from catalogzero.protocol.identities import Identity
from catalogzero.wire.messages import JsonObject


def chunk_request(
    upload_id: str, chunk: Chunk, body: bytes, coding: str
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Path and headers of a chunk's PUT."""
    headers = {"Content-Type": chunk.content_type, "Content-Digest": content_digest(body)}
    if coding != "identity":
        headers["Content-Encoding"] = coding
    return ("uploads", upload_id, "chunks", str(chunk.seq)), headers


def whole_request(
    upload: Upload, chunks: Sequence[Chunk], identity: Identity, epoch: int | None = None
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the simple form's POST."""
    body = json_array([recode(chunk.body, chunk.coding, "identity") for chunk in chunks])
    headers = {**AS_JSON, "Idempotency-Key": f"{upload.upload_key}-{upload.source_seq}"}
    if epoch is not None:
        headers |= {INSTALLATION: quote(identity.installation_id, safe=""), EPOCH: str(epoch)}
    return body, headers


def complete_body(upload: Upload, identity: Identity, epoch: int | None = None) -> JsonObject:
    """What `complete` says of a sealed upload, from a folder of this epoch."""
    body = {
        "upload_key": upload.upload_key,
        "source_key": upload.source_key,
        "source_seq": upload.source_seq,
        "mode": upload.mode,
        "full": upload.full,
        "chunks": upload.chunks,
        "records": upload.records,
        "stream": upload.stream or identity.stream,
        "source": upload.source,
        "params": upload.params,
        "entry": identity.entry,
        "version": identity.version,
        "installation_id": identity.installation_id,
    }
    if upload.mode != "replace":
        body.update(after=upload.after, until=upload.until)
        if upload.keyed is not None:
            body.update((name, value) for name, value in upload.keyed.items() if value)
        if upload.watermark_of:
            body["watermark_of"] = upload.watermark_of
    if epoch is not None:
        body["installation_epoch"] = epoch
    return body


def simple_refusal(upload: Upload, content_types: set[str], stream: str) -> str:
    """Why an upload cannot be sent in the simple form, with the fix; empty when it can.

    Args:
        upload: The upload.
        content_types: Of its chunks.
        stream: The handler's own.
    """
    if upload.keyed is not None or upload.stream not in (None, stream):
        return (
            "the backend takes the simple form alone, which says neither a stream nor a key: give "
            "it the chunked protocol, or write a class for each stream"
        )
    if content_types - {CONTENT_TYPES["ndjson"]}:
        return "the backend takes the simple form alone, one JSON array: use format ndjson"
    if upload.chunks > 1:
        return (
            f"the backend takes the simple form alone, and this result has {upload.chunks} chunks: "
            "raise chunk_bytes, split the source, or give the backend the chunked protocol"
        )
    return ""

"""What a check may do to a backend: send what a client sends, and note what it wrote.

Owns the requests and the ledger of rows; it judges nothing beyond the expectation that a check
states. Every upload and source of one run carries the run's name, so that they can be found.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import orjson

from catalogzero.protocol.bodies import AS_JSON, NDJSON, content_digest
from catalogzero.protocol.codings import encoded
from catalogzero.protocol.identities import url_under

STREAM = "catalogzero-verify"
MAX_SHOWN = 300
BOMB_STEP_BYTES, BOMB_STEPS = 1 << 20, 256

Record = Mapping[str, Any]


class NotConformingError(Exception):
    """The backend answered otherwise than the protocol says; the message tells how."""


@dataclass
class Ledger:
    """What a run wrote: records by (upload_id, seq), and the uploads that a source should show."""

    chunks: dict[tuple[str, int], Sequence[Record]] = field(default_factory=dict)
    shown: dict[str, list[str]] = field(default_factory=dict)

    def completed(self, source: str, upload_id: str, *, alone: bool) -> None:
        """An upload was accepted."""
        earlier = [] if alone else self.shown.get(source, [])
        self.shown[source] = [*earlier, upload_id]

    def rows(self, source: str) -> int:
        """How many rows of a source should be visible."""
        uploads = self.shown[source]
        return sum(len(rows) for (upload, _), rows in self.chunks.items() if upload in uploads)


class Probe:
    """One check's way to the backend.

    Args:
        client: Sends the requests.
        endpoint: The base, as a handler's settings name it.
        key: The test key.
        run: The run's name.
        name: The check's name, unique in the run.
        ledger: Where what is written is noted.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        endpoint: str,
        key: str,
        run: str,
        name: str,
        ledger: Ledger,
    ) -> None:
        self._client, self.endpoint, self._key = client, endpoint, key
        self._ledger = ledger
        self.run, self.source = run, f"verify-{run}-{name}"
        self.doubts: list[str] = []

    def upload(self, label: str) -> str:
        """An upload_id of this check's own."""
        return f"{self.source}-{label}"

    def doubt(self, sentence: str) -> None:
        """Note what the protocol allows, and a client pays for."""
        self.doubts.append(sentence)

    async def ask(
        self,
        method: str,
        *path: str,
        content: bytes | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> httpx.Response:
        """Send one request with the test key, or with `key` (empty: none)."""
        key = self._key if key is None else key
        sent = {"User-Agent": "catalogzero-verify", **(headers or {})}
        if key:
            sent["Authorization"] = f"Bearer {key}"
        if json is not None:
            content = orjson.dumps(json)
            sent = {**AS_JSON, **sent}
        url = httpx.URL(url_under(self.endpoint, *path)).copy_merge_params(dict(query or {}))
        return await self._client.request(method, url, content=content, headers=sent)

    async def put(
        self,
        upload_id: str,
        seq: int,
        records: Sequence[Record],
        *,
        encoding: str = "identity",
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> httpx.Response:
        """Send one chunk of JSON Lines."""
        lines = b"".join(orjson.dumps(record) + b"\n" for record in records)
        body = encoded(lines, encoding)
        sent = {"Content-Type": NDJSON, "Content-Digest": content_digest(body)}
        if encoding != "identity":
            sent["Content-Encoding"] = encoding
        path = ("uploads", upload_id, "chunks", str(seq))
        answer = await self.ask(
            "PUT", *path, content=body, headers={**sent, **(headers or {})}, key=key
        )
        if answer.is_success:
            self._ledger.chunks.setdefault((upload_id, seq), records)
        return answer

    async def complete(self, upload_id: str, **fields: Any) -> httpx.Response:
        """Complete an upload: of one chunk with one record, unless `fields` say otherwise."""
        body = {**self.completion(), **fields}
        answer = await self.ask("POST", "uploads", upload_id, "complete", json=body)
        if answer.status_code == 201:
            alone = body["mode"] == "replace" or body["full"]
            self._ledger.completed(body["source_key"], upload_id, alone=alone)
        return answer

    async def deliver(self, label: str, records: Sequence[Record], **fields: Any) -> httpx.Response:
        """One chunk, and its complete, in an upload of this check's own."""
        upload_id = self.upload(label)
        expect(await self.put(upload_id, 0, records), 201)
        return await self.complete(upload_id, records=len(records), **fields)

    async def post_array(
        self, label: str, records: Sequence[Record], *, key: str | None = None
    ) -> httpx.Response:
        """Send the simple form's one array, under an Idempotency-Key of this check's own."""
        headers = {"Idempotency-Key": self.upload(label)}
        answer = await self.ask("POST", json=records, headers=headers, key=key)
        if answer.is_success:
            self._ledger.chunks.setdefault((self.upload(label), 0), records)
            self._ledger.shown.setdefault(self.upload(label), [self.upload(label)])
        return answer

    def completion(self) -> dict[str, Any]:
        """The body of a `complete` of one chunk with one record."""
        return {
            "upload_key": f"{self.source}-key",
            "source_key": self.source,
            "source_seq": 1_000,
            "mode": "replace",
            "full": False,
            "after": None,
            "until": None,
            "chunks": 1,
            "records": 1,
            "stream": STREAM,
            "source": self.source,
            "params": {},
            "entry": "catalogzero-verify",
            "version": "1",
            "installation_id": f"verify-{self.run}",
        }


class Check(Protocol):
    """A check: its name and docstring are part of the report."""

    __name__: str

    async def __call__(self, probe: Probe) -> None:
        """Ask, and raise `NotConformingError` where the answer is another one."""


@functools.cache
def gzip_bomb() -> bytes:
    """One JSON Lines record of 256 MiB, some 256 KiB as gzip."""
    packer = zlib.compressobj(level=9, wbits=31)
    parts = [packer.compress(b'{"x":"')]
    parts += [packer.compress(bytes([48]) * BOMB_STEP_BYTES) for _ in range(BOMB_STEPS)]
    return b"".join([*parts, packer.compress(b'"}\n'), packer.flush()])


def expect(answer: httpx.Response, *statuses: int) -> dict[str, Any]:
    """The answer's JSON object, where its status is one of these; empty where it has none.

    Raises:
        NotConformingError: Another status.
    """
    if answer.status_code not in statuses:
        wanted = " or ".join(map(str, statuses))
        raise NotConformingError(f"{_said(answer)}, expected {wanted}")
    try:
        body = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}


def expect_refused(answer: httpx.Response, *statuses: int) -> None:
    """A 4xx that is none of a client's retries, one of `statuses` where any is named.

    Raises:
        NotConformingError: It was accepted, or the backend failed over it.
    """
    fits = answer.status_code in statuses if statuses else 400 <= answer.status_code < 500
    if not fits or answer.status_code in (408, 425, 429):
        wanted = " or ".join(map(str, statuses)) or "a 4xx"
        raise NotConformingError(f"{_said(answer)}, expected {wanted}")


def expect_job(answer: httpx.Response, status: int) -> str:
    """The job_id of an accepted `complete`.

    Raises:
        NotConformingError: Another status, or no job_id.
    """
    job_id = expect(answer, status).get("job_id")
    if job_id is None:
        raise NotConformingError(f"{_said(answer)}: no job_id")
    return str(job_id)


def expect_fields(answer: httpx.Response, **fields: Any) -> None:
    """A 200 whose object has these fields.

    Raises:
        NotConformingError: It has not.
    """
    body = expect(answer, 200)
    wrong = {name: value for name, value in fields.items() if body.get(name) != value}
    if wrong:
        raise NotConformingError(f"{_said(answer)}: expected {orjson.dumps(wrong).decode()} in it")


def _said(answer: httpx.Response) -> str:
    """A request and its answer in one line."""
    path = answer.request.url.path
    text = " ".join(answer.text.split())[:MAX_SHOWN]
    return f"{answer.request.method} {path} answered {answer.status_code} {text}".rstrip()

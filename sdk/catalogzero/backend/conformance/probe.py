"""What a check may do to a backend: send what a client sends, and note what it wrote.

Owns the requests and the ledger of rows; it judges nothing beyond the expectation that a check
states. Every upload and source of one run carries the run's name, so that they can be found.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

import httpx
import orjson

from catalogzero.protocol.bodies import AS_JSON, NDJSON, content_digest
from catalogzero.protocol.codings import encoded
from catalogzero.protocol.identities import url_under
from catalogzero.protocol.problems import Kind
from catalogzero.wire.messages import JsonObject

STREAM = "catalogzero-verify"
MAX_SHOWN = 300
BOMB_STEP_BYTES, BOMB_STEPS = 1 << 20, 256
CUT_S, COMMAND_S, ANSWERS_S = 2.0, 60.0, 30.0

Record = Mapping[str, Any] | str
"""A record, or its JSON text."""


class NotConformingError(Exception):
    """The backend answered otherwise than the protocol says; the message says how."""


@dataclass
class Ledger:
    """What a run wrote: records by (upload_id, seq), and what each source should show.

    A source is an installation, a source_key and the name that people read. `merged` has the key
    and the tombstone column of those in mode merge.
    """

    chunks: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    shown: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)
    merged: dict[tuple[str, str, str], tuple[list[str], str | None]] = field(default_factory=dict)

    def completed(self, source: tuple[str, str, str], upload_id: str, *, alone: bool) -> None:
        """An upload was accepted."""
        earlier = [] if alone else self.shown.get(source, [])
        self.shown[source] = [*earlier, upload_id]

    def visible(self) -> dict[str, list[str]]:
        """The records, as JSON, that should be visible of each source's name."""
        seen: dict[str, list[str]] = {}
        for (_, _, name), uploads in self.shown.items():
            rows = seen.setdefault(name, [])
            for (upload, _), records in self.chunks.items():
                rows += records if upload in uploads else ()
        return seen


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a run has to check with.

    `other_key` is another tenant's; `restart`, `rows` and `latest` are commands of a shell.
    """

    client: httpx.AsyncClient
    tls: ssl.SSLContext
    endpoint: str
    key: str
    run: str
    ledger: Ledger
    other_key: str = ""
    restart: str = ""
    rows: str = ""
    latest: str = ""


class Probe:
    """One check's way to the backend; `name` is the check's, unique in the run."""

    def __init__(self, means: Means, name: str) -> None:
        self.means, self.run = means, means.run
        self.source = f"verify-{means.run}-{name}"
        self.doubts: list[str] = []
        self.slowest = (0.0, "")

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
        content: bytes | AsyncIterator[bytes] | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> httpx.Response:
        """Send one request with the test key, or with `key` (empty: none)."""
        key = self.means.key if key is None else key
        sent = {"User-Agent": "catalogzero-verify", **(headers or {})}
        if key:
            sent["Authorization"] = f"Bearer {key}"
        if json is not None:
            content = orjson.dumps(json)
            sent = {**AS_JSON, **sent}
        url = httpx.URL(url_under(self.means.endpoint, *path)).copy_merge_params(dict(query or {}))
        began = time.monotonic()
        answer = await self.means.client.request(method, url, content=content, headers=sent)
        self.slowest = max(self.slowest, (time.monotonic() - began, f"{method} {url.path}"))
        return answer

    async def put(
        self,
        upload_id: str,
        seq: object,
        records: Sequence[Record],
        *,
        encoding: str = "identity",
        content: bytes | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> httpx.Response:
        """Send one chunk of JSON Lines, or `content`, which holds these records."""
        texts = [r if isinstance(r, str) else orjson.dumps(r).decode() for r in records]
        sent = {"Content-Type": NDJSON}
        if content is None:
            content = encoded("".join(f"{text}\n" for text in texts).encode(), encoding)
            sent["Content-Digest"] = content_digest(content)
        if encoding != "identity":
            sent["Content-Encoding"] = encoding
        path = ("uploads", upload_id, "chunks", str(seq))
        answer = await self.ask(
            "PUT", *path, content=content, headers={**sent, **(headers or {})}, key=key
        )
        if answer.is_success and key is None:
            # the first one counts: a repetition changes nothing, and other records are refused
            self.means.ledger.chunks.setdefault((upload_id, str(seq)), texts)
        return answer

    async def put_cut(self, upload_id: str, content: bytes, length: int) -> None:
        """Send a chunk 0 that says it has `length` bytes, and end the connection before."""
        url = httpx.URL(url_under(self.means.endpoint, "uploads", upload_id, "chunks", "0"))
        tls = self.means.tls if url.scheme == "https" else None
        port = url.port or (443 if tls else 80)
        reader, writer = await asyncio.open_connection(url.host, port, ssl=tls)
        head = (
            f"PUT {url.raw_path.decode()} HTTP/1.1\r\nHost: {url.netloc.decode()}\r\n"
            f"Authorization: Bearer {self.means.key}\r\nContent-Type: {NDJSON}\r\n"
            f"Content-Length: {length}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        # a server may answer, reset, or say nothing: all that counts is what it stored
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(CUT_S):
                await writer.drain()
                if writer.can_write_eof():
                    writer.write_eof()
                    await reader.read()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def complete(self, upload_id: str, **fields: Any) -> httpx.Response:
        """Complete an upload: of one chunk with one record, unless `fields` say otherwise.

        `bearer` is the key that it is asked with, where it is not the test key.
        """
        bearer = fields.pop("bearer", None)
        body = {**self.completion(), **fields}
        answer = await self.ask("POST", "uploads", upload_id, "complete", json=body, key=bearer)
        if answer.status_code == 201 and bearer is None:
            source = (body["installation_id"], body["source_key"], body["source"])
            alone = body["mode"] == "replace" or body["full"]
            self.means.ledger.completed(source, upload_id, alone=alone)
            self.means.ledger.merged.pop(source, None)
            if body["mode"] == "merge":
                self.means.ledger.merged[source] = body["key"], body.get("tombstone")
        return answer

    async def deliver(self, label: str, records: Sequence[Record], **fields: Any) -> httpx.Response:
        """One chunk, and its complete, in an upload of this check's own."""
        upload_id = self.upload(label)
        expect(await self.put(upload_id, 0, records, key=fields.get("bearer")), 201)
        return await self.complete(upload_id, records=len(records), **fields)

    async def post_array(
        self, label: str, records: Sequence[Record], *, key: str | None = None
    ) -> httpx.Response:
        """Send the simple form's one array, under an Idempotency-Key of this check's own."""
        headers = {"Idempotency-Key": self.upload(label)}
        answer = await self.ask("POST", json=records, headers=headers, key=key)
        if answer.is_success and key is None:
            name, ledger = self.upload(label), self.means.ledger
            ledger.chunks.setdefault((name, "0"), [orjson.dumps(row).decode() for row in records])
            ledger.shown.setdefault(("", name, name), [name])
        return answer

    async def restart(self) -> None:
        """Have the backend killed and started again, and wait until it answers.

        Raises:
            NotConformingError: The command failed, or nobody answers.
        """
        await output_of(self.means.restart, self.run)
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWERS_S):
                while True:
                    with suppress(httpx.HTTPError):
                        if (await self.ask("GET", "uploads", "none")).status_code < 500:
                            return
                    await asyncio.sleep(0.1)
        raise NotConformingError(f"nobody answers {ANSWERS_S:.0f} s after the restart")

    def completion(self) -> JsonObject:
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


class ConformanceCheck(Protocol):
    """A check: its name and docstring are part of the report."""

    __name__: str

    async def __call__(self, probe: Probe) -> None:
        """Ask, and raise `NotConformingError` where the answer is another one."""


def title_of(check: ConformanceCheck) -> str:
    """A check's name, as people read it."""
    return check.__name__.replace("_", " ")


@functools.cache
def gzip_bomb() -> bytes:
    """One JSON Lines record of 256 MiB, some 256 KiB as gzip, from one block that is repeated."""
    block, crc, size = bytes([48]) * BOMB_STEP_BYTES, zlib.crc32(b'{"x":"'), 9
    packer = zlib.compressobj(level=9, wbits=-15)
    head = packer.compress(b'{"x":"') + packer.flush(zlib.Z_FULL_FLUSH)
    # a full flush ends at a byte and forgets what was before: what it gives may be repeated
    step = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    tail = packer.compress(b'"}\n') + packer.flush()
    for _ in range(BOMB_STEPS):
        crc, size = zlib.crc32(block, crc), size + BOMB_STEP_BYTES
    trailer = zlib.crc32(b'"}\n', crc).to_bytes(4, "little") + size.to_bytes(4, "little")
    return b"\x1f\x8b\x08" + bytes(7) + head + step * BOMB_STEPS + tail + trailer


@functools.cache
def stepped_bomb() -> bytes:
    """256 MiB of JSON Lines, in gzip members of 1 MiB each."""
    packer = zlib.compressobj(level=9, wbits=31)
    line = b'{"x":"' + bytes([48]) * (BOMB_STEP_BYTES - 9) + b'"}\n'
    return (packer.compress(line) + packer.flush()) * BOMB_STEPS


async def output_of(command: str, run: str) -> str:
    """What a command of the operator's prints; it is given the run's prefix of names.

    Raises:
        NotConformingError: It failed, or took more than a minute.
    """
    process = await asyncio.create_subprocess_shell(
        command,
        env={**os.environ, "CATALOGZERO_VERIFY_PREFIX": f"verify-{run}-"},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(COMMAND_S):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise NotConformingError(f"{command!r} took more than {COMMAND_S:.0f} s") from None
    require(process.returncode == 0, f"{command!r} ended with {process.returncode}")
    return said.decode(errors="replace")


def expect(answer: httpx.Response, *statuses: int) -> JsonObject:
    """The answer's JSON object, where its status is one of these; empty where it has none.

    Raises:
        NotConformingError: Another status.
    """
    wanted = " or ".join(map(str, statuses))
    require(answer.status_code in statuses, f"{_said(answer)}, expected {wanted}")
    try:
        body = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}


def expect_refused(answer: httpx.Response, *statuses: int) -> None:
    """A 4xx that is not one of a client's retries, one of `statuses` where any is named.

    Raises:
        NotConformingError: It was accepted, or the backend failed over it.
    """
    fits = answer.status_code in statuses if statuses else answer.is_client_error
    wanted = " or ".join(map(str, statuses)) or "a 4xx"
    is_retried = answer.status_code in (408, 425, 429)
    require(fits and not is_retried, f"{_said(answer)}, expected {wanted}")


def expect_job(answer: httpx.Response) -> str:
    """The job_id of a `complete` that was accepted, with status 201.

    Raises:
        NotConformingError: Another status, or no job_id.
    """
    job_id = expect(answer, 201).get("job_id")
    require(job_id is not None, f"{_said(answer)}: no job_id")
    return str(job_id)


def expect_problem(
    answer: httpx.Response, kind: Kind, member: str, value: str | None = None
) -> None:
    """A refusal of this kind, whose document has this member, with this value where one is given.

    Raises:
        NotConformingError: It is another answer.
    """
    expect_refused(answer, kind.status)
    document = answer.json() if answer.content else {}
    is_there = member in document and value in (None, document[member])
    require(
        document.get("type") == kind.uri and is_there,
        f"{_said(answer)}, expected type {kind.uri} and {member}",
    )


def require(holds: bool, otherwise: str) -> None:
    """What must be so.

    Raises:
        NotConformingError: It is not; the message is `otherwise`.
    """
    if not holds:
        raise NotConformingError(otherwise)


def checks_in(module: ModuleType) -> list[ConformanceCheck]:
    """The checks of a module: its own coroutine functions that take a probe alone, in order."""
    own = (
        one for one in vars(module).values() if getattr(one, "__module__", "") == module.__name__
    )
    return [
        one
        for one in own
        if inspect.iscoroutinefunction(one) and list(inspect.signature(one).parameters) == ["probe"]
    ]


def expect_missing(answer: httpx.Response, seqs: Iterable[int]) -> None:
    """A 409 that lists these chunks as missing.

    Raises:
        NotConformingError: Another status, or other numbers.
    """
    missing = expect(answer, 409).get("missing")
    wanted = f"{_said(answer)}: expected missing {list(seqs)}"
    require(missing == list(seqs), wanted[: 2 * MAX_SHOWN])


def expect_fields(answer: httpx.Response, **fields: Any) -> None:
    """A 200 whose object has these fields.

    Raises:
        NotConformingError: It has not.
    """
    body = expect(answer, 200)
    wrong = {name: value for name, value in fields.items() if body.get(name) != value}
    require(not wrong, f"{_said(answer)}: expected {orjson.dumps(wrong).decode()} in it")


def _said(answer: httpx.Response) -> str:
    """A request and its answer in one line."""
    path = answer.request.url.path
    text = " ".join(answer.text.split())[:MAX_SHOWN]
    return f"{answer.request.method} {path} answered {answer.status_code} {text}".rstrip()

"""A backend of the tests' own: the rules of the upload protocol in memory, with faults on demand.

It is written from the protocol, apart from the real backend, so that client and backend cannot
share a misreading.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Self

import orjson
from aiohttp import web
from catalogzero.protocol.codings import decoded

Row = dict[str, Any]
MOVED: Row = {"type": "urn:catalogzero:problem:installation-moved", "since": "2026-01-01"}
CHANGED: Row = {"type": "urn:catalogzero:problem:generation-changed"}
Fault = Callable[[web.Request], web.StreamResponse | None]
Gate = Callable[[web.Request], Awaitable[None]]


@dataclass
class Stored:
    """What is stored of one upload."""

    chunks: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    status: str = "open"
    body: dict[str, Any] = field(default_factory=dict)
    job_id: str = ""


class Rules:
    """What a backend keeps, and how it judges a chunk and a `complete`; pure but for its memory."""

    def __init__(self) -> None:
        self.uploads: dict[str, Stored] = defaultdict(Stored)
        self.high: dict[str, int] = {}
        self.watermark: dict[str, Any] = {}
        self.visible: dict[str, list[str]] = defaultdict(list)
        self.full: dict[str, int] = {}
        self.mode: dict[str, str] = {}
        self.epoch, self.generation = 0, "g1"
        self.nonces: list[str] = []
        self.page = 1_000

    def start(self, about: Row, clock_ms: int = 0) -> tuple[int, Row]:
        """The answer to a folder's start: the next epoch, and what is known of its sources."""
        if "epoch" not in about:
            return 200, {"sources": self.high}
        if about.get("generation") not in (None, self.generation):
            return 409, {**CHANGED, "generation": self.generation}
        newest = self.nonces[-1:]
        known = bool({about["nonce"], about.get("last_nonce")} & set(newest) - {""})
        replayed = about["nonce"] in self.nonces and about["nonce"] != ""
        if not known and (replayed or 0 < about["epoch"] < self.epoch):
            return 409, MOVED
        self.epoch = max(self.epoch + 1, about["epoch"] + 1, clock_ms)
        self.nonces = [*self.nonces, about["nonce"]]
        return 200, self.sources_from(0)

    def sources_from(self, begin: int) -> Row:
        """A page of what is known of the sources."""
        keys = sorted(self.high)[begin : begin + self.page]
        page: Row = {"generation": self.generation, "epoch": self.epoch, "sources": self.high}
        page["states"] = {
            key: {
                "source_seq": self.high[key],
                "watermark": self.watermark.get(key),
                "full_seq": self.full.get(key, 0),
                "mode": self.mode.get(key),
            }
            for key in keys
        }
        end = begin + self.page
        return page if end >= len(self.high) else {**page, "next": str(end)}

    def restore(self, snapshot: Row) -> None:
        """Put back what was there then, and begin another generation."""
        generation = self.generation
        for name, value in deepcopy(snapshot).items():
            setattr(self, name, value)
        self.generation = generation + "+"

    def snapshot(self) -> Row:
        """What a backup holds."""
        names = ("uploads", "high", "watermark", "visible", "full", "mode", "epoch", "nonces")
        return deepcopy({name: getattr(self, name) for name in names})

    def rows(self, source: str | None = None) -> list[dict[str, Any]]:
        """All rows that are visible."""
        found = []
        for uploads in self.visible.values():
            for upload_id in uploads:
                upload = self.uploads[upload_id]
                if source is None or upload.body["source"] == source:
                    found += [row for seq in sorted(upload.chunks) for row in upload.chunks[seq]]
        return found

    def put(self, upload_id: str, seq: int, rows: list[Row]) -> int:
        """The status that answers a chunk."""
        upload = self.uploads[upload_id]
        if upload.status != "open":
            return 410
        if seq in upload.chunks:
            return 200 if upload.chunks[seq] == rows else 409
        upload.chunks[seq] = rows
        return 201

    def complete(self, upload_id: str, body: Row) -> tuple[int, Row]:
        """The answer to `complete`."""
        if body.get("installation_epoch", 0) < self.epoch:
            return 409, MOVED
        self.epoch = max(self.epoch, body.get("installation_epoch", 0))
        upload, key, seq = self.uploads[upload_id], body["source_key"], body["source_seq"]
        high, watermark = self.high.get(key, 0), self.watermark.get(key)
        hides = body["full"] or body["mode"] == "replace"
        if upload.status == "done":
            duplicate = {"job_id": upload.job_id, "duplicate": True}
            return 200, {**duplicate, "by": "upload_id", "source_seq": high}
        superseded = {"superseded": True, "source_seq": high, "watermark": watermark}
        if upload.status == "superseded":
            return 200, superseded
        for other in self.visible[key] if body["mode"] == "replace" and not body["full"] else ():
            if self.uploads[other].body["upload_key"] == body["upload_key"]:
                self.high[key] = max(high, seq)
                duplicate = {"job_id": self.uploads[other].job_id, "duplicate": True}
                return 200, {**duplicate, "by": "upload_key", "source_seq": self.high[key]}
        if seq <= high if hides else body["after"] != watermark:
            upload.status = "superseded"
            return 200, superseded
        if not body["full"] and self.mode.get(key, body["mode"]) != body["mode"]:
            return 409, {"type": "urn:catalogzero:problem:mode-changed"}
        missing = [n for n in range(body["chunks"]) if n not in upload.chunks]
        if missing:
            return 409, {"missing": missing}
        self.visible[key] = [upload_id] if hides else [*self.visible[key], upload_id]
        self.high[key], self.watermark[key] = max(high, seq), body.get("until")
        self.mode[key] = body["mode"]
        if body["full"]:
            self.full[key] = seq
        upload.status, upload.body, upload.job_id = "done", body, f"job-{upload_id[:8]}"
        return 201, {"job_id": upload.job_id}


class ReferenceBackend(Rules):
    """The rules behind HTTP; `fault` is asked before each request is served.

    `gate` is awaited before that: a request waits there as long as a test likes.
    """

    def __init__(self, key: str = "test-key") -> None:
        super().__init__()
        self.key = key
        self.bodies: list[tuple[str, str, bytes]] = []
        self.headers: list[dict[str, str]] = []
        self.reports: list[Row] = []
        self.installations: dict[str, Row] = {}
        self.simple: dict[str, list[Row]] = {}
        self.fault: Fault = lambda request: None
        self.gate: Gate | None = None
        self.codings: tuple[str, ...] = ("zstd", "gzip", "")
        self.chunked = True
        self.epochs = True
        self.url = ""
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self.serve)
        self._runner = web.AppRunner(app, auto_decompress=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if self.gate is not None:
            await self.gate(request)
        answer = await self.answer(request)
        if self.epochs:
            answer.headers["Catalogzero-Generation"] = self.generation
        return answer

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        body = await request.read()
        self.bodies.append((request.method, request.path, body))
        if (refusal := self.fault(request)) is not None:
            return refusal
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"title": "no such key"}, status=401)
        match request.method, request.path.removeprefix("/v1").strip("/").split("/"):
            case "PUT", ["uploads", upload_id, "chunks", seq] if self.chunked:
                return self._put(request, upload_id, int(seq), body)
            case "POST", ["uploads", upload_id, "complete"] if self.chunked:
                status, answer = self.complete(upload_id, orjson.loads(body))
                return web.json_response(answer, status=status)
            case "POST", ["health"]:
                self.reports.append(orjson.loads(body))
                return web.json_response({})
            case "PUT", ["installations", name]:
                self.installations[name] = orjson.loads(body)
                about = self.installations[name] if self.epochs else {}
                status, answer = self.start(about)
                return web.json_response(answer, status=status)
            case "GET", ["installations", _]:
                return web.json_response(self.sources_from(int(request.query["next"])))
            case "POST", [""]:
                if int(request.headers.get("Catalogzero-Epoch", 0)) < self.epoch:
                    return web.json_response(MOVED, status=409)
                self.simple.setdefault(request.headers["Idempotency-Key"], orjson.loads(body))
                return web.json_response({"job_id": f"simple-{len(self.simple)}"})
        return web.json_response({"title": "no such route"}, status=404)

    def _put(
        self, request: web.Request, upload_id: str, seq: int, body: bytes
    ) -> web.StreamResponse:
        coding = request.headers.get("Content-Encoding", "")
        if coding not in self.codings:
            return web.json_response({"title": f"no {coding}"}, status=415)
        plain = decoded(body, coding or "identity")
        if request.content_type == "application/x-ndjson":
            rows = [orjson.loads(line) for line in plain.splitlines()]
        else:
            rows = [{"bytes": plain}]
        return web.json_response({}, status=self.put(upload_id, seq, rows))

"""A backend of the tests' own: the rules of the upload protocol in memory, with faults on demand.

It is written from the protocol, apart from the real backend, so that client and backend cannot
share a misreading.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web
from catalogzero.protocol.codings import decoded

Row = dict[str, Any]
Fault = Callable[[web.Request], web.StreamResponse | None]


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
        upload, key, seq = self.uploads[upload_id], body["source_key"], body["source_seq"]
        high, watermark = self.high.get(key, 0), self.watermark.get(key)
        hides = body["full"] or body["mode"] == "replace"
        if upload.status == "done":
            return 200, {"job_id": upload.job_id, "duplicate": True}
        superseded = {"superseded": True, "source_seq": high, "watermark": watermark}
        if upload.status == "superseded":
            return 200, superseded
        for other in self.visible[key] if body["mode"] == "replace" and not body["full"] else ():
            if self.uploads[other].body["upload_key"] == body["upload_key"]:
                self.high[key] = max(high, seq)
                return 200, {"job_id": self.uploads[other].job_id, "duplicate": True}
        if seq <= high if hides else body["after"] != watermark:
            upload.status = "superseded"
            return 200, superseded
        missing = [n for n in range(body["chunks"]) if n not in upload.chunks]
        if missing:
            return 409, {"missing": missing}
        self.visible[key] = [upload_id] if hides else [*self.visible[key], upload_id]
        self.high[key], self.watermark[key] = max(high, seq), body.get("until")
        upload.status, upload.body, upload.job_id = "done", body, f"job-{upload_id[:8]}"
        return 201, {"job_id": upload.job_id}


class ReferenceBackend(Rules):
    """The rules behind HTTP; `fault` is asked before each request is served."""

    def __init__(self, key: str = "test-key") -> None:
        super().__init__()
        self.key = key
        self.bodies: list[tuple[str, str, bytes]] = []
        self.headers: list[dict[str, str]] = []
        self.reports: list[Row] = []
        self.installations: dict[str, Row] = {}
        self.simple: dict[str, list[Row]] = {}
        self.fault: Fault = lambda request: None
        self.codings: tuple[str, ...] = ("zstd", "gzip", "")
        self.chunked = True
        self.url = ""
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def __aenter__(self) -> ReferenceBackend:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._serve)
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

    async def _serve(self, request: web.Request) -> web.StreamResponse:
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
                return web.json_response({"sources": self.high})
            case "POST", [""]:
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

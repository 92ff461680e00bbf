"""A backend of the tests' own: the rules of the upload protocol in memory, with faults on demand.

It is written from the protocol, apart from the real backend, so that client and backend cannot
share a misreading.
"""

from __future__ import annotations

import gzip
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
import zstandard
from aiohttp import web

Fault = Callable[[web.Request], web.StreamResponse | None]


@dataclass
class Stored:
    """What is stored of one upload."""

    chunks: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    status: str = "open"
    body: dict[str, Any] = field(default_factory=dict)
    job_id: str = ""


class ReferenceBackend:
    """Uploads of one tenant, in memory; `faults` are asked before each request is served."""

    def __init__(self, key: str = "test-key") -> None:
        self.key = key
        self.uploads: dict[str, Stored] = defaultdict(Stored)
        self.high: dict[str, int] = {}
        self.watermark: dict[str, Any] = {}
        self.visible: dict[str, list[str]] = defaultdict(list)
        self.requests: list[web.Request] = []
        self.bodies: list[tuple[str, str, bytes]] = []
        self.reports: list[dict[str, Any]] = []
        self.installations: dict[str, dict[str, Any]] = {}
        self.simple: dict[str, list[dict[str, Any]]] = {}
        self.fault: Fault = lambda request: None
        self.codings = ("zstd", "gzip", "")
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

    def rows(self, source: str | None = None) -> list[dict[str, Any]]:
        """All rows that are visible."""
        found = []
        for uploads in self.visible.values():
            for upload_id in uploads:
                upload = self.uploads[upload_id]
                if source is None or upload.body["source"] == source:
                    found += [row for seq in sorted(upload.chunks) for row in upload.chunks[seq]]
        return found

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        body = await request.read()
        self.bodies.append((request.method, request.path, body))
        if (answer := self.fault(request)) is not None:
            return answer
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"title": "no such key"}, status=401)
        match request.method, request.path.removeprefix("/v1").strip("/").split("/"):
            case "PUT", ["uploads", upload_id, "chunks", seq]:
                return self._put(request, self.uploads[upload_id], int(seq), body)
            case "POST", ["uploads", upload_id, "complete"]:
                return self._complete(upload_id, orjson.loads(body))
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
        self, request: web.Request, upload: Stored, seq: int, body: bytes
    ) -> web.StreamResponse:
        if upload.status != "open":
            return web.json_response({}, status=410)
        coding = request.headers.get("Content-Encoding", "")
        if coding not in self.codings:
            return web.json_response({"title": f"no {coding}"}, status=415)
        if coding == "zstd":
            body = zstandard.ZstdDecompressor().decompress(body)
        elif coding == "gzip":
            body = gzip.decompress(body)
        rows = [orjson.loads(line) for line in body.splitlines()]
        if seq in upload.chunks:
            return web.json_response({}, status=200 if upload.chunks[seq] == rows else 409)
        upload.chunks[seq] = rows
        return web.json_response({}, status=201)

    def _complete(self, upload_id: str, body: dict[str, Any]) -> web.StreamResponse:
        upload, key, seq = self.uploads[upload_id], body["source_key"], body["source_seq"]
        high, hides = self.high.get(key, 0), body["full"] or body["mode"] == "replace"
        if upload.status == "done":
            return web.json_response({"job_id": upload.job_id, "duplicate": True})
        late = seq <= high if hides else body["after"] != self.watermark.get(key)
        for other in self.visible[key]:
            same = self.uploads[other].body["upload_key"] == body["upload_key"]
            if same and not body["full"] and body["mode"] == "replace":
                self.high[key] = max(high, seq)
                job_id = self.uploads[other].job_id
                return web.json_response({"job_id": job_id, "duplicate": True})
        if late or upload.status == "superseded":
            upload.status = "superseded"
            answer = {"superseded": True, "source_seq": high, "watermark": self.watermark.get(key)}
            return web.json_response(answer)
        missing = [n for n in range(body["chunks"]) if n not in upload.chunks]
        if missing:
            return web.json_response({"missing": missing}, status=409)
        self.visible[key] = [upload_id] if hides else [*self.visible[key], upload_id]
        self.high[key], self.watermark[key] = max(high, seq), body.get("until")
        upload.status, upload.body, upload.job_id = "done", body, f"job-{upload_id[:8]}"
        return web.json_response({"job_id": upload.job_id}, status=201)

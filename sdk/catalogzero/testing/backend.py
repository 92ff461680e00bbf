"""A backend for tests: the upload protocol in memory, over real HTTP, with faults on demand.

Owns what is visible of each upload, and a plan of faults that is used up request by request.
It checks no tenant and stores nothing on disk: it is not a backend to deploy.
"""

from __future__ import annotations

import itertools
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypedDict

import orjson
from aiohttp import web

from catalogzero.cloud.rows.values import Row
from catalogzero.protocol.bodies import EPOCH, GENERATION
from catalogzero.protocol.codings import decoded
from catalogzero.protocol.judging import Completion, Judgement, Standing, UploadState, judge
from catalogzero.protocol.problems import Kind, ProblemError
from catalogzero.wire.messages import JsonObject

Fault = Literal["ok", "500", "503", "429", "cut", "lost_reply", "422", "401"]
"""What happens to a request: served, refused, its connection cut, or served with no reply."""


class KnownSource(TypedDict):
    """What the backend knows of a source, in the protocol's words."""

    source_seq: int
    watermark: object
    full_seq: int
    mode: str | None


API_KEY = "contract-key-7f3a91c05b"
"""The one key that the backend takes: a canary that must never show anywhere else."""


@dataclass
class Received:
    """What is stored of one upload."""

    chunks: dict[int, list[Row]] = field(default_factory=dict)
    state: UploadState = UploadState.OPEN
    body: JsonObject = field(default_factory=dict)
    job_id: str = ""


class FaultyBackend:
    """Serves the upload protocol on a free loopback port; an async context manager.

    Attributes:
        url: The endpoint to configure.
        plan: Faults for the next requests of uploads, in order; `ok` when it is used up.
        always: A fault for every request of an upload, whatever the plan says.
        requests: Method and path of every request.
        bodies: Every body that arrived, decoded.
        reports: Health reports.
        installations: What installations said of themselves, by id.
        generation: Named in every answer, until `restored`.
    """

    def __init__(self, plan: Iterable[Fault] = (), *, always: Fault | None = None) -> None:
        self.url = ""
        self.plan = list(plan)
        self.always = always
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []
        self.reports: list[JsonObject] = []
        self.installations: dict[str, JsonObject] = {}
        self._uploads: defaultdict[str, Received] = defaultdict(Received)
        self._visible: defaultdict[str, list[Received]] = defaultdict(list)
        self._sources: dict[str, KnownSource] = {}
        self._epoch = 0
        self._nonces: list[str] = []
        self.generation = uuid.uuid4().hex
        self._simple: dict[str, tuple[str, list[Row]]] = {}
        self._jobs = itertools.count(1)
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, auto_decompress=False, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1/process"
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def rows(self) -> list[Row]:
        """Every row that is visible, uploads in the order of their completion."""
        chunked = [
            row
            for uploads in self._visible.values()
            for upload in uploads
            for seq in sorted(upload.chunks)
            for row in upload.chunks[seq]
        ]
        return chunked + [row for _, rows in self._simple.values() for row in rows]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        """Answer one request, or do to it what the plan says."""
        path = request.path.removeprefix("/v1/process").strip("/").split("/")
        fault: Fault = "ok"
        if path[0] in ("uploads", ""):
            fault = self.always or (self.plan.pop(0) if self.plan else "ok")
        self.requests.append((request.method, request.path))
        if fault == "cut":
            return cut(request)
        body = decoded(await request.read(), request.headers.get("Content-Encoding", "identity"))
        self.bodies.append(body)
        if fault.isdigit():
            title = {"title": f"a planned {fault}"}
            headers = {"Retry-After": "0"} if fault in ("429", "503") else {}
            return web.json_response(title, status=int(fault), headers=headers)
        if request.headers.get("Authorization") != f"Bearer {API_KEY}":
            return web.json_response({"title": "no such key"}, status=401)
        # What is served stays done, also where its reply is then lost: the client asks again.
        answer = self._answer(request.method, path, body, request.headers)
        answer.headers[GENERATION] = self.generation
        return cut(request) if fault == "lost_reply" else answer

    def _answer(
        self, method: str, path: list[str], body: bytes, headers: Mapping[str, str]
    ) -> web.Response:
        """The protocol's answer to a request."""
        match method, path:
            case "PUT", ["uploads", upload_id, "chunks", seq]:
                return self._put(self._uploads[upload_id], int(seq), body)
            case "POST", ["uploads", upload_id, "complete"]:
                return self._complete(self._uploads[upload_id], orjson.loads(body))
            case "GET", ["uploads", upload_id] if upload_id in self._uploads:
                return web.json_response({"chunks": sorted(self._uploads[upload_id].chunks)})
            case "GET", ["uploads", _]:
                return web.json_response({"title": "no such upload"}, status=404)
            case "PUT", ["installations", installation_id]:
                self.installations[installation_id] = orjson.loads(body)
                return self._start(self.installations[installation_id])
            case "POST", ["health"]:
                self.reports.append(orjson.loads(body))
                return web.json_response({})
            case "POST", [""] if int(headers.get(EPOCH, 0)) < self._epoch:
                return moved()
            case "POST", [""]:
                key = headers.get("Idempotency-Key", "")
                if key not in self._simple:
                    self._simple[key] = f"job-{next(self._jobs)}", orjson.loads(body)
                return web.json_response({"job_id": self._simple[key][0]}, status=201)
        return web.json_response({"title": "no such resource"}, status=404)

    def restored(self) -> None:
        """Begin another generation, as a backend does that was put back from a backup."""
        self.generation = uuid.uuid4().hex

    def _start(self, about: Mapping[str, Any]) -> web.Response:
        """Give the next epoch and what is known of the sources; refuse an older folder."""
        sources = {key: known["source_seq"] for key, known in self._sources.items()}
        if "epoch" not in about:
            return web.json_response({"sources": sources})
        if about.get("generation") not in (None, self.generation):
            return problem(Kind.GENERATION_CHANGED, generation=self.generation)
        # The newest nonce, or a folder that names it as its last, is the same one asking again.
        newest = set(self._nonces[-1:]) - {""}
        if newest.isdisjoint((about["nonce"], about.get("last_nonce", ""))) and (
            about["nonce"] in self._nonces or 0 < about["epoch"] < self._epoch
        ):
            return moved()
        self._epoch = max(self._epoch, about["epoch"]) + 1
        self._nonces.append(about["nonce"])
        known = {"generation": self.generation, "epoch": self._epoch, "states": self._sources}
        return web.json_response({**known, "sources": sources})

    def _put(self, upload: Received, seq: int, body: bytes) -> web.Response:
        """Store a chunk."""
        rows = [orjson.loads(line) for line in body.splitlines()]
        if upload.state is not UploadState.OPEN:
            return web.json_response({"title": "no longer open"}, status=410)
        if seq in upload.chunks:
            same = upload.chunks[seq] == rows
            return web.json_response({"same": same}, status=200 if same else 409)
        upload.chunks[seq] = rows
        return web.json_response({}, status=201)

    def _complete(self, upload: Received, body: JsonObject) -> web.Response:
        """Make an upload visible, or say why not."""
        if body.get("installation_epoch", 0) < self._epoch:
            return moved()
        self._epoch = max(self._epoch, body.get("installation_epoch", 0))
        source = body["source_key"]
        unknown: KnownSource = {"source_seq": 0, "watermark": None, "full_seq": 0, "mode": None}
        kept, visible = self._sources.get(source, unknown), self._visible[source]
        highest, watermark = kept["source_seq"], kept["watermark"]
        twin = next((one for one in visible if one.body["upload_key"] == body["upload_key"]), None)
        missing = [number for number in range(body["chunks"]) if number not in upload.chunks]
        claim = Completion(
            body["mode"], body["full"], body["source_seq"], compared(body.get("after"))
        )
        known = (upload.state, twin is not None, highest, compared(watermark), bool(missing))
        judgement = judge(claim, Standing(*known, kept["mode"]))
        if judgement in (Judgement.SUPERSEDED, Judgement.WAS_SUPERSEDED):
            upload.state = UploadState.SUPERSEDED
            standing_at = {"source_seq": highest, "watermark": watermark}
            return web.json_response({"superseded": True, **standing_at})
        if judgement is Judgement.MODE_CHANGED:
            return problem(Kind.MODE_CHANGED)
        if judgement is Judgement.MISSING:
            return web.json_response({"missing": missing}, status=409)
        if judgement is Judgement.DUPLICATE:
            return duplicate(upload.job_id, "upload_id", highest)
        highest = max(highest, body["source_seq"])
        kept = self._sources[source] = {**kept, "source_seq": highest}
        if judgement is Judgement.SAME_KEY and twin is not None:
            return duplicate(twin.job_id, "upload_key", highest)
        hides = body["full"] or body["mode"] == "replace"
        self._visible[source] = [upload] if hides else [*visible, upload]
        kept["watermark"], kept["mode"] = body.get("until"), body["mode"]
        if body["full"]:
            kept["full_seq"] = body["source_seq"]
        upload.state, upload.body, upload.job_id = (
            UploadState.COMPLETE,
            body,
            f"job-{next(self._jobs)}",
        )
        return web.json_response({"job_id": upload.job_id}, status=201)


def duplicate(job_id: str, by: str, source_seq: int) -> web.Response:
    """What was completed before, by this upload or another one."""
    known = {"duplicate": True, "by": by, "source_seq": source_seq}
    return web.json_response({"job_id": job_id, **known})


def moved() -> web.Response:
    """The refusal of an older state folder than the one that was last seen."""
    return problem(Kind.INSTALLATION_MOVED, since="2026-01-01T00:00:00+00:00")


def problem(kind: Kind, **members: Any) -> web.Response:
    """A refusal as the protocol has it."""
    document = ProblemError(kind, "as the protocol says", **members).document()
    return web.json_response(document, status=kind.status)


def compared(watermark: Any) -> str:
    """A watermark as the rules compare it."""
    return orjson.dumps(watermark).decode()


def cut(request: web.Request) -> web.Response:
    """Close the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()

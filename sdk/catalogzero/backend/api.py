"""The upload protocol over HTTP: requests in, answers out.

Owns what stands between a request and a transaction: the key, the body within its limits, the
answer's status. What a request means is decided in `uploads` and `installations`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import Any
from urllib.parse import unquote

from aiohttp import web
from sqlalchemy import Connection

from catalogzero.backend import installations, uploads
from catalogzero.backend.access_log import TENANT
from catalogzero.backend.bodies import Limits, Records, decompress, parse, parse_array
from catalogzero.backend.group_commit import GroupCommit
from catalogzero.backend.observe import ROWS
from catalogzero.backend.openapi import document
from catalogzero.backend.reports import Report, store_reports
from catalogzero.backend.settings import BackendSettings
from catalogzero.backend.shares import InUse, Shares
from catalogzero.backend.store import Database
from catalogzero.backend.tenants import KEY_PATTERN, KeyRing, Tenant
from catalogzero.backend.uploads import Outcome, Stored
from catalogzero.clock import Clock
from catalogzero.protocol.bodies import (
    EPOCH,
    GENERATION,
    INSTALLATION,
    JSON,
    MAX_EPOCH,
    MAX_KEY_CHARS,
    MAX_PLACE_DIGITS,
    MAX_SEQ,
    UPLOAD_ID,
    Complete,
    HealthReport,
    Installation,
    ModelT,
    check_digest,
    read_model,
)
from catalogzero.protocol.judging import Judgement
from catalogzero.protocol.problems import Kind, ProblemError
from catalogzero.web import body_parts, header_text, json_response, shown_token

MAX_JSON_BYTES = 1 << 20
MAX_REPORT_BYTES = 1 << 16
ON_LOOP_BYTES = 4_096
"""What is read on the loop's thread, where it is not packed; more is read in threads."""
PLAIN = ("", "identity")
SMALL_BYTES = 1 << 16
DECODERS, READERS = 2, 2
"""Threads that decode large bodies, and small ones."""


class UploadApi:
    """The handlers of the protocol's requests, over one database.

    Args:
        settings: Limits.
        database: Where everything is kept.
        clock: What receipts are stamped with.
        on_completed: Called after each upload that became visible, which then also waits in the
            database for the hook; none where there is no hook.
    """

    def __init__(
        self,
        settings: BackendSettings,
        database: Database,
        clock: Clock,
        on_completed: Callable[[], None] | None,
    ) -> None:
        self._settings, self._database, self._clock = settings, database, clock
        self._on_completed = on_completed
        self._limits = Limits(settings.max_decoded_bytes, settings.max_chunk_records)
        self._keys = KeyRing(database, clock)
        self._places = asyncio.Semaphore(settings.max_concurrent_chunks)
        self.shares = Shares(settings, clock)
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="backend-decode")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="backend-json")
        self.reports = GroupCommit[Report, dict[tuple[int, str], str]](
            database, store_reports, clock, settings.health_commit_window_s
        )

    def routes(self) -> list[web.RouteDef]:
        """The protocol's routes, below the settings' `base_path`."""
        base = self._settings.base_path
        upload = base + "/uploads/{upload_id}"
        return [
            web.put(upload + "/chunks/{seq}", self.put_chunk),
            web.post(upload + "/complete", self.complete),
            web.get(upload, self.show_upload, allow_head=False),
            web.post(base, self.post_simple),
            web.post(base + "/", self.post_simple),
            web.post(base + "/health", self.post_health),
            web.get(base + "/openapi.json", self.openapi, allow_head=False),
            web.put(base + "/installations/{installation_id}", self.put_installation),
            web.get(base + "/installations/{installation_id}", self.more_sources, allow_head=False),
        ]

    def close(self) -> None:
        """End the threads."""
        self._decoders.shutdown()
        self._readers.shutdown()

    async def put_chunk(self, request: web.Request) -> web.Response:
        """`PUT uploads/{upload_id}/chunks/{seq}`: store one chunk's records."""
        tenant = await self._tenant(request)
        upload_id, seq = _upload_id(request), _seq(request)
        async with self._records(request, tenant, request.content_type) as records:
            at = self._now()
            stored = await self._database.write(
                lambda connection: uploads.put_chunk(
                    connection, tenant.tenant_id, upload_id, seq, records, at
                )
            )
        if stored is Stored.NEW:
            request[ROWS] = len(records.payloads)
        if stored is Stored.DIFFERENT:
            raise ProblemError(Kind.CHUNK_DIFFERS, f"chunk {seq} is stored with other records")
        if stored is Stored.FINISHED:
            raise ProblemError(Kind.UPLOAD_FINISHED, "post complete: its answer tells the outcome")
        return json_response(
            {"seq": seq, "records": len(records.payloads)}, 201 if stored is Stored.NEW else 200
        )

    async def complete(self, request: web.Request) -> web.Response:
        """`POST uploads/{upload_id}/complete`: make an upload visible, or say why not."""
        tenant, upload_id = await self._tenant(request), _upload_id(request)
        body, _ = await self._model(request, tenant, Complete)
        at = self._now()
        outcome = await self._database.write(
            lambda connection: uploads.complete(
                connection, tenant.tenant_id, upload_id, body, at, with_hook=self._has_hook
            )
        )
        self._announce(outcome)
        return _completed(outcome, body)

    async def show_upload(self, request: web.Request) -> web.Response:
        """`GET uploads/{upload_id}`: what is stored of an upload."""
        tenant, upload_id = await self._tenant(request), _upload_id(request)

        def work(connection: Connection) -> web.Response:
            found = uploads.progress(connection, tenant.tenant_id, upload_id)
            if found is None:
                raise ProblemError(Kind.NOT_FOUND, "no upload of that id is known")
            answer = {"chunks": found.chunks, "state": found.state.value}
            return json_response(
                answer if found.job_id is None else {**answer, "job_id": found.job_id}
            )

        return await self._database.read(work)

    async def post_simple(self, request: web.Request) -> web.Response:
        """`POST {base}`: the simple form, one JSON array."""
        tenant = await self._tenant(request)
        if request.content_type != JSON:
            raise ProblemError(Kind.UNSUPPORTED, "the simple form is application/json")
        key = header_text(request, "Idempotency-Key", max_chars=MAX_KEY_CHARS)
        sender = _sender(request)
        async with self._records(request, tenant, None) as records:
            at = self._now()
            outcome = await self._database.write(
                lambda connection: uploads.store_simple(
                    connection,
                    tenant.tenant_id,
                    key,
                    records,
                    at,
                    sender=sender,
                    with_hook=self._has_hook,
                )
            )
        if outcome.verdict is Judgement.DUPLICATE:
            answer = {"job_id": outcome.job_id, "duplicate": True}
            return _json(200, answer, outcome.generation)
        request[ROWS] = len(records.payloads)
        self._announce(outcome)
        return _json(201, {"job_id": outcome.job_id}, outcome.generation)

    async def post_health(self, request: web.Request) -> web.Response:
        """`POST health`: one health report; answered once it is on the disk."""
        tenant = await self._tenant(request)
        report, body = await self._model(request, tenant, HealthReport, MAX_REPORT_BYTES)
        if KEY_PATTERN.search(report.client_id):
            raise ProblemError(
                Kind.INVALID_REQUEST, "client_id is the installation's id, never its key"
            )
        at = self._now()
        stored = Report(
            tenant.tenant_id,
            report.client_id,
            at,
            body.decode(),
            report.generation,
            report.acknowledged,
        )
        generation = (await self.reports.add(stored))[tenant.tenant_id, report.client_id]
        answer: dict[str, Any] = {"server_time": at}
        if self._settings.health_interval_s is not None:
            answer["next_interval_s"] = self._settings.health_interval_s
        return _json(200, answer, generation)

    async def put_installation(self, request: web.Request) -> web.Response:
        """`PUT installations/{installation_id}`: it says what it is, and takes the next epoch."""
        tenant = await self._tenant(request)
        installation_id = _installation_id(request.match_info["installation_id"])
        body, _ = await self._model(request, tenant, Installation)
        at = self._now()

        def work(connection: Connection) -> web.Response:
            is_new, page = installations.register(
                connection, tenant.tenant_id, installation_id, body, at
            )
            status = 201 if is_new else 200
            if body.epoch is None:
                return _json(status, {"sources": page.sources}, page.generation)
            return _page(status, page)

        return await self._database.write(work)

    async def more_sources(self, request: web.Request) -> web.Response:
        """`GET installations/{installation_id}?next=…`: a further page of its sources."""
        tenant = await self._tenant(request)
        installation_id = _installation_id(request.match_info["installation_id"])
        place = request.query.get("next", "0")
        if not (place.isascii() and place.isdigit() and len(place) <= MAX_PLACE_DIGITS):
            raise ProblemError(Kind.INVALID_REQUEST, "next is what the page before it gave")
        return await self._database.read(
            lambda connection: _page(
                200,
                installations.page_of(connection, tenant.tenant_id, installation_id, int(place)),
            )
        )

    async def openapi(self, _: web.Request) -> web.Response:
        """`GET openapi.json`: this protocol, for machines."""
        return json_response(document(self._settings.base_path), 200)

    async def _tenant(self, request: web.Request) -> Tenant:
        """The tenant of the request's key."""
        key = shown_token(request).decode("ascii", errors="replace")
        tenant = await self._keys.tenant_of(key) if key else None
        if tenant is None:
            raise ProblemError(
                Kind.UNAUTHORIZED,
                "send a key of this backend: Authorization: Bearer czk_…",
                headers={"WWW-Authenticate": 'Bearer realm="catalogzero"'},
            )
        request[TENANT] = tenant.name
        self.shares.admit(tenant.tenant_id, tenant.share)
        return tenant

    async def _model(
        self,
        request: web.Request,
        tenant: Tenant,
        model: type[ModelT],
        limit: int = MAX_JSON_BYTES,
    ) -> tuple[ModelT, bytes]:
        """What a JSON body says, and the body decompressed; a large or packed one off the loop."""
        coding, digest = _encoding(request), request.headers.get("Content-Digest")

        def read(body: bytes) -> tuple[ModelT, bytes]:
            check_digest(body, digest)
            plain = decompress(body, coding, limit)
            return read_model(model, plain), plain

        async with self._body(request, tenant, limit) as (body, mine):
            if len(body) <= ON_LOOP_BYTES and coding in PLAIN:
                return read(body)
            async with mine.small:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._readers, read, body)

    @asynccontextmanager
    async def _records(
        self, request: web.Request, tenant: Tenant, media_type: str | None
    ) -> AsyncIterator[Records]:
        """The records of the body, read first, then decoded in a thread.

        A large body needs one of its tenant's places, until it is stored; of small ones each tenant
        has one decoded at a time. Without a media type it is the simple form's array.
        """
        coding, digest = _encoding(request), request.headers.get("Content-Digest")
        loop = asyncio.get_running_loop()
        self.shares.check_rows(tenant.tenant_id, tenant.share)
        async with (
            self._body(request, tenant, self._settings.max_body_bytes) as (body, mine),
            AsyncExitStack() as places,
        ):
            parse = partial(self._parse, body, digest, coding, media_type)
            if len(body) <= SMALL_BYTES:
                async with mine.small:
                    records = await loop.run_in_executor(self._readers, parse)
            else:
                place = self.shares.place(tenant.tenant_id, mine, tenant.share)
                await places.enter_async_context(place)
                await places.enter_async_context(self._places)
                records = await loop.run_in_executor(self._decoders, parse)
            self.shares.count_rows(tenant.tenant_id, tenant.share, len(records.payloads))
            yield records

    @asynccontextmanager
    async def _body(
        self, request: web.Request, tenant: Tenant, limit: int
    ) -> AsyncIterator[tuple[bytes, InUse]]:
        """The body as sent, at most `limit` bytes; what has arrived is taken without waiting.

        Gives what the tenant has in use, too.

        Raises:
            HttpError: It is larger, or it stopped coming.
            ProblemError: Too much is held already, of this tenant or of all.
        """
        held = 0
        parts = []
        with self.shares.using(tenant.tenant_id) as mine:
            try:
                if request.content.is_eof():
                    parts.append(request.content.read_nowait())
                    held = len(parts[0])
                    self.shares.hold(mine, tenant.share, held)
                    if held > limit:
                        raise ProblemError(Kind.TOO_LARGE, f"more than {limit} bytes as sent")
                else:
                    async for part in body_parts(request, limit):
                        held += len(part)
                        self.shares.hold(mine, tenant.share, len(part))
                        parts.append(part)
                body = b"".join(parts)
                parts.clear()
                yield body, mine
            finally:
                self.shares.let_go(mine, held)

    def _parse(self, body: bytes, digest: str | None, coding: str, media: str | None) -> Records:
        """The records of a body."""
        check_digest(body, digest)
        decoded = decompress(body, coding, self._settings.max_decoded_bytes)
        if media is None:
            return parse_array(decoded, self._limits)
        return parse(decoded, media, self._limits)

    @property
    def _has_hook(self) -> bool:
        return self._on_completed is not None

    def _announce(self, outcome: Outcome) -> None:
        """Tell the hook's queue that there is something to do."""
        if outcome.verdict is Judgement.ACCEPTED and self._on_completed is not None:
            self._on_completed()

    def _now(self) -> str:
        """The time of receipt."""
        return self._clock.now().isoformat(timespec="milliseconds")


def _completed(outcome: Outcome, body: Complete) -> web.Response:
    """The answer to a `complete`."""
    match outcome.verdict:
        case Judgement.ACCEPTED:
            accepted = {"job_id": outcome.job_id, "number": outcome.number}
            return _json(201, accepted, outcome.generation)
        case Judgement.DUPLICATE | Judgement.SAME_KEY:
            by = "upload_id" if outcome.verdict is Judgement.DUPLICATE else "upload_key"
            known = {"duplicate": True, "by": by, "source_seq": outcome.source_seq}
            known["number"] = outcome.number
            return _json(200, {"job_id": outcome.job_id, **known}, outcome.generation)
        case Judgement.MISSING:
            raise ProblemError(
                Kind.CHUNKS_MISSING,
                "send these chunks, then complete again",
                headers={GENERATION: outcome.generation},
                missing=outcome.missing,
            )
        case Judgement.MODE_CHANGED:
            raise ProblemError(
                Kind.MODE_CHANGED,
                "the source is shown in another mode, or its watermark was of another column or "
                "database: call it once with full: true",
                headers={GENERATION: outcome.generation},
            )
        case _:
            answer = {"superseded": True, "source_seq": outcome.source_seq}
            if body.mode == "append":
                answer["watermark"] = outcome.watermark
            return _json(200, answer, outcome.generation)


def _page(status: int, page: installations.Page) -> web.Response:
    """The answer that tells of an installation's sources."""
    body = {name: value for name, value in asdict(page).items() if value is not None}
    return _json(status, body, page.generation)


def _json(status: int, body: Any, generation: str) -> web.Response:
    """A JSON answer that names the generation of what it tells."""
    return json_response(body, status, {GENERATION: generation})


def _installation_id(text: str) -> str:
    """An installation's id in the path or a header."""
    if not 0 < len(text) <= 200 or "\0" in text:
        raise ProblemError(Kind.INVALID_REQUEST, "an installation id has 1 to 200 characters")
    return text


def _sender(request: web.Request) -> tuple[str, int | None] | None:
    """The installation that an array comes from and its epoch; None where it names none."""
    if INSTALLATION not in request.headers:
        return None
    epoch = request.headers.get(EPOCH)
    if epoch is not None and not (
        epoch.isascii() and epoch.isdigit() and len(epoch) <= 20 and int(epoch) <= MAX_EPOCH
    ):
        raise ProblemError(Kind.INVALID_REQUEST, f"{EPOCH} is a number")
    installation_id = _installation_id(unquote(request.headers[INSTALLATION]))
    return installation_id, None if epoch is None else int(epoch)


def _encoding(request: web.Request) -> str:
    """The body's one content encoding."""
    return request.headers.get("Content-Encoding", "").strip().lower()


def _upload_id(request: web.Request) -> str:
    """The upload_id in the path."""
    upload_id = request.match_info["upload_id"]
    if not re.fullmatch(UPLOAD_ID, upload_id):
        raise ProblemError(
            Kind.INVALID_REQUEST, "an upload_id is 1 to 128 letters, digits, dot, dash, _ or ~"
        )
    return upload_id


def _seq(request: web.Request) -> int:
    """The chunk number in the path."""
    text = request.match_info["seq"]
    if not (text.isascii() and text.isdigit() and len(text) <= 7) or int(text) > MAX_SEQ:
        raise ProblemError(Kind.INVALID_REQUEST, f"a chunk number is 0 to {MAX_SEQ}")
    return int(text)

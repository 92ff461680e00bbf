"""The upload protocol over HTTP: requests in, answers out.

Owns what stands between a request and a transaction: the key, the body within its limits, the
answer's status. What a request means is decided in `uploads` and `installations`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict
from typing import Any
from urllib.parse import unquote

from aiohttp import web
from sqlalchemy import Connection

from catalogzero.backend import installations, row_keys, uploads
from catalogzero.backend.access_log import TENANT
from catalogzero.backend.decoding import ChunkLimits, Records, decompress, parse, parse_array
from catalogzero.backend.group_commit import GroupCommit
from catalogzero.backend.observe import ROWS
from catalogzero.backend.openapi import document
from catalogzero.backend.reports import StoredReport, store_reports
from catalogzero.backend.settings import BackendSettings
from catalogzero.backend.shares import InUse, Shares
from catalogzero.backend.store import BackendDatabase
from catalogzero.backend.tenants import KEY_PATTERN, KeyRing, Tenant
from catalogzero.backend.uploads import Stored, UploadOutcome
from catalogzero.clock import Clock
from catalogzero.config.logs import Logger
from catalogzero.protocol import bodies
from catalogzero.protocol.bodies import check_digest, read_model
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
        database: BackendDatabase,
        clock: Clock,
        on_completed: Callable[[], None] | None,
        log: Logger,
    ) -> None:
        self._settings, self._database, self._clock = settings, database, clock
        self._on_completed, self._has_hook = on_completed, on_completed is not None
        self._limits = ChunkLimits(settings.max_decoded_bytes, settings.max_chunk_records)
        self.keys = KeyRing(database, clock, log)
        self._places = asyncio.Semaphore(settings.max_concurrent_chunks)
        self.shares = Shares(settings, clock)
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="backend-decode")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="backend-json")
        self.reports = GroupCommit[StoredReport, dict[tuple[int, str], str]](
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
        upload_id, seq = upload_id_of(request), seq_of(request)
        async with self._records(request, tenant, request.content_type) as records:
            given = (tenant.tenant_id, upload_id, seq, records, self._now())
            stored = await self._database.write(
                lambda connection: uploads.put_chunk(connection, *given)
            )
        if stored is Stored.DIFFERENT:
            raise ProblemError(Kind.CHUNK_DIFFERS, f"chunk {seq} is stored with other records")
        if stored is Stored.FINISHED:
            raise ProblemError(Kind.UPLOAD_FINISHED, "post complete: its answer names the outcome")
        answer = {"seq": seq, "records": len(records.payloads)}
        if stored is Stored.SAME:
            return json_response(answer, 200)
        request[ROWS] = len(records.payloads)
        return json_response(answer, 201)

    async def complete(self, request: web.Request) -> web.Response:
        """`POST uploads/{upload_id}/complete`: make an upload visible, or say why not."""
        tenant, upload_id = await self._tenant(request), upload_id_of(request)
        body, _ = await self._model(request, tenant, bodies.Complete)
        if body.mode == "merge":
            await self._keep_keys(tenant, upload_id, body)
        given = (tenant.tenant_id, upload_id, body, self._now())
        outcome = await self._database.write(
            lambda connection: uploads.complete(connection, *given, with_hook=self._has_hook)
        )
        self._announce(outcome)
        return answer_to(outcome, body)

    async def _keep_keys(self, tenant: Tenant, upload_id: str, body: bodies.Complete) -> None:
        """Note the keys of an upload's rows, some at a time, before it is judged in one go.

        What was noted stays: one who asks again where an answer took too long goes on from there.
        """
        given = (tenant.tenant_id, upload_id, body)
        # a row without a key is refused by `complete`, where nothing else comes before it
        with suppress(ProblemError):
            while await self._database.write(lambda c: row_keys.write_ahead(c, *given)):
                pass

    async def show_upload(self, request: web.Request) -> web.Response:
        """`GET uploads/{upload_id}`: what is stored of an upload."""
        tenant, upload_id = await self._tenant(request), upload_id_of(request)

        def work(connection: Connection) -> web.Response:
            found = uploads.progress(connection, tenant.tenant_id, upload_id)
            if found is None:
                raise ProblemError(Kind.NOT_FOUND, "no upload of that id is known")
            job = {} if found.job_id is None else {"job_id": found.job_id}
            return json_response({"chunks": found.chunks, "state": found.state.value, **job})

        return await self._database.read(work)

    async def post_simple(self, request: web.Request) -> web.Response:
        """`POST {base}`: the simple form, one JSON array."""
        tenant = await self._tenant(request)
        if request.content_type != bodies.JSON:
            raise ProblemError(Kind.UNSUPPORTED, "the simple form is application/json")
        key = header_text(request, "Idempotency-Key", max_chars=bodies.MAX_KEY_CHARS)
        sender = sender_of(request)
        async with self._records(request, tenant, None) as records:
            given = (tenant.tenant_id, key, records, self._now())
            outcome = await self._database.write(
                lambda connection: uploads.store_simple(
                    connection, *given, sender=sender, with_hook=self._has_hook
                )
            )
        if outcome.verdict is Judgement.DUPLICATE:
            answer = {"job_id": outcome.job_id, "duplicate": True}
            return answered(200, answer, outcome.generation)
        request[ROWS] = len(records.payloads)
        self._announce(outcome)
        return answered(201, {"job_id": outcome.job_id}, outcome.generation)

    async def post_health(self, request: web.Request) -> web.Response:
        """`POST health`: one health report; answered once it is on the disk."""
        tenant = await self._tenant(request)
        report, body = await self._model(request, tenant, bodies.HealthReport, MAX_REPORT_BYTES)
        if KEY_PATTERN.search(report.client_id):
            raise ProblemError(
                Kind.INVALID_REQUEST, "client_id is the installation's id, never its key"
            )
        at, known = self._now(), (report.generation, report.acknowledged)
        one = (tenant.tenant_id, report.client_id)
        generation = (await self.reports.add(StoredReport(*one, at, body.decode(), *known)))[one]
        interval_s = self._settings.health_interval_s
        pace = {} if interval_s is None else {"next_interval_s": interval_s}
        return answered(200, {"server_time": at, **pace}, generation)

    async def put_installation(self, request: web.Request) -> web.Response:
        """`PUT installations/{installation_id}`: it says what it is, and takes the next epoch."""
        tenant = await self._tenant(request)
        installation_id = installation_id_of(request.match_info["installation_id"])
        body, _ = await self._model(request, tenant, bodies.Installation)
        given = (tenant.tenant_id, installation_id, body, self._now())

        def work(connection: Connection) -> web.Response:
            is_new, page = installations.register(connection, *given)
            status = 201 if is_new else 200
            if body.epoch is None:
                return answered(status, {"sources": page.sources}, page.generation)
            return _page(status, page)

        return await self._database.write(work)

    async def more_sources(self, request: web.Request) -> web.Response:
        """`GET installations/{installation_id}?next=…`: a further page of its sources."""
        tenant = await self._tenant(request)
        installation_id = installation_id_of(request.match_info["installation_id"])
        place = request.query.get("next", "0")
        if not (place.isascii() and place.isdigit() and len(place) <= bodies.MAX_PLACE_DIGITS):
            raise ProblemError(Kind.INVALID_REQUEST, "next is what the page before it gave")
        return await self._database.read(
            lambda connection: _page(
                200,
                installations.page_of(connection, tenant.tenant_id, installation_id, int(place)),
            )
        )

    async def openapi(self, _: web.Request) -> web.Response:
        """`GET openapi.json`: this protocol, for machines."""
        return json_response(document(self._settings.base_path))

    async def _tenant(self, request: web.Request) -> Tenant:
        """The tenant of the request's key."""
        key = shown_token(request).decode("ascii", errors="replace")
        tenant = await self.keys.tenant_of(key) if key else None
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
        model: type[bodies.ModelT],
        limit: int = MAX_JSON_BYTES,
    ) -> tuple[bodies.ModelT, bytes]:
        """What a JSON body says, and the body decompressed; a large or packed one off the loop."""
        coding, digest = coding_and_digest(request)

        def read(body: bytes) -> tuple[bodies.ModelT, bytes]:
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
        coding, digest = coding_and_digest(request)
        loop = asyncio.get_running_loop()
        self.shares.check_rows(tenant.tenant_id, tenant.share)
        async with (
            self._body(request, tenant, self._settings.max_body_bytes) as (body, mine),
            AsyncExitStack() as places,
        ):

            def read() -> Records:
                check_digest(body, digest)
                decoded = decompress(body, coding, self._settings.max_decoded_bytes)
                if media_type is None:
                    return parse_array(decoded, self._limits)
                return parse(decoded, media_type, self._limits)

            if len(body) <= SMALL_BYTES:
                async with mine.small:
                    records = await loop.run_in_executor(self._readers, read)
            else:
                # the tenant's own place first: who waits for it takes none from another tenant
                place = self.shares.place(tenant.tenant_id, mine, tenant.share)
                await places.enter_async_context(place)
                await places.enter_async_context(self._places)
                records = await loop.run_in_executor(self._decoders, read)
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
                # a body is not held twice
                parts.clear()
                yield body, mine
            finally:
                self.shares.let_go(mine, held)

    def _announce(self, outcome: UploadOutcome) -> None:
        """Wake the hook's queue: there is something to do."""
        if outcome.verdict is Judgement.ACCEPTED and self._on_completed is not None:
            self._on_completed()

    def _now(self) -> str:
        """The time of receipt."""
        return self._clock.now().isoformat(timespec="milliseconds")


def answer_to(outcome: UploadOutcome, body: bodies.Complete) -> web.Response:
    """The answer to a `complete`."""
    match outcome.verdict:
        case Judgement.ACCEPTED:
            accepted = {"job_id": outcome.job_id, "number": outcome.number}
            return answered(201, accepted, outcome.generation)
        case Judgement.DUPLICATE | Judgement.SAME_KEY:
            by = "upload_id" if outcome.verdict is Judgement.DUPLICATE else "upload_key"
            known = {"duplicate": True, "by": by, "source_seq": outcome.source_seq}
            known["number"] = outcome.number
            return answered(200, {"job_id": outcome.job_id, **known}, outcome.generation)
        case Judgement.MISSING:
            raise ProblemError(
                Kind.CHUNKS_MISSING,
                "send these chunks, then complete again",
                headers={bodies.GENERATION: outcome.generation},
                missing=outcome.missing,
            )
        case Judgement.MODE_CHANGED:
            raise ProblemError(
                Kind.MODE_CHANGED,
                "the source is shown in another mode or with another key, or its watermark was of "
                "another column or database: call it once with full: true",
                headers={bodies.GENERATION: outcome.generation},
            )
        case _:
            answer = {"superseded": True, "source_seq": outcome.source_seq}
            if body.mode != "replace":
                answer["watermark"] = outcome.watermark
            return answered(200, answer, outcome.generation)


def _page(status: int, page: installations.SourcesPage) -> web.Response:
    """The answer that lists an installation's sources."""
    body = {name: value for name, value in asdict(page).items() if value is not None}
    return answered(status, body, page.generation)


def answered(status: int, body: Any, generation: str) -> web.Response:
    """A JSON answer that names the generation of what it shows."""
    return json_response(body, status, {bodies.GENERATION: generation})


def installation_id_of(text: str) -> str:
    """An installation's id in the path or a header."""
    if not 0 < len(text) <= 200 or "\0" in text:
        raise ProblemError(Kind.INVALID_REQUEST, "an installation id has 1 to 200 characters")
    return text


def sender_of(request: web.Request) -> tuple[str, int | None] | None:
    """The installation that an array comes from and its epoch; None where it names none."""
    if bodies.INSTALLATION not in request.headers:
        return None
    epoch = request.headers.get(bodies.EPOCH)
    if epoch is not None and not (
        epoch.isascii() and epoch.isdigit() and len(epoch) <= 20 and int(epoch) <= bodies.MAX_EPOCH
    ):
        raise ProblemError(Kind.INVALID_REQUEST, f"{bodies.EPOCH} is a number")
    installation_id = installation_id_of(unquote(request.headers[bodies.INSTALLATION]))
    return installation_id, None if epoch is None else int(epoch)


def coding_and_digest(request: web.Request) -> tuple[str, str | None]:
    """The body's one content coding, and its digest where the request names one."""
    coding = request.headers.get("Content-Encoding", "").strip().lower()
    return coding, request.headers.get("Content-Digest")


def upload_id_of(request: web.Request) -> str:
    """The upload_id in the path."""
    upload_id = request.match_info["upload_id"]
    if not re.fullmatch(bodies.UPLOAD_ID, upload_id):
        raise ProblemError(
            Kind.INVALID_REQUEST, "an upload_id is 1 to 128 letters, digits, dot, dash, _ or ~"
        )
    return upload_id


def seq_of(request: web.Request) -> int:
    """The chunk number in the path."""
    text = request.match_info["seq"]
    if not (text.isascii() and text.isdigit() and len(text) <= 7) or int(text) > bodies.MAX_SEQ:
        raise ProblemError(Kind.INVALID_REQUEST, f"a chunk number is 0 to {bodies.MAX_SEQ}")
    return int(text)

"""The backend as one aiohttp application: its routes, its errors, its background work.

Owns what is opened at start and closed at the end. `create_app` is all that a vendor's service
needs; `catalogzero backend serve` serves the same.

The protocol's own paths answer under any Host and whatever the Origin: they are for machines,
which show a tenant's key, never sent by a browser unasked, and come by whatever name a proxy has.
The operator's side, the fleet page and `/metrics`, is behind a `catalogzero.web.Guard`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from http import HTTPStatus
from typing import Any

from aiohttp import web
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from structlog.typing import FilteringBoundLogger

from catalogzero.backend.access_log import access_logger
from catalogzero.backend.api import UploadApi
from catalogzero.backend.delivery import Delivery, Hook
from catalogzero.backend.feed import EventFeed
from catalogzero.backend.figures import Figures
from catalogzero.backend.fleet_pages import FleetPages
from catalogzero.backend.housekeeping import Housekeeping
from catalogzero.backend.observe import Observation
from catalogzero.backend.settings import BackendSettings
from catalogzero.backend.store import BackendDatabase
from catalogzero.clock import Clock, SystemClock
from catalogzero.config.logs import make_logger
from catalogzero.config.seldom import Seldom
from catalogzero.config.settings import Mask
from catalogzero.protocol.problems import PROBLEM_MEDIA_TYPE, Kind, ProblemError
from catalogzero.web import Guard, HttpError, edge_application, json_response
from catalogzero.wire.messages import JsonObject

KINDS = {kind.status: kind for kind in reversed(Kind)}
"""The general kind of a status, the first of its status."""


def create_app(
    settings: BackendSettings | None = None,
    *,
    on_upload_completed: Hook | None = None,
    clock: Clock | None = None,
) -> web.Application:
    """The backend as an application to serve, or to mount in a service of your own.

    Serve it, or the application it is mounted in, with `auto_decompress=False`
    (`web.run_app(app, auto_decompress=False)`): the digest of a body is that of what was sent.

    Args:
        settings: By default from the environment.
        on_upload_completed: Called at least once with each `CompletedUpload`, after its rows
            became visible; one that raises is called again later. `job_id` identifies a repetition.
        clock: Where times come from.

    Raises:
        ConfigError: The database cannot be opened.
    """
    settings = settings or BackendSettings()
    clock = clock or SystemClock()
    database = BackendDatabase(settings.database, settings.database_timeout_s)
    mask = Mask()
    mask.learn(settings)
    log = make_logger(mask=mask)
    hook = on_upload_completed
    delivery = Delivery(database, clock, hook, log, settings) if hook else None
    api = UploadApi(settings, database, clock, delivery.wake if delivery else None, log)
    guard = Guard(
        settings.operator(),
        basic=True,
        missing="this is the operator's side: send the operator token",
    )
    housekeeping = Housekeeping(settings, database, clock, log)
    figures = Figures(database, housekeeping, clock, log)
    observation = Observation(guard, database, figures, api.shares, clock)
    fleet = FleetPages(guard, database, clock, observation, api.keys)
    feed = EventFeed(guard, database, settings.base_path)
    outer = [access_logger(log, Seldom(clock), enabled=settings.access_log), observation.counter()]
    app = edge_application(answer_to, log, outer=outer, meaning=partial(meaning_of, log))
    app.add_routes([*api.routes(), *feed.routes(), *fleet.routes(), *observation.routes()])

    async def life(_app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as undo:
            # undone from the last to the first: who writes has ended before what it writes with,
            # and reports that still wait are committed in between
            undo.push_async_callback(asyncio.to_thread, database.close)
            undo.callback(api.close)
            undo.push_async_callback(api.reports.flush)
            await _start(undo, api.reports.run())
            await _start(undo, figures.run())
            await _start(undo, housekeeping.run())
            if delivery:
                await _start(undo, delivery.run())
            yield

    async def stop(_app: web.Application) -> None:
        database.end_within()

    app.cleanup_ctx.append(life)
    app.on_shutdown.extend([feed.stop, stop])
    return app


async def _start(undo: AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` beside the requests until the application ends."""
    task = asyncio.create_task(work)

    async def stop() -> None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    undo.push_async_callback(stop)


def answer_to(error: HttpError) -> web.Response:
    """The problem document of an error: of a kind of the protocol's, or of its status alone."""
    if error.status in KINDS:
        problem = ProblemError(KINDS[error.status], error.message, headers=error.headers)
        return problem_response(problem.document(), error.status, problem.headers)
    title = HTTPStatus(error.status).phrase
    document = {"type": "about:blank", "title": title, "status": error.status}
    return problem_response({**document, "detail": error.message}, error.status, error.headers)


def meaning_of(log: FilteringBoundLogger, error: Exception) -> web.Response | None:
    """What a refusal, or a database that refuses, is to a client."""
    if isinstance(error, DBAPIError | PoolTimeoutError):
        log.error("database_failed", exc_info=error)
        # what refers to nothing is of a tenant that was removed meanwhile: soon its key is refused
        passing = isinstance(
            error, PoolTimeoutError | OperationalError | InterfaceError | IntegrityError
        )
        kind = Kind.UNAVAILABLE if passing else Kind.INTERNAL
        headers = {"Retry-After": "5"} if passing else {}
        error = ProblemError(kind, "the database did not take it", headers=headers)
    if not isinstance(error, ProblemError):
        return None
    return problem_response(error.document(), error.kind.status, error.headers)


def problem_response(document: JsonObject, status: int, headers: Mapping[str, str]) -> web.Response:
    """The response that carries a problem document."""
    response = json_response(document, status, headers)
    response.content_type = PROBLEM_MEDIA_TYPE
    return response

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
from catalogzero.backend.store import Database
from catalogzero.clock import Clock, SystemClock
from catalogzero.config.logs import make_logger
from catalogzero.config.settings import Mask
from catalogzero.protocol.problems import PROBLEM_MEDIA_TYPE, Kind, ProblemError
from catalogzero.web import Guard, HttpError, edge_application, json_response

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
            became visible; one that raises is called again later. `job_id` tells a repetition.
        clock: Where times come from.

    Raises:
        ConfigError: The database cannot be opened.
    """
    settings = settings or BackendSettings()
    clock = clock or SystemClock()
    database = Database(settings.database, settings.database_timeout_s)
    mask = Mask()
    mask.learn(settings)
    log = make_logger(mask=mask)
    hook = on_upload_completed
    delivery = Delivery(database, clock, hook, log, settings) if hook else None
    api = UploadApi(settings, database, clock, delivery.wake if delivery else None)
    token = settings.operator_token
    guard = Guard(
        None if token is None else token.get_secret_value(),
        basic=True,
        missing="this is the operator's side: send the operator token",
    )
    housekeeping = Housekeeping(settings, database, clock, log)
    figures = Figures(database, housekeeping, clock, log)
    observation = Observation(guard, database, figures, api.shares, clock)
    fleet, feed = FleetPages(guard, database, clock), EventFeed(guard, database, settings.base_path)
    outer = [access_logger(log, enabled=settings.access_log), observation.counter()]
    app = edge_application(_answer, log, outer=outer, meaning=partial(_meaning, log))
    app.add_routes([*api.routes(), *feed.routes(), *fleet.routes(), *observation.routes()])

    async def life(_app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as undo:
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
    undo.push_async_callback(_stop, task)


async def _stop(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _answer(error: HttpError) -> web.Response:
    """The problem document of an error: of a kind of the protocol's, or of its status alone."""
    kind = KINDS.get(error.status)
    if kind is None:
        title = HTTPStatus(error.status).phrase
        problem = {"type": "about:blank", "title": title, "status": error.status}
        return _problem({**problem, "detail": error.message}, error.status, error.headers)
    return problem_response(ProblemError(kind, error.message, headers=error.headers))


def _meaning(log: FilteringBoundLogger, error: Exception) -> web.Response | None:
    """What a refusal, or a database that refuses, is to a client."""
    if isinstance(error, ProblemError):
        return problem_response(error)
    if not isinstance(error, DBAPIError | PoolTimeoutError):
        return None
    log.error("database_failed", exc_info=error)
    # what refers to nothing is of a tenant that was removed meanwhile: its key opens nothing soon
    passing = isinstance(
        error, PoolTimeoutError | OperationalError | InterfaceError | IntegrityError
    )
    return problem_response(
        ProblemError(
            Kind.UNAVAILABLE if passing else Kind.INTERNAL,
            "the database did not take it",
            headers={"Retry-After": "5"} if passing else {},
        )
    )


def problem_response(error: ProblemError) -> web.Response:
    """The response that carries a problem document."""
    return _problem(error.document(), error.kind.status, error.headers)


def _problem(document: dict[str, Any], status: int, headers: Mapping[str, str]) -> web.Response:
    response = json_response(document, status, headers)
    response.content_type = PROBLEM_MEDIA_TYPE
    return response

"""The backend as one aiohttp application: its routes, its errors, its background work.

Owns what is opened at start and closed at the end. `create_app` is all that a vendor's service
needs; `catalogzero backend serve` serves the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from structlog.typing import FilteringBoundLogger

from catalogzero.backend.api import UploadApi
from catalogzero.backend.delivery import Delivery, Hook
from catalogzero.backend.fleet import FleetPages
from catalogzero.backend.housekeeping import Housekeeping
from catalogzero.backend.observe import Observation
from catalogzero.backend.operator import OperatorGate
from catalogzero.backend.problems import PROBLEM_MEDIA_TYPE, Kind, ProblemError
from catalogzero.backend.settings import BackendSettings
from catalogzero.backend.store import Database
from catalogzero.clock import Clock, SystemClock
from catalogzero.config.logs import make_logger
from catalogzero.config.settings import Mask

HTTP_KINDS = {
    404: (Kind.NOT_FOUND, "no such path here"),
    405: (Kind.METHOD_NOT_ALLOWED, "this path is not for that method"),
}


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
    delivery = Delivery(database, clock, on_upload_completed, log) if on_upload_completed else None
    api = UploadApi(settings, database, clock, delivery.wake if delivery else None)
    gate = OperatorGate(settings)
    observation, fleet = Observation(gate, database), FleetPages(gate, database, clock)
    app = web.Application(middlewares=[observation.counter(), _problem_answerer(log)])
    app.add_routes([*api.routes(), *fleet.routes(), *observation.routes()])

    async def life(_app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as undo:
            undo.push_async_callback(asyncio.to_thread, database.close)
            undo.callback(api.close)
            undo.push_async_callback(api.reports.flush)
            await _start(undo, api.reports.run())
            await _start(undo, Housekeeping(settings, database, clock, log).run())
            if delivery:
                await _start(undo, delivery.run())
            yield

    async def stop(_app: web.Application) -> None:
        database.end_within()

    app.cleanup_ctx.append(life)
    app.on_shutdown.append(stop)
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


def _problem_answerer(log: FilteringBoundLogger) -> Middleware:
    """The middleware that answers every refusal, and every fault of ours, with a problem."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ProblemError as error:
            return problem_response(error)
        except web.HTTPException as error:
            return problem_response(_http_problem(error))
        except (DBAPIError, PoolTimeoutError) as error:
            log.exception("database_failed", path=request.path)
            return problem_response(_database_problem(error))
        except ConnectionError:
            raise  # the client went away in mid-body: nobody is there to answer
        except Exception:
            log.exception("request_failed", path=request.path, method=request.method)
            return problem_response(ProblemError(Kind.INTERNAL, "see the backend's log"))

    return answer


def _http_problem(error: web.HTTPException) -> ProblemError:
    """The problem for what the router refused; other answers of aiohttp's go on as they are."""
    if error.status not in HTTP_KINDS:
        raise error
    kind, detail = HTTP_KINDS[error.status]
    allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return ProblemError(kind, detail, headers=allow)


def _database_problem(error: Exception) -> ProblemError:
    """The problem for a database that refused: for now where it is away, full or busy."""
    passing = isinstance(error, PoolTimeoutError | OperationalError | InterfaceError)
    return ProblemError(
        Kind.UNAVAILABLE if passing else Kind.INTERNAL,
        "the database did not take it",
        headers={"Retry-After": "5"} if passing else {},
    )


def problem_response(error: ProblemError) -> web.Response:
    """The response that carries a problem document."""
    return web.Response(
        status=error.kind.status,
        body=orjson.dumps(error.document()),
        content_type=PROBLEM_MEDIA_TYPE,
        headers=error.headers,
    )

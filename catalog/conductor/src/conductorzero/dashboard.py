"""The dashboard's server: pages, JSON, server-sent events and Prometheus' text.

Reads the board and the history, and never talks to a handler itself, but for a handler's own
page and for signals. Paths:

    /  /handlers/{id}  /static/…     pages, with nothing from elsewhere
    /api/fleet                       every handler, the summary, the last events
    /api/stream                      server-sent events: snapshot, then what changes
    /api/handlers/{id}               one handler: metrics, methods, runs, settings
    /api/handlers/{id}/history       its figures over time (`window_s`)
    /api/events                      the last events, newest first
    POST /api/signal                 {action, handler_ids?}; needs the token
    /metrics                         Prometheus

Layer: catalog entry, imports public names of catalogzero only.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, get_args

from aiohttp import web
from catalogzero.web import (
    Guard,
    HttpError,
    Limits,
    Pages,
    edge_application,
    is_loopback,
    json_response,
    listening,
    query_int,
    read_json,
    read_token,
)

from conductorzero import prometheus
from conductorzero.coordination import Action, signal
from conductorzero.fleet import Clock
from conductorzero.history import Bucket
from conductorzero.settings import ConductorSettings
from conductorzero.stream import Stream
from conductorzero.watch import Watch

PAGES = {"/": "index.html", "/handlers/{handler_id}": "handler.html"}
TOKEN_FILE = "dashboard_token"  # noqa: S105 - the name of a file, no token
CODES = {400: "bad_request", 401: "unauthorized", 403: "forbidden", 404: "not_found"}
TAKEN = (
    "the dashboard cannot listen on {host}:{port} ({reason}): set dashboard_host and"
    " dashboard_port to others, or dashboard_port to 0 for a free one, null for none"
)
REQUESTS_END_S = 1.0
MAX_BODY_BYTES = 256 << 10
POINTS = 120
MAX_WINDOW_S = 90 * 86_400
ASK_TIMEOUT_S = 3.0


class Dashboard:
    """Serves the fleet over HTTP.

    Args:
        state_dir: Where the token for signals is made, when the settings name no file.
        limits: On connections.
    """

    def __init__(
        self,
        watch: Watch,
        clock: Clock,
        settings: ConductorSettings,
        state_dir: Path,
        log: Any,
        limits: Limits | None = None,
    ) -> None:
        self._watch = watch
        self._clock = clock
        self._settings = settings
        self._log = log
        self._limits = limits
        self._token, self._token_file = _token_of(settings.token_file, state_dir)
        self._stream = Stream(watch, self._about)
        self._undo = AsyncExitStack()
        self.url = ""

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: The port is taken.
        """
        host, port = self._settings.dashboard_host, self._settings.dashboard_port or 0
        served = listening(
            self._app(), host, port, limits=self._limits, stop_s=REQUESTS_END_S, taken=TAKEN
        )
        self.url = await self._undo.enter_async_context(served)
        self._log.info("signals_need_the_token", file=str(self._token_file))

    async def stop(self) -> None:
        """End the streams, and listen no longer."""
        self._stream.close()
        await self._undo.aclose()

    def _app(self) -> web.Application:
        """The routes behind the guard."""
        is_local = is_loopback(self._settings.dashboard_host)
        guard = Guard(
            self._token,
            hosts=self._settings.dashboard_hosts,
            open_reading=is_local,
            by_address=not is_local,
            missing="the token is missing or wrong",
            host_status=421,
        )
        pages = Pages("conductorzero", "static", PAGES, prefix="/static")
        app = edge_application(_failure, self._log, inner=[guard.middleware(pages.paths)])
        app.add_routes(
            [
                *pages.routes(),
                web.get("/api/fleet", self._fleet),
                web.get("/api/stream", self._stream.serve),
                web.get("/api/events", self._events),
                web.get("/api/handlers/{handler_id}", self._handler),
                web.get("/api/handlers/{handler_id}/history", self._history),
                web.post("/api/signal", self._signal),
                web.get("/metrics", self._metrics),
            ]
        )
        return app

    def _about(self) -> dict[str, Any]:
        """What every answer about the fleet says of itself."""
        return {
            "at": self._clock.now().isoformat(),
            "interval_s": self._settings.interval_s,
            "round_s": self._watch.round_s,
            "problems": self._watch.problems,
            "summary": self._watch.board.summary(),
        }

    async def _fleet(self, request: web.Request) -> web.Response:
        """GET /api/fleet."""
        return json_response(self._stream.snapshot(trails="trails" in request.query))

    async def _events(self, request: web.Request) -> web.Response:
        """GET /api/events?handler_id&limit."""
        limit = _whole(request, "limit", 100, 1_000)
        events = await self._watch.events(request.query.get("handler_id"), limit)
        return json_response({"events": events})

    async def _handler(self, request: web.Request) -> web.Response:
        """GET /api/handlers/{id}: what is known, and what the handler says of itself now."""
        handler_id = request.match_info["handler_id"]
        row = self._watch.board.rows.get(handler_id)
        if row is None:
            raise HttpError(404, f"Unknown handler: {handler_id}")
        description, runs = await asyncio.gather(
            self._watch.fleet.ask(handler_id, "describe", timeout_s=ASK_TIMEOUT_S),
            self._watch.fleet.ask(handler_id, "list_runs", timeout_s=ASK_TIMEOUT_S),
        )
        return json_response(
            {
                **self._about(),
                "handler": row.as_json(trails=True),
                "metrics": row.metrics,
                "description": description.result,
                "runs": runs.result,
                "error": description.error,
            }
        )

    async def _history(self, request: web.Request) -> web.Response:
        """GET /api/handlers/{id}/history?window_s: points over time, and the whole window."""
        handler_id = request.match_info["handler_id"]
        if handler_id not in self._watch.board.rows:
            raise HttpError(404, f"Unknown handler: {handler_id}")
        window_s = _whole(request, "window_s", 3_600, MAX_WINDOW_S)
        now_s = int(self._clock.now().timestamp())
        step_s = max(60, -(-window_s // POINTS // 60) * 60)
        since_s = (now_s - window_s) // step_s * step_s
        samples = await self._watch.series(handler_id, since_s)
        return json_response({"window_s": window_s, **_points(samples, since_s, now_s, step_s)})

    async def _signal(self, request: web.Request) -> web.Response:
        """POST /api/signal."""
        body = await read_json(
            request,
            MAX_BODY_BYTES,
            expected="the body is one JSON object, application/json: {action, handler_ids?}",
        )
        action = body.get("action") if isinstance(body, dict) else None
        if not isinstance(action, str) or action not in get_args(Action):
            raise HttpError(400, f"action is one of {', '.join(get_args(Action))}")
        ids = body.get("handler_ids")
        if ids is not None and not (isinstance(ids, list) and all(isinstance(i, str) for i in ids)):
            raise HttpError(400, "handler_ids is a list of handler ids, or absent for all")
        self._log.info("signal_sent", action=action, handlers=len(ids) if ids else "all")
        return json_response(await signal(self._watch, self._clock.now(), action, ids))

    async def _metrics(self, request: web.Request) -> web.Response:
        """GET /metrics."""
        watch = self._watch
        state = prometheus.Conductor(watch.round_s, watch.looked_at, len(watch.problems))
        text = prometheus.render(watch.board.rows.values(), state)
        return web.Response(body=text.encode(), headers={"Content-Type": prometheus.CONTENT_TYPE})


def _whole(request: web.Request, name: str, default: int, most: int) -> int:
    """A whole number of the query, brought within 1 and `most`."""
    return min(max(query_int(request.query, name, default), 1), most)


def _failure(error: HttpError) -> web.Response:
    """An error as JSON."""
    fields = {"code": CODES.get(error.status, "refused"), "message": error.message}
    return json_response({"error": fields}, error.status, error.headers)


def _token_of(token_file: Path | None, state_dir: Path) -> tuple[str, Path]:
    """The token for signals, and the file it stands in; made at first use, for its owner only.

    Raises:
        ConfigError: The named file holds no token.
    """
    path = token_file or state_dir / TOKEN_FILE
    if token_file is None and not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(24) + "\n")
    return read_token(path), path


def _points(
    samples: list[tuple[int, Bucket]], since_s: int, now_s: int, step_s: int
) -> dict[str, Any]:
    """The samples as evenly spaced points, null where nothing was asked, and as one total."""
    total, points = Bucket(), {at: Bucket() for at in range(since_s, now_s + 1, step_s)}
    for at, bucket in samples:
        total.merge(bucket)
        slot = points.get(at // step_s * step_s)
        if slot is not None:
            slot.merge(bucket)
    return {
        "step_s": step_s,
        "total": total.as_json(),
        "points": [{"at": at, **bucket.as_json()} for at, bucket in points.items()],
    }

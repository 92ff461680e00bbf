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
import errno
import json
from pathlib import Path
from typing import Any, get_args

from aiohttp import web
from catalogzero import ConfigError

from conductorzero import prometheus
from conductorzero.coordination import Action, signal
from conductorzero.fleet import Clock
from conductorzero.guard import Guard, refuse, token_of
from conductorzero.history import Bucket
from conductorzero.settings import ConductorSettings
from conductorzero.stream import Stream
from conductorzero.watch import Watch

STATIC = Path(__file__).parent / "static"
MAX_BODY_BYTES = 256 << 10
POINTS = 120
MAX_WINDOW_S = 90 * 86_400
ASK_TIMEOUT_S = 3.0


class Dashboard:
    """Serves the fleet over HTTP.

    Args:
        state_dir: Where the token for signals is made, when the settings name no file.
    """

    def __init__(
        self, watch: Watch, clock: Clock, settings: ConductorSettings, state_dir: Path, log: Any
    ) -> None:
        self._watch = watch
        self._clock = clock
        self._settings = settings
        self._log = log
        self._token, self._token_file = token_of(settings.token_file, state_dir)
        self._stream = Stream(watch, self._about)
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: The port is taken.
        """
        host, port = self._settings.dashboard_host, self._settings.dashboard_port or 0
        self._runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            taken = error.errno == errno.EADDRINUSE
            reason = "something else listens there" if taken else error.strerror
            raise ConfigError(
                f"the dashboard cannot listen on {host}:{port} ({reason}): set dashboard_host and"
                " dashboard_port to others, or dashboard_port to 0 for a free one, null for none"
            ) from None
        bound_port = self._runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{bound_port}"
        self._log.info("signals_need_the_token", file=str(self._token_file))

    async def stop(self) -> None:
        """End the streams, and listen no longer."""
        self._stream.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _app(self) -> web.Application:
        """The routes behind the guard."""
        settings = self._settings
        guard = Guard(settings.dashboard_host, settings.dashboard_hosts, self._token)
        app = web.Application(middlewares=[guard.middleware], client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.get("/", self._page("index.html")),
                web.get("/handlers/{handler_id}", self._page("handler.html")),
                web.static("/static", STATIC),
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

    def _page(self, name: str) -> Any:
        """A handler that answers with a page."""

        async def answer(request: web.Request) -> web.FileResponse:
            return web.FileResponse(STATIC / name, headers={"Cache-Control": "no-cache"})

        return answer

    async def _fleet(self, request: web.Request) -> web.Response:
        """GET /api/fleet."""
        return web.json_response(self._stream.snapshot(trails="trails" in request.query))

    async def _events(self, request: web.Request) -> web.Response:
        """GET /api/events?handler_id&limit."""
        limit = _whole(request, "limit", 100, 1_000)
        events = await self._watch.events(request.query.get("handler_id"), limit)
        return web.json_response({"events": events})

    async def _handler(self, request: web.Request) -> web.Response:
        """GET /api/handlers/{id}: what is known, and what the handler says of itself now."""
        handler_id = request.match_info["handler_id"]
        row = self._watch.board.rows.get(handler_id)
        if row is None:
            return refuse(404, f"Unknown handler: {handler_id}")
        description, runs = await asyncio.gather(
            self._watch.fleet.ask(handler_id, "describe", timeout_s=ASK_TIMEOUT_S),
            self._watch.fleet.ask(handler_id, "list_runs", timeout_s=ASK_TIMEOUT_S),
        )
        return web.json_response(
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
            return refuse(404, f"Unknown handler: {handler_id}")
        window_s = _whole(request, "window_s", 3_600, MAX_WINDOW_S)
        now_s = int(self._clock.now().timestamp())
        step_s = max(60, -(-window_s // POINTS // 60) * 60)
        since_s = (now_s - window_s) // step_s * step_s
        samples = await self._watch.series(handler_id, since_s)
        return web.json_response({"window_s": window_s, **_points(samples, since_s, now_s, step_s)})

    async def _signal(self, request: web.Request) -> web.Response:
        """POST /api/signal."""
        try:
            body = await request.json()
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            return refuse(400, "the body is one JSON object: {action, handler_ids?}")
        action = body.get("action") if isinstance(body, dict) else None
        if not isinstance(action, str) or action not in get_args(Action):
            return refuse(400, f"action is one of {', '.join(get_args(Action))}")
        ids = body.get("handler_ids")
        if ids is not None and not (isinstance(ids, list) and all(isinstance(i, str) for i in ids)):
            return refuse(400, "handler_ids is a list of handler ids, or absent for all")
        self._log.info("signal_sent", action=action, handlers=len(ids) if ids else "all")
        return web.json_response(await signal(self._watch, self._clock.now(), action, ids))

    async def _metrics(self, request: web.Request) -> web.Response:
        """GET /metrics."""
        watch = self._watch
        state = prometheus.Conductor(watch.round_s, watch.looked_at, len(watch.problems))
        text = prometheus.render(watch.board.rows.values(), state)
        return web.Response(body=text.encode(), headers={"Content-Type": prometheus.CONTENT_TYPE})


def _whole(request: web.Request, name: str, default: int, most: int) -> int:
    """A whole number of the query, within 1 and `most`.

    Raises:
        web.HTTPBadRequest: It is no number.
    """
    try:
        return min(max(int(request.query.get(name, default)), 1), most)
    except ValueError:
        raise web.HTTPBadRequest(text=f"{name} is a whole number") from None


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

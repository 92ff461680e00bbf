"""The dashboard's server: pages, JSON, server-sent events and Prometheus' text.

Reads the board and the history, and never talks to a handler itself, but for a handler's own
page and for signals. An `{id}` is a handler_id, or `handler_id%2Finstance_id`. Paths:

    /  /handlers/{id}  /handlers/{id}/runs/{run_id}
    /assets/…  /static/…             pages and their parts, with nothing from elsewhere
    /api/fleet                       every handler, groups of instances and their hosts, the
                                     summary, the troubles, the last events
    /api/history                     the whole fleet's figures over time (`window_s`, `step_s`)
    /api/stream                      server-sent events: snapshot, then what changes
    /api/handlers/{id}               one handler: metrics, methods, runs, settings; of one with
                                     instances how it is as a whole, and each of them
    /api/handlers/{id}/history       its figures over time (`window_s`, `step_s`)
    /api/handlers/{id}/runs/{run_id} one run, as the handler keeps it
    /api/events                      the last events, newest first
    POST /api/signal                 {action, handler_ids?}; needs the token; a handler_id is
                                     all its instances
    /metrics                         Prometheus

Layer: catalog entry, imports public names of catalogzero only.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from aiohttp import web
from catalogzero.web import (
    ConnectionLimits,
    Guard,
    HttpError,
    Pages,
    edge_application,
    is_loopback,
    json_response,
    listening,
    query_int,
    read_json,
    shared_pages,
    token_in,
)

from conductorzero import prometheus
from conductorzero.coordination import Action, signal
from conductorzero.fleet import Clock, JsonObject
from conductorzero.groups import Group, groups_of, hosts_of
from conductorzero.history import WHOLE_FLEET, Bucket
from conductorzero.settings import ConductorSettings
from conductorzero.stream import Stream
from conductorzero.watch import Watch

PAGES = {
    "/": "index.html",
    "/handlers/{handler_id}": "handler.html",
    "/handlers/{handler_id}/runs/{run_id}": "run.html",
}
TOKEN_FILE = "dashboard_token"  # noqa: S105 - the name of a file, no token
CODES = {400: "bad_request", 401: "unauthorized", 403: "forbidden", 404: "not_found"}
TAKEN = (
    "the dashboard cannot listen on {host}:{port} ({reason}): set dashboard_host and"
    " dashboard_port to others, or dashboard_port to 0 for a free one, null for none"
)
REQUESTS_END_S = 1.0
MAX_BODY_BYTES = 256 << 10
POINTS = 120
MAX_POINTS = 1_000
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
        limits: ConnectionLimits | None = None,
    ) -> None:
        self._watch = watch
        self._clock = clock
        self._settings = settings
        self._log = log
        self._limits = limits
        self._token, self._token_file = dashboard_token(settings.token_file, state_dir)
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
            self.application(), host, port, limits=self._limits, stop_s=REQUESTS_END_S, taken=TAKEN
        )
        self.url = await self._undo.enter_async_context(served)
        self._log.info("signals_need_the_token", file=str(self._token_file))

    async def stop(self) -> None:
        """End the streams, and listen no longer."""
        self._stream.close()
        await self._undo.aclose()

    def application(self) -> web.Application:
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
        shared = shared_pages()
        guarded = guard.middleware(pages.paths | shared.paths)
        app = edge_application(failure, self._log, inner=[guarded])
        app.add_routes(
            [
                *pages.routes(),
                *shared.routes(),
                web.get("/api/fleet", self.show_fleet),
                web.get("/api/stream", self._stream.serve),
                web.get("/api/events", self.list_events),
                web.get("/api/history", self.show_history),
                web.get("/api/handlers/{handler_id}", self.show_handler),
                web.get("/api/handlers/{handler_id}/history", self.show_history),
                web.get("/api/handlers/{handler_id}/runs/{run_id}", self.show_run),
                web.post("/api/signal", self.send_signal),
                web.get("/metrics", self.show_metrics),
            ]
        )
        return app

    def _about(self) -> JsonObject:
        """What every answer about the fleet says of itself."""
        return {
            "at": self._clock.now().isoformat(),
            "interval_s": self._settings.interval_s,
            "round_s": self._watch.round_s,
            "problems": self._watch.problems,
            "scheduler_url": self._settings.scheduler_url,
            "next_runs": [asdict(run) for run in self._watch.directory.next_runs],
            "troubles": self._watch.board.troubles(),
            "summary": self._watch.board.summary(),
            "groups": [one.as_json() for one in groups_of(self._watch.board)],
            "hosts": hosts_of(self._watch.board.rows.values()),
        }

    async def show_fleet(self, request: web.Request) -> web.Response:
        """GET /api/fleet."""
        return json_response(self._stream.snapshot(trails="trails" in request.query))

    async def list_events(self, request: web.Request) -> web.Response:
        """GET /api/events?handler_id&limit."""
        limit = bounded_query(request, "limit", 100, 1_000)
        events = await self._watch.events(request.query.get("handler_id"), limit)
        return json_response({"events": events})

    async def show_handler(self, request: web.Request) -> web.Response:
        """GET /api/handlers/{id}: what is known, and what the handler says of itself now."""
        handler_id = request.match_info["handler_id"]
        if rows := self._watch.board.instances.get(handler_id):
            shown = Group(handler_id, rows).as_json()
            instances = [row.as_json() for row in rows]
            return json_response({**self._about(), "handler": shown, "instances": instances})
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
                "error": description.error or None,
            }
        )

    async def show_run(self, request: web.Request) -> web.Response:
        """GET /api/handlers/{id}/runs/{run_id}: what the handler says of one run."""
        handler_id, run_id = (request.match_info[name] for name in ("handler_id", "run_id"))
        row = self._watch.board.rows.get(handler_id)
        if row is None:
            raise HttpError(404, f"Unknown handler: {handler_id}")
        asked = {"run_id": run_id}
        answer = await self._watch.fleet.ask(handler_id, "get_run", asked, timeout_s=ASK_TIMEOUT_S)
        if not answer.replied:
            raise HttpError(503, f"{handler_id} does not answer; it keeps its runs itself")
        if not answer.success:
            raise HttpError(404, answer.error or f"Unknown run: {run_id}")
        about = {"at": self._clock.now().isoformat(), "handler": row.as_json()}
        return json_response({**about, "run": answer.result})

    async def show_history(self, request: web.Request) -> web.Response:
        """GET /api/handlers/{id}/history?window_s&step_s: points, and the whole window as one."""
        handler_id = request.match_info.get("handler_id", WHOLE_FLEET)
        keys = [row.peer.key for row in self._watch.board.instances.get(handler_id, ())]
        if not keys and handler_id and handler_id not in self._watch.board.rows:
            raise HttpError(404, f"Unknown handler: {handler_id}")
        window_s = bounded_query(request, "window_s", 3_600, MAX_WINDOW_S)
        now_s = int(self._clock.now().timestamp())
        least_s = -(-window_s // MAX_POINTS)
        step_s = max(bounded_query(request, "step_s", window_s // POINTS, MAX_WINDOW_S), least_s)
        step_s = max(1, -(-step_s // 60)) * 60
        since_s = (now_s - window_s) // step_s * step_s
        samples = [
            sample
            for key in keys or [handler_id]
            for sample in await self._watch.series(key, since_s)
        ]
        return json_response(
            {"window_s": window_s, **evenly_spaced(samples, since_s, now_s, step_s)}
        )

    async def send_signal(self, request: web.Request) -> web.Response:
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
            raise HttpError(
                400,
                "handler_ids is a list of handler_id[/instance_id], or absent for all",
            )
        self._log.info("signal_sent", action=action, handlers=len(ids) if ids else "all")
        return json_response(await signal(self._watch, self._clock.now(), action, ids))

    async def show_metrics(self, request: web.Request) -> web.Response:
        """GET /metrics."""
        watch = self._watch
        state = prometheus.Conductor(watch.round_s, watch.looked_at, len(watch.problems))
        text = prometheus.render(watch.board.rows.values(), state)
        return web.Response(body=text.encode(), headers={"Content-Type": prometheus.CONTENT_TYPE})


def bounded_query(request: web.Request, name: str, default: int, most: int) -> int:
    """A whole number of the query, brought within 1 and `most`."""
    return min(max(query_int(request.query, name, default), 1), most)


def failure(error: HttpError) -> web.Response:
    """An error as JSON."""
    fields = {"code": CODES.get(error.status, "refused"), "message": error.message}
    return json_response({"error": fields}, error.status, error.headers)


def dashboard_token(token_file: Path | None, state_dir: Path) -> tuple[Callable[[], str], Path]:
    """The token for signals, as its file is renewed, and that file.

    It is made at first use, for its owner only.

    Raises:
        ConfigError: The named file holds no token.
    """
    path = token_file or state_dir / TOKEN_FILE
    if token_file is None and not path.exists():
        # Nobody else's from its first byte on: to take rights away later would be too late.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(24) + "\n")
    return token_in(path), path


def evenly_spaced(
    samples: list[tuple[int, Bucket]], since_s: int, now_s: int, step_s: int
) -> JsonObject:
    """The samples as evenly spaced points, null where nothing was asked, and as one total."""
    total, points = Bucket(), {at: Bucket() for at in range(since_s, now_s + 1, step_s)}
    for at, bucket in samples:
        total.merge(bucket)
        if slot := points.get(at // step_s * step_s):
            slot.merge(bucket)
    return {
        "step_s": step_s,
        "total": total.as_json(),
        "points": [{"at": at, **bucket.as_json()} for at, bucket in points.items()],
    }

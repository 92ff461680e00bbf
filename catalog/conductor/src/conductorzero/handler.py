"""ConductorZero: one handler that knows how all others are, without power over their processes.

It asks, and it may send signals and jobs; it never starts, stops or restarts a process.
Its methods work served, on a schedule, and in-process: `await ConductorZero({...}).health_check()`.

Layer: catalog entry, imports public names of catalogzero only.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

from catalogzero import CurveClient, Handler, HandlerSettings, internal, job

from conductorzero.coordination import Action, Dispatch, signal
from conductorzero.fleet import Answer, Fleet, JsonObject, number
from conductorzero.groups import groups_of
from conductorzero.history import History
from conductorzero.peers import Directory, RegistryFile, SchedulerListing, peers_of_mapping
from conductorzero.settings import ConductorSettings
from conductorzero.system import read_system
from conductorzero.watch import Watch

if TYPE_CHECKING:
    from conductorzero.dashboard import Dashboard

RESULT_BYTES = 900_000
NAME_BYTES = 40
CORE_TEXT = 100
CORE_METRICS = (
    *("handler_id", "cpu_percent", "memory_mb", "num_threads", "connections", "uptime_seconds"),
    *("status", "timestamp", "in_flight", "queued", "runs_total", "failures_total", "version"),
)


class ConductorZero(Handler):
    """Watches a fleet of handlers: health, metrics, signals, dispatch, history and a dashboard.

    Args:
        handler_registry: `{handler_id: port or address}`; or, by name in `config`, the path of
            a handler_registry.yaml. See `ConductorSettings` for the rest.

    Raises:
        ConfigError: Every setting at fault, at once.
    """

    settings_model: ClassVar[type[HandlerSettings]] = ConductorSettings
    settings: ConductorSettings

    def __init__(self, handler_registry: Mapping[str, int | str] | None = None, **config: Any):
        if handler_registry is not None:
            config["handler_registry"] = handler_registry
        super().__init__(**config)
        self._watch: Watch | None = None
        self._dashboard: Dashboard | None = None
        self._watching: asyncio.Task[None] | None = None

    # --- job methods ----------------------------------------------------------------------

    @job(retry_safe=True)
    async def ping_handler(self, handler_id: str) -> JsonObject:
        """Ping one handler: `alive`, `handler_id` and `response_time_ms`, or `error`.

        One with instances is alive while one of them is; `away` are the others.

        Args:
            handler_id: Whom to ping, or `handler_id/instance_id`; one that is not in the registry
                is not alive.
        """
        watch = await self._ready()
        asked = watch.fleet.named([handler_id])
        answers = await watch.fleet.ask_all(asked, "ping", timeout_s=self.settings.timeout_s)
        watch.saw(pongs=answers.values())
        away = [key for key, answer in answers.items() if not answer.replied]
        of_instances = {"away": away} if asked != [handler_id] else {}
        best = min(answers.values(), key=lambda one: (not one.replied, one.response_time_ms or 0))
        if not best.replied:
            return {"alive": False, "error": best.error, **of_instances}
        return {
            "alive": True,
            "handler_id": handler_id,
            "response_time_ms": best.response_time_ms,
            **of_instances,
        }

    @job(retry_safe=True)
    async def collect_metrics(self, handler_ids: list[str] | None = None) -> JsonObject:
        """Ask handlers for their metrics, all at once: `handlers` by id, and a `summary`.

        Args:
            handler_ids: Whom to ask; everybody by default. An unknown id has an `error`, and of a
                handler with instances each is asked: `handler_id/instance_id`.
        """
        watch = await self._ready()
        ids = watch.fleet.named(handler_ids)
        timeout_s = self.settings.timeout_s
        answers = await watch.fleet.ask_all(ids, "get_metrics", timeout_s=timeout_s)
        watch.saw(metrics=answers.values())
        metrics = {key: metrics_of(answer) for key, answer in answers.items()}
        alive = [figures for figures in metrics.values() if "error" not in figures]
        return {
            "handlers": bounded(metrics),
            "summary": {
                "total_handlers": len(ids),
                "alive_handlers": len(alive),
                "total_memory_mb": sum(number(one.get("memory_mb")) or 0 for one in alive),
                "timestamp": self.clock.now().isoformat(),
            },
        }

    @job(retry_safe=True)
    async def get_system_metrics(self) -> JsonObject:
        """Processor, memory and disk of this machine, measured over one second."""
        return await asyncio.to_thread(read_system, self.clock.now())

    @job(retry_safe=True)
    async def health_check(self) -> JsonObject:
        """Ping everybody at once: who is alive, how fast, and which share is healthy.

        `groups` says of each handler with instances how it is: well, warning or failing.
        """
        watch = await self._ready()
        timeout_s = self.settings.timeout_s
        answers = await watch.fleet.ask_all(watch.fleet.handler_ids, "ping", timeout_s=timeout_s)
        watch.saw(pongs=answers.values())
        healthy = sum(answer.replied for answer in answers.values())
        groups = {one.handler_id: one.health() for one in groups_of(watch.board)}
        return {
            "handlers": {
                key: {
                    "alive": answer.replied,
                    "response_time_ms": answer.response_time_ms,
                    "error": None if answer.replied else answer.error,
                }
                for key, answer in answers.items()
            },
            "summary": {
                "healthy": healthy,
                "total": len(answers),
                "health_percentage": healthy / len(answers) * 100 if answers else 0,
            },
            "timestamp": self.clock.now().isoformat(),
            **({"groups": groups} if groups else {}),
        }

    @job
    async def signal(self, action: Action, handler_ids: list[str] | None = None) -> JsonObject:
        """Send `sleep`, `wake`, `drain` or `resume` to handlers, all at once.

        Args:
            action: What they are to do.
            handler_ids: Whom; everybody by default. A handler_id is all its instances, each with
                an answer of its own; `handler_id/instance_id` is one of them.
        """
        watch = await self._ready()
        return await signal(watch, self.clock.now(), action, handler_ids)

    @job
    async def dispatch(
        self, method: str, params: JsonObject | None = None, among: list[str] | None = None
    ) -> JsonObject:
        """Run a method on the least loaded handler that has it.

        The next one is tried while the chosen one is busy, draining or not there. Where it dies
        after it accepted, the outcome is `lost`, unless the method is retry_safe.

        Args:
            method: A job method.
            params: Its parameters.
            among: The handlers or instances to choose from; by default all that have the method.
        """
        watch = await self._ready()
        return await Dispatch(watch, method, params or {}, among, self.settings.timeout_s).run()

    async def get_metrics(self) -> JsonObject:
        """The handler's own metrics, with `dashboard_url` and how many handlers are watched."""
        metrics = await super().get_metrics()
        metrics["dashboard_url"] = self._dashboard.url if self._dashboard else None
        metrics["handlers_watched"] = len(self._watch.board.rows) if self._watch else 0
        return metrics

    # --- in-process use ---------------------------------------------------------------------

    @internal
    async def close(self) -> None:
        """Close every connection; for in-process use, where nobody stops a service."""
        if self._watch is not None:
            await self._watch.directory.close()
            self._watch.fleet.close()
            self._watch = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- served -----------------------------------------------------------------------------

    async def _on_start(self) -> None:
        """Open the history, serve the dashboard, and begin to watch."""
        await super()._on_start()
        watch = self._watch = self._new_watch()
        days, max_rows = self.settings.history_days, self.settings.history_max_rows
        path = self.state_dir / "history.sqlite3"
        await watch.open_history(partial(History, path, keep_days=days, max_rows=max_rows))
        try:
            await watch.refresh()
            if self.settings.dashboard_port is not None:
                from conductorzero.dashboard import Dashboard  # HTTP only where it is served

                dashboard = Dashboard(watch, self.clock, self.settings, self.state_dir, self.log)
                await dashboard.start()
                self._dashboard = dashboard
                self.log.info("dashboard_ready", url=dashboard.url)
        # Cancellation too: a start that is broken off must not leave the port and the file open.
        except BaseException:
            await self._on_stop()
            raise
        self._watching = asyncio.create_task(watch.run(), name="conductor-watch")

    async def _on_stop(self) -> None:
        """Stop watching, close the dashboard, and write what was seen."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
            self._watching = None
        if self._dashboard is not None:
            await self._dashboard.stop()
            self._dashboard = None
        if self._watch is not None:
            await self._watch.write(everything=True)
            if self._watch.history is not None:
                await asyncio.to_thread(self._watch.history.close)
        await self.close()
        await super()._on_stop()

    async def _ready(self) -> Watch:
        """The watch, with the lists of handlers read again."""
        if self._watch is None:
            self._watch = self._new_watch()
        await self._watch.refresh()
        return self._watch

    def _new_watch(self) -> Watch:
        """A watch over the handlers that the settings name."""
        settings, keys_file = self.settings, self.settings.curve_key_file
        registry, url = settings.handler_registry, settings.scheduler_url
        fixed = peers_of_mapping(registry) if isinstance(registry, dict) else []
        sources: list[RegistryFile | SchedulerListing] = []
        if path := settings.registry_file():
            sources.append(RegistryFile(path))
        if url is not None:
            from catalogzero.web import token_in  # HTTP only where it is used

            token_file = settings.scheduler_token_file
            token = token_in(token_file) if token_file else None
            every_s, monotonic = settings.discovery_interval_s, self.clock.monotonic
            sources.append(SchedulerListing(url, monotonic, interval_s=every_s, token=token))
        directory = Directory(fixed, sources, leave_out=frozenset({self.handler_id}))
        curve: dict[str, Callable[[], CurveClient]] = {}
        if keys_file is not None:
            for handler_id, key in settings.server_keys.items():
                curve[handler_id] = CurveClient.renewed(keys_file, key.encode())
        fleet = Fleet(self.clock, curve, settings.nats)
        return Watch(directory, fleet, self.clock, self.log, interval_s=settings.interval_s)


def metrics_of(answer: Answer) -> JsonObject:
    """A handler's metrics, or why there are none.

    A whole number that no reply can hold, as a plain handler may send it, is about so.
    """
    if not answer.success:
        return {"error": answer.error}
    metrics = answer.result if isinstance(answer.result, dict) else {"result": answer.result}
    return dict(
        json.loads(
            json.dumps(metrics),
            parse_int=lambda digits: int(digits) if len(digits) < 19 else float(digits),
        )
    )


def bounded(metrics: dict[str, JsonObject]) -> dict[str, JsonObject]:
    """The same metrics, such that all together fit in a message.

    Where they do not, those that are above an even share are cut to their core.
    """
    sizes = {
        handler_id: len(json.dumps(figures, default=str, separators=(",", ":")).encode())
        for handler_id, figures in metrics.items()
    }
    if sum(sizes.values()) + NAME_BYTES * len(metrics) <= RESULT_BYTES:
        return metrics
    share = RESULT_BYTES // len(metrics) - NAME_BYTES
    return {
        handler_id: figures if sizes[handler_id] <= share else core_of(figures)
        for handler_id, figures in metrics.items()
    }


def core_of(figures: JsonObject) -> JsonObject:
    """What of a handler's metrics all others count on, with texts cut short."""
    return {
        key: figures[key][:CORE_TEXT] if isinstance(figures[key], str) else figures[key]
        for key in (*CORE_METRICS, "error")
        if key in figures and not isinstance(figures[key], dict | list)
    }

"""`Handler`: what an author subclasses.

It holds settings, resources and hooks; it never touches a socket. `service` runs it.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import re
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Never, Protocol, Self

from pydantic import ValidationError

from catalogzero.clock import Clock, SystemClock
from catalogzero.config.logs import Logger, make_logger
from catalogzero.config.preflight import Check, Finding
from catalogzero.config.settings import HandlerSettings, Mask, RuntimeSettings, config_error
from catalogzero.errors import RunCancelledError
from catalogzero.runtime.control_answers import (
    Description,
    Failure,
    SendingNow,
    UploadRecord,
    Vitals,
)
from catalogzero.runtime.methods import Method, control, internal, methods_of
from catalogzero.runtime.metrics import ProcessMeter
from catalogzero.runtime.resources import Resources
from catalogzero.runtime.runs import current_run
from catalogzero.runtime.worker import WorkerPort
from catalogzero.version import __version__
from catalogzero.wire.messages import JsonObject, encode_json


class Handler:
    """A long-lived process that answers method calls, reports its metrics, and sleeps when idle.

    Every public method that a subclass defines can be called; `@internal` hides one, `@job`
    sets options. `async def` methods run on the event loop, plain ones in threads, those with
    `@job(isolate=True)` in the worker process. Raise any exception to fail a run.

    Args:
        config: The settings of `settings_model`, by name.

    Attributes:
        settings: The entry's own settings, an instance of `settings_model`.
        runtime: The runtime's settings.
        handler_id: Its name to schedulers and conductors.
        clock: Time; use it instead of reading a clock.
        log: A structlog logger, bound to the handler_id; secrets are masked.
        worker: The child process (see `WorkerPort`).
        in_worker: Whether this instance lives in the worker process.

    Raises:
        ConfigError: Every setting at fault, at once.
    """

    _sdk_base: ClassVar[bool] = True
    _callable: ClassVar[dict[str, Method]] = {}

    settings_model: ClassVar[type[HandlerSettings]] = HandlerSettings

    # `Any`, so that an author's class may annotate it with its own model: no checker lets a
    # narrower type override that of a variable.
    settings: Any
    runtime: RuntimeSettings
    handler_id: str
    clock: Clock
    log: Logger
    worker: WorkerPort

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class that would hide a control method."""
        super().__init_subclass__(**kwargs)
        cls._callable = methods_of(cls, Handler)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Set up what the runtime needs, so that an author's `__init__` may have any form."""
        self = super().__new__(cls)
        self._set_up_runtime(args, kwargs)
        return self

    def __init__(self, **config: Any) -> None:
        try:
            self.settings = self.settings_model(**config)
        except ValidationError as error:
            where = f"settings of {type(self).__name__}"
            raise config_error(error, where=where, model=self.settings_model) from None
        self.mask.learn(self.settings)

    def _set_up_runtime(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """What the runtime needs of an instance, with what its class was called with."""
        self._made_with = args, kwargs
        self.mask = Mask()
        self.clock = SystemClock()
        self.in_worker = False
        self._key_files: list[Path] = []
        self._resources = Resources()
        self._vitals: Callable[[], Vitals | dict[str, Never]] = dict
        self._last_failure: Callable[[], Failure | None] = lambda: None
        self._is_registered: Callable[[], bool] = bool
        self._report: Callable[[JsonObject], None] = lambda status: None
        self._progress: Callable[[JsonObject], None] = note_progress
        self._is_cancelled: Callable[[], bool] = is_run_cancelled
        self._attach(runtime=RuntimeSettings.model_construct(), handler_id=None)

    def _attach(
        self, *, runtime: RuntimeSettings, handler_id: str | None, clock: Clock | None = None
    ) -> None:
        """Take the runtime's settings, name and clock; the service does this before it serves."""
        self.runtime = runtime
        self.mask.learn(runtime.state)
        self._described: asyncio.Future[Description] | None = None
        self.clock = clock or self.clock
        self.handler_id = handler_id or runtime.handler_id or snake_case(type(self).__name__)
        logger = make_logger(mask=self.mask, log_format=runtime.log_format, level=runtime.log_level)
        self.log = logger.bind(handler_id=self.handler_id)

    @property
    def state_dir(self) -> Path:
        """This handler's own state folder: `<runtime.state_dir>/<handler_id>[/<instance_id>]`."""
        return self.runtime.state_dir_of(self.handler_id)

    # --- for authors: call these -------------------------------------------------------

    @property
    def cancelled(self) -> bool:
        """Whether the run that the caller is in is to stop: by a call, its limit, or a shutdown.

        A plain method that takes long looks at it, and ends. An isolated one that has not ended
        two seconds later is killed with its process.
        """
        return self._is_cancelled()

    @internal
    def report_progress(self, **fields: Any) -> None:
        """Report how far the current run is; `get_run` shows it under `progress`.

        Raises:
            RunCancelledError: The run is to stop.
            TypeError: A field has no JSON form.
        """
        if self._is_cancelled():
            raise RunCancelledError("the run was cancelled")
        self._progress(fields)

    @internal
    def report_status(self, status: JsonObject) -> None:
        """In the worker: report to the handler what is pending.

        Args:
            status: `busy` (bool) and `next_due_s` (seconds until something is due, or null)
                decide whether the worker is kept, ended or started again; what else it holds
                is kept as `worker.status`.
        """
        self._report(status)

    # --- for authors: extend these through super() -------------------------------------

    @control("ping")
    async def ping(self) -> JsonObject:
        """The answer to `ping` (see `catalogzero.Pong`); the runtime adds boot_id and uptime."""
        return {"status": "ok", "handler": self.handler_id, "message": "pong"}

    @control("get_metrics", "report_metrics")
    async def get_metrics(self) -> JsonObject:
        """The answer to `get_metrics`: see `catalogzero.Metrics`; add figures of your own."""
        measured = await asyncio.to_thread(self._meter.read)
        entry, version = entry_of(type(self))
        return {
            "handler_id": self.handler_id,
            **measured,
            **self._vitals(),
            "timestamp": self.clock.now().isoformat(),
            "sdk_version": __version__,
            "entry": entry,
            "version": version,
        }

    @control("describe")
    async def describe(self) -> JsonObject:
        """The answer to `describe`: see `catalogzero.Description`; add keys of your own.

        The schemas take long to make: that is done once, in a thread.
        """
        # One future for all who ask: a caller who gives up does not stop it for the others.
        if self._described is None:
            self._described = asyncio.ensure_future(asyncio.to_thread(self._describe))
        return dict(await asyncio.shield(self._described))

    @control("send_now")
    async def send_now(self) -> SendingNow:
        """Try at once what waits for its next try, also while sending is paused.

        A handler that sends nothing has nothing that waits.
        """
        return {"uploads": 0, "records": 0, "paused": None, "fault": None, "tried": True}

    def _describe(self) -> Description:
        entry, version = entry_of(type(self))
        settings = getattr(self, "settings", None)
        shown = settings.model_dump(mode="json") if settings is not None else {}
        return {
            "handler_id": self.handler_id,
            "class": f"{type(self).__module__}:{type(self).__qualname__}",
            "doc": (type(self).__doc__ or "").strip(),
            "entry": entry,
            "version": version,
            "sdk_version": __version__,
            "methods": [method.describe() for method in self.callable_methods().values()],
            "settings_schema": self.settings_model.model_json_schema(),
            "settings": self.mask.every(shown),
            "runtime": self.mask.every(self.runtime.model_dump(mode="json", exclude_defaults=True)),
        }

    # --- for authors: hooks; each may be a coroutine ------------------------------------

    def _release_resources(self) -> Any:
        """Called when the handler falls asleep: drop caches, close what `@resource` does not."""

    def _ensure_resources(self) -> Any:
        """Called when it wakes, before the run: open what `_release_resources` closed."""

    def _warm_cache(self) -> Any:
        """Called when it wakes, after `_ensure_resources`."""

    # --- for base classes ---------------------------------------------------------------

    async def _on_start(self) -> None:
        """Called when it serves, before it registers."""

    async def _on_stop(self) -> None:
        """Called before it goes, after the last run ended."""

    def _preflight(self) -> list[Check]:
        """What `catalogzero check` looks at beside the runtime's own needs."""
        checks = []
        for fault in self._state_faults():
            fix = f"correct `{fault['field']}` in the section of {self.handler_id}"
            found = Finding("state", "fail", f"{fault['field']}: {fault['message']}", fix)
            checks.append(Check.of(found))
        return checks

    def _state_faults(self) -> list[JsonObject]:
        """What is wrong with the `state` of its section, as `faults_error` takes it.

        Refused, not passed over: who sets it believes that something is shared.
        """
        if self.runtime.state is None:
            return []
        message = (
            f"{type(self).__name__} is no CloudProcessor, and keeps nothing there: take `state` "
            "out; its instances need an `instance_id` each, and nothing else"
        )
        return [{"field": "state", "message": message}]

    def _worker_wanted(self) -> bool:
        """Whether the worker has something to do at start, such as a full outbox."""
        return False

    def _keeps_its_own(self) -> bool:
        """Whether it sends results from a state folder that it alone may write.

        Such a one has no second instance.
        """
        return False

    def _uploads_of(self, upload_ids: list[str]) -> list[UploadRecord]:
        """What became of these uploads, in a thread; those that are not known are left out."""
        return []

    async def _worker_main(self) -> None:
        """In the worker: runs beside the jobs until the worker ends."""

    @classmethod
    def _handler_class(cls) -> type[Handler]:
        """See `Hosted`."""
        return cls

    def _as_handler(self) -> Handler:
        """See `Hosted`."""
        return self

    @classmethod
    def callable_methods(cls) -> dict[str, Method]:
        """The job methods that may be called over the wire, by name."""
        return cls._callable

    def _offered_methods(self) -> list[str]:
        """The names that it registers: with those that ScheduleZero's clients call of all."""
        return sorted({*self.callable_methods(), "ping", "get_metrics"})

    @cached_property
    def _meter(self) -> ProcessMeter:
        return ProcessMeter(self.clock)


class Hosted(Protocol):
    """What the runtime knows of an object that a handler stands for (see `catalogzero.compat`).

    A `Handler` is one itself.
    """

    @classmethod
    def _handler_class(cls) -> type[Handler]:
        """The class of handlers that stand for this class's objects."""

    def _as_handler(self) -> Handler:
        """The handler that stands for it."""


def handler_class(found: Any) -> type[Handler] | None:
    """The handler class that a class is, or that stands for it; `None` for anything else."""
    known = isinstance(found, type) and hasattr(found, "_handler_class")
    return found._handler_class() if known else None


def entry_of(cls: type) -> tuple[str | None, str | None]:
    """The catalog entry (distribution name and version) that provides a handler class."""
    return entry_at(cls.__module__, cls.__qualname__)


@cache
def entry_at(module: str, qualname: str) -> tuple[str | None, str | None]:
    """The catalog entry that provides `module:qualname`; reading the entry points takes long."""
    found: tuple[str | None, str | None] = None, None
    for point in importlib.metadata.entry_points(group="catalogzero.handlers"):
        values = (f"{module}:{qualname}", f"{module.partition('.')[0]}:{qualname}")
        if point.value in values and point.dist is not None:
            found = point.dist.name, point.dist.version
    return found


def note_progress(fields: JsonObject) -> None:
    """Progress of a run in the handler's own process.

    Raises:
        TypeError: It has no JSON form.
    """
    encode_json(fields)
    run = current_run.get()
    if run is not None:
        run.note_progress(fields)


def is_run_cancelled() -> bool:
    """Whether a run in the handler's own process is to stop."""
    run = current_run.get()
    return run is not None and run.cancelled_by is not None


def snake_case(name: str) -> str:
    """A class name as a handler_id: `AcmeHandler` is `acme_handler`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()

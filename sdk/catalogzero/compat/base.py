"""`ZMQHandlerBase` and `SmartHandler`: what handlers written for ScheduleZero subclass.

They own the old constructor, names and habits; the work is `Adapter`'s and the runtime's.
"""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import wraps
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Self, TypeVar

from catalogzero.compat.adapter import Adapter
from catalogzero.compat.logger import HandlerLogger
from catalogzero.compat.thread import ServingThread
from catalogzero.config.address import Address
from catalogzero.errors import ConfigError
from catalogzero.runtime.handler import Handler
from catalogzero.runtime.methods import awaited
from catalogzero.wire.messages import JsonObject

ValueT = TypeVar("ValueT")

REPLACED = {
    "_receive_loop": "idle and sleep are the runtime's (`idle_after_s`, `sleep_after_s`); keep "
    "`_release_resources`, `_ensure_resources` and `_warm_cache`",
    "_run_handler_server": "calls are received by the runtime",
    "_handle_request": "calls are dispatched by the runtime",
    "_manage_registration": "the runtime registers, and again whenever the server comes back",
    "_discover_methods": "mark methods that may not be called with `@catalogzero.internal`",
}


class _ReadOnly(Generic[ValueT]):
    """An attribute that the runtime knows; what an author assigns to it changes nothing."""

    def __init__(self, read: Callable[[Any], ValueT]) -> None:
        self._read = read
        self.__doc__ = read.__doc__

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else self._read(instance)

    def __set__(self, instance: Any, value: Any) -> None:
        """See the class."""


class ZMQHandlerBase:
    """A handler with ScheduleZero's constructor and habits, served by catalogzero's runtime.

    Every public method of a subclass can be called, with the `params` dict or with nothing.
    Beside that it has all that a `catalogzero.Handler` has: jobs side by side, early replies,
    sleep and wake, metrics, cancellation.

    Args:
        handler_id: Its name to the server; by default that of the class, in snake_case.
        handler_address: Where to listen, such as `tcp://127.0.0.1:5001`; by default a free port.
        server_address: The server's registration address; by default tcp://127.0.0.1:4242.
        registration_retry_interval: Kept and not used: it tries again within 10 s, for ever.
        max_registration_retries: Kept and not used: see above.
        runtime: Any runtime setting by its name, such as `max_concurrent_jobs=1`.

    Attributes:
        handler_id: Its name.
        handler_address: Where it can be called; `None` before it is served.
        handler_address_hint: The address that the constructor got.
        server_address: Where it registers.
        logger: Takes `logger.info("text", method="x", key=value)`.
        shutdown_event: Set when the end begins; a long job may look at it.

    Raises:
        ConfigError: An address or a setting at fault, by name.
    """

    _adapter_class: ClassVar[type[Adapter]] = Adapter
    _adapter_base: ClassVar[type[Adapter]] = Adapter
    _forwarded: ClassVar[tuple[str, ...]] = ()
    """What a adapter's class takes over from this one."""
    _adapter: Adapter
    _life: ServingThread | None
    logger: HandlerLogger
    shutdown_event: threading.Event

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse what the runtime has replaced, and make the class of the adapters."""
        super().__init_subclass__(**kwargs)
        for name, fix in REPLACED.items():
            if name in vars(cls):
                raise TypeError(
                    f"{cls.__qualname__}.{name} cannot be overridden with catalogzero.compat: "
                    f"{fix}; delete the method"
                )
        if "_warm_cache" in vars(cls) and not cls.__module__.startswith("catalogzero.compat"):
            cls._warm_cache = noting_warming(cls._warm_cache)  # type: ignore[method-assign]
        # The worker finds the adapter's class by the name of the author's.
        fields = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        own = {name: getattr(cls, name) for name in cls._forwarded if hasattr(cls, name)}
        body = {**fields, "__doc__": cls.__doc__, "_author_class": cls, **own}
        cls._adapter_class = type(cls.__name__, (cls._adapter_base,), body)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Make the adapter first, so that an author's `__init__` may have any form."""
        self = super().__new__(cls)
        self._life = None
        self._adapter = cls._adapter_class.around(self, args, kwargs)
        self.logger = HandlerLogger(self._adapter)
        self.shutdown_event = threading.Event()
        return self

    def __init__(
        self,
        handler_id: str | None = None,
        handler_address: str | None = None,
        server_address: str | None = None,
        registration_retry_interval: float = 15,
        max_registration_retries: int = 5,
        **runtime: Any,
    ) -> None:
        self.registration_retry_interval = registration_retry_interval
        self.max_registration_retries = max_registration_retries
        self.handler_address_hint = handler_address
        if handler_address is not None:
            runtime = {**settings_of_address(handler_address), **runtime}
        if server_address is not None:
            runtime = {"scheduler": server_address, **runtime}
        self._adapter.configure(handler_id, runtime)

    # --- what the runtime knows ---------------------------------------------------------

    @property
    def handler_id(self) -> str:
        """Its name to the server."""
        return self._adapter.handler_id

    @handler_id.setter
    def handler_id(self, value: str) -> None:
        self._adapter.configure(value, {})

    @property
    def server_address(self) -> str:
        """Where it registers."""
        return self._adapter.runtime.scheduler

    @server_address.setter
    def server_address(self, value: str) -> None:
        self._adapter.configure(self._adapter.own_id, {"scheduler": value})

    @_ReadOnly
    def handler_address(self) -> str | None:
        """Where it can be called; `None` before it is served."""
        if self._life is not None and self._life.alive:
            return self._life.address
        runtime = self._adapter.runtime
        at = runtime.address
        return str(at) if self._adapter.serving and (at.port or at.path) else None

    @property
    def is_registered(self) -> bool:
        """Whether the server has taken its registration."""
        return self._adapter._is_registered()

    @property
    def methods(self) -> Mapping[str, Callable[..., Any]]:
        """The methods that it registers, by name."""
        names = self._adapter._offered_methods()
        return MappingProxyType({name: getattr(self, name) for name in names})

    @_ReadOnly
    def sleep_mode(self) -> bool:
        """Whether it is asleep, falling asleep or waking."""
        return self._adapter.asleep

    @_ReadOnly
    def idle_since(self) -> datetime | None:
        """When the last job ended, as naive local time; `None` before it counts as idle."""
        idle_s = self._adapter._vitals().get("idle_s", 0.0)
        if idle_s < self._adapter.runtime.idle_after_s and not self._adapter.asleep:
            return None
        return self._moment(idle_s)

    @_ReadOnly
    def start_time(self) -> datetime:
        """When it began to be served (before: to be), as naive local time."""
        return self._moment(self._adapter.clock.monotonic() - self._adapter.started_s)

    @property
    def running(self) -> bool:
        """Whether it is served; an author who sets it False ends that."""
        return self._adapter.serving

    @running.setter
    def running(self, value: bool) -> None:
        if not value and self._life is not None:
            self._life.end()

    def _moment(self, ago_s: float) -> datetime:
        """That many seconds ago, as `datetime.now()` would have said it."""
        then = self._adapter.clock.now() - timedelta(seconds=ago_s)
        return then.astimezone().replace(tzinfo=None)

    @classmethod
    def _handler_class(cls) -> type[Handler]:
        """What the runtime makes of this class."""
        return cls._adapter_class

    def _as_handler(self) -> Handler:
        """What the runtime serves."""
        return self._adapter

    # --- methods that a subclass may extend ---------------------------------------------

    def ping(self, params: JsonObject | None = None) -> Any:
        """The answer to `ping`; the runtime adds the rest."""
        return {"success": True, "message": "pong", "handler_id": self.handler_id}

    async def get_metrics(self) -> Any:
        """What the runtime reports of this process: CPU, memory, state, runs."""
        return await self._adapter.own_metrics()

    def _release_resources(self) -> Any:
        """Called when it falls asleep; may be a coroutine."""

    def _ensure_resources(self) -> Any:
        """Called when it wakes, before the job; may be a coroutine."""

    def _warm_cache(self) -> Any:
        """Called after `_ensure_resources`, unless that did so; may be a coroutine."""

    # --- life ---------------------------------------------------------------------------

    def start(self) -> None:
        """Serve on a thread of its own, and return when calls are answered.

        Raises:
            ConfigError: The address is taken or not allowed, or the state folder is in use.
        """
        if self._life is not None and self._life.alive:
            return
        self.shutdown_event.clear()
        self._life = ServingThread(self._adapter, self.shutdown_event.set)
        self._life.start()

    def run(self) -> None:
        """Serve until `stop`, SIGTERM or Ctrl-C, then drain; a second signal does not wait.

        Signal handlers that the author has set are left alone.

        Raises:
            ConfigError: As `start`.
        """
        self.start()
        with replacing_default_signals(self._signalled):
            try:
                self.shutdown_event.wait()
            finally:
                self.stop()

    def stop(self) -> None:
        """Take no new jobs, let those that run end (`drain_timeout_s`), and close.

        From inside a job, only begin that.
        """
        self.shutdown_event.set()
        if self._life is not None and self._life.alive:
            self._life.end()
            self._life.join()

    def _signalled(self) -> None:
        if self._life is not None:
            (self._life.hurry if self._life.ending else self._life.end)()


class SmartHandler(ZMQHandlerBase):
    """A `ZMQHandlerBase` that lets go of `db_pool` and `cache` when it falls asleep.

    A subclass opens them again in `_ensure_resources`, and fills them in `_warm_cache`.
    """

    async def _release_resources(self) -> None:
        """Close `self.db_pool` and clear `self.cache`, where there are such."""
        pool, cache = getattr(self, "db_pool", None), getattr(self, "cache", None)
        if pool is not None:
            await awaited(pool.close())
            self.db_pool = None
        if cache is not None:
            cache.clear()
        gc.collect()
        self.logger.info("Resources released", mode="sleep")

    async def _ensure_resources(self) -> None:
        """Log that it wakes."""
        self.logger.info("Waking from sleep mode")

    async def _warm_cache(self) -> None:
        """Nothing by default."""


def noting_warming(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A `_warm_cache` that is run once a wake, also where `_ensure_resources` calls it."""

    @wraps(hook)
    def warm(self: ZMQHandlerBase, *args: Any, **kwargs: Any) -> Any:
        self._adapter.warmed = True
        return hook(self, *args, **kwargs)

    return warm


def settings_of_address(address: str) -> JsonObject:
    """The runtime's settings for an address as ScheduleZero writes it."""
    try:
        at = Address.parse(address)
    except ConfigError as error:
        raise ConfigError(f"handler_address: {error}") from None
    if at.path:
        return {"host": str(at), "port": 0}
    return {"host": "0.0.0.0" if at.host == "*" else at.host, "port": at.port}  # noqa: S104 - refused without keys


@contextmanager
def replacing_default_signals(on_signal: Callable[[], None]) -> Iterator[None]:
    """While it lasts, SIGTERM and SIGINT call `on_signal`, where nobody has set another way."""
    replaced: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (int(signal.SIGTERM), int(signal.SIGINT)):
            # An author who catches signals calls `stop` there, as under ScheduleZero.
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                replaced[number] = signal.signal(number, lambda *_: on_signal())
    try:
        yield
    finally:
        for number, before in replaced.items():
            signal.signal(number, before)

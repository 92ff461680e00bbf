"""The handler that stands for an author's object, so that no name of theirs meets one of ours.

A class written for ScheduleZero may call its attributes `log`, `worker` or `settings`, and its
methods `cancel` or `attach`: the runtime serves a `Adapter`, which calls the author's object.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, ClassVar, Protocol, Union, get_args, get_origin

from pydantic import ValidationError

from catalogzero.clock import Clock
from catalogzero.compat.logger import folder_name
from catalogzero.config.settings import RuntimeSettings, config_error, merged_settings
from catalogzero.errors import ConfigError
from catalogzero.runtime.handler import Handler
from catalogzero.runtime.methods import JobOptions, Method, awaited, call_plain, control_methods
from catalogzero.wire.messages import JsonObject

ADDRESSES = ("handler_id", "handler_address", "server_address")


class Author(Protocol):
    """What is used of an author's object, beside the methods that the author wrote."""

    def _release_resources(self) -> Any: ...

    def _ensure_resources(self) -> Any: ...

    def _warm_cache(self) -> Any: ...


class Adapter(Handler):
    """Serves an author's object.

    Attributes:
        author: The object.
        asleep: Whether it is falling asleep, sleeping or waking.
        serving: Whether it is served now.
        warmed: Whether the author's `_warm_cache` ran since waking began.
    """

    _sdk_base: ClassVar[bool] = True
    _author_class: ClassVar[type[Any]]

    author: Author
    asleep: bool = False
    serving: bool = False
    warmed: bool = False
    own_runtime: Mapping[str, Any] = MappingProxyType({})
    own_id: str | None = None
    started_s: float

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_author_class" in vars(cls):
            cls._callable = {**cls._callable, **author_methods(cls._author_class, cls._callable)}

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make the author's object, as `catalogzero run` does; its adapter is the handler."""
        # The author's `__new__` makes the adapter: the class that is called here only names it.
        stand_in = cls.make_author(args, kwargs)._adapter
        stand_in._made_with = args, kwargs
        return stand_in

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `around` has set it up."""

    @classmethod
    def make_author(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The author's object, from a section's `config`.

        Raises:
            ConfigError: It does not fit the constructor.
        """
        return cls._author_class(*args, **completed(cls._author_class, args, kwargs))

    @classmethod
    def around(cls, author: Author, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The adapter of an object that is being made with these arguments."""
        self = Handler.__new__(cls, *args, **kwargs)
        self.author, self.started_s = author, self.clock.monotonic()
        return self

    def configure(self, handler_id: str | None, runtime: Mapping[str, Any]) -> None:
        """Take what the author's constructor says of id, addresses and runtime.

        Raises:
            ConfigError: A setting at fault, by name.
        """
        self.own_id = handler_id
        self.own_runtime = {**self.own_runtime, **runtime}
        merged = merged_settings(RuntimeSettings, file=self.own_runtime, flags={})
        try:
            settings = RuntimeSettings(**merged)
        except ValidationError as error:
            where = f"settings of {type(self).__name__}"
            raise config_error(error, where=where, model=RuntimeSettings) from None
        self._attach(runtime=settings, handler_id=settings.handler_id or handler_id)

    def _attach(
        self, *, runtime: RuntimeSettings, handler_id: str | None, clock: Clock | None = None
    ) -> None:
        """What `runtime` does not set is as the author's constructor said."""
        if self.own_runtime:
            shown = runtime.model_dump(exclude_unset=True)
            runtime = RuntimeSettings(**{**self.own_runtime, **shown})
        super()._attach(runtime=runtime, handler_id=handler_id or self.own_id, clock=clock)

    @property
    def state_dir(self) -> Path:
        """As a `Handler`'s; a handler_id of any letters has one."""
        return self.runtime.state_dir_of(folder_name(self.handler_id))

    # --- control methods: the author's answer, on top of the runtime's -------------------

    async def ping(self, **params: Any) -> JsonObject:
        """See `Handler.ping`; also with ScheduleZero's `handler_id`."""
        answer = {**await super().ping(), "handler_id": self.handler_id}
        return await self._extended("ping", params, answer)

    async def get_metrics(self, **params: Any) -> JsonObject:
        """See `Handler.get_metrics`."""
        return await self._extended("get_metrics", params, await super().get_metrics())

    async def describe(self, **params: Any) -> JsonObject:
        """See `Handler.describe`."""
        return await self._extended("describe", params, await super().describe())

    async def own_metrics(self) -> JsonObject:
        """The runtime's metrics, without the author's."""
        return await super().get_metrics()

    async def _extended(
        self, name: str, params: Mapping[str, Any], shown: JsonObject
    ) -> JsonObject:
        method = author_method(type(self.author), name)
        if method is None:
            return shown
        kwargs = method.bind(params)
        if method.is_async:
            answer = await method.function(self, **kwargs)
        else:
            answer = await asyncio.to_thread(call_plain, method.function, self, **kwargs)
        return {**shown, **(answer if isinstance(answer, dict) else {"result": answer})}

    # --- hooks --------------------------------------------------------------------------

    async def _release_resources(self) -> None:
        self.asleep = True
        await awaited(self.author._release_resources())

    async def _ensure_resources(self) -> None:
        self.asleep, self.warmed = True, False
        await awaited(self.author._ensure_resources())

    async def _warm_cache(self) -> None:
        """Unless the author's `_ensure_resources` has done so, as the old form did."""
        if not self.warmed:
            await awaited(self.author._warm_cache())
        self.asleep = False

    async def _on_start(self) -> None:
        await super()._on_start()
        self.serving, self.asleep, self.started_s = True, False, self.clock.monotonic()

    async def _on_stop(self) -> None:
        self.serving = False
        await super()._on_stop()


class AuthorMethod(Method):
    """A method of an author's object.

    ScheduleZero calls a method with its `params` dict, or with nothing. So does this; and a
    method whose hints say otherwise (`handler_id: str`) gets its parameters by name.

    Args:
        name: Its name on the wire.
        owner: The author's class.
        options: What `@job` said.
    """

    def __init__(self, name: str, owner: type, options: JobOptions) -> None:
        function = getattr(owner, name)
        super().__init__(name, function, options)
        if isinstance(inspect.getattr_static(owner, name), staticmethod | classmethod):
            self._parameters = list(inspect.signature(function).parameters.values())
        self.function = on_author(name, function)
        self._names = {parameter.name for parameter in self._parameters}
        self._whole = False

    def bind(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Positional and named arguments for the author's method; a method without any gets none.

        Raises:
            BadParamsError: As `Method.bind`.
        """
        if not self._parameters:
            return {"args": (), "named": {}}
        if self._dict_only or (self._takes_one and not params.keys() <= self._names):
            return {"args": (deepcopy(dict(params)),), "named": {}}
        return {"args": (), "named": super().bind(params)}

    @property
    def params_schema(self) -> JsonObject:
        """See `Method.params_schema`."""
        open_ended = self._dict_only or not self._parameters
        return {"type": "object"} if open_ended else super().params_schema

    @functools.cached_property
    def _takes_one(self) -> bool:
        """Whether one positional argument suffices, as it must for ScheduleZero."""
        first, *others = self._parameters
        variadic = (first.VAR_POSITIONAL, first.VAR_KEYWORD)
        optional = all(p.kind in variadic or p.default is not p.empty for p in others)
        return optional and first.kind not in (first.KEYWORD_ONLY, first.VAR_KEYWORD)

    @functools.cached_property
    def _dict_only(self) -> bool:
        """Whether that argument is the `params` dict, by its name or its hint."""
        first = self._parameters[0] if self._parameters else None
        if first is None or not self._takes_one:
            return False
        return first.name == "params" or takes_a_dict(self._hints.get(first.name, Any))

    @functools.cached_property
    def _hints(self) -> Mapping[str, Any]:
        """The hints; those that name what cannot be found say nothing."""
        try:
            return super()._hints
        except (NameError, AttributeError, TypeError):
            return {}


def takes_a_dict(hint: Any) -> bool:
    """Whether a type hint allows a plain dict."""
    if hint in (Any, object):
        return True
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(takes_a_dict(part) for part in get_args(hint))
    if origin is Annotated:
        return takes_a_dict(get_args(hint)[0])
    cls = origin or hint
    return isinstance(cls, type) and cls is not NoneType and issubclass(cls, Mapping)


def author_methods(author: type, inherited: Mapping[str, Method]) -> dict[str, Method]:
    """The methods of an author's class that may be called: public, and not the base's own."""
    names = {name for cls in author_lineage(author) for name in vars(cls)}
    found: dict[str, Method] = {}
    extended = {function.__name__ for function in control_methods(Handler).values()}
    for name in sorted(names - extended):
        method = author_method(author, name, inherited.get(name))
        if method is not None and (name in inherited or not hasattr(base_of(author), name)):
            found[name] = method
    return found


def author_method(author: type, name: str, inherited: Method | None = None) -> AuthorMethod | None:
    """One method of an author's class; `None` where they wrote none of that name."""
    if name.startswith("_") or not any(name in vars(cls) for cls in author_lineage(author)):
        return None
    function = inspect.getattr_static(author, name)
    function = getattr(function, "__func__", function)
    if not inspect.isfunction(function) or function.__dict__.get("catalogzero_internal"):
        return None
    default = inherited.options if inherited else JobOptions()
    return AuthorMethod(name, author, function.__dict__.get("catalogzero_job") or default)


def author_lineage(author: type) -> list[type]:
    """The classes that the author wrote, mixins too."""
    ours = set(base_of(author).__mro__)
    return [c for c in author.__mro__ if c not in ours and c.__module__ not in ("abc", "typing")]


def base_of(author: type) -> type:
    """The class of ours that an author's class is built on."""
    return next(c for c in author.__mro__ if c.__module__.startswith("catalogzero.compat"))


def on_author(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Calls the method of that name of the adapter's author."""

    @functools.wraps(function)
    def call(stand_in: Adapter, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        return getattr(stand_in.author, name)(*args, **named)

    return call


def completed(author: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments for an author's constructor, from a section's `config`.

    ScheduleZero's own three may be left out there: the section says them in its own words.

    Raises:
        ConfigError: They do not fit the constructor.
    """
    signature = inspect.signature(author.__init__)  # type: ignore[misc]  # its own, or ours
    required = [p.name for p in signature.parameters.values() if p.default is p.empty]
    given = {**dict.fromkeys(n for n in ADDRESSES if n in required), **kwargs}
    try:
        signature.bind(None, *args, **given)
    except TypeError as error:
        raise ConfigError(f"config of {author.__name__}: {error}") from None
    return given

"""Which methods of a handler may be called, with what options and what parameters.

Callable are the public methods that an author's classes define, and those that a base class of
the SDK marks with `@job`; nothing else, however it is spelled on the wire.
"""

from __future__ import annotations

import inspect
import os
import re
import typing
from collections.abc import Callable, Mapping
from concurrent.futures import thread as executors
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import islice
from types import MappingProxyType
from typing import Any, NotRequired, TypeVar, overload

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError, to_jsonable_python
from typing_extensions import TypedDict

from catalogzero.config.settings import problems_of
from catalogzero.errors import BadParamsError, FailedError
from catalogzero.runtime.control_answers import MethodDescription
from catalogzero.wire.messages import JsonObject

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

CONTROL_METHODS = frozenset(
    {"ping", "get_metrics", "report_metrics", "describe", "check_params", "list_runs", "get_run"}
    | {"cancel", "sleep", "wake", "drain", "resume", "send_now"}
)
"""What every handler answers to, so that no job has such a name; `@control` marks the methods."""

_ARGS = re.compile(r"^Args:\n(?:(?: .*)?\n?)*", re.MULTILINE)
_ARG = re.compile(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)
MAX_FAULTS = 50
MAX_FIELD_CHARS = 200


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What `@job` says of a method.

    Attributes:
        timeout_s: A run longer than this is cancelled; no limit by default. A plain method sees
            it in `self.cancelled`, and its next `report_progress` raises; until it has ended the
            run is `cancelling`. One with `isolate=True` is always stopped.
        isolate: Runs in the worker process, one such job at a time; a quiet one beside them, in a
            process of its own.
        quiet: Never wakes the handler, never keeps it awake, works with resources closed.
        retry_safe: May be run again after a failure or a lost run.
        concurrency: How many runs of this method there may be at once.
    """

    timeout_s: float | None = None
    isolate: bool = False
    quiet: bool = False
    retry_safe: bool = False
    concurrency: int | None = None


@overload
def job(function: FunctionT, /) -> FunctionT: ...
@overload
def job(
    *,
    timeout_s: float | None = None,
    isolate: bool = False,
    quiet: bool = False,
    retry_safe: bool = False,
    concurrency: int | None = None,
) -> Callable[[FunctionT], FunctionT]: ...
def job(function: FunctionT | None = None, /, **options: Any) -> Any:
    """Mark a method as a job, with options (see `JobOptions`)."""

    def mark(marked: FunctionT) -> FunctionT:
        marked.__dict__["catalogzero_job"] = JobOptions(**options)
        return marked

    return mark(function) if function is not None else mark


def internal(function: FunctionT) -> FunctionT:
    """Mark a public method that may not be called over the wire."""
    function.__dict__["catalogzero_internal"] = True
    return function


def control(*names: str) -> Callable[[FunctionT], FunctionT]:
    """Mark a control method: every handler answers to these names, whatever jobs run.

    It counts as no activity and wakes nothing. An author's class may extend those of `Handler`,
    and has no method with the name of another.

    Raises:
        TypeError: A name is not among `CONTROL_METHODS`: authors could take it.
    """
    if not CONTROL_METHODS.issuperset(names):
        raise TypeError(f"CONTROL_METHODS does not have all of {', '.join(names)}")

    def mark(marked: FunctionT) -> FunctionT:
        marked.__dict__["catalogzero_control"] = names
        return marked

    return mark


def control_methods(cls: type) -> dict[str, Callable[..., Any]]:
    """The control methods of a class by name, each as it has it in the end."""
    return {
        name: getattr(cls, attribute)
        for owner in cls.__mro__
        for attribute, function in vars(owner).items()
        if inspect.isfunction(function)
        for name in function.__dict__.get("catalogzero_control", ())
    }


class RunPlace(Enum):
    """Where a method runs: it never holds up the event loop."""

    LOOP = "loop"
    THREAD = "thread"
    WORKER = "worker"


class Method:
    """One callable method: binds parameters, and describes itself.

    Args:
        name: Its name on the wire.
        function: The function, `self` first.
        options: What `@job` said.
        types: Of parameters whose type is not what their hint says; these have no default.

    Attributes:
        is_async: Whether calling it gives a coroutine.
        place: Where a run of it is executed.
        group: What its runs share a limit with, and that limit.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        options: JobOptions = JobOptions(),
        types: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.name, self._types = name, types
        self.function = function
        self.options = options
        self.is_async = inspect.iscoroutinefunction(function)
        self.place = RunPlace.LOOP if self.is_async else RunPlace.THREAD
        if options.isolate:
            self.place = RunPlace.WORKER
        self._parameters = list(inspect.signature(function).parameters.values())[1:]
        only = self._parameters[0] if len(self._parameters) == 1 else None
        # `params` without a hint is the whole dict, as in ScheduleZero.
        self._whole = only is not None and (
            (only.name, only.annotation) == ("params", only.empty)
            and only.kind is not only.VAR_KEYWORD
        )
        in_worker = options.isolate and not options.quiet
        self.group = ("isolated jobs", 1) if in_worker else (name, options.concurrency)

    def bind(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """The keyword arguments for a call's parameters, validated by the type hints.

        Raises:
            BadParamsError: `details` names each field at fault, up to `MAX_FAULTS`.
        """
        if self._whole:
            return {self._parameters[0].name: params}
        # Pydantic takes its time to set up: most control methods never need it.
        if not self._parameters and not params:
            return {}
        try:
            return self._validate(params)
        except ValidationError as error:
            shown = islice(problems_of(error), MAX_FAULTS)
            faults = [{"field": f[:MAX_FIELD_CHARS], "message": m} for f, m in shown]
            fields = "; ".join(f"{fault['field']}: {fault['message']}" for fault in faults)
            raise BadParamsError(f"{self.name}: {fields}", details=faults) from None

    @property
    def positional_only(self) -> list[str]:
        """Parameters that no call could give."""
        return [p.name for p in self._parameters if p.kind is p.POSITIONAL_ONLY]

    def verify(self) -> None:
        """Look whether calls can be bound.

        Raises:
            FailedError: Its type hints cannot be read; names the method and the hint.
        """
        if self._parameters and not self._whole:
            _ = self._validate

    def describe(self) -> MethodDescription:
        """Name, docs, flags, and JSON Schemas of parameters and result."""
        return {
            "name": self.name,
            "doc": inspect.getdoc(self.function) or "",
            "timeout_s": self.options.timeout_s,
            "isolate": self.options.isolate,
            "quiet": self.options.quiet,
            "retry_safe": self.options.retry_safe,
            "concurrency": self.options.concurrency,
            "params_schema": self.params_schema,
            "result_schema": self.result_schema,
        }

    @property
    def params_schema(self) -> JsonObject:
        """JSON Schema of the parameters."""
        if self._whole:
            return {"type": "object"}
        try:
            schema = self._adapter.json_schema()
        except (PydanticUserError, FailedError):  # `check` and calls report them
            schema = {"type": "object"}
        shown = schema.get("properties", {})
        meanings = documented_args(inspect.getdoc(self.function) or "")
        for parameter in self._parameters:
            field = shown.get(parameter.name, {})
            if parameter.default is not parameter.empty and parameter.name not in self._types:
                with suppress(PydanticSerializationError):  # a default that has no JSON form
                    field["default"] = to_jsonable_python(parameter.default)
            if parameter.name in meanings:
                field["description"] = meanings[parameter.name]
        return {**schema, "title": self.name}

    @property
    def result_schema(self) -> JsonObject | None:
        """JSON Schema of the result; `None` where the annotation has none."""
        try:
            return TypeAdapter(self._hints.get("return", Any)).json_schema()
        except (PydanticUserError, FailedError):
            return None

    @cached_property
    def _hints(self) -> Mapping[str, Any]:
        try:
            return typing.get_type_hints(self.function, include_extras=True)
        except (NameError, AttributeError, TypeError) as error:
            raise FailedError(f"{self.name}: its type hints cannot be read: {error}") from None

    @cached_property
    def _adapter(self) -> TypeAdapter[Mapping[str, Any]]:
        """Of a dict with the parameters that are given: the function has its own defaults."""
        named = [p for p in self._parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        fields = {p.name: self._hints.get(p.name, Any) for p in named}
        fields |= {p.name: NotRequired[fields[p.name]] for p in named if p.default is not p.empty}
        fields |= {name: self._types[name] for name in fields.keys() & self._types.keys()}
        # mypy takes no TypedDict whose fields are not written down.
        typed_dict: Any = TypedDict
        params = typed_dict("Params", fields)
        params.__pydantic_config__ = ConfigDict(
            extra="allow" if any(p.kind is p.VAR_KEYWORD for p in self._parameters) else "forbid",
            hide_input_in_errors=True,
            arbitrary_types_allowed=True,
        )
        return TypeAdapter(params)

    @cached_property
    def _validate(self) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
        return self._adapter.validator.validate_python


def documented_args(doc: str) -> dict[str, str]:
    """What a docstring says of each parameter, under `Args:`, on one line."""
    section = _ARGS.search(doc)
    found = _ARG.findall(section[0]) if section else []
    return {name: " ".join(meaning.split()) for name, meaning in found}


# A process that a method forks must not join the threads of its parent's executors as it ends: it
# finds itself among them, and exits with 1 (python/cpython#88110).
os.register_at_fork(after_in_child=lambda: getattr(executors, "_threads_queues", {}).clear())


def call_plain(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function on a thread for a future, which cannot hold a `StopIteration`."""
    try:
        return function(*args, **kwargs)
    except StopIteration as error:
        raise RuntimeError(f"StopIteration: {error.value}") from error


async def awaited(result: Any) -> Any:
    """The result of a function that may be a coroutine's, or hide it behind a decorator."""
    return await result if inspect.isawaitable(result) else result


def methods_of(cls: type, base: type) -> dict[str, Method]:
    """The callable methods of a handler class, by name.

    Args:
        cls: The handler class.
        base: The root of all handlers: only classes below it count as the author's.

    Raises:
        TypeError: The author's class defines a control method's name.
    """
    lineage = [c for c in reversed(cls.__mro__) if issubclass(c, base)]
    ours = [c for c in lineage if vars(c).get("_sdk_base")]
    hooks = {name for c in ours for name in vars(c)}
    reserved = CONTROL_METHODS - vars(base).keys()
    found: dict[str, Method] = {}
    for owner in lineage:
        for name, function in vars(owner).items():
            if name.startswith("_") or not inspect.isfunction(function):
                continue
            options = function.__dict__.get("catalogzero_job")
            own = owner not in ours
            if own and name in reserved:
                raise TypeError(
                    f"{owner.__qualname__}.{name}: `{name}` is a control method of every handler; "
                    "give the method another name"
                )
            if function.__dict__.get("catalogzero_internal"):
                found.pop(name, None)
            elif options or name in found or (own and name not in hooks):
                options = options or (found[name].options if name in found else JobOptions())
                found[name] = Method(name, function, options)
                if nameless := found[name].positional_only:
                    raise TypeError(
                        f"{owner.__qualname__}.{name}: a call gives parameters by name, and "
                        f"{', '.join(nameless)} cannot be given so: take the `/` out"
                    )
    return found

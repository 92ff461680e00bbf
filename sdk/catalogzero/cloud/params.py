"""The params of a class's `process`: a pydantic model that its annotation names, or any object.

Owns which of them are part of a source's identity: all that a call gave, but for those of fields
with `Field(json_schema_extra={"identity": False})`.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Annotated, Any, NotRequired

from pydantic import AliasChoices, BaseModel, ConfigDict, ValidationError, WrapValidator
from pydantic import create_model as model_of
from pydantic.fields import FieldInfo

from catalogzero.cloud.settings import Params
from catalogzero.config.settings import problems_of
from catalogzero.errors import BadParamsError

CALL_OPTIONS = frozenset({"format", "full"})
"""What a call may give under `params` that is not for `process`."""
IDENTITY = "identity"


@dataclass(frozen=True)
class ProcessParams:
    """What a class's `process` takes as its params.

    Attributes:
        model: The model; None where it is any object.
        outside: The keys that are no part of a source's identity.
    """

    model: type[BaseModel] | None = None
    outside: frozenset[str] = frozenset()

    def __call__(self, given: Params) -> Any:
        """What `process` gets: the model, or what the call gave without `format` and `full`.

        Raises:
            BadParamsError: It does not fit; `details` names each field, also one that is unknown.
        """
        own = {key: value for key, value in given.items() if key not in CALL_OPTIONS}
        if self.model is None:
            return own
        try:
            closed(self.model).model_validate(own)
            return self.model.model_validate(own)
        except ValidationError as error:
            found = problems_of(error, self.model.model_fields)
            faults = [{"field": f"params.{field}", "message": text} for field, text in found]
            fields = "; ".join(f"{fault['field']}: {fault['message']}" for fault in faults)
            raise BadParamsError(fields, details=faults) from None

    def identity(self, given: Params) -> Params:
        """What of a call's params is part of a source's identity, as it was given."""
        return {k: v for k, v in given.items() if k not in CALL_OPTIONS | self.outside}

    @property
    def type_of_call(self) -> Any:
        """The type of a call's `params`: checked by the model, and left as they are."""
        options: Any = {"format": (str | None, None), "full": (bool | None, None)}
        base = closed(self.model or BaseModel)
        taken = model_of(base.__name__, __base__=base, __doc__=base.__doc__, **options)
        checked: Any = Annotated[taken, WrapValidator(_as_given)]
        needed = any(field.is_required() for field in taken.model_fields.values())
        return checked if needed else NotRequired[checked]


def _as_given(value: Any, check: Callable[[Any], Any]) -> Any:
    check({} if value is None else value)
    return value


@cache
def closed(model: type[BaseModel]) -> type[BaseModel]:
    """The model as one that takes no key that it does not name."""
    config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    space = {"model_config": config, "__doc__": model.__doc__, "__module__": model.__module__}
    kind: Any = type(model)
    made: type[BaseModel] = kind(model.__name__, (model,), space)
    return made


@cache
def params_of(cls: Any) -> ProcessParams:
    """What a class's `process` takes.

    Raises:
        TypeError: The annotation cannot be read, or names what cannot be.
    """
    process: Any = inspect.unwrap(cls.process)
    place = f"{cls.__qualname__}.process: `params`"
    hint = getattr(process, "__annotations__", {}).get("params")
    if isinstance(hint, str):
        try:
            alone: Any = SimpleNamespace(__annotations__={"params": hint})
            hint = typing.get_type_hints(alone, process.__globals__)["params"]
        except (NameError, AttributeError, TypeError) as error:
            raise TypeError(
                f"{place} is annotated with {hint!r}, which cannot be read ({error}): define or "
                "import it in the module itself, not under TYPE_CHECKING"
            ) from None
    parts = [hint, *typing.get_args(hint)]
    models = [one for one in parts if isinstance(one, type) and issubclass(one, BaseModel)]
    if not models:
        return ProcessParams()
    if models != [hint]:
        raise TypeError(f"{place} is a pydantic model alone, such as {models[0].__name__}")
    if taken := sorted(CALL_OPTIONS & set(_keys(models[0]))):
        raise TypeError(f"{place}: {taken[0]!r} is an option of every call; use another name")
    fields = models[0].model_fields
    marks = {name: (_extra(field) or {}).get(IDENTITY, True) for name, field in fields.items()}
    if odd := [name for name, mark in marks.items() if not isinstance(mark, bool)]:
        raise TypeError(f"{place}: {IDENTITY} of {odd[0]!r} is true or false")
    outside = {name for name, mark in marks.items() if not mark}
    return ProcessParams(models[0], frozenset(_keys(models[0], outside)))


def _extra(field: FieldInfo) -> Mapping[str, Any] | None:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else None


def _keys(model: type[BaseModel], names: set[str] | None = None) -> Iterator[str]:
    """The keys under which a model takes its fields, or some of them."""
    for name, field in model.model_fields.items():
        if names is None or name in names:
            alias = field.validation_alias
            choices = alias.choices if isinstance(alias, AliasChoices) else [alias or field.alias]
            yield from (name, *(one for one in choices if isinstance(one, str)))

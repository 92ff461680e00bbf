"""A tap's catalog: which of its streams are selected, and how each is read.

Owns what metadata means here; the tap is given the same catalog, and reads it by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import BaseModel, Field, ValidationError

from catalogzero.config.settings import problems_of
from catalogzero.errors import BadParamsError
from catalogzero.protocol.identities import Mode
from catalogzero.wire.messages import JsonObject

DELETED = "_sdc_deleted_at"
"""The column by which a tap says that a row was deleted."""
Method = Literal["FULL_TABLE", "INCREMENTAL", "LOG_BASED"]
_METHODS = ("FULL_TABLE", "INCREMENTAL", "LOG_BASED")


class _Metadata(BaseModel):
    """What the catalog says of a stream, or of a field of it."""

    breadcrumb: tuple[str, ...] = ()
    metadata: dict[str, Any] = Field(default_factory=dict)


class _Entry(BaseModel):
    """A stream of the catalog."""

    tap_stream_id: str
    stream: str | None = None
    json_schema: dict[str, Any] = Field(default_factory=dict, alias="schema")
    key_properties: list[str] | None = None
    replication_method: str | None = None
    replication_key: str | None = None
    metadata: list[_Metadata] = Field(default_factory=list)


class _Catalog(BaseModel):
    streams: list[_Entry]


@dataclass(frozen=True, slots=True)
class TapStream:
    """A selected stream.

    Attributes:
        name: Its `tap_stream_id`.
        label: What its messages may call it instead.
        method: How it is read.
        key: The columns of its key, as far as the catalog says.
        replication_key: The column by which it goes on.
        columns: The columns that are selected.
        deselected: Those that are not: what a tap sends of them all the same is dropped.
    """

    name: str
    label: str
    method: Method
    key: tuple[str, ...]
    replication_key: str | None
    columns: tuple[str, ...]
    deselected: frozenset[str]

    @property
    def mode(self) -> Mode:
        """What is read whole replaces; what goes on is merged by its key."""
        return "replace" if self.method == "FULL_TABLE" else "merge"

    @property
    def tombstone(self) -> str | None:
        """The column that says that a row was deleted, where there is one."""
        return DELETED if self.method == "LOG_BASED" or DELETED in self.columns else None


def selected_streams(catalog: JsonObject, where: str) -> tuple[TapStream, ...]:
    """The selected streams of a catalog.

    Args:
        catalog: As the file holds it.
        where: The file, for errors.

    Raises:
        BadParamsError: It is no catalog, contradicts itself, or selects nothing.
    """
    try:
        entries = _Catalog.model_validate(catalog).streams
    except ValidationError as error:
        faults = "; ".join(f"{field}: {text}" for field, text in problems_of(error))
        raise _refusal(f"{where} is no Singer catalog: {faults}") from None
    found = [made for entry in entries if (made := _selected(entry, where))]
    if not found:
        raise _refusal(
            f'{where} selects no stream: write "selected": true into the metadata of one, at the '
            "empty breadcrumb"
        )
    if len({stream.name for stream in found}) < len(found):
        raise _refusal(f"{where}: a tap_stream_id stands twice")
    return tuple(found)


def select_all(catalog: JsonObject) -> JsonObject:
    """What a tap discovered, with all of it selected but what says otherwise by itself."""
    for entry in catalog.get("streams", ()):
        metadata: list[Any] = entry.setdefault("metadata", [])
        if not any(not one["breadcrumb"] for one in metadata):
            metadata.append({"breadcrumb": [], "metadata": {}})
        for one in metadata:
            said = one["metadata"]
            said.setdefault("selected", said.get("selected-by-default", True))
    return catalog


def _selected(entry: _Entry, where: str) -> TapStream | None:
    """An entry as a stream; None where it is not selected."""
    said = {one.breadcrumb: one.metadata for one in entry.metadata}
    root = said.get((), {})
    if not root.get("selected", root.get("selected-by-default", False)):
        return None
    at = f"{where}: stream {entry.tap_stream_id!r}"
    methods = {
        str(method).upper(): None
        for method in (
            entry.replication_method,
            root.get("replication-method"),
            root.get("forced-replication-method"),
        )
        if method
    }
    replication_key = entry.replication_key or root.get("replication-key")
    method = next(iter(methods), "INCREMENTAL" if replication_key else "FULL_TABLE")
    if len(methods) > 1 or method not in _METHODS:
        raise _refusal(
            f"{at}: its replication method is {' and '.join(methods)}: write one of "
            f"{', '.join(_METHODS)}, the same in `replication_method` and in the metadata"
        )
    key = entry.key_properties or root.get("table-key-properties") or ()
    columns = dict(_fields(entry.json_schema, said))
    return TapStream(
        entry.tap_stream_id,
        entry.stream or entry.tap_stream_id,
        cast("Method", method),
        tuple(key),
        replication_key,
        tuple(name for name, is_taken in columns.items() if is_taken),
        frozenset(name for name, is_taken in columns.items() if not is_taken),
    )


def _fields(
    schema: dict[str, Any], said: dict[tuple[str, ...], dict[str, Any]]
) -> Iterator[tuple[str, bool]]:
    """Each field of a stream, and whether it is selected."""
    for name in schema.get("properties") or ():
        field = said.get(("properties", name), {})
        inclusion = field.get("inclusion")
        is_taken = field.get("selected", field.get("selected-by-default", True)) is not False
        yield name, inclusion != "unsupported" and (inclusion == "automatic" or is_taken)


def refuse_unreadable(streams: Sequence[TapStream], where: str, keyed: Sequence[str]) -> None:
    """Refuse a stream that goes on from where it was left, and has no key.

    Args:
        streams: The selected ones.
        where: The catalog, for errors.
        keyed: Streams to which the class gives a key.

    Raises:
        BadParamsError: There is one.
    """
    for stream in streams:
        if stream.mode == "merge" and not stream.key and stream.name not in keyed:
            raise _refusal(
                f"{where}: stream {stream.name!r} is {stream.method} without a key, and a tap "
                "sends the last rows again, which would then stand twice: name its key in "
                "`key_properties`, or read it as FULL_TABLE"
            )


def _refusal(message: str) -> BadParamsError:
    return BadParamsError(message, details=[{"field": "data_source", "message": message}])

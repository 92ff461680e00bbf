"""A tap's catalog: which of its streams are selected, and how each is read.

Owns what metadata means here; the tap is given the same catalog, and reads it by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, Field, ValidationError

from catalogzero.cloud.reading.items import Plan
from catalogzero.cloud.reading.readers import json_row
from catalogzero.cloud.rows.streams import Stream
from catalogzero.config.settings import problems_of
from catalogzero.errors import BadParamsError, ConfigError
from catalogzero.protocol.identities import Mode
from catalogzero.wire.messages import JsonObject

DELETED = "_sdc_deleted_at"
"""The column by which a tap says that a row was deleted."""
Method = Literal["FULL_TABLE", "INCREMENTAL", "LOG_BASED"]
_METHODS = ("FULL_TABLE", "INCREMENTAL", "LOG_BASED")


class _TapMetadata(BaseModel):
    """What the catalog says of a stream, or of a field of it."""

    breadcrumb: tuple[str, ...] = ()
    metadata: dict[str, Any] = Field(default_factory=dict)


class _TapEntry(BaseModel):
    """A stream of the catalog."""

    tap_stream_id: str
    stream: str | None = None
    json_schema: dict[str, Any] = Field(default_factory=dict, alias="schema")
    key_properties: list[str] | None = None
    replication_method: str | None = None
    replication_key: str | None = None
    metadata: list[_TapMetadata] = Field(default_factory=list)


class _TapCatalog(BaseModel):
    streams: list[_TapEntry]


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
    def watermark(self) -> str | None:
        """The column whose values leave with positions, where there is one."""
        return self.replication_key if self.mode == "merge" else None

    @property
    def tombstone(self) -> str | None:
        """The column that says that a row was deleted, where there is one."""
        return DELETED if self.method == "LOG_BASED" or DELETED in self.columns else None


def read_catalog(path: Path) -> JsonObject:
    """The catalog of a file.

    Raises:
        ConfigError: It cannot be read, or is no JSON object.
    """
    try:
        return json_row(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"catalog_file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"catalog_file {path} is no JSON object: {error}") from None


def selected_streams(catalog: JsonObject, where: str) -> dict[str, TapStream]:
    """The selected streams of a catalog, by name.

    Args:
        catalog: As the file holds it.
        where: The file, for errors.

    Raises:
        BadParamsError: It is no catalog, contradicts itself, or selects nothing.
    """
    try:
        entries = _TapCatalog.model_validate(catalog).streams
    except ValidationError as error:
        faults = "; ".join(f"{field}: {text}" for field, text in problems_of(error))
        raise _refusal(f"{where} is no Singer catalog: {faults}") from None
    chosen = [made for entry in entries if (made := _selected(entry, where))]
    found = {stream.name: stream for stream in chosen}
    if not found:
        raise _refusal(
            f'{where} selects no stream: write "selected": true into the metadata of one, at the '
            "empty breadcrumb"
        )
    if len(found) < len(chosen):
        raise _refusal(f"{where}: a tap_stream_id stands twice")
    return found


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


def _selected(entry: _TapEntry, where: str) -> TapStream | None:
    """An entry as a stream; None where it is not selected."""
    said = {one.breadcrumb: one.metadata for one in entry.metadata}
    root = said.get((), {})
    by_schema = entry.json_schema.get("selected")  # where the first taps look for it
    if not root.get("selected", by_schema or root.get("selected-by-default", False)):
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


def plans_of(
    streams: Mapping[str, TapStream], declared: Sequence[Stream], where: str
) -> tuple[Plan, ...]:
    """What a tap sends to each stream that a class declares; where it declares none, to its own.

    Args:
        streams: The selected ones.
        declared: What the class declares.
        where: The catalog, for errors.

    Raises:
        BadParamsError: A selected stream is not declared or cannot be read, or a declared one
            cannot be made.
    """
    found = [*declared] or [Stream(name) for name in streams]
    names = {stream.name for stream in found}
    for name in streams:
        if name not in names:
            raise _refusal(
                f"{where}: the class declares no stream {name!r}: deselect it, or declare it"
            )
    return tuple(_plan(stream, streams, where) for stream in found)


def _plan(stream: Stream, streams: Mapping[str, TapStream], where: str) -> Plan:
    """What a tap sends to one stream."""
    of = streams.get(stream.name)
    if of is None and any(one.mode == "merge" for one in streams.values()):
        raise _refusal(
            f"{where}: the tap has no stream {stream.name!r}, and one that is made of others needs "
            "all of them FULL_TABLE"
        )
    if of is None or of.mode == "replace":
        return Plan(stream, "replace")
    key = stream.key or of.key
    if not key:
        raise _refusal(
            f"{where}: stream {of.name!r} is {of.method} without a key, and a tap sends the last "
            "rows again, which would then stand twice: name its key in `key_properties`, or read "
            "it as FULL_TABLE"
        )
    return Plan(replace(stream, key=key, tombstone=stream.tombstone or of.tombstone), "merge")


def _refusal(message: str) -> BadParamsError:
    return BadParamsError(message, details=[{"field": "data_source", "message": message}])

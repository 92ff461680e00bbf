"""The manifest of an entry: `catalogzero.toml` inside its package.

Owns the manifest's model and how it is read, from text, a folder or a wheel; the package itself
is never imported. Nothing secret belongs in one: it is published.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from catalogzero.config.settings import problems_of
from catalogzero.errors import ConfigError

MANIFEST_NAME = "catalogzero.toml"
GENERATED_MARK = "# Written by `catalogzero catalog lint --fix` from here on."
MAX_SCHEMA_DEPTH = 20
JsonSchema = dict[str, Any]
"""A JSON Schema: its keys are the standard's, and what is below is a schema again."""

_KINDS = {
    "string": "text",
    "integer": "whole number",
    "boolean": "true or false",
    "object": "mapping",
    "array": "list",
    "password": "secret",
}


def kind_of(schema: JsonSchema) -> str:
    """The kind of value that a JSON Schema describes, in a word or a few; null goes unsaid."""
    if "enum" in schema:
        return " | ".join(compact(word) for word in schema["enum"])
    if "anyOf" in schema:
        kinds = (kind_of(part) for part in schema["anyOf"] if part.get("type") != "null")
        return " or ".join(dict.fromkeys(kinds))
    name = str(schema.get("format") or schema.get("type") or "any")
    kind = _KINDS.get(name, name)
    return f"{kind} of {kind_of(schema['items'])}" if schema.get("items") else kind


def compact(value: object) -> str:
    """A value as one line of JSON; a text as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def resolved(schema: JsonSchema, whole: JsonSchema) -> JsonSchema:
    """A part of a schema, with what it refers to in the whole one."""
    prefix, _, name = str(schema.get("$ref", "")).rpartition("/")
    found = whole.get("$defs", {}).get(name) if prefix == "#/$defs" else None
    return {**found, **schema} if isinstance(found, dict) else schema


def properties_of(schema: JsonSchema) -> Iterator[tuple[str, JsonSchema, bool]]:
    """The properties of an object: name, schema, whether it must be given.

    What an object among them holds follows it, by a dotted name.
    """
    for name, part in schema.get("properties", {}).items():
        yield name, (found := resolved(part, schema)), name in schema.get("required", ())
        for below, inner in found.get("properties", {}).items():
            needed = below in found.get("required", ())
            yield f"{name}.{below}", resolved(inner, schema), needed


def web_link(value: str) -> str:
    """A link that a page may carry: http or https, and nothing that runs."""
    if value and not re.fullmatch(r"https?://[^\s\"'<>\\\x00-\x1f\x7f-\x9f]+", value):
        raise ValueError("write a link as https://host/path")
    return value


def _schema(value: JsonSchema) -> JsonSchema:
    """A JSON Schema as far as it is read here: mappings in their places, 20 deep at most."""
    parts: list[tuple[Any, int]] = [(value, 0)]
    while parts:
        part, depth = parts.pop()
        if not isinstance(part, dict) or depth > MAX_SCHEMA_DEPTH:
            raise ValueError(f"not a JSON Schema, or one deeper than {MAX_SCHEMA_DEPTH}")
        named, choices = part.get("properties", {}), part.get("anyOf", [])
        words, defined = part.get("enum", []), part.get("$defs", {})
        lists = (choices, words, part.get("required", []))
        if not all(isinstance(one, dict) for one in (named, defined)) or any(
            type(one) is not list for one in lists
        ):
            raise ValueError(
                "not a JSON Schema: properties and $defs are mappings, anyOf, enum and required "
                "lists"
            )
        below = [*named.values(), *defined.values(), *choices]
        below += [part["items"]] if part.get("items") else []
        parts += [(one, depth + 1) for one in below]
    return value


def _settings_schema(value: JsonSchema) -> JsonSchema:
    """The schema of settings, whose names are keys of a client's registry file."""
    named, required = _schema(value).get("properties", {}), value.get("required", [])
    if not isinstance(required, list) or not set(map(str, required)) <= set(named):
        raise ValueError("`required` names properties")
    for name in named:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", name):
            raise ValueError(f"{name[:40]!r} is not a setting's name: letters, digits and `_`")
    return value


WebAddress = Annotated[str, AfterValidator(web_link)]
_Schema = Annotated[JsonSchema, AfterValidator(_schema)]


class _ManifestPart(BaseModel):
    """A part of the manifest: no key beyond those named."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Vendor(_ManifestPart):
    """Who sells the entry."""

    name: str = Field(min_length=1)
    url: WebAddress | None = None
    support_email: str | None = Field(default=None, pattern=r"^([^\s@<>?&\"]+@[^\s@<>?&\"]+)?$")


class DeclaredMethod(_ManifestPart):
    """One method that a scheduler may call, with JSON Schemas."""

    name: str = Field(min_length=1)
    description: str = ""
    params_schema: _Schema = Field(default_factory=dict)
    result_schema: _Schema = Field(default_factory=dict)
    retry_safe: bool = False
    timeout_s: float | None = Field(default=None, gt=0)


class Output(_ManifestPart):
    """What a processor declares of a stream: its name, the JSON Schema of a row, and its key."""

    name: str = ""
    row_schema: _Schema = Field(default_factory=dict, alias="schema")
    key: list[str] = Field(default_factory=list)
    tombstone: str = ""


class SourceIdentity(_ManifestPart):
    """What of a processor's class decides what a source is at the backend, beside its params."""

    output_version: int = Field(default=1, ge=1)
    stream: str = ""


class ProposedSchedule(_ManifestPart):
    """A schedule that the vendor proposes; the client decides."""

    method: str
    params: dict[str, object] = Field(default_factory=dict)
    trigger: dict[str, object]


class Requires(_ManifestPart):
    """What the entry needs to run, as version specifiers."""

    python: str
    catalogzero: str


class Manifest(_ManifestPart):
    """What a client reads before it installs, and what a catalog shows."""

    manifest_version: Literal[1]
    id: str = Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$")
    name: str = Field(min_length=1)
    version: str = Field(min_length=1)
    kind: Literal["processor", "conductor", "handler"]
    description: str = Field(min_length=1)
    vendor: Vendor
    license: str = ""
    documentation: WebAddress | None = None
    methods: list[DeclaredMethod] = Field(default_factory=list)
    streams: list[Output] = Field(default_factory=list)
    identity: SourceIdentity | None = None
    config_schema: Annotated[JsonSchema, AfterValidator(_settings_schema)] = Field(
        default_factory=dict
    )
    allowed_hosts: list[str] = Field(default_factory=list)
    data_collected: list[str] = Field(default_factory=list)
    default_schedules: list[ProposedSchedule] = Field(default_factory=list)
    requires: Requires
    tags: list[str] = Field(default_factory=list)


def parse_manifest(text: str, origin: str) -> Manifest:
    """A manifest from its text.

    Args:
        text: TOML.
        origin: Where the text comes from, for the error's sentence.

    Raises:
        ConfigError: Not TOML, or not of the manifest's form; every fault at once.
    """
    try:
        return Manifest.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin} is not valid TOML: {error}") from error
    except ValidationError as error:
        sentences = [f"{origin}: {field}: {message}" for field, message in problems_of(error)]
        raise ConfigError("\n".join(sentences)) from error


def load_manifest(path: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        ConfigError: It cannot be read, or `parse_manifest` refuses it.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return parse_manifest(text, str(path))

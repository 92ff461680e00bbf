"""The manifest of an entry: `catalogzero.toml` inside its package.

Owns the manifest's model and how it is read, from text, a folder or a wheel; the package itself
is never imported. Nothing secret belongs in one: it is published.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from catalogzero.config.settings import problems_of
from catalogzero.errors import ConfigError

MANIFEST_NAME = "catalogzero.toml"
GENERATED_MARK = "# Written by `catalogzero catalog lint --fix` from here on."


class _Part(BaseModel):
    """A part of the manifest: no key beyond those named."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Vendor(_Part):
    """Who sells the entry."""

    name: str = Field(min_length=1)
    url: str | None = None
    support_email: str | None = None


class Method(_Part):
    """One method that a scheduler may call, with JSON Schemas."""

    name: str = Field(min_length=1)
    description: str = ""
    params_schema: dict[str, Any] = Field(default_factory=dict)
    result_schema: dict[str, Any] = Field(default_factory=dict)
    retry_safe: bool = False
    timeout_s: float | None = Field(default=None, gt=0)


class Output(_Part):
    """What a processor declares of its results: their name, and the JSON Schema of a row."""

    name: str = ""
    row_schema: dict[str, Any] = Field(default_factory=dict, alias="schema")


class Schedule(_Part):
    """A schedule that the vendor proposes; the client decides."""

    method: str
    params: dict[str, Any] = Field(default_factory=dict)
    trigger: dict[str, Any]


class Requires(_Part):
    """What the entry needs to run, as version specifiers."""

    python: str
    catalogzero: str


class Manifest(_Part):
    """What a client reads before it installs, and what a catalog shows."""

    manifest_version: Literal[1]
    id: str = Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$")
    name: str = Field(min_length=1)
    version: str = Field(min_length=1)
    kind: Literal["processor", "conductor", "handler"]
    description: str = Field(min_length=1)
    vendor: Vendor
    license: str = ""
    documentation: str | None = None
    methods: list[Method] = Field(default_factory=list)
    streams: list[Output] = Field(default_factory=list)
    config_schema: dict[str, Any] = Field(default_factory=dict)
    allowed_hosts: list[str] = Field(default_factory=list)
    data_collected: list[str] = Field(default_factory=list)
    default_schedules: list[Schedule] = Field(default_factory=list)
    requires: Requires
    tags: list[str] = Field(default_factory=list)


def parse_manifest(text: str, origin: str) -> Manifest:
    """A manifest from its text.

    Args:
        text: TOML.
        origin: Where the text comes from, for the error's sentence.

    Raises:
        ConfigError: No TOML, or not of the manifest's form; every fault at once.
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

"""From a section, an entry or `module:Class` to a handler that is ready to be served."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource

from catalogzero.config.key_files import refuse_writable
from catalogzero.config.registry import DEFAULT_NAME, Registry, Section, load_registry
from catalogzero.config.settings import (
    RuntimeSettings,
    merged_settings,
    problems_of,
    secret_files_in,
    secrets_in,
)
from catalogzero.errors import ConfigError, place_of, text_of
from catalogzero.runtime.handler import Handler, handler_class

ENTRY_GROUP = "catalogzero.handlers"


@dataclass(frozen=True)
class Flags:
    """What was said on the command line: it beats environment and file."""

    config: Mapping[str, Any] = field(default_factory=dict)
    runtime: Mapping[str, Any] = field(default_factory=dict)


def make_handler(target: str, *, registry: Path | None = None, flags: Flags = Flags()) -> Handler:
    """The handler that a target names, with its settings; nothing is started.

    Args:
        target: A handler_id of the registry file, an entry, or `module:Class` (the current
            folder is importable).
        registry: The registry file; by default the environment's, else handler_registry.yaml
            here.
        flags: Settings from the command line.

    Raises:
        ConfigError: Every fault at once, each with file, line and key where there is a file.
    """
    path = registry_path(registry)
    if ":" in target:
        module, _, name = target.partition(":")
        return _make(load_class(module, name), None, flags)
    found = None
    if path.exists() or registry is not None:
        found = load_registry(path)
        section = _named(target, found)
        if section is not None:
            return _from_section(section, found.scheduler, flags)
    entry_class = class_of_entry(target)
    if entry_class is None:
        raise ConfigError(f"{target!r} is {_nowhere(path, found)}")
    return _make(entry_class, None, flags)


def _nowhere(path: Path, registry: Registry | None) -> str:
    """Where a target was looked for, and what there is instead."""
    elsewhere = "no installed entry, and not module:Class"
    if registry is None:
        return f"{elsewhere}; and there is no {path}: name the registry file with --registry"
    known = ", ".join(section.handler_id for section in registry.handlers) or "none"
    return f"no handler_id of {path} (there are: {known}), {elsewhere}"


def _named(target: str, registry: Registry) -> Section | None:
    """The section of that handler_id, else the one section that is of that entry.

    Raises:
        ConfigError: Several are of that entry.
    """
    if any(section.handler_id == target for section in registry.handlers):
        return registry.find(target)
    provided = {(point.module, point.attr) for point in _points_of(target)}
    of_entry = [
        section
        for section in registry.handlers
        if section.entry == target or (section.module_path, section.class_name) in provided
    ]
    if len(of_entry) > 1:
        names = ", ".join(section.handler_id for section in of_entry)
        raise ConfigError(f"{registry.path}: several handlers are of {target!r}; name one: {names}")
    return of_entry[0] if of_entry else None


def _from_section(section: Section, scheduler: str, flags: Flags) -> Handler:
    try:
        if section.module_path and section.class_name:
            cls = load_class(section.module_path, section.class_name)
        elif (found := class_of_entry(section.entry or "")) is not None:
            cls = found
        else:
            raise ConfigError(f"entry {section.entry!r} is not installed here")
    except ConfigError as error:
        key = "entry" if section.entry else "module_path"
        raise ConfigError(f"{section.where(key)}: {error}") from None
    return _make(cls, section, flags, scheduler)


def registry_path(given: Path | None) -> Path:
    """The registry file: the one given, the environment's, or the one of the current folder."""
    return given or Path(os.environ.get("CATALOGZERO_REGISTRY") or DEFAULT_NAME)


def load_class(module: str, name: str) -> type[Handler]:
    """The handler class of a module.

    Raises:
        ConfigError: It cannot be imported, is not there, or is no handler.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"module {module!r} cannot be imported: {error}") from None
    except Exception as error:
        text = f"{text_of(error)}{place_of(error)}"
        raise ConfigError(f"module {module!r} cannot be imported: {text}") from error
    for part in name.split("."):
        found = getattr(found, part, None)
    cls = handler_class(found)
    if cls is None:
        raise ConfigError(f"{module}:{name} is no handler class")
    return cls


def class_of_entry(entry: str) -> type[Handler] | None:
    """The handler class that an installed entry provides; `None` when it is not installed.

    Raises:
        ConfigError: Several distributions provide one of that name.
    """
    points = list(_points_of(entry))
    owners = sorted({point.dist.name for point in points if point.dist})
    if len(owners) > 1:
        text = " and ".join(owners)
        raise ConfigError(f"{text} both provide {entry!r}: name the distribution, or remove one")
    return load_class(points[0].module, points[0].attr) if points else None


def _points_of(entry: str) -> Iterator[importlib.metadata.EntryPoint]:
    """The entry points of an entry: by its name, or by its distribution's."""
    for point in importlib.metadata.entry_points(group=ENTRY_GROUP):
        if entry in (point.name, point.dist.name if point.dist else None):
            yield point


def _make(
    cls: type[Handler], section: Section | None, flags: Flags, scheduler: str | None = None
) -> Handler:
    """Build a handler from file, environment and flags; report every fault at once."""
    faults: list[str] = []
    ours, config = {}, {}
    if section:
        ours = {**section.runtime, "handler_id": section.handler_id, "scheduler": scheduler}
        config = section.config
    runtime, handler = None, None
    values = merged_settings(RuntimeSettings, file=ours, flags=flags.runtime)
    try:
        runtime = RuntimeSettings(**values)
    except ValidationError as error:
        known = RuntimeSettings.model_fields
        place = partial(_place, RuntimeSettings, flags.runtime, section.where if section else str)
        faults += [f"{place(name)}: {text}" for name, text in problems_of(error, known)]
    in_file = section.where_in_config if section else str
    place = partial(_place, cls.settings_model, flags.config, in_file)
    try:
        handler = cls(**merged_settings(cls.settings_model, file=config, flags=flags.config))
    except ConfigError as error:
        placed = [f"{place(f['field'])}: {f['message']}" for f in error.details or []]
        faults += placed or [str(error)]
    except ValidationError as error:
        known = cls.settings_model.model_fields
        faults += [f"{place(name)}: {text}" for name, text in problems_of(error, known)]
    except Exception as error:  # noqa: BLE001 - an author's constructor may do anything
        text = f"{cls.__name__} cannot be made: {text_of(error)}{place_of(error)}"
        faults.append(f"{section.where('config')}: {text}" if section else text)
    if handler is not None and runtime is not None:
        own = getattr(handler, "settings", None)
        handler._key_files = [*secret_files_in(own), *secret_files_in(runtime)]
        if section and any(any(secrets_in(getattr(own, name, None))) for name in config):
            handler._key_files.append(section.path)
        for path in handler._key_files:
            try:
                refuse_writable(path)
            except ConfigError as error:
                faults.append(error.message)
    if faults or handler is None or runtime is None:
        raise ConfigError("\n".join(faults))
    handler._attach(runtime=runtime, handler_id=runtime.handler_id)
    return handler


def _place(
    model: type[BaseSettings], flags: Mapping[str, Any], in_file: Callable[[str], str], name: str
) -> str:
    """Where a setting at fault was said: on the command line, in the environment, in the file."""
    first = name.partition(".")[0]
    if first in flags:
        return f"command line: {name}"
    if first in EnvSettingsSource(model)():
        return "environment: " + f"{model.model_config.get('env_prefix', '')}{first}".upper()
    return in_file(name)

"""From a section, an entry or `module:Class` to a handler that is ready to be served."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource

from catalogzero.config.key_files import handed_over, refuse_writable
from catalogzero.config.registry import DEFAULT_NAME, Registry, Section, load_registry
from catalogzero.config.service_unit import STATE
from catalogzero.config.settings import (
    RuntimeSettings,
    config_error,
    merged_settings,
    secret_files_in,
    secrets_in,
    secrets_in_urls,
    setting_faults,
)
from catalogzero.errors import ConfigError, place_of, text_of
from catalogzero.runtime.handler import Handler, handler_class
from catalogzero.wire.messages import JsonObject

ENTRY_GROUP = "catalogzero.handlers"

MadeT = TypeVar("MadeT")


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
    if ":" in target:
        module, _, name = target.partition(":")
        return build(load_class(module, name), flags)
    path, looked = registry_path(registry), "no installed entry, and not module:Class"
    if registry is None and not path.exists():
        looked += f"; and there is no {path}: name the registry file with --registry"
    else:
        found = load_registry(path)
        section = section_of(target, found)
        if section is not None:
            return build(class_of_section(section), flags, section, found.scheduler)
        known = ", ".join(section.handler_id for section in found.handlers) or "none"
        looked = f"no handler_id of {path} (there are: {known}), {looked}"
    entry_class = class_of_entry(target)
    if entry_class is None:
        raise ConfigError(f"{target!r} is {looked}")
    return build(entry_class, flags)


def section_of(target: str, registry: Registry) -> Section | None:
    """The section of that handler_id, else the one section that is of that entry.

    Raises:
        ConfigError: Several are of that entry.
    """
    if any(section.handler_id == target for section in registry.handlers):
        return registry.find(target)
    provided = {(point.module, point.attr) for point in points_of(target)}
    of_entry = [
        section
        for section in registry.handlers
        if section.entry == target or (section.module_path, section.class_name) in provided
    ]
    if len(of_entry) > 1:
        names = ", ".join(section.handler_id for section in of_entry)
        raise ConfigError(f"{registry.path}: several handlers are of {target!r}; name one: {names}")
    return of_entry[0] if of_entry else None


def class_of_section(section: Section) -> type[Handler]:
    """The handler class that a section names.

    Raises:
        ConfigError: It cannot be loaded; names file and line.
    """
    try:
        if section.module_path and section.class_name:
            return load_class(section.module_path, section.class_name)
        if (found := class_of_entry(section.entry or "")) is not None:
            return found
        raise ConfigError(
            f"entry {section.entry!r} is not installed here: `catalogzero catalog install`, or "
            "correct its name"
        )
    except ConfigError as error:
        key = "entry" if section.entry else error.details or "module_path"
        raise ConfigError(f"{section.where(key)}: {error}") from None


@dataclass(frozen=True)
class HandlerState:
    """Where a handler keeps its state: its folder, and what its settings say besides."""

    handler_id: str
    folder: Path
    runtime: RuntimeSettings


def runtime_of(section: Section) -> RuntimeSettings:
    """The runtime settings of a section's handler.

    Raises:
        ConfigError: One is wrong.
    """
    values = merged_settings(RuntimeSettings, file=section.runtime, flags={})
    try:
        return RuntimeSettings(**values)
    except ValidationError as error:
        where = f"{section.path}: {section.handler_id}"
        raise config_error(error, where=where, model=RuntimeSettings) from None


def folder_of(section: Section) -> Path:
    """The state folder of a section's handler: as its settings say, else where its unit has it.

    Raises:
        ConfigError: A runtime setting is wrong.
    """
    runtime = runtime_of(section)
    named, unit = runtime.state_dir_of(section.handler_id), STATE / section.handler_id
    if is_there(named) or not is_there(unit):
        return named
    # A unit's own folder is there before its handler's first start.
    return runtime.model_copy(update={"state_dir": unit}).state_dir_of(section.handler_id)


def is_there(path: Path) -> bool:
    """Whether there is such a path; one that this user may not see, there may be."""
    try:
        return path.exists()
    except PermissionError:
        return True


def state_of(target: str, registry: Path | None) -> HandlerState:
    """Where a target keeps its state; of one in the registry file, without making the class.

    Raises:
        ConfigError: The file, or a runtime setting, is wrong.
    """
    path = registry_path(registry)
    if ":" not in target and path.exists():
        # The secrets of a section are its unit's, and not needed to look at what it stored.
        section = section_of(target, load_registry(path))
        if section is not None:
            return HandlerState(section.handler_id, folder_of(section), runtime_of(section))
    handler = make_handler(target, registry=registry)
    return HandlerState(handler.handler_id, handler.state_dir, handler.runtime)


def state_folder(target: str, registry: Path | None) -> Path:
    """The state folder of a target: see `state_of`."""
    return state_of(target, registry).folder


def registry_path(given: Path | None) -> Path:
    """The registry file: the one given, the environment's, or the one of the current folder."""
    return given or Path(os.environ.get("CATALOGZERO_REGISTRY") or DEFAULT_NAME)


def load_class(module: str, name: str) -> type[Handler]:
    """The handler class of a module.

    Raises:
        ConfigError: It cannot be imported, is not there, or is no handler.
    """
    # The command's own folder stands first there, not the one that it was called in.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        fix = f": install it into {sys.prefix}, or run this in its folder" if missing else ""
        raise ConfigError(f"module {module!r} cannot be imported: {error}{fix}") from None
    except Exception as error:
        text = f"{text_of(error)}{place_of(error)}"
        raise ConfigError(f"module {module!r} cannot be imported: {text}") from error
    found: Any = loaded
    for part in name.split("."):
        found = getattr(found, part, None)
    cls = handler_class(found)
    if cls is None:
        its_own = [one for one in vars(loaded).values() if getattr(one, "__module__", "") == module]
        there = ", ".join(one.__name__ for one in its_own if handler_class(one)) or "none"
        fault = f"{module}:{name} is no handler class; there are: {there}"
        raise ConfigError(fault, details="class_name")
    return cls


def class_of_entry(entry: str) -> type[Handler] | None:
    """The handler class that an installed entry provides; `None` when it is not installed.

    Raises:
        ConfigError: Several distributions provide one of that name.
    """
    points = list(points_of(entry))
    owners = sorted({point.dist.name for point in points if point.dist})
    if len(owners) > 1:
        text = " and ".join(owners)
        raise ConfigError(f"{text} both provide {entry!r}: name the distribution, or remove one")
    return load_class(points[0].module, points[0].attr) if points else None


def sample_of(cls: type[Handler]) -> Path | None:
    """The sample of data that a class's package brings: `sample.csv` beside its module."""
    path = Path(inspect.getfile(cls)).with_name("sample.csv")
    return path if path.is_file() else None


def points_of(entry: str) -> Iterator[importlib.metadata.EntryPoint]:
    """The entry points of an entry: by its name, or by its distribution's."""
    for point in importlib.metadata.entry_points(group=ENTRY_GROUP):
        if entry in (point.name, point.dist.name if point.dist else None):
            yield point


def build(
    cls: type[Handler],
    flags: Flags,
    section: Section | None = None,
    scheduler: str | None = None,
) -> Handler:
    """A handler from file, environment and flags.

    Raises:
        ConfigError: Every fault at once, each with the place where the setting was given.
    """
    ours: JsonObject = {}
    if section is not None:
        ours = {**handed_over(section.runtime), "handler_id": section.handler_id}
        ours["scheduler"] = scheduler
    config = handed_over(section.config) if section else {}
    runtime, faults = _made(RuntimeSettings, RuntimeSettings, ours, flags.runtime, section)
    model = cls.settings_model
    handler, own_faults = _made(cls, model, config, flags.config, section, key="config.")
    faults += own_faults
    if handler is not None and runtime is not None:
        own = getattr(handler, "settings", None)
        handler._key_files = [*secret_files_in(own), *secret_files_in(runtime)]
        # A registry file that holds a secret itself is a key file as well.
        url = runtime.state.get_secret_value() if runtime.state and "state" in ours else ""
        if section and (
            any(any(secrets_in(getattr(own, name, None))) for name in config)
            or any(secrets_in_urls(url))
        ):
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


def _made(
    make: Callable[..., MadeT],
    model: type[BaseSettings],
    in_file: Mapping[str, Any],
    flags: Mapping[str, Any],
    section: Section | None,
    key: str = "",
) -> tuple[MadeT | None, list[str]]:
    """What is made of the settings of a model; else every fault, with its place.

    `key` is where they stand in their section.
    """

    def place(name: str) -> str:
        """On the command line, in the environment, or in the file."""
        first = name.partition(".")[0]
        if first in flags:
            return f"command line: {name}"
        if first in EnvSettingsSource(model)():
            return "environment: " + f"{model.model_config.get('env_prefix', '')}{first}".upper()
        # `config` is the whole of them: no single field is at fault.
        return section.where(name if name == "config" else f"{key}{name}") if section else name

    try:
        return make(**merged_settings(model, file=in_file, flags=flags)), []
    except ConfigError as error:
        placed = [f"{place(f['field'])}: {f['message']}" for f in error.details or []]
        return None, placed or [str(error)]
    except ValidationError as error:
        return None, [f"{place(name)}: {text}" for name, text in setting_faults(error, model)]
    except Exception as error:  # noqa: BLE001 - an author's constructor may do anything
        name = getattr(make, "__name__", "the handler")
        text = f"{name} cannot be made: {text_of(error)}{place_of(error)}"
        return None, [f"{section.where('config')}: {text}" if section else text]

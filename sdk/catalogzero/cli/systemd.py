"""`catalogzero systemd`: a hardened unit for a handler, from `systemd.service` beside this file."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from catalogzero.cli.run import RegistryOption
from catalogzero.config.address import Address
from catalogzero.config.registry import Section, load_registry
from catalogzero.config.settings import RuntimeSettings
from catalogzero.errors import ConfigError
from catalogzero.runtime.launch import registry_path

CLOSE_S = 15
"""Seconds that closing may take, after draining."""


def systemd(
    handler_id: Annotated[str, typer.Argument(help="A handler_id of the registry file.")],
    registry: RegistryOption = None,
) -> None:
    """Print a hardened systemd unit for one handler.

    Example: catalogzero systemd acme > /etc/systemd/system/acme.service
    """
    path = registry_path(registry).resolve()
    typer.echo(unit_for(handler_id, path), nl=False)


def unit_for(handler_id: str, registry: Path) -> str:
    """The unit of a handler: it may write to its state folder, and to nothing else.

    It has a state folder of its own, as each unit has a user of its own.

    Raises:
        ConfigError: The file does not name the handler.
    """
    section = load_registry(registry).find(handler_id)
    if not re.fullmatch(r"[A-Za-z0-9._-]+", section.handler_id):
        raise ConfigError(f"{section.where('handler_id')}: letters, digits, `.`, `_`, `-` only")
    drain_s = section.runtime.get("drain_timeout_s")
    if not isinstance(drain_s, int | float):
        drain_s = RuntimeSettings.model_fields["drain_timeout_s"].default
    unit = Path(__file__).with_name("systemd.service").read_text("utf-8")
    return unit.format(
        handler_id=handler_id,
        command=_command(),
        registry=_quoted(str(registry)),
        folder=_quoted(str(registry.parent)),
        stop_s=int(drain_s) + CLOSE_S,
        paths="".join([*_paths(section), *_who_may_call(section)]),
    )


def _command() -> str:
    """This installation's own `catalogzero`."""
    beside = Path(sys.executable).with_name("catalogzero")
    return _quoted(str(beside)) if beside.exists() else f"{_quoted(sys.executable)} -m catalogzero"


def _paths(section: Section) -> Iterator[str]:
    """Lines for the folders that the section names; one that is missing, the handler names."""
    for root in section.config.get("data_roots") or []:
        yield f"ReadOnlyPaths=-{_quoted(str(root))}\n"
    if state_dir := section.runtime.get("state_dir"):
        yield f"# {state_dir} must belong to the unit's user: name its owner with User=\n"
        yield f"ReadWritePaths=-{_quoted(str(state_dir))}\n"


def _who_may_call(section: Section) -> Iterator[str]:
    """Lines for the address: a folder for a socket file, or what loopback leaves open."""
    path = Address.of(str(section.runtime.get("host", ""))).path
    if not path:
        yield "# Any local user can call it over loopback TCP; members of a group alone can with\n"
        yield f"#   host: ipc:///run/{section.handler_id}/{section.handler_id}.sock\n"
    elif (folder := Path(path).parent).is_relative_to("/run") and folder != Path("/run"):
        yield "# Members of its group can call it: name that group with Group=\n"
        yield f"RuntimeDirectory={_quoted(str(folder.relative_to('/run')))}\n"
        yield "RuntimeDirectoryMode=0750\n"
    else:
        yield "# Members of the folder's group can call it\n"
        yield f"ReadWritePaths=-{_quoted(str(folder))}\n"


def _quoted(text: str) -> str:
    """A path as a unit file writes it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if re.search(r"[\s\"'\\]", text) else escaped

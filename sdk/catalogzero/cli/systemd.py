"""`catalogzero systemd`: the units of handlers, scheduler and backend."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from catalogzero.cli.run import RegistryOption, known_handlers
from catalogzero.config.address import Address
from catalogzero.config.key_files import credential_name
from catalogzero.config.registry import Section, load_registry
from catalogzero.config.service_unit import ServiceUnit, literal, quoted
from catalogzero.config.settings import RuntimeSettings
from catalogzero.config.state_folder import open_to_others
from catalogzero.errors import ConfigError
from catalogzero.runtime.launch import registry_path, section_of

CLOSE_S = 15
"""Seconds that closing may take, after draining."""
HIDDEN_BY_PRIVATE_TMP = ("/tmp", "/var/tmp")  # noqa: S108 - nothing is written there
SCHEDULER, BACKEND = "catalogzero-scheduler", "catalogzero-backend"


def systemd(
    target: Annotated[
        str | None,
        typer.Argument(
            help="A handler_id of the registry file, or an entry.", autocompletion=known_handlers
        ),
    ] = None,
    registry: RegistryOption = None,
    all_: Annotated[bool, typer.Option("--all", help="Every handler of the file.")] = False,
    scheduler: Annotated[bool, typer.Option("--scheduler", help="The scheduler.")] = False,
    backend: Annotated[bool, typer.Option("--backend", help="The backend.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files, /etc/systemd/system; else shown.")
    ] = None,
    memory_max: Annotated[
        str | None, typer.Option(help="Most memory of each service, as 2G; a worker ends over it.")
    ] = None,
    credential: Annotated[
        list[str] | None,
        typer.Option(
            help="VARIABLE=FILE: a file of root's that systemd hands over, and the variable that "
            "names it to the service; files of the registry file need none; may be repeated."
        ),
    ] = None,
) -> None:
    """Print hardened systemd units, which start as they stand.

    Options of scheduler and backend come from /etc/catalogzero/scheduler.env and backend.env,
    as CATALOGZERO_SCHEDULER_PORT and CATALOGZERO_BACKEND_PORT for --port.

    Example: catalogzero systemd acme > /etc/systemd/system/acme.service
    """
    if not (target or all_ or scheduler or backend):
        raise typer.BadParameter("name a TARGET, --all, --scheduler or --backend")
    given = dict(_credential(one) for one in credential or ())
    units: list[ServiceUnit] = []
    if target or all_:
        path = registry_path(registry).resolve()
        found = load_registry(path)
        named = None if all_ else section_of(target or "", found)
        if named is None and not all_:
            found.find(target or "")  # says what there is
        sections = found.handlers if named is None else [named]
        units += [handler_unit(section, given, memory_max) for section in sections]
    if scheduler:
        command = ["scheduler"]
        units.append(_service(SCHEDULER, "scheduler", command, given, memory_max))
    if backend:
        command = ["backend", "serve"]
        units.append(_service(BACKEND, "backend", command, given, memory_max))
    _write(units, out)


def _write(units: list[ServiceUnit], out: Path | None) -> None:
    """Write the units, or print them: several each under the name of its file."""
    for unit in units:
        if out is not None:
            (out / f"{unit.name}.service").write_text(str(unit), "utf-8")
            typer.echo(out / f"{unit.name}.service")
            continue
        if len(units) > 1:
            typer.echo(f"# /etc/systemd/system/{unit.name}.service")
        typer.echo(str(unit), nl=False)
    for warning in _not_for_everybody(units):
        typer.echo(f"warning: {warning}", err=True)


def handler_unit(
    section: Section, credentials: dict[str, Path], memory_max: str | None
) -> ServiceUnit:
    """The unit of a handler: it may write to its state folder, and to nothing else.

    It has a state folder of its own, as each unit has a user of its own.

    Raises:
        ConfigError: Its handler_id is no name of a unit.
    """
    name, folder = section.handler_id, section.path.parent
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ConfigError(f"{section.where('handler_id')}: letters, digits, `.`, `_`, `-` only")
    drain_s = section.runtime.get("drain_timeout_s")
    if not isinstance(drain_s, int | float):
        drain_s = RuntimeSettings.model_fields["drain_timeout_s"].default
    secrets = {credential_name(path): path for path in _secret_files(section)}
    given = [f"Environment={key}=%d/{key}" for key in credentials if key.endswith("FILE")]
    roots = [folder / str(root) for root in section.config.get("data_roots") or []]
    return ServiceUnit(
        name=name,
        description=f"catalogzero handler {name}",
        command=f"{_command()} run {name} --registry {quoted(section.path)}",
        user=name,
        state_directory=f"catalogzero/{name}",
        credentials={**secrets, **credentials},
        mounts=roots,
        memory_max=memory_max,
        stop_s=int(drain_s) + CLOSE_S,
        reads_machine=_kind(section) == "conductor",
        notes=[
            f"Its state: /var/lib/catalogzero/{name}. To look at it:",
            f"  CATALOGZERO_STATE_DIR=/var/lib/catalogzero/{name} catalogzero outbox list {name}",
        ],
        lines=[
            f"WorkingDirectory={literal(folder)}",
            *given,
            *_roots(roots),
            *_state(section),
            *_who_may_call(section),
        ],
    )


def _service(
    name: str,
    title: str,
    command: list[str],
    credentials: dict[str, Path],
    memory_max: str | None,
) -> ServiceUnit:
    """The unit of a service whose options are variables."""
    return ServiceUnit(
        name=name,
        description=f"catalogzero {title}",
        command=" ".join([_command(), *command]),
        user=title,
        state_directory=name,
        credentials=credentials,
        memory_max=memory_max,
        start_s="infinity",
        lines=[
            f"EnvironmentFile=-/etc/catalogzero/{title}.env",
            *(f"Environment={key}=%d/{key}" for key in credentials),
            "LimitNOFILE=16384",
        ],
    )


def _credential(text: str) -> tuple[str, Path]:
    """A --credential's variable and file."""
    name, equals, path = text.partition("=")
    if not equals or not re.fullmatch(r"\w+", name, re.ASCII) or not path.startswith("/"):
        raise typer.BadParameter(f"{text!r} is not VARIABLE=/absolute/file")
    return name, Path(path)


def _command() -> str:
    """This installation's own `catalogzero`."""
    beside = Path(sys.executable).with_name("catalogzero")
    return quoted(beside) if beside.exists() else f"{quoted(sys.executable)} -m catalogzero"


def _secret_files(section: Section) -> Iterator[Path]:
    """The files of its settings that not everybody may read: the unit's user would not either."""
    for name, value in _texts({"config": section.config, **section.runtime}):
        path = section.path.parent / value
        if name.endswith("_file") and not open_to_others(path):
            yield path


def _texts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Each text in settings, with its key."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _texts(one, str(key))
    elif isinstance(value, str):
        yield name, value


def _roots(roots: list[Path]) -> Iterator[str]:
    """Lines for the folders that it reads; one that is missing, the handler names."""
    groups = set()
    for root in roots:
        # PrivateTmp= hides these; any other is there already.
        is_hidden = str(root).startswith(tuple(f"{one}/" for one in HIDDEN_BY_PRIVATE_TMP))
        yield f"{'BindReadOnlyPaths' if is_hidden else 'ReadOnlyPaths'}=-{quoted(root)}"
        if (group := _group_that_reads(root)) is not None:
            groups.add(group)
    if groups:
        yield f"SupplementaryGroups={' '.join(sorted(groups))}"


def _group_that_reads(root: Path) -> str | None:
    """The group that may read a folder which others may not."""
    import grp  # not on Windows, where no unit is written

    try:
        found = root.stat()
        group = grp.getgrgid(found.st_gid).gr_name
    except (OSError, KeyError):
        return None
    may_read = found.st_mode & 0o050 == 0o050 and found.st_mode & 0o005 != 0o005
    return group if may_read and found.st_gid != 0 else None


def _state(section: Section) -> Iterator[str]:
    """Lines for a state folder that the section names."""
    if state_dir := section.runtime.get("state_dir"):
        yield f"# {state_dir} must belong to the unit's user: name its owner with User="
        yield f"ReadWritePaths=-{quoted(state_dir)}"


def _who_may_call(section: Section) -> Iterator[str]:
    """Lines for the address: a folder for a socket file, or what loopback leaves open."""
    if str(section.runtime.get("transport") or "zeromq") != "zeromq":
        yield "# It opens no port: who may call it, the NATS server decides"
        return
    path = Address.of(str(section.runtime.get("host", ""))).path
    if not path:
        yield "# Any local user can call it over loopback TCP; members of a group alone can with"
        yield f"#   host: ipc:///run/{section.handler_id}/{section.handler_id}.sock"
    elif (folder := Path(path).parent).is_relative_to("/run") and folder != Path("/run"):
        yield "# Members of its group can call it: name that group with Group="
        yield f"RuntimeDirectory={quoted(folder.relative_to('/run'))}"
        yield "RuntimeDirectoryMode=0750"
    else:
        yield "# Members of the folder's group can call it"
        yield f"ReadWritePaths=-{quoted(folder)}"


def _kind(section: Section) -> str | None:
    """What its manifest calls it; None where it has none."""
    from catalogzero.entry.manifest import MANIFEST_NAME, load_manifest

    packages = {point.value for point in entry_points(group="catalogzero.entries")}
    names = [point.module for point in entry_points(group="catalogzero.handlers")
             if point.name == section.entry]  # fmt: skip
    for name in filter(None, [section.module_path, *names]):
        package = name.partition(".")[0]
        spec = find_spec(package) if package in packages else None
        for place in (spec.submodule_search_locations or []) if spec else []:
            if (path := Path(place, MANIFEST_NAME)).exists():
                return load_manifest(path).kind
    return None


def _not_for_everybody(units: list[ServiceUnit]) -> Iterator[str]:
    """What a unit's own user cannot read here, or is not there yet."""
    python = Path(sys.prefix), Path(os.path.realpath(sys.executable))
    for path in python:
        if not _traversable(path):
            yield f"{path}: a service's user cannot read it; install below /opt"
    for unit in units:
        for name, path in unit.credentials.items():
            if not path.exists():
                yield f"{unit.name}: {path} is not there yet: it does not start without ({name})"
        for root in unit.mounts:
            if not root.exists():
                yield f"{unit.name}: {root} is not there yet"


def _traversable(path: Path) -> bool:
    """Whether every user of this machine may reach a path and read it."""
    try:
        folders = [folder.stat().st_mode & 0o001 for folder in path.parents]
        return all(folders) and bool(path.stat().st_mode & 0o004)
    except OSError:
        return False

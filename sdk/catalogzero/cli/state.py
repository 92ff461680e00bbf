"""`catalogzero state`: back up what handlers and scheduler keep, while they run; put it back."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from catalogzero.cli.output import JsonFlag, print_json, print_table
from catalogzero.cli.run import RegistryOption, known_handlers
from catalogzero.clock import SystemClock
from catalogzero.config.registry import load_registry
from catalogzero.config.service_unit import STATE
from catalogzero.config.settings import default_database
from catalogzero.errors import ConfigError
from catalogzero.runtime.launch import registry_path, state_folder

if TYPE_CHECKING:
    from catalogzero.sql.state_archive import ArchivedPart, StatePlace

UNIT_DATABASE = STATE.with_name("catalogzero-scheduler") / "scheduler.db"
"""Where the unit of `catalogzero systemd --scheduler` keeps it."""

app = typer.Typer(no_args_is_help=True, help="Back up the state of this machine, and put it back.")

Targets = Annotated[
    list[str] | None,
    typer.Argument(
        help="Handlers; by default every one of the registry file, and the scheduler.",
        autocompletion=known_handlers,
    ),
]
SchedulerFlag = Annotated[
    bool, typer.Option("--scheduler", help="Also the scheduler, beside the handlers named.")
]
SchedulerDatabase = Annotated[
    str | None,
    typer.Option(
        "--scheduler-database",
        envvar="CATALOGZERO_SCHEDULER_DATABASE",
        help="The scheduler's database, as its --database; by default where it keeps it.",
    ),
]


@app.command()
def backup(
    out: Annotated[Path, typer.Option(help="The archive to write; .tar, or .tar.gz to pack it.")],
    targets: Targets = None,
    registry: RegistryOption = None,
    scheduler: SchedulerFlag = False,
    database: SchedulerDatabase = None,
    json: JsonFlag = False,
) -> None:
    """Write an archive of handlers' state folders and the scheduler's database, while they run.

    Nothing is stopped. The archive holds rows that wait to be sent, and the key of hashes where
    that lies in the state folder: it is yours alone to read (0600). It needs its own size once
    more in free space for a moment. The registry file and keys are not in it, and no PostgreSQL.

    Example: catalogzero state backup acme --scheduler --out /backup/acme-state.tar.gz
    """
    from catalogzero.sql.state_archive import StatePlace, write_archive

    places: list[StatePlace] = []
    for name in targets or handlers_of(registry):
        folder = state_folder(name, registry)
        if folder.is_dir():
            places.append(StatePlace("handler", name, folder))
        elif targets:
            raise ConfigError(f"{name}: no state in {folder}: the handler has not run there yet")
    if scheduler or not targets:
        path = database_file(database, is_asked_for=scheduler)
        if path is not None and path.exists():
            places.append(StatePlace("scheduler", "scheduler", path))
        elif scheduler:
            raise ConfigError(f"no scheduler's database at {path}: name it: --scheduler-database")
    if not places:
        raise ConfigError("no state here: name a handler, the --registry, or --scheduler")
    manifest = write_archive(places, out, SystemClock())
    if json:
        print_json({"archive": str(out), **manifest})
        return
    rows = [
        (part["kind"], part["name"], part["path"], len(part["files"]), size_of(part))
        for part in manifest["parts"]
    ]
    print_table(("kind", "name", "state", "files", "bytes"), rows)
    typer.echo(f"{out} is whole, and holds rows and keys: keep it as private as this machine")


@app.command()
def restore(
    archive: Annotated[Path, typer.Argument(help="An archive of `state backup`.")],
    targets: Annotated[
        list[str] | None,
        typer.Argument(help="Handlers of the archive, or `scheduler`; by default all in it."),
    ] = None,
    registry: RegistryOption = None,
    database: SchedulerDatabase = None,
    force: Annotated[
        bool, typer.Option("--force", help="Move what is there aside, to …before-TIME.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Put back what `state backup` wrote; nothing is changed before all of it was checked.

    Stop the handler and the scheduler first: one that runs, and state that is not empty, is
    refused.

    What the next start of a handler does: it takes its installation over, as after
    `catalogzero installation adopt`, and compares with the backend. What the backend has is not
    sent again, what it lacks is; sources that changed since the backup are read again. So nothing
    is lost, and nothing comes twice. Another folder of the same installation, on another machine,
    pauses then: a machine that is to be an installation of its own runs
    `catalogzero installation new TARGET` before that start.

    The scheduler goes on with the schedules of the backup. What was due since then counts as
    missed: one run each, where its misfire grace allows one, also where it ran before.

    Example: catalogzero state restore /backup/acme-state.tar.gz --force
    """
    from catalogzero.sql.state_archive import opened_archive
    from catalogzero.sql.state_archive import restore as put_back

    with opened_archive(archive) as (tar, manifest):
        parts = manifest["parts"]
        if unknown := set(targets or ()) - {part["name"] for part in parts}:
            names = ", ".join(part["name"] for part in parts)
            raise ConfigError(f"{archive} holds {names}, and not {', '.join(sorted(unknown))}")
        places: dict[int, Path] = {}
        for number, part in enumerate(parts):
            if not targets or part["name"] in targets:
                places[number] = place_of_part(part, registry, database)
        moved = put_back(tar, manifest, places, SystemClock(), force=force, prepare=take_over)
    put = [
        {
            "kind": parts[number]["kind"],
            "name": parts[number]["name"],
            "path": str(place),
            "moved_aside": str(moved[number]) if number in moved else None,
        }
        for number, place in places.items()
    ]
    if json:
        print_json({"archive": str(archive), "made_at": manifest["made_at"], "restored": put})
        return
    print_table(tuple(put[0]), [tuple(one.values()) for one in put])
    typer.echo(f"as of {manifest['made_at']}; start what you stopped: a handler takes its")
    typer.echo("installation over, and compares with the backend before it sends")


def take_over(part: ArchivedPart, folder: Path) -> None:
    """Let the next start of a handler's folder take the installation over."""
    if not (folder / "outbox.sqlite").exists():
        return
    from catalogzero.cloud.outbox.outbox import Outbox

    with closing(Outbox(folder, SystemClock(), repair=False)) as outbox:
        outbox.adopt()


def handlers_of(registry: Path | None) -> list[str]:
    """Every handler of the registry file; none where there is no file and none was named."""
    path = registry_path(registry)
    if registry is None and not path.exists():
        return []
    return [section.handler_id for section in load_registry(path).handlers]


def database_file(given: str | None, *, is_asked_for: bool = True) -> Path | None:
    """The scheduler's SQLite file; None for another database that nobody asked for.

    Raises:
        ConfigError: It is PostgreSQL, which has tools of its own.
    """
    if given is None:
        path = default_database("scheduler.db")
        return UNIT_DATABASE if not path.exists() and UNIT_DATABASE.parent.is_dir() else path
    from catalogzero.sql.engines import parse_url

    url = parse_url(given, "--scheduler-database")
    if url.get_backend_name() == "sqlite":
        return Path(os.path.abspath(str(url.database)))
    if is_asked_for:
        raise ConfigError("the scheduler's database is PostgreSQL: back it up with pg_dump")
    return None


def place_of_part(part: ArchivedPart, registry: Path | None, database: str | None) -> Path:
    """Where a part of an archive goes on this machine.

    Raises:
        ConfigError: This machine has no such handler.
    """
    if part["kind"] == "handler":
        return state_folder(part["name"], registry)
    path = database_file(database)
    if path is None:
        raise ConfigError("name the scheduler's SQLite file: --scheduler-database")
    return path


def size_of(part: ArchivedPart) -> int:
    """The bytes of a part's files."""
    return sum(one["bytes"] for one in part["files"])

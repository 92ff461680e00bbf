"""The `catalogzero` command: the table of its commands, and errors to exit codes.

A command's module is imported only when the command is named: to list them takes this table alone.
"""

from __future__ import annotations

import errno
import importlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

import catalogzero.early_interrupt as early_interrupt
from catalogzero.cli.console import COLOURS, escape_output
from catalogzero.config.state_folder import keep_private, owner_hint
from catalogzero.errors import (
    AddressUnavailableError,
    CatalogZeroError,
    ConfigError,
    UnauthorizedError,
    UnreachableError,
)
from catalogzero.version import __version__

EXIT_FAILED = 1
EXIT_CONFIG = 3
EXIT_UNREACHABLE = 4
EXIT_UNAUTHORIZED = 5
EXIT_TEMPORARY = 75
"""The same start may do later: systemd calls it TEMPFAIL, and its units try again."""

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

VENDOR, CLIENT, BACKEND = "Vendor", "Client", "Backend"


class Command(NamedTuple):
    """Where a command stands: `module:attribute`, a function or a `typer.Typer`."""

    panel: str
    place: str
    summary: str  # the first line of its help: to list it imports nothing
    sql_extra: str = "sql"  # the extra that brings SQLAlchemy for it
    variables: str | None = None  # what the environment variables of its options begin with
    private: bool = False  # what it makes is its user's alone, and not for others to read


COMMANDS = {
    "new": Command(
        VENDOR,
        "new:new",
        "Make a package of your own: a handler that processes and uploads, tests, manifest, CLI.",
    ),
    "update": Command(
        VENDOR,
        "update:update",
        "Bring a newer template into a package made from it; your own changes stay.",
    ),
    "test": Command(
        VENDOR,
        "test:run_contract",
        "Run the contract suite against an entry: what every handler and processor must do.",
    ),
    "build": Command(
        VENDOR,
        "build:build",
        "Build wheel and sdist of an entry, with hashes and a bill of materials (CycloneDX).",
    ),
    "catalog": Command(VENDOR, "catalog:app", "Publish a catalog; install from one."),
    "run": Command(
        CLIENT,
        "run:run",
        "Serve a handler until SIGTERM or Ctrl-C; it then drains and ends.",
        private=True,
    ),
    "call": Command(
        CLIENT,
        "call:call",
        "Call a method and print its result as JSON; a terminal shows how far it is.",
    ),
    "ping": Command(CLIENT, "call:ping", "Whether a handler answers; it is not woken."),
    "metrics": Command(
        CLIENT, "call:metrics", "Memory, CPU, state and runs of a handler; it is not woken."
    ),
    "describe": Command(CLIENT, "call:describe", "What a handler is, and which methods it has."),
    "cancel": Command(CLIENT, "call:cancel", "Stop a run."),
    "check": Command(
        CLIENT,
        "check:check",
        "Look at everything that a handler needs before it is started.",
        private=True,
    ),
    "status": Command(
        CLIENT,
        "status:status",
        "Show how everything on this machine does, and the next command for each trouble.",
    ),
    "preview": Command(
        CLIENT,
        "preview:preview",
        "Show every request that a run would make: URL, headers, body; send nothing.",
    ),
    "outbox": Command(CLIENT, "outbox:app", "What waits to be sent, dead letters, the audit log."),
    "installation": Command(
        CLIENT,
        "installation:app",
        "After a state folder was copied, moved or put back: whose is it?",
        private=True,
    ),
    "state": Command(
        CLIENT, "state:app", "Back up the state of this machine, and put it back.", private=True
    ),
    "bundle": Command(
        CLIENT,
        "bundle:bundle",
        "Write what a vendor's support needs, of one handler, several, or all of this machine.",
        private=True,
    ),
    "keys": Command(CLIENT, "keys:app", "Keys for handlers beyond loopback."),
    "systemd": Command(
        CLIENT, "systemd:systemd", "Print hardened systemd units, which start as they stand."
    ),
    "scheduler": Command(
        CLIENT,
        "scheduler:scheduler",
        "Call handlers at set times, with ScheduleZero's API; a page at the same address.",
        sql_extra="scheduler",
        variables="CATALOGZERO_SCHEDULER",
        private=True,
    ),
    "schedule": Command(
        CLIENT, "schedule:app", "Schedules and executions, at ours or any other ScheduleZero API."
    ),
    "backend": Command(
        BACKEND,
        "backend:app",
        "The receiver of uploads and health reports.",
        sql_extra="backend",
        private=True,
    ),
}


class CommandTable(TyperGroup):
    """A group whose commands are imported when they are needed."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        # The names alone, for "did you mean": to fill them in would import every command.
        names: Any = dict.fromkeys(COMMANDS)
        self.commands = names
        self._lists = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Every command, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        command = COMMANDS[cmd_name]
        if self._lists:
            return TyperCommand(cmd_name, help=command.summary, rich_help_panel=command.panel)
        module, _, attribute = command.place.partition(":")
        found: Any = getattr(importlib.import_module(f"catalogzero.cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            # Typer would add --install-completion to each of them, as if it stood alone.
            found._add_completion = False
        else:
            function, found = found, typer.Typer(add_completion=False, rich_markup_mode="rich")
            context = {"auto_envvar_prefix": command.variables}
            found.command(cmd_name, context_settings=context)(function)
        made: Any = typer.main.get_command(found)
        made.name, made.rich_help_panel = cmd_name, command.panel
        name_values(made)
        return made

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Its help: of each command the summary, without importing it."""
        self._lists = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._lists = False

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """What a shell completes: as in the help, for a Tab must not import every command."""
        self._lists = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._lists = False

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what is not installed is named with the extra that brings it."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            name = ctx.invoked_subcommand
            missing = (error.name or "").partition(".")[0]
            extra = COMMANDS[name].sql_extra if missing == "sqlalchemy" else _EXTRA_OF.get(missing)
            if extra is None:
                raise
            from catalogzero.config.install_hint import install_hint

            raise ConfigError(
                f"`catalogzero {name}` needs {missing}, which is not installed: "
                + install_hint(extra)
            ) from None


def name_values(command: Any) -> None:
    """Say in each option's help what its value is, in words and not by Python's types."""
    for one in filter(None, getattr(command, "commands", {}).values()):
        name_values(one)
    help_option = command.get_help_option(typer.Context(command, help_option_names=_HELP))
    for option in [*command.params, help_option]:
        if not isinstance(option, TyperOption):
            # Typer shows an argument's type beside its name, which says it already.
            option.display_type_rich = lambda ctx: None
        elif option.is_flag:
            option.metavar = ""
        elif option.metavar is None and not option.type_descriptor.is_choice:
            option.metavar = _value_of(option)


def _value_of(option: TyperOption) -> str:
    """The unit that an option's name says, else the kind of its value."""
    unit = next((word for end, word in _UNITS.items() if str(option.name).endswith(end)), None)
    kind = option.display_type(typer.Context(TyperCommand("none"))).strip("<>")
    kind = kind.removeprefix("list[").removesuffix("]").removesuffix(" range")
    return unit or _KINDS.get(kind, kind.upper())


_HELP = ["-h", "--help"]
_UNITS = {"_s": "SECONDS", "_days": "DAYS", "_bytes": "BYTES"}
_KINDS = {"str": "TEXT", "int": "NUMBER", "float": "NUMBER", "file": "PATH", "directory": "FOLDER"}

app = typer.Typer(
    name="catalogzero",
    cls=CommandTable,
    no_args_is_help=True,
    context_settings={"help_option_names": _HELP},
)


def _print_version(wanted: bool) -> None:
    """Print the version, and end."""
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    version: bool = typer.Option(
        False, "--version", help="Print the version.", callback=_print_version, is_eager=True
    ),
) -> None:
    """Process your clients' data on their own machines, and receive each result exactly once.

    A vendor begins with `catalogzero new`, a client with `catalogzero check`,
    a backend with `catalogzero backend serve`; each --help has an example.
    """
    early_interrupt.end()  # what is imported from here on, a command may be interrupted in
    command = COMMANDS.get(ctx.invoked_subcommand or "")
    if command and command.private:
        keep_private()


def main() -> None:
    """Entry point of the `catalogzero` command."""
    escape_output()
    try:
        made = typer.main.get_command(app)
        name_values(made)
        made(standalone_mode=True)
    except CatalogZeroError as error:
        typer.echo(f"catalogzero: {COLOURS.sub('', str(error))}", err=True)
        sys.exit(exit_code(error))
    except OSError as error:
        # One without a file is a fault of ours, but for a full disk, which names none.
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        place = f"{error.filename}: " if error.filename else ""
        denied = isinstance(error, PermissionError) and isinstance(error.filename, str)
        fix = f": {owner_hint(Path(error.filename))}" if denied else ""
        typer.echo(f"catalogzero: {place}{error.strerror}{fix}", err=True)
        sys.exit(EXIT_TEMPORARY if error.errno in FULL_DISK else EXIT_CONFIG)


def exit_code(error: CatalogZeroError) -> int:
    """The exit code that shows a script what kind of error it was."""
    if isinstance(error, AddressUnavailableError):
        return EXIT_TEMPORARY
    if isinstance(error, ConfigError):
        return EXIT_CONFIG
    if isinstance(error, UnreachableError):
        return EXIT_UNREACHABLE
    return EXIT_UNAUTHORIZED if isinstance(error, UnauthorizedError) else EXIT_FAILED


_EXTRA_OF = {
    "apscheduler": "scheduler",
    "prometheus_client": "backend",
    "cookiecutter": "vendor",
    "build": "vendor",
    "packaging": "vendor",
    "jinja2": "vendor",
    "uv": "vendor",
    "pyarrow": "parquet",
    "psycopg": "postgresql",
}

"""The `catalogzero` command: the table of its commands, and errors to exit codes.

A command's module is imported only when the command is named, or help is asked for.
"""

from __future__ import annotations

import errno
import importlib
import sys
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup

from catalogzero.cli.output import COLOURS, escape_output
from catalogzero.config.state_folder import keep_private
from catalogzero.errors import CatalogZeroError, ConfigError, UnauthorizedError, UnreachableError
from catalogzero.version import __version__

EXIT_FAILED = 1
EXIT_CONFIG = 3
EXIT_UNREACHABLE = 4
EXIT_UNAUTHORIZED = 5

VENDOR, CLIENT, BACKEND = "Vendor", "Client", "Backend"


class Command(NamedTuple):
    """Where a command stands: `module:attribute`, a function or a `typer.Typer`."""

    panel: str
    place: str
    sql_extra: str = "sql"  # the extra that brings SQLAlchemy for it
    variables: str | None = None  # what the environment variables of its options begin with
    private: bool = False  # what it makes is its user's alone, and not for others to read


COMMANDS = {
    "new": Command(VENDOR, "new:new"),
    "update": Command(VENDOR, "update:update"),
    "test": Command(VENDOR, "test:run_contract"),
    "build": Command(VENDOR, "build:build"),
    "catalog": Command(VENDOR, "catalog:app"),
    "run": Command(CLIENT, "run:run", private=True),
    "call": Command(CLIENT, "call:call"),
    "ping": Command(CLIENT, "call:ping"),
    "metrics": Command(CLIENT, "call:metrics"),
    "describe": Command(CLIENT, "call:describe"),
    "cancel": Command(CLIENT, "call:cancel"),
    "check": Command(CLIENT, "check:check", private=True),
    "preview": Command(CLIENT, "preview:preview"),
    "outbox": Command(CLIENT, "outbox:app"),
    "installation": Command(CLIENT, "installation:app", private=True),
    "bundle": Command(CLIENT, "bundle:bundle", private=True),
    "keys": Command(CLIENT, "keys:app"),
    "systemd": Command(CLIENT, "systemd:systemd"),
    "scheduler": Command(
        CLIENT, "scheduler:scheduler", "scheduler", "CATALOGZERO_SCHEDULER", private=True
    ),
    "schedule": Command(CLIENT, "schedule:app"),
    "backend": Command(BACKEND, "backend:app", "backend", private=True),
}


class CommandTable(TyperGroup):
    """A group whose commands are imported when they are needed."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        names: dict[str, Any] = dict.fromkeys(COMMANDS)
        self.commands = names  # the names alone, for "did you mean"

    def list_commands(self, ctx: Any) -> list[str]:
        """Every command, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        command = COMMANDS[cmd_name]
        module, _, attribute = command.place.partition(":")
        found: Any = getattr(importlib.import_module(f"catalogzero.cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            found._add_completion = False
        else:
            function, found = found, typer.Typer(add_completion=False, rich_markup_mode="rich")
            context = {"auto_envvar_prefix": command.variables}
            found.command(cmd_name, context_settings=context)(function)
        made: Any = typer.main.get_command(found)
        made.name, made.rich_help_panel = cmd_name, command.panel
        return made

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what is not installed is told by the extra that brings it."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            name = ctx.invoked_subcommand
            missing = (error.name or "").partition(".")[0]
            extra = COMMANDS[name].sql_extra if missing == "sqlalchemy" else _EXTRA_OF.get(missing)
            if extra is None:
                raise
            raise ConfigError(
                f"`catalogzero {name}` needs {missing}, which is not installed: "
                f"pip install 'catalogzero[{extra}]'"
            ) from None


app = typer.Typer(
    name="catalogzero",
    cls=CommandTable,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
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
    command = COMMANDS.get(ctx.invoked_subcommand or "")
    if command and command.private:
        keep_private()


def main() -> None:
    """Entry point of the `catalogzero` command."""
    escape_output()
    try:
        typer.main.get_command(app)(standalone_mode=True)
    except CatalogZeroError as error:
        typer.echo(f"catalogzero: {COLOURS.sub('', str(error))}", err=True)
        sys.exit(exit_code(error))
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        place = f"{error.filename}: " if error.filename else ""
        typer.echo(f"catalogzero: {place}{error.strerror}", err=True)
        sys.exit(EXIT_CONFIG)


def exit_code(error: CatalogZeroError) -> int:
    """The exit code that tells a script what kind of error it was."""
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

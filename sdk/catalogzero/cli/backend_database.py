"""What every command of `catalogzero backend` takes of its database."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catalogzero.clock import SystemClock

if TYPE_CHECKING:
    from catalogzero.backend.settings import BackendSettings
    from catalogzero.backend.store import BackendDatabase

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        help="An SQLite file, or postgresql://user@host/name; else a file in the state folder.",
        show_default=False,
    ),
]


def backend_settings(**given: Any) -> BackendSettings:
    """The settings: what was given, else the environment's, else the defaults."""
    from pydantic import ValidationError

    from catalogzero.backend.settings import BackendSettings
    from catalogzero.config.settings import config_error

    try:
        return BackendSettings(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        raise config_error(error, where="backend settings", model=BackendSettings) from None


def open_database(place: str) -> closing[BackendDatabase]:
    """The database of the settings, closed at the end of the `with` that it is for."""
    from catalogzero.backend.store import BackendDatabase

    return closing(BackendDatabase(place))


def now() -> str:
    """The time, as it is stored."""
    return SystemClock().now().isoformat(timespec="milliseconds")

"""What every command of `catalogzero backend` takes of its database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from catalogzero.backend.settings import BackendSettings

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
        raise config_error(error, where="backend settings") from None


def now() -> str:
    """The time, as it is stored."""
    from catalogzero.clock import SystemClock

    return SystemClock().now().isoformat(timespec="milliseconds")

"""Extras: what is installed beside the base, and how to get what is not."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from catalogzero.config.install_hint import install_hint
from catalogzero.errors import FailedError

_BRINGS = {"parquet": "pyarrow", "sql": "sqlalchemy", "postgresql": "psycopg"}

Extra = Literal["parquet", "sql", "postgresql"]


def is_installed(extra: Extra) -> bool:
    """Whether what an extra brings is there; it is not loaded."""
    return find_spec(_BRINGS[extra]) is not None


def require_extra(extra: Extra) -> None:
    """Say how to get what an extra brings, where it is missing.

    Raises:
        FailedError: It is not installed.
    """
    if not is_installed(extra):
        raise FailedError(missing_extra(extra))


def missing_extra(extra: Extra) -> str:
    """The sentence that says how to get it."""
    return f"the extra `{extra}` is missing: {install_hint(extra)}"

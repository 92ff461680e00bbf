"""Extras: what is installed beside the base, and how to get what is not."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from catalogzero.config.install_hint import install_hint
from catalogzero.errors import FailedError


def require_extra(extra: Literal["parquet", "sql"]) -> None:
    """Say how to get what an extra brings, where it is missing.

    Raises:
        FailedError: It is not installed.
    """
    if find_spec({"parquet": "pyarrow", "sql": "sqlalchemy"}[extra]) is None:
        raise FailedError(f"the extra `{extra}` is missing: {install_hint(extra)}")

"""How to get what is missing: from the index that this installation came from alone."""

from __future__ import annotations

import os

from catalogzero.config.settings import shown_url

_PACKAGES = {"MySQLdb": "mysqlclient", "psycopg2": "psycopg2-binary"}
"""Modules whose package has another name."""


def install_hint(extra: str) -> str:
    """The command that installs an extra of catalogzero: see `package_hint`."""
    return package_hint(f"catalogzero[{extra}]")


def package_hint(package: str) -> str:
    """The command that installs a package, or the one that a module comes in.

    It names the client's own index: where the environment has one (`CATALOGZERO_CATALOG`,
    `PIP_INDEX_URL`), that one, passwords masked. A bare `pip install` would ask a public index,
    where a package of that name may be anybody's.
    """
    catalog = os.environ.get("CATALOGZERO_CATALOG")
    index = f"{catalog.rstrip('/')}/simple" if catalog else os.environ.get("PIP_INDEX_URL")
    wanted = _PACKAGES.get(package, package)
    command = f"pip install --index-url {shown_url(index or 'INDEX')} '{wanted}'"
    return command if index else f"{command}, INDEX being your vendor's catalog and /simple"

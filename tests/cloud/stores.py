"""The two engines of an outbox: each test of a module that says `BOTH_STORES` runs on both."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Literal

import psycopg
from catalogzero.cloud.outbox.outbox import Outbox
from catalogzero.cloud.outbox.outbox_file import OutboxFile
from catalogzero.cloud.outbox.stored import SharedStore

POSTGRESQL = os.environ.get(
    "CATALOGZERO_TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432/test"
)

Kind = Literal["file", "postgresql"]


class Stores:
    """Where the outboxes of the test under way lie; each folder has a database of its own."""

    def __init__(self) -> None:
        self.kind: Kind = "file"
        self._made: dict[str, str] = {}

    def url_of(self, folder: Path) -> str | None:
        """The database that stands for a state folder; None where that has a file."""
        if self.kind == "file":
            return None
        name = self._name(folder)
        if name not in self._made:
            with psycopg.connect(POSTGRESQL, autocommit=True) as connection:
                connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
                connection.execute(f"CREATE DATABASE {name}")
            self._made[name] = f"{POSTGRESQL.rpartition('/')[0]}/{name}"
        return self._made[name]

    def shared(self, folder: Path, instance_id: str = "") -> SharedStore | None:
        """The store that stands for a state folder, to one of its instances."""
        url = self.url_of(folder)
        return None if url is None else SharedStore(url, "site", instance_id)

    def copy(self, folder: Path, to: Path) -> None:
        """Copy an outbox that is closed."""
        if self.kind == "file":
            shutil.copytree(folder, to, dirs_exist_ok=True)
            return
        old, new = self._name(folder), self._name(to)
        with psycopg.connect(POSTGRESQL, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {new} TEMPLATE {old}")
        self._made[new] = f"{POSTGRESQL.rpartition('/')[0]}/{new}"

    @staticmethod
    def _name(folder: Path) -> str:
        return f"outbox_{hashlib.sha256(os.fsencode(folder)).hexdigest()[:24]}"

    def drop(self) -> None:
        """Drop the databases of the test that has ended."""
        self.kind = "file"
        if self._made:
            with psycopg.connect(POSTGRESQL, autocommit=True) as connection:
                for name in self._made:
                    connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        self._made.clear()


stores = Stores()


def file_of(outbox: Outbox) -> sqlite3.Connection:
    """The connection of an outbox on a file."""
    assert isinstance(outbox.store.base, OutboxFile)
    return outbox.store.base._db

"""The outbox's PostgreSQL: a schema of its own for each handler, which its instances share.

Owns the connection, the schema and its versions. Every transaction that changes more than one
upload takes the lock of its outbox, so that each sees what the one before it wrote, as in a file.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from catalogzero.cloud.outbox.schema import SHARED_MIGRATIONS
from catalogzero.cloud.outbox.stored import SharedStore
from catalogzero.config.install_hint import install_hint
from catalogzero.errors import ConfigError
from catalogzero.sql import refuse_newer

T = TypeVar("T")

SETTING = "state"
_MAX_NAME_BYTES = 63


class OutboxDatabase:
    """One connection to the schema of a handler's outbox; made there, or brought forward.

    Args:
        shared: The database, and whose outbox.
        folder: The state folder, for what each instance keeps of its own.
        read_only: Change nothing there.

    Attributes:
        label: Names it in errors.
        folder: As given.
        handler_id: Whose outbox it is.
        owner: The instance, of which some facts are; empty where it has no name.
        is_shared: True: others may write it, too.
        version: The schema's; 0 where there is no outbox yet.
        lock: Held by whoever uses it.
        each: Selects the texts of a JSON list, given as an argument.

    Raises:
        ConfigError: A newer release wrote it, or it cannot be made there.
        UnreachableError: It does not answer.
    """

    is_shared = True
    each = "SELECT json_array_elements_text(CAST(? AS json))"

    def __init__(self, shared: SharedStore, folder: Path, *, read_only: bool = False) -> None:
        try:
            from catalogzero.sql.postgresql import Session
        except ModuleNotFoundError:
            text = f"{SETTING}: PostgreSQL's driver is not installed: {install_hint('postgresql')}"
            raise ConfigError(text) from None
        self.folder, self.handler_id, self.owner = folder, shared.handler_id, shared.instance_id
        self._schema = schema_name(shared.handler_id)
        # Of 64 bits, signed, as PostgreSQL's locks are.
        digest = hashlib.blake2b(self._schema.encode(), digest_size=8).digest()
        self._lock_id = int.from_bytes(digest, "big", signed=True)
        self._session = Session(shared.url, setting=SETTING, schema=self._schema)
        self.label = f"{self._session.label}, schema {self._schema}"
        self.lock: threading.RLock = self._session.lock
        self.execute: Callable[..., list[Any]] = self._session.execute
        self.change: Callable[..., int] = self._session.change
        try:
            self.version = self._version()
            if not read_only and self.version < len(SHARED_MIGRATIONS):
                self.write(self._bring_forward)
        except BaseException:
            self.close()
            raise

    def write(self, work: Callable[[], T], *, of_one: bool = False) -> T:
        """Run work in one transaction; see `Session.write`.

        Args:
            work: What is written; it is run again where a transaction came to nothing.
            of_one: It changes one upload alone, so that it need not wait for others.
        """
        return self._session.write(work, None if of_one else self._lock_id)

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def json_text(self, column: str, name: str) -> str:
        """The SQL of a member's text in a column of JSON."""
        return f"(CAST({column} AS json) ->> '{name}')"

    def refuse_damaged(self) -> None:
        """Nothing: the server looks after its own files."""

    def drop_reserve(self) -> bool:
        """False: there is no reserve."""
        return False

    def tidy(self) -> None:
        """Nothing: the server gives back space by itself."""

    def _version(self) -> int:
        """The schema's version; 0 where there is none yet.

        Raises:
            ConfigError: A newer release wrote it.
        """
        sql = "SELECT to_regclass(?) IS NOT NULL"
        [(is_there,)] = self.execute(sql, [f'"{self._schema}".schema_version'])
        found = int(self.execute("SELECT version FROM schema_version")[0][0]) if is_there else 0
        refuse_newer(self.label, found, len(SHARED_MIGRATIONS))
        return found

    def _bring_forward(self) -> None:
        """Take the steps that are left."""
        sql = "SELECT 1 FROM pg_namespace WHERE nspname = ?"
        if not self.execute(sql, [self._schema]):  # whoever runs the server may have made it
            self.execute(f'CREATE SCHEMA "{self._schema}"')
        self.version = self._version()  # another instance may have been faster
        for script in SHARED_MIGRATIONS[self.version :]:
            for statement in script.split(";"):
                if statement.strip():
                    self.execute(statement)
        self.execute("UPDATE schema_version SET version = ?", [len(SHARED_MIGRATIONS)])
        self.version = len(SHARED_MIGRATIONS)


def schema_name(handler_id: str) -> str:
    """The schema of a handler's outbox: a name of PostgreSQL's length, each handler's own."""
    name = f"catalogzero_{handler_id}"
    if len(name) <= _MAX_NAME_BYTES:
        return name
    digest = hashlib.blake2b(handler_id.encode(), digest_size=8).hexdigest()
    return f"{name[: _MAX_NAME_BYTES - len(digest) - 1]}_{digest}"

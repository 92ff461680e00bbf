"""The database behind the backend: connections, threads, transactions.

Owns the engines and the threads that use them, so that no database call ever blocks the event
loop: on SQLite one writer beside a few readers, on PostgreSQL a pool. It knows no table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from catalogzero.backend.schema import prepare
from catalogzero.errors import ConfigError, UnreachableError

T = TypeVar("T")

BUSY_TIMEOUT_MS = 30_000
READERS = 4
POSTGRESQL_WRITERS = 8
SERIALIZATION_CODES = {"40001", "40P01"}


class Database:
    """Opens a database by URL, and runs functions of one connection, each in one transaction.

    Args:
        url: A SQLAlchemy URL of SQLite or PostgreSQL.

    Raises:
        ConfigError: Another kind of database, a driver that is not installed, or a database that
            cannot be opened.
        UnreachableError: The database server does not answer.
    """

    def __init__(self, url: str) -> None:
        parsed = _parse(url)
        self.label = parsed.render_as_string(hide_password=True)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        writers = 1 if self.is_sqlite else POSTGRESQL_WRITERS
        self._write_engine = _engine(parsed, writers, read_only=False)
        self._read_engine = _engine(parsed, READERS, read_only=True)
        self._writers = ThreadPoolExecutor(writers, thread_name_prefix="backend-write")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="backend-read")
        self._prepare()

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction of its own, committed when this returns."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writers, self.write_now, work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which only reads, on one snapshot of the database."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self.read_now, work)

    def write_now(self, work: Callable[[Connection], T]) -> T:
        """`write`, in the calling thread; a transaction that lost a deadlock is run again."""
        for attempt in self._attempts():
            with attempt, self._write_engine.begin() as connection:
                return work(connection)
        raise AssertionError("the last attempt raises")

    def read_now(self, work: Callable[[Connection], T]) -> T:
        """`read`, in the calling thread."""
        with self._read_engine.connect() as connection:
            return work(connection)

    def close(self) -> None:
        """Wait for what is running, then close every connection."""
        self._writers.shutdown()
        self._readers.shutdown()
        self._read_engine.dispose()
        self._write_engine.dispose()

    @staticmethod
    def _attempts() -> Retrying:
        return Retrying(
            retry=retry_if_exception(_is_serialization_failure),
            wait=wait_random_exponential(0.01, max=0.5),
            stop=stop_after_attempt(5),
            reraise=True,
        )

    def _prepare(self) -> None:
        try:
            self.write_now(prepare)
        except DBAPIError as error:
            self.close()
            said = f"cannot open the database {self.label}: {error.orig}"
            if self.is_sqlite or getattr(error.orig, "sqlstate", None):
                raise ConfigError(said) from None
            raise UnreachableError(said) from None
        except ConfigError:
            self.close()
            raise


def insert_new(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless its key is there already; whether it was inserted."""
    statement = _insert(connection, table).values(dict(values)).on_conflict_do_nothing()
    counting = {"preserve_rowcount": True}
    return connection.execute(statement, execution_options=counting).rowcount == 1


def upsert(
    connection: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    key: Sequence[str],
    changed: Iterable[str],
) -> None:
    """Insert rows; where a key is there already, set its `changed` columns to the row's."""
    statement = _insert(connection, table)
    changes = {name: statement.excluded[name] for name in changed}
    connection.execute(
        statement.on_conflict_do_update(index_elements=list(key), set_=changes),
        [dict(row) for row in rows],
    )


def _insert(connection: Connection, table: Table) -> Any:
    """The dialect's own INSERT, which knows ON CONFLICT."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)


def _parse(url: str) -> URL:
    """The URL's parts, with our driver; a plain path is an SQLite file, whose folder is made."""
    try:
        parsed = make_url(url if "://" in url else f"sqlite:///{url}")
    except ArgumentError:
        raise ConfigError(
            "`database` is sqlite:///file.db or postgresql://user@host/name"
        ) from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql", "postgres"):
        raise ConfigError("`database` is an SQLite or a PostgreSQL URL")
    if parsed.get_backend_name() != "sqlite":
        return parsed.set(drivername="postgresql+psycopg")
    if not parsed.database or parsed.database == ":memory:":
        raise ConfigError("`database` needs a file: sqlite:///backend.db")
    with suppress(OSError):
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return parsed


def _engine(url: URL, size: int, *, read_only: bool) -> Engine:
    """An engine whose pool never holds more than `size` connections."""
    try:
        engine = create_engine(url, pool_size=size, max_overflow=0, pool_pre_ping=True)
    except (ModuleNotFoundError, NoSuchModuleError):
        raise ConfigError(
            "the PostgreSQL driver is not installed: pip install 'catalogzero[postgresql]'"
        ) from None
    if engine.dialect.name == "sqlite":
        _tune_sqlite(engine, read_only=read_only)
    return engine


def _tune_sqlite(engine: Engine, *, read_only: bool) -> None:
    """WAL, every commit on the disk, and transactions that begin when we say so."""

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        if read_only:
            connection.execute("PRAGMA query_only=ON")
            return
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _is_serialization_failure(error: BaseException) -> bool:
    """Whether PostgreSQL undid the transaction in favour of another one."""
    return (
        isinstance(error, DBAPIError)
        and getattr(error.orig, "sqlstate", None) in SERIALIZATION_CODES
    )

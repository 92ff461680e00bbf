"""Databases by URL, on SQLAlchemy: SQLite files and PostgreSQL behind one `Database`.

Owns engines, pools, the threads that use them, schema versions, and how long anything may take, so
that no call blocks the event loop and none waits for ever. It knows no table but the version's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from tenacity import Retrying, retry_if_exception, stop_after_attempt

from catalogzero.backoff import Backoff
from catalogzero.config.install_hint import install_hint, package_hint
from catalogzero.config.settings import shown_url
from catalogzero.errors import CatalogZeroError, ConfigError, UnreachableError
from catalogzero.sql.limits import AnswerLimits
from catalogzero.sql.sqlite import (
    PRAGMAS,
    DamagedFileError,
    check_file,
    explain,
    make_file,
    refuse_newer,
)

T = TypeVar("T")
Work: TypeAlias = Callable[[sa.Connection], T]

DATABASE_AWAY = (exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.TimeoutError)
"""What a database that is gone, mute, full or busy raises: the same work may be tried again."""

ANSWER_S = 30.0
CLOSE_S = 5.0
MIGRATE_S = 3_600.0
PSYCOPG = "postgresql+psycopg"
SERIALIZATION_CODES = {"40001", "40P01"}
_AWAY_CLASSES = ("08", "53", "55", "57")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """What a database is to hold, and how an older one becomes so.

    `version` is a table of one row with a column `version`. `create` makes the newest schema, that
    table too, in an empty database. Step n of `upgrades` makes version n + 2 out of n + 1; they are
    append only. `lock_id` is held on PostgreSQL while one process migrates.
    """

    version: sa.Table
    create: Callable[[sa.Connection], object]
    upgrades: Sequence[Callable[[sa.Connection], object]] = ()
    lock_id: int

    @property
    def newest(self) -> int:
        """The version that this release writes."""
        return len(self.upgrades) + 1

    def version_in(self, connection: sa.Connection) -> int | None:
        """The version of a database; None where there is none yet."""
        if not sa.inspect(connection).has_table(self.version.name):
            return None
        return connection.scalar(sa.select(self.version.c.version))

    def migrate(self, connection: sa.Connection) -> None:
        """Bring a database forward, in the transaction of the connection."""
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({self.lock_id})"))
        found = self.version_in(connection)
        if found is None:
            self.create(connection)
            connection.execute(sa.insert(self.version).values(version=self.newest))
            return
        for step in self.upgrades[found - 1 :]:
            step(connection)
        if found < self.newest:
            connection.execute(sa.update(self.version).values(version=self.newest))


@dataclass(frozen=True, slots=True)
class Pool:
    """Connections of one kind: how many there may be, are in use, and are waited for."""

    size: int
    busy: int
    waiting: int


class Database:
    """A database opened by URL: transactions in threads of its own, each wait with an end.

    One writer at a time on SQLite, a pool on PostgreSQL; readers beside them. The schema is made or
    brought forward at once.

    Args:
        url: A SQLAlchemy URL of SQLite or PostgreSQL, or the path of an SQLite file.
        schema: What it is to hold.
        setting: The name under which the user gave the URL, for errors.
        name: Of the threads.
        writers: Connections that write, on PostgreSQL.
        readers: Connections that only read.
        answer_s: Longest wait for an answer, in seconds; half of it for a free connection.
        thorough: Look through the whole of an SQLite file for damage.

    Raises:
        ConfigError: Another kind of database, a driver that is not installed, one that a newer
            release wrote, or one that is damaged or cannot be opened.
        UnreachableError: It does not answer, or another process holds its lock.
    """

    def __init__(
        self,
        url: str,
        schema: Schema,
        *,
        setting: str,
        name: str,
        writers: int,
        readers: int,
        answer_s: float = ANSWER_S,
        thorough: bool = False,
    ) -> None:
        self.url = parse_url(url, setting)
        self.dialect = self.url.get_backend_name()
        self.label = shown_url(self.url.render_as_string(hide_password=True))
        self._limits = AnswerLimits(answer_s)
        writers = 1 if self.dialect == "sqlite" else writers
        self._writers = _EnginePool(self.url, self._limits, writers, f"{name}-write", reads=False)
        self._readers = _EnginePool(self.url, self._limits, readers, f"{name}-read", reads=True)
        try:
            self._prepare(schema, thorough=thorough)
        except (ConfigError, UnreachableError) as error:
            self.close()
            raise type(error)(f"{setting}: {error.message}") from None

    def writing(self) -> AbstractContextManager[sa.Connection]:
        """One transaction that may write, in the calling thread."""
        return self._writers.engine.begin()

    def reading(self) -> AbstractContextManager[sa.Connection]:
        """One transaction that only reads, in the calling thread."""
        return self._readers.engine.connect()

    def write_now(self, work: Work[T]) -> T:
        """Run `work` in one transaction; one that lost a deadlock is run again."""

        def once() -> T:
            with self.writing() as connection:
                return work(connection)

        return retrying(once)

    def read_now(self, work: Work[T]) -> T:
        """Run `work`, which only reads, in one transaction."""
        with self.reading() as connection:
            return work(connection)

    async def write(self, work: Work[T]) -> T:
        """`write_now`, in a thread; committed when this returns."""
        return await self._writers.run(partial(self.write_now, work))

    async def read(self, work: Work[T]) -> T:
        """`read_now`, in a thread."""
        return await self._readers.run(partial(self.read_now, work))

    async def in_writer(self, call: Callable[[], T]) -> T:
        """Call what is one transaction with `writing`, in a thread that writes."""
        return await self._writers.run(partial(retrying, call))

    async def in_reader(self, call: Callable[[], T]) -> T:
        """Call what uses `reading`, in a thread that reads."""
        return await self._readers.run(call)

    def pools(self) -> dict[str, Pool]:
        """How busy the connections are that write, and those that read."""
        pools = {"write": self._writers, "read": self._readers}
        return {name: Pool(pool.size, pool.busy, pool.waiting) for name, pool in pools.items()}

    def end_within(self, delay_s: float = CLOSE_S) -> None:
        """The service stops: no wait for PostgreSQL goes on for more than `delay_s` from now."""
        self._limits.end_within(delay_s)

    def close(self) -> None:
        """Wait for what is running, five seconds at most on PostgreSQL; close every connection."""
        self.end_within()
        self._writers.close()
        self._readers.close()

    def _prepare(self, schema: Schema, *, thorough: bool) -> None:
        """Refuse a database of a newer release by reading alone; make or migrate another."""
        if self.dialect == "sqlite" and "uri" not in self.url.query:
            make_file(Path(str(self.url.database)))
            if thorough:
                check_file(Path(str(self.url.database)), self._limits.answer_s)
        try:
            found = self.read_now(schema.version_in)
            refuse_newer(self.label, found or 0, schema.newest)
            if found is not None and found < schema.newest:
                self._migrate_patiently(schema)
            else:
                self.write_now(schema.migrate)
        except exc.DBAPIError as error:
            raise self._cannot_open(error) from None

    def _migrate_patiently(self, schema: Schema) -> None:
        """Take upgrade steps, which may well run for long, without the everyday limits."""
        everyday_s, self._limits.answer_s = self._limits.answer_s, MIGRATE_S
        try:
            with self.writing() as connection:
                if self.dialect == "postgresql":
                    connection.execute(sa.text(self._limits.statement(in_transaction=True)))
                schema.migrate(connection)
        finally:
            self._limits.answer_s = everyday_s

    def damage(self, error: BaseException) -> DamagedFileError | None:
        """Our error for one that says that the file is damaged; None for any other."""
        orig = error.orig if isinstance(error, exc.DBAPIError) else None
        found = explain(str(self.url.database), orig) if orig and self.dialect == "sqlite" else None
        return found if isinstance(found, DamagedFileError) else None

    def _cannot_open(self, error: exc.DBAPIError) -> CatalogZeroError:
        """Our error for a database that could not be opened."""
        if self.dialect == "sqlite":
            return explain(str(self.url.database), error.orig or error)
        why = " ".join(str(error.orig).split())
        code = sqlstate_of(error)
        if code is None or code.startswith(_AWAY_CLASSES):
            return UnreachableError(
                f"the database {self.label} does not answer: {why}: start it, or name another"
            )
        return ConfigError(f"cannot open the database {self.label}: {why}")


class _EnginePool:
    """An engine with as many threads as connections, so that no thread waits for one."""

    def __init__(
        self, url: sa.URL, limits: AnswerLimits, size: int, name: str, *, reads: bool
    ) -> None:
        self._limits, self._name = limits, name
        pool = {"pool_size": size, "max_overflow": 0, "pool_timeout": limits.answer_s}
        self.engine = open_engine(url, limits, reads=reads, pool_pre_ping=True, **pool)
        self._threads = ThreadPoolExecutor(size, name)
        self._free = asyncio.Semaphore(size)
        self.size, self.busy, self.waiting = size, 0, 0

    async def run(self, call: Callable[[], T]) -> T:
        """Call in a thread.

        Raises:
            sqlalchemy.exc.TimeoutError: No thread was free in time.
        """
        self.waiting += 1
        try:
            # Half of it: the answer itself has the other half before the caller gives up.
            async with asyncio.timeout(self._limits.answer_s / 2):
                await self._free.acquire()
        except TimeoutError:
            raise exc.TimeoutError(f"{self._name}: all connections are busy") from None
        finally:
            self.waiting -= 1
        self.busy += 1
        work = asyncio.get_running_loop().run_in_executor(self._threads, call)
        work.add_done_callback(self._ended)
        return await asyncio.shield(work)  # a cancelled caller's thread is busy all the same

    def _ended(self, work: asyncio.Future[Any]) -> None:
        self.busy -= 1
        self._free.release()
        if not work.cancelled():
            work.exception()  # its caller may be gone

    def close(self) -> None:
        self._threads.shutdown()
        self.engine.dispose()


def parse_url(url: str, setting: str) -> sa.URL:
    """The parts of a URL, with our driver of PostgreSQL; a path is that of an SQLite file.

    Raises:
        ConfigError: Neither SQLite with a file, nor PostgreSQL.
    """
    is_path = "://" not in url and not {"/", "."}.isdisjoint(url)
    with suppress(exc.ArgumentError):
        parsed = with_our_driver(sa.make_url(f"sqlite:///{url}" if is_path else url))
        if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
            raise ConfigError(f"{setting} needs a file: sqlite:///file.db")
        if parsed.get_backend_name() in ("sqlite", "postgresql"):
            return parsed
    raise ConfigError(
        f"{setting} takes an SQLite or a PostgreSQL database: name a sqlite:///file or a "
        "postgresql://user@host/database, or the path of a file, such as ./file.db"
    )


def with_our_driver(url: sa.URL) -> sa.URL:
    """A URL that names PostgreSQL alone, with the driver that we bring."""
    return url.set(drivername=PSYCOPG) if url.drivername in ("postgresql", "postgres") else url


@contextmanager
def open_source(url: str, answer_s: float) -> Iterator[sa.Connection]:
    """A connection to somebody else's database, of any dialect, for one transaction that reads.

    On PostgreSQL it sees one state of the database, and each answer (rows come in parts) has a
    limit; with other drivers limits are those that their URL sets. No pragma that stays is set, and
    no setting of a session.

    Raises:
        ConfigError: The driver is not installed, or there is no such SQLite file: none is made.
        SQLAlchemyError: What the driver says.
    """
    parsed, limits = with_our_driver(sa.make_url(url)), AnswerLimits(answer_s)
    if parsed.get_backend_name() == "sqlite":
        # By default a database in memory is kept to the thread that opened it; rows may be read on
        # in another one, though never in two at once.
        parsed = only_there(parsed).update_query_dict({"check_same_thread": "false"})
    engine = open_engine(parsed, limits, reads=True, poolclass=sa.NullPool)
    with engine.connect() as connection:  # closed for good at the end: no pool keeps it
        if engine.dialect.name != "sqlite":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        if parsed.drivername == PSYCOPG:
            connection.exec_driver_sql(limits.statement(in_transaction=True))
        yield connection


def only_there(url: sa.URL) -> sa.URL:
    """The URL of an SQLite file that is there, as SQLite would make a missing one.

    Raises:
        ConfigError: It is not.
    """
    name = url.database or ""
    if name.startswith("file:") and "uri" in url.query:
        return url if "mode" in url.query else url.update_query_dict({"mode": "rw"})
    if name not in {"", ":memory:"} and not Path(name).exists():
        raise ConfigError(f"there is no SQLite file {name}: correct the path in the database URL")
    return url


@contextmanager
def driver_errors(connection: sa.Connection) -> Iterator[None]:
    """What a cursor of the driver's own raises, as SQLAlchemy's errors."""
    try:
        yield
    except connection.dialect.loaded_dbapi.Error as error:
        if connection.dialect.is_disconnect(error, connection.connection.dbapi_connection, None):
            connection.invalidate(error)
        base = connection.dialect.loaded_dbapi.Error
        raise exc.DBAPIError.instance(None, None, error, base, hide_parameters=True) from error


def open_engine(url: sa.URL, limits: AnswerLimits, *, reads: bool, **options: Any) -> sa.Engine:
    """An engine whose connections wait no longer than the limits say.

    Raises:
        ConfigError: The driver is not installed.
    """
    given: dict[str, float] = {}
    if url.get_backend_name() == "sqlite":
        given = {"timeout": limits.answer_s}
    elif url.drivername == PSYCOPG:
        given = {k: v for k, v in limits.parameters().items() if k not in url.query}
    try:
        engine = sa.create_engine(url, connect_args=given, hide_parameters=True, **options)
        if url.drivername == PSYCOPG:
            keep_limits(engine, limits, session="poolclass" not in options)
    except exc.NoSuchModuleError:
        raise ConfigError(
            f"the driver of {url.drivername} is not installed: name one that is, or install the "
            f"package that brings SQLAlchemy its {url.get_backend_name()}"
        ) from None
    except ModuleNotFoundError as error:
        is_ours = url.drivername == PSYCOPG
        missing = (error.name or url.get_driver_name()).partition(".")[0]
        fix = install_hint("postgresql") if is_ours else package_hint(missing)
        raise ConfigError(f"the driver of {url.drivername} is not installed: {fix}") from None
    if engine.dialect.name == "sqlite":
        tune_sqlite(engine, reads=reads)
    return engine


def keep_limits(engine: sa.Engine, limits: AnswerLimits, *, session: bool) -> None:
    """Let connections to PostgreSQL keep the limits; with `session`, the server keeps its own."""
    from catalogzero.sql.postgresql import BoundedConnection

    @sa.event.listens_for(engine, "do_connect")
    def _open(_dialect: Any, _record: Any, args: Any, named: Any) -> BoundedConnection:
        return BoundedConnection.open(limits, *args, **named)

    @sa.event.listens_for(engine, "connect")
    def _limit(connection: BoundedConnection, _record: Any) -> None:
        if session:
            connection.execute(limits.statement(in_transaction=False))
            connection.commit()


def tune_sqlite(engine: sa.Engine, *, reads: bool) -> None:
    """SQLite: transactions begin when we say so, one writer at a time, each commit on the disk."""
    pragmas = ("query_only=ON",) if reads else (*PRAGMAS, "synchronous=FULL")

    @sa.event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        # The driver would begin transactions by itself, and only with the first write.
        connection.isolation_level = None
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _on_begin(connection: sa.Connection) -> None:
        # One that reads first and writes then would fail where another wrote in between.
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def retrying(call: Callable[[], T]) -> T:
    """Call; again where PostgreSQL undid the transaction in favour of another one."""
    return Retrying(
        retry=retry_if_exception(lambda error: sqlstate_of(error) in SERIALIZATION_CODES),
        wait=Backoff(0.01, 0.5),
        stop=stop_after_attempt(5),
        reraise=True,
    )(call)


def sqlstate_of(error: BaseException) -> str | None:
    """PostgreSQL's code of an error, if it comes from there."""
    return getattr(getattr(error, "orig", None), "sqlstate", None)

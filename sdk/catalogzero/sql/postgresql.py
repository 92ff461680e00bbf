"""Connections to PostgreSQL that never wait for ever: the one module that knows psycopg.

Every wait of a connection (for a ping, a statement, a commit, a part of a COPY) goes through its
`wait`, and psycopg looks there ten times a second whether to go on: there the limit is kept, in the
waiting thread itself. `Session` is one without an SQL toolkit around it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, Self, TypeVar

import psycopg
from tenacity import Retrying, retry_if_exception, stop_after_delay

from catalogzero.backoff import Backoff
from catalogzero.config.settings import shown_url
from catalogzero.errors import ConfigError, UnknownCommitError, UnreachableError
from catalogzero.sql.limits import AnswerLimits

T = TypeVar("T")

ANSWER_S, WAIT_S = 10.0, 30.0
"""How long a `Session` waits for one answer, and for the database to be there again."""


class BoundedConnection(psycopg.Connection[Any]):
    """Closes itself, with an `OperationalError`, where an answer takes too long."""

    limits: AnswerLimits

    @classmethod
    def open(cls, limits: AnswerLimits, *args: Any, **named: Any) -> Self:
        """Connect, unless the database is being closed; see `psycopg.Connection.connect`."""
        if limits.left_s(limits.start()) <= 0:
            raise psycopg.OperationalError("the database is being closed")
        connection = cls.connect(*args, **named)
        connection.limits = limits
        return connection

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **named: Any) -> Any:
        """See `psycopg.Connection.wait`."""
        return super().wait(self._bounded(gen), *args, **named)

    def _bounded(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """The same steps of waiting; an error instead of the next one where the time is over."""
        began_s = self.limits.start()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and self.limits.left_s(began_s) <= 0:
                    # What the server still sends would be taken for the next answer.
                    self.close()
                    waited_s = self.limits.start() - began_s
                    raise psycopg.OperationalError(f"no answer for {waited_s:.1f} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value


class Session:
    """One connection to PostgreSQL, opened again where it was lost; for one thread at a time.

    What cannot be asked for want of a connection is asked again, as long as `WAIT_S`; so is a
    transaction that came to nothing. Once that was in vain, each is tried once until one goes well.
    Where the answer to a commit was lost, the server is asked what became of it, as long as that:
    nothing is done twice.

    Args:
        url: A URL of libpq's form.
        setting: The name under which the user gave it, for errors.
        schema: What unqualified names of tables are looked up in.
        answer_s: Longest wait for an answer, in seconds.

    Attributes:
        label: The server and the database, for errors; without a password.
        lock: Held by whoever uses the connection.
    """

    def __init__(self, url: str, *, setting: str, schema: str, answer_s: float = ANSWER_S) -> None:
        self.label = shown_url(url)
        self.lock = threading.RLock()
        self._url, self._setting, self._schema = url, setting, schema
        self._limits = AnswerLimits(answer_s)
        self._connection: BoundedConnection | None = None
        self._is_writing = self._is_away = False

    def execute(self, sql: str, args: Sequence[Any] = ()) -> list[Any]:
        """Run one statement, with `?` for each argument; its rows."""

        def rows() -> list[Any]:
            cursor = self._opened().cursor(binary=True).execute(_own(sql), args or None)
            return cursor.fetchall() if cursor.description else []

        return self._asked(rows)

    def change(self, sql: str, args: Sequence[Any] = ()) -> int:
        """Run one statement; how many rows it changed."""
        return self._asked(lambda: self._opened().execute(_own(sql), args or None).rowcount)

    def write(self, work: Callable[[], T], lock_id: int | None = None) -> T:
        """Run work in one transaction, under an advisory lock where one is named.

        Raises:
            UnknownCommitError: The database does not say whether it was written.
            UnreachableError: The database does not answer, or not in time: nothing was written.
        """
        return self._patiently(lambda: self._once(work, lock_id))

    def close(self) -> None:
        """Close the connection."""
        with self.lock:
            self._drop()

    def _asked(self, ask: Callable[[], T]) -> T:
        """Ask within the transaction that is open; else in one of its own."""

        def once() -> T:
            with self.lock, self._explained():
                return ask()

        with self.lock:
            if self._is_writing:
                return once()
        return self._patiently(once)

    def _once(self, work: Callable[[], T], lock_id: int | None) -> T:
        """One try of a transaction."""
        with self.lock, self._explained():
            db = self._opened()
            lock = "" if lock_id is None else f", pg_advisory_xact_lock({lock_id})"
            # In one round trip, without parameters: two statements are one query then.
            cursor = db.execute(f"BEGIN; SELECT pg_current_xact_id()::text{lock}")
            cursor.nextset()
            [(number, *_)] = cursor.fetchall()
            self._is_writing = True
            try:
                result = work()
            except BaseException:
                self._is_writing = False
                self._undo()
                raise
            self._is_writing = False
            try:
                ended = db.execute("COMMIT").statusmessage
            except psycopg.OperationalError:
                self._drop()
                if not self._is_committed(number):
                    raise
            else:
                if ended != "COMMIT":  # a statement failed, and its error came to nobody
                    raise psycopg.OperationalError(f"the commit was answered by {ended}")
            return result

    def _undo(self) -> None:
        """Roll back; a connection that cannot is closed, and the server does it."""
        try:
            if self._connection is not None:
                self._connection.execute("ROLLBACK")
        except psycopg.Error:
            self._drop()

    def _is_committed(self, number: str) -> bool:
        """What became of a transaction whose commit was not answered.

        Raises:
            UnknownCommitError: Nobody says.
        """

        def ask() -> bool:
            with self._explained():
                cursor = self._opened().execute("SELECT pg_xact_status(%s::xid8)", [number])
                [(state,)] = cursor.fetchall()
                if state == "in progress":
                    raise psycopg.OperationalError("a commit is under way")
                return bool(state == "committed")

        try:
            return self._patiently(ask)
        except UnreachableError as error:
            raise UnknownCommitError(f"{error.message}; what it took last may be there") from None

    def _patiently(self, once: Callable[[], T]) -> T:
        """Try until the database answers, or the time is up; whoever comes later tries once."""
        try:
            result = once()
        except UnreachableError as error:
            if self._is_away or not _is_tried_again(error):
                raise
            tries = Retrying(
                retry=retry_if_exception(_is_tried_again),
                wait=Backoff(0.05, 2.0),
                stop=stop_after_delay(WAIT_S),
                reraise=True,
            )
            try:
                result = tries(once)
            except UnreachableError:
                self._is_away = True
                raise
        self._is_away = False
        return result

    def _opened(self) -> BoundedConnection:
        """The connection; opened where there is none, but not within a transaction.

        Raises:
            OperationalError: That of the transaction is lost.
        """
        if self._connection is None or self._connection.closed:
            if self._is_writing:
                raise psycopg.OperationalError("the connection was lost")
            limits = self._limits
            db = BoundedConnection.open(limits, self._url, autocommit=True, **limits.parameters())
            db.execute(limits.statement(in_transaction=False))
            db.execute("SELECT set_config('search_path', %s, false)", [f'"{self._schema}"'])
            self._connection = db
        return self._connection

    def _drop(self) -> None:
        """Close the connection, whatever state it is in."""
        with suppress(psycopg.Error):
            if self._connection is not None:
                self._connection.close()
        self._connection = None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Our error where the database is away; any other as it is."""
        try:
            yield
        except psycopg.errors.InsufficientPrivilege as error:
            why = " ".join(str(error).split())
            raise ConfigError(
                f"{self._setting}: {self.label}: {why}: grant its user that"
            ) from None
        except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError) as error:
            if not self._is_writing:
                self._drop()
            why = " ".join(str(error).split())
            if (error.sqlstate or "").startswith("28"):
                text = f"{self._setting}: {self.label} refuses the login: {why}"
                raise ConfigError(f"{text}: correct its user or password") from None
            raise UnreachableError(
                f"{self._setting}: the database {self.label} does not answer: {why}: start it, or "
                "name another"
            ) from None


def _is_tried_again(error: BaseException) -> bool:
    """Whether nothing came of what failed, so that it may go well later."""
    return isinstance(error, UnreachableError) and not isinstance(error, UnknownCommitError)


@lru_cache(maxsize=256)
def _own(text: str) -> str:
    """A statement as psycopg takes it."""
    return text.replace("?", "%s")

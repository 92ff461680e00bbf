"""How long a database may take: acquiring, pinging, executing, committing, each with an end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import sqlalchemy as sa
from catalogzero.errors import ConfigError, UnreachableError
from catalogzero.sql.engines import (
    DATABASE_AWAY,
    Database,
    Schema,
    driver_errors,
    open_source,
)
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tests.sql.tcp_proxy import TcpProxy

TIMEOUT_S = 1.0
metadata = sa.MetaData()
versions = sa.Table("test_version", metadata, sa.Column("version", sa.Integer))
notes = sa.Table("notes", metadata, sa.Column("text", sa.String(99)))
SCHEMA = Schema(version=versions, create=metadata.create_all, lock_id=1)
COUNT = sa.select(sa.func.count()).select_from(notes)

pytestmark = pytest.mark.postgresql


def open_database(url: str, answer_s: float = TIMEOUT_S) -> Database:
    return Database(
        url, SCHEMA, setting="--here", name="test", writers=1, readers=1, answer_s=answer_s
    )


@pytest.fixture
def database(behind: str) -> Iterator[Database]:
    with closing(open_database(behind)) as database:
        yield database


def add(connection: sa.Connection) -> None:
    connection.execute(sa.insert(notes).values(text="one"))


def count(connection: sa.Connection) -> int:
    return connection.execute(COUNT).scalar_one()


def test_a_statement_that_gets_no_answer_ends_and_the_next_has_a_fresh_connection(
    database: Database, proxy: TcpProxy
) -> None:
    def silent(connection: sa.Connection) -> None:
        add(connection)
        proxy.mute()
        add(connection)

    with pytest.raises(OperationalError, match="no answer for"):
        database.write_now(silent)
    proxy.speak()

    database.write_now(add)
    assert database.read_now(count) == 1


def test_a_commit_that_gets_no_answer_is_an_error_and_its_row_is_not_there(
    database: Database, proxy: TcpProxy
) -> None:
    def silent_at_the_end(connection: sa.Connection) -> None:
        add(connection)
        proxy.mute()

    with pytest.raises(OperationalError, match="no answer for"):
        database.write_now(silent_at_the_end)
    assert proxy.swallowed > 0
    proxy.speak()

    assert database.read_now(count) == 0


def test_a_copy_that_gets_no_answer_is_an_error_like_any_other(
    database: Database, proxy: TcpProxy
) -> None:
    def silent(connection: sa.Connection) -> None:
        cursor: Any = connection.connection.cursor()
        with driver_errors(connection), cursor.copy("COPY notes FROM STDIN") as copy:
            copy.write("one\n")
            proxy.mute()

    with pytest.raises(OperationalError, match="no answer for"):
        database.write_now(silent)
    proxy.speak()

    assert database.read_now(count) == 0


def test_a_ping_and_a_new_connection_that_get_no_answer_end_too(
    database: Database, proxy: TcpProxy
) -> None:
    database.read_now(count)
    opened = proxy.opened
    proxy.mute()

    with pytest.raises(OperationalError):
        database.read_now(count)  # its connection does not answer the ping, a new one no login

    assert proxy.opened > opened


async def test_who_waits_for_a_connection_gives_up_and_the_loop_goes_on(
    database: Database,
) -> None:
    leave, turns = threading.Event(), 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_later(0.01, turn)

    turn()
    first = asyncio.create_task(database.write(lambda _: leave.wait(30)))
    with pytest.raises(PoolTimeoutError, match="busy"):
        await asyncio.gather(asyncio.sleep(0), database.write(add))
    leave.set()

    assert await first
    assert turns > 5
    await database.write(add)


async def test_a_caller_that_is_cancelled_leaves_its_thread_taken_until_it_ends(
    database: Database,
) -> None:
    began, leave = threading.Event(), threading.Event()

    def work(_: sa.Connection) -> None:
        began.set()
        leave.wait(30)

    gone = asyncio.create_task(database.write(work))
    await asyncio.to_thread(began.wait, 30)
    gone.cancel()
    await asyncio.wait([gone])

    with pytest.raises(PoolTimeoutError):
        await database.write(add)
    leave.set()
    await database.write(add)


def test_closing_ends_a_wait_that_may_last_for_an_hour(behind: str, proxy: TcpProxy) -> None:
    database, ended = open_database(behind, answer_s=3_600.0), threading.Event()

    def waits() -> None:
        with pytest.raises(DATABASE_AWAY):
            database.read_now(count)
        ended.set()

    database.read_now(count)
    proxy.mute()
    thread = threading.Thread(target=waits)
    thread.start()
    while not proxy.swallowed:
        ended.wait(0.01)

    database.end_within(0.0)

    assert ended.wait(30)
    thread.join()
    database.close()


def test_the_server_keeps_its_own_limits_shorter_than_ours(postgresql: str) -> None:
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    asked = sa.text("SELECT " + ", ".join(f"current_setting('{name}')" for name in names))
    with closing(open_database(postgresql, answer_s=10.0)) as database:
        kept = database.read_now(lambda connection: tuple(connection.execute(asked).one()))
    with open_source(postgresql, 3_600.0) as connection:
        source = connection.execute(asked).one()
        level = connection.exec_driver_sql("SHOW transaction_isolation").scalar_one()

    assert kept == ("8s", "5s", "20s")
    assert (source[0], level) == ("48min", "repeatable read")


def test_a_mute_server_at_the_start_is_named_without_its_password(
    behind: str, proxy: TcpProxy
) -> None:
    proxy.mute()
    url = behind.replace("postgres@", "postgres:hunter2secret@")

    with pytest.raises(
        UnreachableError, match=r"--here: the database .* does not answer"
    ) as caught:
        open_database(url)

    assert "hunter2secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "--here takes an SQLite or a PostgreSQL database"),
        ("mysql://localhost/x", "--here takes an SQLite or a PostgreSQL database"),
        ("sqlite:///", "--here needs a file"),
        ("postgresql+missing://localhost/x", r"the driver of postgresql\+missing is not installed"),
    ],
)
def test_what_is_no_database_of_ours_is_refused_with_the_fix(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        open_database(url)

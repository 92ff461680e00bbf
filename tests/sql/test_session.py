"""One connection that is opened again: what is written through it is there once, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import psycopg
import pytest
from catalogzero.errors import UnknownCommitError, UnreachableError
from catalogzero.sql import postgresql
from catalogzero.sql.postgresql import Session

from tests.sql.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.postgresql, pytest.mark.timeout(90)]

LOCK_ID = 7


@pytest.fixture
def session(behind: str) -> Iterator[Session]:
    """A session through the proxy, with a table of its own."""
    with closing(Session(behind, setting="--here", schema="public", answer_s=1.0)) as session:
        session.execute("CREATE TABLE notes (text TEXT)")
        yield session


def add(session: Session) -> None:
    session.execute("INSERT INTO notes VALUES (?)", ["one"])


def count(session: Session) -> int:
    return int(session.execute("SELECT COUNT(*) FROM notes")[0][0])


class Cut:
    """Cuts a connection at a commit: before the server has it, or as the answer comes back."""

    def __init__(self, proxy: TcpProxy, *, is_answer: bool, also: Callable[[], object]) -> None:
        self._is_answer, self._also, self.cuts = is_answer, also, 0
        proxy.lets_pass = self

    def __call__(self, data: bytes, is_client: bool) -> bool:
        if self.cuts or is_client == self._is_answer or b"COMMIT" not in data:
            return True
        self.cuts += 1
        self._also()
        return False


@pytest.mark.parametrize("is_answer", [True, False], ids=["answer", "request"])
@pytest.mark.parametrize("away_s", [0.0, 2.0])
def test_a_commit_that_is_cut_off_is_made_once(
    session: Session, proxy: TcpProxy, is_answer: bool, away_s: float
) -> None:
    """Also where the server cannot be asked for a while what became of it."""
    back = threading.Timer(away_s, proxy.listen)

    def go_away() -> None:
        if away_s:
            proxy.stop_listening()
            back.start()

    cut = Cut(proxy, is_answer=is_answer, also=go_away)

    session.write(lambda: add(session), LOCK_ID)

    assert (cut.cuts, count(session)) == (1, 1)


def test_a_commit_of_which_nobody_says_what_became_of_it_is_not_made_again(
    session: Session, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "WAIT_S", 1.0)
    Cut(proxy, is_answer=True, also=proxy.mute)
    with pytest.raises(UnknownCommitError, match="may be there"):
        session.write(lambda: add(session))
    proxy.speak()

    assert count(session) == 1


def test_a_commit_that_is_under_way_is_waited_for(session: Session, postgresql: str) -> None:
    """The client has gone, the server commits a moment later: it is not written twice."""
    with psycopg.connect(postgresql, autocommit=True) as other:
        other.execute("BEGIN")
        [(number,)] = other.execute("SELECT pg_current_xact_id()::text").fetchall()
        ends = threading.Timer(1.0, other.execute, ["COMMIT"])
        ends.start()

        assert session._is_committed(number)
        ends.join()


def test_a_transaction_whose_connection_is_lost_goes_on_on_no_other(
    session: Session, proxy: TcpProxy
) -> None:
    """What is written after the loss would be there without what came before."""
    tries = 0

    def half() -> None:
        nonlocal tries
        tries += 1
        add(session)
        if tries == 1:
            proxy.cut()
            with pytest.raises(UnreachableError):
                add(session)
        add(session)

    session.write(half)

    assert (tries, count(session)) == (2, 2)


def test_an_error_that_comes_to_nobody_is_no_commit(session: Session) -> None:
    tries = 0

    def half() -> None:
        nonlocal tries
        tries += 1
        add(session)
        if tries == 1:
            with pytest.raises(psycopg.errors.UndefinedTable):
                session.execute("SELECT 1 FROM nothing")

    session.write(half)

    assert (tries, count(session)) == (2, 1)

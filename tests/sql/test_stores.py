"""What every store does with a file or a database that is locked, damaged, newer or older."""

from __future__ import annotations

import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from catalogzero.errors import UnreachableError
from catalogzero.sql import DamagedFileError, LockedFileError, NewerSchemaError

from tests.sql.stores import FILES, SERVERS, Store, hold, short_waits

SERVER_CASES = [pytest.param(name, marks=pytest.mark.postgresql) for name in SERVERS]


@pytest.fixture(params=[*FILES, *SERVER_CASES])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Each store in turn."""
    if request.param in FILES:
        return FILES[request.param](tmp_path, None)
    return SERVERS[request.param](tmp_path, str(request.getfixturevalue("postgresql")))


@pytest.fixture(params=list(FILES))
def in_file(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Store, Path]:
    """Each store that is a file, with one row in it."""
    store = FILES[request.param](tmp_path, None)
    with closing(store.open()) as opened:
        store.write(opened)
    assert store.file is not None
    return store, store.file


def test_a_newer_schema_is_refused_and_untouched(store: Store) -> None:
    with closing(store.open()) as opened:
        store.write(opened)
    store.execute(store.set_version)
    rows = f"SELECT count(*) FROM {store.table}"  # noqa: S608 - a constant
    before = store.file.read_bytes() if store.file else store.execute(rows)

    with pytest.raises(
        NewerSchemaError, match=r"newer .*\(schema 99, this one knows \d+\): install"
    ):
        store.open()

    assert before == (store.file.read_bytes() if store.file else store.execute(rows))


def test_an_older_schema_is_brought_forward_with_its_rows(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(store.open()) as opened:
        store.write(opened)
    store.add_step(monkeypatch)

    with closing(store.open()) as opened:
        assert store.read(opened) == ["kept"]
    with closing(store.open()) as again:
        assert store.read(again) == ["kept"]

    notes = f"SELECT note FROM {store.table}"  # noqa: S608 - a constant
    assert store.execute(notes) == ["new"]


def test_a_locked_file_is_named_and_opens_once_it_is_free(
    in_file: tuple[Store, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, path = in_file
    short_waits(monkeypatch)

    with hold(path), pytest.raises(LockedFileError, match=f"{path}.*another process holds it"):
        store.open()

    with closing(store.open()) as opened:
        assert store.read(opened) == ["kept"]


@pytest.mark.postgresql
@pytest.mark.parametrize("name", SERVERS)
def test_a_database_that_another_process_migrates_is_waited_for_and_then_named(
    name: str, postgresql: str, tmp_path: Path
) -> None:
    store = SERVERS[name](tmp_path, postgresql)
    store.open().close()
    locks = {"backend-postgresql": 0x63617A30, "scheduler-postgresql": 7310420001}

    with psycopg.connect(postgresql) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (locks[name],))
        with pytest.raises(UnreachableError, match="lock timeout"):
            store.open()

    store.open().close()


@pytest.mark.parametrize("damage", [b"no database at all " * 500, b"SQLite format 3\0" * 500])
def test_a_damaged_file_is_named_with_the_fix_and_untouched(
    in_file: tuple[Store, Path], damage: bytes
) -> None:
    store, path = in_file
    path.write_bytes(damage)
    if path.name == "history.sqlite3":  # it is quarantined: samples are no reason not to watch
        with closing(store.open()) as opened:
            assert opened.quarantined.read_bytes() == damage
        return

    with pytest.raises(DamagedFileError, match=f"{path}: .*: put a backup in its place"):
        store.open()

    assert path.read_bytes() == damage


@pytest.mark.parametrize("name", FILES)
def test_what_is_made_is_its_owner_s_alone(name: str, tmp_path: Path) -> None:
    store = FILES[name](tmp_path / "new" / "folder", None)

    with closing(store.open()) as opened:
        store.write(opened)
        store.read(opened)
        modes = {
            found.relative_to(tmp_path).as_posix(): stat.S_IMODE(found.stat().st_mode)
            for found in tmp_path.rglob("*")
        }

    assert store.file is not None
    path = store.file.relative_to(tmp_path).as_posix()
    files = {path, f"{path}-wal", f"{path}-shm"}
    folders = {"new", "new/folder", "new/folder/made"}
    assert modes.keys() - {"new/folder/made/outbox.reserve"} == files | folders
    assert {mode for place, mode in modes.items() if place in folders} == {0o700}
    assert {mode for place, mode in modes.items() if place not in folders} == {0o600}


def test_the_files_part_loads_no_sql_toolkit() -> None:
    code = (
        "import sys, pathlib; import catalogzero.sql as sql; names = ('sqlalchemy', 'psycopg',"
        " 'tenacity', 'sqlite3'); print([n for n in names if n in sys.modules]);"
        " sql.open_file(pathlib.Path(':memory:'), ());"
        " print([n for n in names if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split("\n")[:2] == ["[]", "['sqlite3']"]

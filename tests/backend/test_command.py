"""`catalogzero backend`: what an operator types, and what comes of it."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from catalogzero.backend.installations import held
from catalogzero.backend.store import BackendDatabase
from catalogzero.cli.main import main

COMMAND = [sys.executable, "-c", "from catalogzero.cli.main import main; main()", "backend"]


@dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str) -> Done:
    """Run `catalogzero backend …` to its end, in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["catalogzero", "backend", *arguments])
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


@contextmanager
def served(
    *arguments: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A backend of its own, with what it announces."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", "--json", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert process.stdout
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def test_a_tenant_s_key_opens_a_served_backend(tmp_path: Path) -> None:
    database = str(tmp_path / "backend.db")
    added = run("tenants", "add", "skylark", "--database", database)
    key = added.stdout.strip()

    with served("--database", database) as (process, announced):
        request = urllib.request.Request(  # noqa: S310 - our own address
            announced["endpoint"] + "/installations/site-1",
            data=b'{"entry": "skylark"}',
            method="PUT",
            headers={"Authorization": f"Bearer {key}"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            assert answer.status == 201
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)

    assert process.returncode == 0
    assert [json.loads(line)["event"] for line in errors.splitlines()] == ["request"]


def test_a_backend_without_a_tenant_says_what_to_run(tmp_path: Path) -> None:
    with served("--database", str(tmp_path / "backend.db")) as (process, _):
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)

    assert process.returncode == 0
    assert "catalogzero backend tenants add NAME --database" in errors


def test_a_key_that_cannot_be_written_down_is_never_made(tmp_path: Path) -> None:
    database = ["--database", str(tmp_path / "b.db")]
    nowhere, there = tmp_path / "nowhere/key", tmp_path / "key"

    refused = run("tenants", "add", "skylark", *database, "--key-file", str(nowhere))
    listed = json.loads(run("tenants", "list", *database, "--json").stdout)["tenants"]
    unknown = run("tenants", "rotate", "skylark", *database, "--key-file", str(there))

    assert (refused.returncode, listed) == (3, [])
    assert f"cannot write the key to {nowhere}" in refused.stderr
    assert (unknown.returncode, there.exists()) == (3, False)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.db").write_text("not a database\n" * 100)

    done = run("tenants", "list", "--database", str(tmp_path / "b.db"))

    assert done.returncode == 3
    assert "b.db: file is not a database" in done.stderr


def test_a_key_file_is_its_owner_s_alone(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("old")
    key_file.chmod(0o644)
    given = ["--database", str(tmp_path / "b.db"), "--key-file", str(key_file), "--json"]

    added = run("tenants", "add", "skylark", *given)

    assert json.loads(added.stdout) == {"tenant": "skylark", "key_file": str(key_file)}
    assert key_file.read_text().startswith("czk_")
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600


def test_keys_rotate_with_two_active(tmp_path: Path) -> None:
    database = ["--database", str(tmp_path / "backend.db")]

    def keys() -> list[str]:
        listed = json.loads(run("tenants", "list", *database, "--json").stdout)
        return list(listed["tenants"][0]["key_ids"])

    run("tenants", "add", "skylark", *database)
    (old,) = keys()
    second = run("tenants", "rotate", "skylark", *database)
    third = run("tenants", "rotate", "skylark", *database)
    revoked = run("tenants", "revoke", "skylark", old, *database)

    assert (second.returncode, third.returncode, revoked.returncode) == (0, 3, 0)
    assert f"tenants revoke skylark {old}" in third.stderr
    assert keys() == [second.stdout.split("_")[1]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tenants", "add", "two words"], "no tenant name"),
        (["tenants", "revoke", "nobody", "x"], "tenants add nobody"),
        (["serve", "--database", "mysql://x/y"], "SQLite or a PostgreSQL"),
        (["serve", "--database", "sqlite:///"], "needs a file"),
        (["serve", "--database", "/proc/none/x.db"], "cannot open the database"),
        (["serve", "--operator-token-file", "absent"], "operator_token_file absent"),
        (["serve", "--certificate", "absent"], "--private-key"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_3(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    if "--database" not in arguments:
        arguments = [*arguments, "--database", str(tmp_path / "backend.db")]

    done = run(*arguments)

    assert done.returncode == 3, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_database_server_that_is_away_has_an_exit_code_of_its_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    url = f"postgresql://backend:marked@127.0.0.1:{port}/none"

    done = run("serve", "--database", url)

    assert done.returncode == 4
    assert f"127.0.0.1:{port}/none" in done.stderr
    assert "marked" not in done.stderr


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("localhost", False)])  # noqa: S104 - the case itself
def test_plain_http_beyond_loopback_is_warned_of(tmp_path: Path, host: str, warned: bool) -> None:
    with served("--host", host, "--database", str(tmp_path / "backend.db")) as (process, _):
        process.terminate()
        told = process.communicate(timeout=30)[1]

    assert ("unencrypted" in told) is warned


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    database = ["--database", str(tmp_path / "backend.db")]
    with served(*database) as (_, announced):
        port = announced["url"].rpartition(":")[2]

        done = run("serve", "--port", port, *database)

    assert done.returncode == 75
    assert f"127.0.0.1:{port}: something listens there already" in done.stderr


def test_a_database_of_a_newer_release_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "backend.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE backend_schema (version INTEGER NOT NULL)")
        connection.execute("INSERT INTO backend_schema VALUES (99)")
    before = path.read_bytes()

    done = run("serve", "--database", str(path))

    assert done.returncode == 3
    assert "schema 99" in done.stderr
    assert before[100:] == path.read_bytes()[100:]


def test_an_operator_labels_an_installation(tmp_path: Path) -> None:
    database = ("--database", str(tmp_path / "backend.db"))
    run("tenants", "add", "acme", *database)
    store = BackendDatabase(str(tmp_path / "backend.db"))
    at = "2026-01-01T00:00:00.000+00:00"
    store.write_now(lambda connection: held(connection, 1, "site-1", at))
    store.close()

    added = run("label", "acme", "site-1", "site=Hamburg", "stage=test", *database)
    taken = run("label", "acme", "site-1", "stage=", *database, "--json")
    absent = run("label", "acme", "site-2", "a=b", *database)
    wrong = run("label", "acme", "site-1", "Hamburg", *database)

    assert added.stdout == "site=Hamburg, stage=test\n"
    assert json.loads(taken.stdout)["labels"] == {"site": "Hamburg"}
    assert absent.returncode == 3
    assert "no installation 'site-2'" in absent.stderr
    assert wrong.returncode == 2
    assert "NAME=VALUE" in wrong.stderr

"""The scaled demo: of several of each one is killed, and every count is exact."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import psycopg
import pytest

from tests.core.nats_servers import need_nats
from tests.system.test_demo import assert_nothing_left, demo

POSTGRESQL = os.environ.get(
    "CATALOGZERO_TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432/test"
).replace("+psycopg", "")
NOBODY = "127.0.0.1:1"
# Both demos download the same file, and each counts on some time of the machine's.
pytestmark = [pytest.mark.timeout(400), pytest.mark.xdist_group("demo")]


def databases() -> set[str]:
    """The databases of the server; skips where nobody serves any."""
    try:
        with psycopg.connect(POSTGRESQL, connect_timeout=3) as server:
            return {name for (name,) in server.execute("SELECT datname FROM pg_database")}
    except psycopg.OperationalError as error:
        pytest.skip(f"no PostgreSQL at CATALOGZERO_TEST_POSTGRESQL: {error}")


@pytest.mark.postgresql
def test_one_of_each_is_killed_and_every_count_is_exact(tmp_path: Path) -> None:
    need_nats()
    databases()
    folder, mark = tmp_path / "build" / "demo", uuid.uuid4().hex
    with demo(folder, mark, "--scale") as process:
        said, _ = process.communicate()
    assert process.returncode == 0, said

    report = json.loads((folder / "report.json").read_text())
    scaled = report["scaled"]
    assert report["held"] is True
    assert [name.partition("-")[0] for name in scaled["killed"]] == [
        "census",
        "processor",
        "scheduler",
        "backend",
    ]
    assert sum(scaled["amid_at_kill"].values()) > 0
    assert 0 < scaled["rows_at_kill"] < 336_776
    assert sum(scaled["ends"].values()) == scaled["jobs"] == 72
    assert scaled["ends"]["success"] + scaled["lost"] == 72
    assert scaled["counted_once_rows"] == scaled["counted_again_rows"] == 336_776
    assert report["stored"]["rows"] == report["source"]["rows"] == 336_776
    assert report["stored"]["distance_sum"] == report["source"]["distance_sum"]
    assert report["stored"]["uploads"] == 24
    assert scaled["database"] not in databases()
    assert_nothing_left(mark)


def test_without_its_engines_it_says_which_are_missing(tmp_path: Path) -> None:
    away = {
        "CATALOGZERO_TEST_NATS": f"nats://{NOBODY}",
        "CATALOGZERO_TEST_POSTGRESQL": f"postgresql://postgres@{NOBODY}/test",
    }
    with demo(tmp_path / "demo", uuid.uuid4().hex, "--scale", **away) as process:
        said, _ = process.communicate()

    assert process.returncode == 1
    assert f"no NATS server answers at nats://{NOBODY}: start" in said
    assert "no PostgreSQL on which a database can be made" in said

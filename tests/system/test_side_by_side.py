"""Our scheduler answers each request as ScheduleZero's server does, or as documented.

Its answers are recorded in `schedulezero_answers.json`. Where SCHEDULEZERO_HTTP and
SCHEDULEZERO_ZMQ name a real server (`make interop`), it is asked as well, and must answer as
recorded; SCHEDULEZERO_PYTHON then runs a script where its own handler base can be imported.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from catalogzero.scheduler.server import SchedulerSettings, serve_scheduler

from examples.quickstart.processes import free_ports
from tests.scheduler.conftest import QUICK
from tests.scheduler.toys import until
from tests.system.side_by_side import DIFFERENCES, all_cases, ask_all, verdict

HERE = Path(__file__).parent
REFERENCE = HERE.parents[1] / "docs" / "reference" / "scheduler-api.md"
REAL = os.environ.get("SCHEDULEZERO_HTTP")
PYTHON = shlex.split(os.environ.get("SCHEDULEZERO_PYTHON", sys.executable))
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """ScheduleZero's answers, by case."""
    answers: dict[str, Any] = json.loads((HERE / "schedulezero_answers.json").read_text("utf-8"))
    return answers


@contextmanager
def site(zmq: str, *python: str) -> Iterator[None]:
    """A plain handler as a process, which registers as `site`."""
    address = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    script = str(HERE / "plain_site.py")
    command = [*python, script, "site", address, zmq]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # its base logs each failure
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def answers_of(url: str) -> dict[str, Any]:
    """What a server answers, once it knows the site."""
    async with httpx.AsyncClient(base_url=url) as api:

        async def known() -> bool:
            listed = (await api.get("/api/handlers")).json()["handlers"]
            return any(one["id"] == "site" for one in listed)

        await until(known)
    return await ask_all(url)


async def test_ours_answers_the_same_or_as_documented(
    recorded: dict[str, Any], tmp_path: Path
) -> None:
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    settings = SchedulerSettings(port=0, zmq_port=0, database=database, runner=QUICK)
    async with serve_scheduler(settings) as server:
        with site(server.zmq_address, *(PYTHON if REAL else [sys.executable])):
            ours = await answers_of(server.url)

    found = [verdict(case, ours[case.name], recorded[case.name]) for case in all_cases()]
    assert [one for one in found if one] == []


@pytest.mark.skipif(not REAL, reason="SCHEDULEZERO_HTTP names no server: make interop")
def test_the_real_server_answers_as_recorded(recorded: dict[str, Any]) -> None:
    with site(os.environ["SCHEDULEZERO_ZMQ"], *PYTHON):
        theirs = asyncio.run(answers_of(str(REAL).rstrip("/")))

    assert {name: told for name, told in theirs.items() if told != recorded.get(name)} == {}


def test_the_table_is_whole_and_every_difference_is_documented(recorded: dict[str, Any]) -> None:
    names = [case.name for case in all_cases()]
    documented = re.findall(r"^\| \*\*(.+?)\*\* \|", REFERENCE.read_text("utf-8"), re.MULTILINE)

    assert len(names) >= 160
    assert f"the same {len(names)} requests" in REFERENCE.read_text("utf-8")
    assert [*recorded] == names
    assert {name for one in DIFFERENCES.values() for name in one.cases} <= set(names)
    assert documented == [*DIFFERENCES]

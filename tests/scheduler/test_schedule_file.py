"""Schedules as a file: `catalogzero schedule export` and `apply`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
import zmq

from examples.quickstart.processes import free_ports
from tests.core.plain import PlainHandler
from tests.scheduler.processes import SchedulerProcess, executions, handler_process, until
from tests.scheduler.test_cli import reported, schedule

pytestmark = pytest.mark.timeout(180)

FILE = """\
schedules:
  - job_id: nightly
    handler_id: chore
    job_method: note
    job_params: {text: größer}
    trigger: {type: cron, hour: 2, timezone: Europe/Berlin}
    timeout_s: 3600
  - job_id: hourly
    handler_id: chore
    job_method: note
    trigger: {type: interval, hours: 1}
  - job_id: once
    handler_id: chore
    job_method: note
    trigger: {type: date, run_date: 2040-01-01T00:00:00Z}
    paused: true
"""


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SchedulerProcess]:
    """A scheduler process, and a handler process that has registered."""
    folder = tmp_path_factory.mktemp("file")
    with (
        SchedulerProcess(f"sqlite:///{folder / 'scheduler.db'}") as one,
        handler_process(one.zmq_address, folder),
    ):
        one.wait_for_handler("chore")
        yield one


@pytest.fixture
def url(scheduler: SchedulerProcess) -> str:
    """A scheduler without schedules."""
    for one in scheduler.api.get("/api/schedules").json()["schedules"]:
        scheduler.api.delete(f"/api/schedules/{one['id']}")
    return scheduler.url


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good file."""
    path = tmp_path / "schedules.yaml"
    path.write_text(FILE, "utf-8")
    return path


def statuses(answer: dict[str, Any]) -> dict[str, str]:
    """What became of each schedule."""
    return {one["job_id"]: one["status"] for one in answer["schedules"]}


def apply(url: str, file: Path, *options: str) -> dict[str, str]:
    """Apply a file; what became of each schedule."""
    return statuses(reported(url, "apply", "-f", str(file), *options))


def listed(url: str) -> dict[str, dict[str, Any]]:
    """The schedules by name, without what changes as they fire."""
    found = httpx.get(f"{url}/api/schedules").json()["schedules"]
    return {one.pop("id"): one for one in found}


def test_a_file_is_applied_once_and_comes_back_the_same(
    url: str, file: Path, scheduler: SchedulerProcess, tmp_path: Path
) -> None:
    shown = apply(url, file, "--dry-run")
    none = listed(url)
    first = apply(url, file)
    until(lambda: executions(scheduler.api, job_id="hourly", status="success"))
    before = listed(url)
    again = apply(url, file)
    exported = tmp_path / "exported.yaml"
    assert schedule(url, "export", "-o", str(exported)).returncode == 0
    round_trip = apply(url, exported)

    assert shown == first == dict.fromkeys(("nightly", "hourly", "once"), "created")
    assert none == {}
    assert again == round_trip == dict.fromkeys(("nightly", "hourly", "once"), "unchanged")
    assert listed(url) == before
    assert before["once"]["paused"] is True
    entries = {one["job_id"]: one for one in yaml.safe_load(exported.read_text())["schedules"]}
    assert entries["hourly"]["trigger"] == {"type": "interval", "hours": 1}
    assert entries["nightly"]["job_params"] == {"text": "größer"}
    assert entries["nightly"].keys() == {
        *("job_id", "handler_id", "job_method", "job_params", "trigger", "timeout_s"),
    }


def test_a_change_keeps_the_next_time_and_the_history_where_the_trigger_is_the_same(
    url: str, file: Path, scheduler: SchedulerProcess
) -> None:
    apply(url, file)
    until(lambda: listed(url)["hourly"]["runs"] == 1)
    before = listed(url)
    scheduler.api.post("/api/schedules/nightly/pause")
    text = FILE.replace("größer", "other").replace("timeout_s: 3600", "overlap: queue")
    file.write_text(text.replace("hours: 1", "hours: 2").replace("    paused: true\n", ""))
    shown = reported(url, "apply", "-f", str(file), "--dry-run")
    unchanged = listed(url)
    answer = reported(url, "apply", "-f", str(file))
    after = listed(url)

    changes = {one["job_id"]: one["changes"] for one in answer["schedules"]}
    assert statuses(shown) == statuses(answer)
    assert statuses(answer) == {"nightly": "changed", "hourly": "changed", "once": "unchanged"}
    assert changes["nightly"] == {
        "job_params": {"old": {"text": "größer"}, "new": {"text": "other"}},
        "timeout_s": {"old": 3600, "new": None},
        "overlap": {"old": "skip", "new": "queue"},
    }
    assert changes["hourly"].keys() == {"trigger"}
    assert unchanged["nightly"]["params"] == {"text": "größer"}
    assert after["nightly"]["params"] == {"text": "other"}
    assert after["nightly"]["paused"] is True
    assert after["hourly"]["runs"] == 1
    assert after["hourly"]["next_fire_time"] != before["hourly"]["next_fire_time"]
    assert executions(scheduler.api, job_id="hourly")
    table = schedule(url, "apply", "-f", str(file), "--dry-run").stdout.splitlines()
    assert table[0].split() == ["job_id", "would", "be", "changes"]
    assert table[1].split() == ["nightly", "unchanged"]


def test_what_the_file_does_not_name_stays_unless_it_is_pruned(url: str, file: Path) -> None:
    reported(url, "add", "chore", "note", "--cron", "0 3 * * *", "--job-id", "other")
    apply(url, file)
    kept = listed(url).keys()
    shown = apply(url, file, "--prune", "--dry-run")
    still = listed(url).keys()
    pruned = apply(url, file, "--prune")
    file.write_text("schedules: []\n")
    refused = schedule(url, "apply", "-f", str(file), "--prune")

    assert kept == still == {"nightly", "hourly", "once", "other"}
    assert shown == pruned
    assert pruned["other"] == "removed"
    assert listed(url).keys() == {"nightly", "hourly", "once"}
    assert refused.returncode == 1
    assert "names no schedule: --prune would remove all 3" in refused.stderr


@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        ("job_id: nightly", "job_id: 7", 3, "2: schedule '7': `job_id` is a text"),
        ("    job_method: note\n    job_params", "    job_params", 3, "`job_method` is missing"),
        ("timeout_s", "timeouts", 3, "7: schedule 'nightly': unknown key `timeouts`; did you"),
        ("job_id: hourly", "job_id: nightly", 3, "8: schedule 'nightly' stands in line 2 already"),
        ("schedules:", "schedule:", 3, ":1: a mapping with a list `schedules:` is expected"),
        ("hour: 2", "hour: [2", 3, ":6: not YAML"),
        ("hour: 2", "hour: 25", 1, "schedule 'nightly': Invalid trigger configuration"),
        ("handler_id: chore", "handler_id: nobody", 1, "Handler 'nobody' not registered."),
        ("timeout_s: 3600", "timeout_s: soon", 1, "'timeout_s' must be a number"),
        ("overlap", "overlap", 3, "is not there: name the file with -f"),
    ],
)
def test_a_wrong_file_changes_nothing_and_says_where(
    url: str, file: Path, old: str, new: str, code: int, message: str
) -> None:
    file.write_text(FILE.replace(old, new, 1), "utf-8")
    if old == new:
        file.unlink()
    done = schedule(url, "apply", "-f", str(file))

    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert message in done.stderr
    assert f"{file}" in done.stderr
    assert listed(url) == {}


def answers(url: str) -> bool:
    """Whether a server is there."""
    try:
        return httpx.get(f"{url}/api/health").is_success
    except httpx.TransportError:
        return False


def register(scheduler: str, address: str) -> None:
    """Make a plain handler known to a scheduler, as `chore`."""
    with zmq.Context() as context, context.socket(zmq.REQ) as wire:
        wire.connect(scheduler)
        params = {"handler_id": "chore", "address": address, "methods": ["note"]}
        wire.send_json({"method": "register", "params": params})
        assert wire.recv_json()["success"]  # type: ignore[call-overload, index]


def test_a_date_that_has_passed_is_not_run_again(url: str, file: Path) -> None:
    file.write_text(FILE.replace("2040-01-01", "2020-01-01").replace("    paused: true\n", ""))

    assert apply(url, file)["once"] == "over"
    assert "once" not in listed(url)


def test_a_schedulezero_server_is_served_as_far_as_it_goes(file: Path) -> None:
    http, wire = free_ports(2)
    url = f"http://127.0.0.1:{http}"
    command = [sys.executable, "-m", "tests.system.schedulezero_peer", str(http), str(wire)]
    root = Path(__file__).parents[2]
    with PlainHandler({"note": b'{"success": true}'}) as plain:
        peer = subprocess.Popen(command, cwd=root)
        try:
            until(lambda: answers(url))
            register(f"tcp://127.0.0.1:{wire}", plain.address)
            refused = schedule(url, "apply", "-f", str(file))
            nightly = FILE[: FILE.index("    timeout_s")]
            file.write_text(nightly)
            created = apply(url, file)
            kept = apply(url, file)
            file.write_text(nightly.replace("größer", "other"))
            changed = [apply(url, file, "--dry-run"), apply(url, file), apply(url, file)]
            export = schedule(url, "export")
        finally:
            peer.kill()
            peer.wait()

    assert refused.returncode == 3
    assert "schedule 'nightly': this server does not know `timeout_s`" in refused.stderr
    assert [created, kept] == [{"nightly": "created"}, {"nightly": "kept"}]
    assert [one["nightly"] for one in changed] == ["changed", "changed", "kept"]
    assert export.returncode == 1
    assert "this server does not show its triggers in full" in export.stderr

"""One line of the log for each event that matters: of runs, of the worker, of an author's code."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from catalogzero import HandlerClient
from catalogzero.config.seldom import Seldom
from catalogzero.testing import ManualClock, serving

from tests.core.crew import Crew
from tests.core.support import Bench, kill, running, served_address, until

ROOT = Path(__file__).parents[2]
JSON_LOG = {"CATALOGZERO_LOG_FORMAT": "json"}


def lines_in(err: str, event: str = "") -> list[dict[str, Any]]:
    """The JSON lines of a log, of one event where that is named."""
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    return [line for line in lines if event in {"", line["event"]}]


async def diary(tmp_path: Path, *methods: str, **environment: str) -> str:
    """What a process wrote that served the diary while these methods were called."""
    target = ("run", "tests.core.diary:Diary", "--set", f"state_dir={tmp_path}")
    environment = {"CATALOGZERO_SCHEDULER": "none", **JSON_LOG, **environment}
    with running(*target, cwd=ROOT, **environment) as process:
        async with HandlerClient(served_address(process)) as client:
            for method in methods:
                await client.request(method, request_id=method)
        process.terminate()
        out, err = await asyncio.to_thread(process.communicate)
    assert not out
    return err


@pytest.mark.parametrize("method", ["write", "write_apart"])
async def test_what_an_author_logs_in_any_way_has_its_level_and_names_the_run(
    tmp_path: Path, method: str
) -> None:
    err = await diary(tmp_path, method)
    lines = {line["event"]: line for line in lines_in(err)}
    [ended] = lines_in(err, "run_ended")
    for event, level in (
        ("plain info", "info"),
        ("structured info", "info"),
        ("of a library", "warning"),
        ("structured error", "error"),
    ):
        assert lines[event]["level"] == level
        assert lines[event]["run_id"] == ended["run_id"]
        assert lines[event]["handler_id"] == "diary"
    assert "ValueError: what went wrong" in lines["structured error"]["exception"]
    assert "plain debug" not in lines


async def test_libraries_stay_at_warning_and_an_author_at_the_level_that_is_set(
    tmp_path: Path,
) -> None:
    err = await diary(tmp_path, "write", CATALOGZERO_LOG_LEVEL="debug")
    assert "plain debug" in {line["event"] for line in lines_in(err)}
    assert not [line for line in lines_in(err) if line.get("logger") == "asyncio"]


async def test_a_failed_run_in_the_worker_is_one_warning_with_its_traceback(
    tmp_path: Path,
) -> None:
    [failed] = lines_in(await diary(tmp_path, "fails_apart"), "run_failed")
    assert (failed["level"], failed["method"], failed["code"]) == (
        "warning",
        "fails_apart",
        "failed",
    )
    assert failed["error"] == "ValueError: no luck apart"
    assert "diary.py" in failed["exception"]
    assert "worker_child.py" not in failed["exception"]


async def test_a_console_log_shows_the_traceback_of_the_worker_in_lines(tmp_path: Path) -> None:
    target = ("run", "tests.core.diary:Diary", "--set", f"state_dir={tmp_path}", "--once")
    environment = {"CATALOGZERO_SCHEDULER": "none", "CATALOGZERO_LOG_FORMAT": "console"}
    with running(*target, "fails_apart", cwd=ROOT, **environment) as process:
        _, err = await asyncio.to_thread(process.communicate)
    assert "\n  File " in err
    assert "ValueError: no luck apart" in err


async def test_a_run_that_went_well_is_one_line_but_for_quiet_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with serving(Bench()) as at:
        reply = await at.client.request("echo", {"value": 1})
        await at.client.call("peek")
    [ended] = lines_in(capsys.readouterr().err, "run_ended")
    assert (ended["level"], ended["run_id"], ended["method"]) == ("info", reply.run_id, "echo")
    assert ended["outcome"] == "done"
    assert ended["duration_s"] >= 0


async def test_a_worker_that_was_killed_is_a_warning_with_the_reason_and_an_end_in_rest_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    crew = Crew()
    async with serving(crew) as at:
        kill((await at.client.call("facts"))["pid"])
        await until(lambda: crew.worker.pid is None)
        [died] = lines_in(capsys.readouterr().err, "worker_died")
        await at.client.call("facts")
        await at.client.call("sleep")
        await until(lambda: crew.worker.pid is None)
        err = capsys.readouterr().err
    assert "signal 9" in died["reason"]
    assert "out of memory" in died["reason"]
    assert [line["level"] for line in lines_in(err, "worker_ended")] == ["info"]
    assert not lines_in(err, "worker_died")


async def test_what_goes_on_is_logged_first_and_then_at_growing_intervals() -> None:
    clock, kept = ManualClock(), dict[str, Any]()

    async def lines_of(seldom: Seldom, hours: int) -> list[int]:
        said = []
        for _ in range(hours * 60):
            said.append(seldom.is_due("away"))
            await clock.advance(60)
        return [times for times in said if times]

    seldom = Seldom(clock, keep=kept.update)
    first = await lines_of(seldom, 12)
    again = await lines_of(Seldom(clock, kept), 12)
    assert first[:3] == [1, 2, 6]
    assert len(first) <= 7
    assert len(again) <= 2
    assert Seldom(clock, kept).over("away") > 700
    assert (seldom.over("away"), seldom.over("away")) == (720, 0)
    assert seldom.is_due("away") == 1

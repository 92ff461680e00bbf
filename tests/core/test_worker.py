"""Isolated jobs run in a child process that can die, be killed, rest and come back."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from catalogzero import FailedError, UnknownRunError
from catalogzero.testing import ManualClock, Serving, serving

from tests.core.crew import Crew
from tests.core.support import is_gone, kill, running, served_address, until

pytestmark = pytest.mark.usefixtures("over_each_transport")

NEVER = {"path": "/nonexistent/file"}


async def progress(at: Serving, request_id: str) -> Any:
    """What a run reported of itself, once it reported its pid."""

    async def reported() -> Any:
        try:
            run = await at.client.call("get_run", {"request_id": request_id})
        except UnknownRunError:
            return None
        return run.get("progress")

    return await until(reported)


async def test_the_child_is_the_same_handler_in_another_process(tmp_path: Path) -> None:
    crew = Crew(api_key="k-123456", desk="b")
    async with serving(crew, handler_id="crew-7", state_dir=tmp_path) as at:
        facts = await at.client.call("facts")
        assert facts.pop("pid") != os.getpid()
        assert facts == {
            "parent": os.getpid(),
            "in_worker": True,
            "handler_id": "crew-7",
            "key": "k-123456",
            "desk": "b",
            "state_dir": str(tmp_path / "crew-7"),
            "thread": False,
        }
        assert not crew.in_worker


async def test_async_isolated_jobs_and_the_port_reach_the_same_child() -> None:
    async with serving(Crew()) as at:
        assert await at.client.call("on_the_loop", {"value": 1}) == 2
        pid = (await at.client.call("facts"))["pid"]
        assert await at.client.call("ask_child", {"value": 4}) == {"twice": 8, "pid": pid}


async def test_no_child_before_the_first_isolated_job() -> None:
    async with serving(Crew()) as at:
        await at.client.ping()
        assert at.handler.worker.pid is None
        assert (await at.client.call("get_metrics"))["worker_memory_mb"] == 0
        await at.client.call("facts")
        assert (await at.client.call("get_metrics"))["worker_memory_mb"] > 1


async def test_a_child_that_is_wanted_at_start_is_there() -> None:
    async with serving(Crew(wanted=True)) as at:
        assert at.handler.worker.pid is not None


async def test_progress_comes_from_inside_the_child() -> None:
    async with serving(Crew()) as at:
        working = asyncio.create_task(at.client.request("work_until", NEVER, request_id="r"))
        await until(lambda: _steps(at))
        await at.client.call("cancel", {"request_id": "r"})
        assert (await working).code == "cancelled"


async def _steps(at: Serving) -> bool:
    return bool((await progress(at, "r")).get("step") == 1)


async def test_one_isolated_job_at_a_time_and_quiet_ones_beside_it() -> None:
    async with serving(Crew()) as at:
        first = asyncio.create_task(at.client.request("work_until", NEVER, request_id="a"))
        pid = (await progress(at, "a"))["pid"]
        second = asyncio.create_task(at.client.request("facts", request_id="b"))
        await until(lambda: _queued(at))
        assert await at.client.call("glance") != pid
        await at.client.call("cancel", {"request_id": "a"})
        assert (await first).code == "cancelled"
        assert (await second).result["pid"] != pid


async def test_cancelling_one_isolated_run_stops_no_other(tmp_path: Path) -> None:
    found = tmp_path / "found"
    params = {"path": str(found)}
    async with serving(Crew()) as at:
        calls = {
            name: asyncio.create_task(at.client.request(method, params, request_id=name))
            for name, method in (("a", "work_until"), ("b", "watch_until"), ("c", "watch_until"))
        }
        pids = {name: (await progress(at, name))["pid"] for name in calls}
        assert len(set(pids.values())) == 3
        await at.client.call("cancel", {"request_id": "b"})
        assert (await calls["b"]).code == "cancelled"
        await until(lambda: is_gone(pids["b"]))
        found.touch()
        assert (await calls["a"]).result == "found"
        assert (await calls["c"]).result == "found"
        await until(lambda: is_gone(pids["c"]))
        assert not is_gone(pids["a"])


async def _queued(at: Serving) -> bool:
    return bool((await at.client.call("get_metrics"))["queued"] == 1)


async def test_a_killed_child_fails_its_run_clearly_and_the_next_run_gets_a_new_one() -> None:
    async with serving(Crew()) as at:
        working = asyncio.create_task(at.client.request("work_until", NEVER, request_id="r"))
        pid = (await progress(at, "r"))["pid"]
        kill(pid)
        reply = await working
        assert reply.code == "failed"
        assert "killed by the kernel (signal 9); likely out of memory: raise" in reply.error
        assert (await at.client.ping())["status"] == "ok"
        assert (await at.client.call("facts"))["pid"] != pid


@pytest.mark.parametrize(
    ("how", "text"), [("exit", "status 7"), ("sys.exit", "SystemExit: 3"), ("abort", "signal 6")]
)
async def test_a_child_that_ends_under_a_run_says_how(how: str, text: str) -> None:
    async with serving(Crew()) as at:
        with pytest.raises(FailedError, match=text):
            await at.client.call("die", {"how": how})
        assert (await at.client.call("facts"))["in_worker"]


async def test_cancelling_really_stops_the_work(tmp_path: Path) -> None:
    path = tmp_path / "growing"
    async with serving(Crew()) as at:
        call = at.client.request("write_forever", {"path": str(path)}, request_id="r")
        working = asyncio.create_task(call)
        pid = (await progress(at, "r"))["pid"]
        await until(path.exists)
        await at.client.call("cancel", {"request_id": "r"})
        assert (await working).code == "cancelled"
        await until(lambda: is_gone(pid))
        assert await at.client.call("on_the_loop", {"value": 2}) == 3


@pytest.mark.parametrize(
    ("how", "code", "text"),
    [
        ("on purpose", "failed", "no data"),
        ("bad", "permanent", "not so"),
        ("missing", "permanent", "FileNotFoundError: no such export"),
        ("any", "failed", r"ValueError: key \*\*\*\*\*\*\*\*\*\*"),
    ],
)
async def test_what_the_child_raises_reaches_the_caller_masked(
    how: str, code: str, text: str
) -> None:
    async with serving(Crew(api_key="k-123456")) as at:
        with pytest.raises(FailedError, match=text) as caught:
            await at.client.call("fails", {"how": how})
        assert caught.value.code == code


async def test_prints_and_results_without_json_do_no_harm() -> None:
    async with serving(Crew()) as at:
        with pytest.raises(FailedError, match="JSON"):
            await at.client.call("prints")
        assert (await at.client.call("facts"))["in_worker"]


async def test_falling_asleep_ends_a_child_that_has_nothing_to_do() -> None:
    async with serving(Crew()) as at:
        pid = (await at.client.call("facts"))["pid"]
        await at.client.call("sleep")
        await until(lambda: is_gone(pid))
        assert (await at.client.call("facts"))["pid"] != pid


@pytest.mark.parametrize("status", [{"busy": True}, {"next_due_s": 30}])
async def test_a_child_with_something_to_do_stays_while_its_handler_sleeps(status: Any) -> None:
    async with serving(Crew()) as at:
        pid = (await at.client.call("facts"))["pid"]
        await at.client.call("reports", {"status": status})
        await at.client.call("sleep")
        assert await at.client.call("glance") != pid
        assert (await at.client.call("get_metrics"))["status"] == "sleeping"


async def test_a_child_ends_as_soon_as_it_has_nothing_more_to_do() -> None:
    crew = Crew()
    async with serving(crew) as at:
        pid = (await at.client.call("facts"))["pid"]
        await at.client.call("reports", {"status": {"busy": True}})
        await at.client.call("sleep")
        assert crew.worker.status == {"busy": True}
        await crew.worker.call("reports", status={"busy": False})
        await until(lambda: is_gone(pid))


async def test_a_child_whose_next_try_is_far_off_ends_and_comes_back_then() -> None:
    clock = ManualClock()
    crew = Crew()
    async with serving(crew, clock=clock) as at:
        pid = (await at.client.call("facts"))["pid"]
        await at.client.call("reports", {"status": {"next_due_s": 600, "outbox": {"uploads": 1}}})
        await at.client.call("sleep")
        await until(lambda: crew.worker.pid is None)
        assert is_gone(pid)
        assert (await at.client.call("get_metrics"))["outbox"] == {"uploads": 1}
        await clock.advance(599)
        assert crew.worker.pid is None
        await clock.advance(1)
        await until(lambda: crew.worker.pid)
        assert (await at.client.call("get_metrics"))["status"] == "sleeping"


async def test_a_child_that_died_with_work_to_do_comes_back_by_itself() -> None:
    clock = ManualClock()
    crew = Crew()
    async with serving(crew, clock=clock) as at:
        pid = (await at.client.call("facts"))["pid"]
        await at.client.call("reports", {"status": {"busy": True}})
        kill(pid)
        await until(lambda: crew.worker.pid != pid)
        await until(lambda: _comes_back(crew, clock, pid))


async def _comes_back(crew: Crew, clock: ManualClock, pid: int) -> bool:
    await clock.advance(1)
    return crew.worker.pid not in (None, pid)


async def test_the_end_of_the_service_is_the_end_of_the_child() -> None:
    async with serving(Crew()) as at:
        pid = (await at.client.call("facts"))["pid"]
    assert is_gone(pid)


async def test_a_handler_killed_with_9_leaves_no_child(tmp_path: Path) -> None:
    target = "tests.core.crew:Crew"
    flags = ("--scheduler", "none", "--set", f"state_dir={tmp_path}")
    root = Path(__file__).parents[2]
    with running("run", target, *flags, cwd=root, CATALOGZERO_LOG_FORMAT="json") as process:
        from catalogzero import HandlerClient

        async with HandlerClient(served_address(process)) as client:
            facts = await client.call("facts")
            assert facts["parent"] == process.pid
            kill(process.pid)
            await until(lambda: is_gone(facts["pid"]))

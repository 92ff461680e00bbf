"""What a handler promises of runs: not twice, start_by, early replies, limits, cancel, drain."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from itertools import count
from typing import Any

import pytest
from catalogzero import (
    BadParamsError,
    BadRequestError,
    BusyError,
    CallTimeoutError,
    DrainingError,
    ExpiredError,
    Handler,
    HandlerClient,
    RunCancelledError,
    UnknownRunError,
    WakeFailedError,
    job,
)
from catalogzero.runtime import jobs
from catalogzero.runtime.runs import MAX_BYTES, MAX_RUNS
from catalogzero.testing import ManualClock, Serving, serving
from catalogzero.wire.messages import StartBy

from tests.core.support import Bench, RawPeer, until

pytestmark = pytest.mark.usefixtures("over_each_transport")


class Shift(Bench):
    """Jobs with limits, in threads and on the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.thread_gate = threading.Event()
        self.in_thread = 0
        self.saw_cancelled = False
        self.broken = ""

    @job(timeout_s=30)
    async def limited(self) -> None:
        self.begun.append("limited")
        await asyncio.Event().wait()

    @job(concurrency=1)
    async def alone(self, name: str) -> str:
        self.begun.append(name)
        await self.gate.wait()
        return name

    def threaded(self) -> str:
        self.in_thread += 1
        self.thread_gate.wait(20)
        self.saw_cancelled = self.cancelled
        return "done"

    threaded_limited = job(timeout_s=30)(threaded)

    def reporting(self) -> None:
        self.in_thread += 1
        for step in count():
            self.report_progress(step=step)
            self.thread_gate.wait(0.01)

    async def knock(self, door: str, password: str) -> str:
        return f"{door}: open"

    async def large(self, size: int) -> str:
        self.begun.append("large")
        return "x" * size

    def _ensure_resources(self) -> None:
        if self.broken:
            raise OSError(self.broken)


async def boot_of(client: HandlerClient) -> str:
    return str((await client.ping())["boot_id"])


def started(at: Serving, count: int) -> Any:
    """Waits until that number of jobs have begun."""
    handler = at.handler
    assert isinstance(handler, Bench)
    return until(lambda: len(handler.begun) == count)


# --- not twice -----------------------------------------------------------------------------


async def test_a_repeated_call_gets_the_same_reply_while_it_runs_and_after() -> None:
    async with serving(Shift()) as at, RawPeer(at.address) as peer, RawPeer(at.address) as other:
        call = b'{"method": "hold", "params": {"name": "a"}, "request_id": "r"}'
        await peer.send(call)
        await started(at, 1)
        await other.send(b'{"request_id": "r", "params": {"name": "a"}, "method": "hold"}')
        await at.client.ping()
        at.handler.gate.set()  # type: ignore[attr-defined]
        first, second = await peer.receive(), await other.receive()
        third = await other.ask(call)

        assert first == second == third
        assert at.handler.begun == ["a"]  # type: ignore[attr-defined]


async def test_a_request_id_of_another_call_is_refused() -> None:
    async with serving(Shift()) as at:
        await at.client.call("echo", {"value": 1}, request_id="r")
        for method, params in (("echo", {"value": True}), ("count", {}), ("echo", {"value": 1.0})):
            with pytest.raises(BadRequestError, match="another call"):
                await at.client.call(method, params, request_id="r")
        assert await at.client.call("echo", {"value": 1}, request_id="r") == 1


async def test_a_failed_run_is_remembered_too() -> None:
    async with serving(Shift()) as at:
        first = await at.client.request("echo", {"value": {"success": False}}, request_id="r")
        again = await at.client.request("echo", {"value": {"success": False}}, request_id="r")
        assert (first.run_id, first.code) == (again.run_id, "failed")


async def test_the_window_ends_with_time() -> None:
    clock = ManualClock()
    async with serving(Shift(), clock=clock, dedupe_window_s=100, sleep_after_s=0) as at:
        assert await at.client.call("count", request_id="r") == {"count": 1}
        await clock.advance(99)
        assert await at.client.call("count", request_id="r") == {"count": 1}
        await clock.advance(1)
        assert await at.client.call("count", request_id="r") == {"count": 2}


async def test_the_window_is_bounded_by_count_but_keeps_outcomes_with_start_by() -> None:
    clock = ManualClock()
    async with serving(Shift(), clock=clock) as at:
        limit = StartBy(await boot_of(at.client), 1e6)
        await at.client.call("count", request_id="kept", start_by=limit)
        await at.client.call("count", request_id="first")
        for start in range(0, MAX_RUNS, 100):
            await asyncio.gather(
                *(at.client.call("peek", request_id=f"n{start + n}") for n in range(100))
            )

        kept = await at.client.request("count", request_id="kept", start_by=limit)
        assert (kept.success, kept.details) == (True, None)
        assert at.handler.begun.count("count") == 2  # type: ignore[attr-defined]
        assert await at.client.call("count", request_id="first") == {"count": 3}


async def test_the_window_is_bounded_by_bytes_oldest_first() -> None:
    size = 900_000
    async with serving(Shift(), clock=ManualClock()) as at:
        number = MAX_BYTES // size + 1
        for n in range(number):
            await at.client.call("large", {"size": size}, request_id=f"r{n}")
        await at.client.call("large", {"size": size}, request_id=f"r{number - 1}")
        assert len(at.handler.begun) == number  # type: ignore[attr-defined]
        await at.client.call("large", {"size": size}, request_id="r0")
        assert len(at.handler.begun) == number + 1  # type: ignore[attr-defined]


async def test_control_calls_are_not_remembered() -> None:
    clock = ManualClock()
    async with serving(Shift(), clock=clock) as at:
        first = await at.client.call("ping", request_id="r")
        await clock.advance(1)
        second = await at.client.call("ping", request_id="r")
        assert second["uptime_s"] > first["uptime_s"]
        assert await at.client.call("echo", {"value": 1}, request_id="r") == 1


# --- start_by ------------------------------------------------------------------------------


async def test_past_its_start_by_a_call_expires_and_starts_nothing() -> None:
    clock = ManualClock()
    async with serving(Shift(), clock=clock) as at:
        boot = await boot_of(at.client)
        await clock.advance(10)
        for limit in (StartBy(boot, 9.9), StartBy("another", 1e6)):
            with pytest.raises(ExpiredError):
                await at.client.call("count", request_id="r", start_by=limit)
        assert at.handler.begun == []  # type: ignore[attr-defined]
        assert await at.client.call("count", request_id="r") == {"count": 1}


async def test_memory_comes_before_start_by() -> None:
    clock = ManualClock()
    async with serving(Shift(), clock=clock) as at:
        limit = StartBy(await boot_of(at.client), 5)
        assert await at.client.call("count", request_id="r", start_by=limit) == {"count": 1}
        await clock.advance(6)
        assert await at.client.call("count", request_id="r", start_by=limit) == {"count": 1}


async def test_start_by_comes_before_busy_and_draining() -> None:
    clock = ManualClock()
    async with serving(Shift(), clock=clock) as at:
        limit = StartBy(await boot_of(at.client), 5)
        await clock.advance(6)
        await at.client.call("drain")
        with pytest.raises(ExpiredError):
            await at.client.call("count", request_id="r", start_by=limit)


async def test_a_refusal_to_a_call_with_start_by_is_remembered() -> None:
    async with serving(Shift(), clock=ManualClock()) as at:
        limit = StartBy(await boot_of(at.client), 100)
        await at.client.call("drain")
        for request_id, start_by in (("with", limit), ("without", None)):
            with pytest.raises(DrainingError):
                await at.client.call("count", request_id=request_id, start_by=start_by)
        await at.client.call("resume")

        with pytest.raises(DrainingError):
            await at.client.call("count", request_id="with", start_by=limit)
        assert await at.client.call("count", request_id="without") == {"count": 1}


async def test_busy_is_remembered_for_a_call_with_start_by() -> None:
    async with serving(Shift(), max_concurrent_jobs=1, max_queued_jobs=0) as at:
        limit = StartBy(await boot_of(at.client), 100)
        blocked = asyncio.create_task(at.client.call("hold"))
        await started(at, 1)
        with pytest.raises(BusyError):
            await at.client.call("count", request_id="r", start_by=limit)
        at.handler.gate.set()  # type: ignore[attr-defined]
        await blocked
        with pytest.raises(BusyError):
            await at.client.call("count", request_id="r", start_by=limit)


async def test_wake_failed_is_remembered_for_a_call_with_start_by_only() -> None:
    shift = Shift()
    async with serving(shift, clock=ManualClock()) as at:
        limit = StartBy(await boot_of(at.client), 100)
        await at.client.call("sleep")
        shift.broken = "no database"
        for request_id, start_by in (("with", limit), ("without", None)):
            with pytest.raises(WakeFailedError, match="no database"):
                await at.client.call("count", request_id=request_id, start_by=start_by)
        shift.broken = ""

        with pytest.raises(WakeFailedError):
            await at.client.call("count", request_id="with", start_by=limit)
        assert await at.client.call("count", request_id="without") == {"count": 1}


async def test_a_refusal_that_its_caller_asks_again_is_no_run() -> None:
    shift = Shift()
    async with serving(shift, clock=ManualClock()) as at:
        await at.client.call("sleep")
        shift.broken = "no database"
        for left, counted in ((2, 0), (None, 1)):
            reply = await at.client.request("count", attempts_left=left)
            metrics = await at.client.call("get_metrics")

            assert reply.code == "wake_failed"
            assert (metrics["runs_total"], metrics["failures_total"]) == (counted, counted)
            assert "no database" in metrics["last_error"]


async def test_params_are_checked_without_a_run() -> None:
    async with serving(Shift()) as at:
        assert await at.client.call("check_params", {"method": "hold", "params": {"name": "x"}})
        for asked, field in (
            ({"method": "hold", "params": {"nam": "x"}}, "nam"),
            ({"method": "rest", "params": {}}, "method"),
        ):
            with pytest.raises(BadParamsError) as caught:
                await at.client.call("check_params", asked)
            assert field in [fault["field"] for fault in caught.value.details]
        assert (await at.client.call("list_runs"))["runs"] == []


# --- waiting -------------------------------------------------------------------------------


async def test_a_flat_caller_is_answered_early_and_the_run_goes_on() -> None:
    clock = ManualClock()
    shift = Shift()
    async with serving(shift, clock=clock) as at, RawPeer(at.address) as peer:
        await peer.send(b'{"method": "hold", "params": {"name": "x"}}')
        await started(at, 1)
        await clock.advance(7.9)
        await at.client.ping()
        await clock.advance(0.1)
        early = await peer.receive()
        assert (early["success"], early["status"]) == (True, "running")
        assert early["started_at"].startswith("2026-01-01T00:00:00")

        shift.gate.set()
        run = await until(lambda: _ended(at, early["run_id"]))
        assert (run["status"], run["result"]) == ("success", {"success": True, "result": "x"})
        assert (await peer.ask({"method": "ping"}))["message"] == "pong"


async def _ended(at: Serving, run_id: str) -> Any:
    run = await at.client.call("get_run", {"run_id": run_id})
    return run if run["ended_at"] else None


async def test_a_run_is_known_with_its_params_but_for_secrets() -> None:
    async with serving(Shift()) as at:
        params = {"door": "north", "password": "canary"}
        reply = await at.client.call("knock", params, request_id="k")
        run = await at.client.call("get_run", {"request_id": "k"})

    assert reply == run["result"] == "north: open"
    assert run["params"]["door"] == "north"
    assert "canary" not in str(run)


async def test_a_flat_run_that_fails_after_its_early_reply_shows_in_metrics() -> None:
    clock = ManualClock()
    async with serving(Shift(), clock=clock) as at, RawPeer(at.address) as peer:
        await peer.send(b'{"method": "limited"}')
        await started(at, 1)
        await clock.advance(8)
        assert (await peer.receive())["status"] == "running"
        await clock.advance(22)
        metrics = await until(lambda: _failed(at))
        assert "time limit" in metrics["last_error"]


async def _failed(at: Serving) -> Any:
    metrics = await at.client.call("get_metrics")
    return metrics if metrics["failures_total"] else None


async def test_a_wait_that_ends_reports_the_run_and_the_run_goes_on() -> None:
    clock = ManualClock()
    shift = Shift()
    async with serving(shift, clock=clock) as at:
        waiting = asyncio.create_task(at.client.request("hold", timeout_s=2, request_id="r"))
        await started(at, 1)
        await clock.advance(2)
        reply = await waiting
        assert (reply.code, reply.retryable) == ("timeout", False)
        assert reply.details == {"running": True, "run_id": reply.run_id}
        shift.gate.set()
        assert await at.client.call("hold", request_id="r") == ""
        assert len(shift.begun) == 1


async def test_a_job_past_its_own_limit_is_cancelled() -> None:
    clock = ManualClock()
    async with serving(Shift(), clock=clock) as at:
        waiting = asyncio.create_task(at.client.call("limited", timeout_s=90))
        await started(at, 1)
        await clock.advance(30)
        with pytest.raises(RunCancelledError) as caught:
            await waiting
        assert caught.value.details == {"by": "timeout_s"}


# --- cancel --------------------------------------------------------------------------------


async def test_cancel_stops_running_and_queued_runs() -> None:
    async with serving(Shift(), max_concurrent_jobs=1) as at:
        running = asyncio.create_task(at.client.call("hold", request_id="running"))
        await started(at, 1)
        queued = asyncio.create_task(at.client.call("hold", request_id="queued"))
        await until(lambda: _queued(at, 1))
        for request_id in ("queued", "running"):
            reported = await at.client.call("cancel", {"request_id": request_id})
            assert reported["run_id"]
        for task in (running, queued):
            with pytest.raises(RunCancelledError) as caught:
                await task
            assert caught.value.details == {"by": "cancel"}
        assert len(at.handler.begun) == 1  # type: ignore[attr-defined]
        assert await at.client.call("echo", {"value": 3}) == 3


async def _queued(at: Serving, count: int) -> bool:
    return bool((await at.client.call("get_metrics"))["queued"] == count)


async def test_cancelling_what_ended_changes_nothing_and_the_unknown_is_reported() -> None:
    async with serving(Shift()) as at:
        await at.client.call("count", request_id="r")
        assert (await at.client.call("cancel", {"request_id": "r"}))["status"] == "success"
        with pytest.raises(UnknownRunError):
            await at.client.call("cancel", {"run_id": "nope"})


@pytest.mark.parametrize("by", ["cancel", "timeout_s"])
async def test_a_thread_that_works_on_is_cancelling_until_it_ends(
    by: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither is it answered before, nor is its place given away, nor does the handler sleep."""
    monkeypatch.setattr(jobs, "STILL_WORKS_S", 0.01)
    shift, clock = Shift(), ManualClock()
    async with serving(shift, clock=clock, max_concurrent_jobs=1, sleep_after_s=1) as at:
        method = "threaded" if by == "cancel" else "threaded_limited"
        stuck = asyncio.create_task(at.client.call(method, request_id="t", timeout_s=900))
        await until(lambda: shift.in_thread)
        if by == "cancel":
            answer = await at.client.call("cancel", {"request_id": "t"})
            assert (answer["status"], answer["cancelling"]) == ("cancelling", True)
        else:
            await clock.advance(30)
        waits = asyncio.create_task(at.client.call("echo", {"value": 1}))
        await until(lambda: _queued(at, 1))
        await clock.advance(5)
        found = await at.client.call("get_run", {"request_id": "t"})
        assert (found["status"], found["outcome"]["state"]) == ("cancelling", "running")
        with pytest.raises(BusyError):
            await at.client.call("sleep")
        await until(lambda: "cancelled_run_still_works" in capsys.readouterr().err)
        assert not stuck.done()
        shift.thread_gate.set()
        with pytest.raises(RunCancelledError) as caught:
            await stuck
        assert await waits == 1
    assert caught.value.details == {"by": by}
    assert shift.saw_cancelled


async def test_a_thread_that_reports_progress_ends_where_it_is_cancelled() -> None:
    shift = Shift()
    async with serving(shift) as at:
        busy = asyncio.create_task(at.client.call("reporting", request_id="t"))
        await until(lambda: shift.in_thread)
        await at.client.call("cancel", {"request_id": "t"})
        with pytest.raises(RunCancelledError):
            await busy


async def test_resources_are_left_open_under_a_thread_that_works_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs, "CLOSE_GRACE_S", 0.05)
    shift = Shift()
    async with serving(shift) as at:
        stuck = asyncio.create_task(at.client.call("threaded", request_id="t"))
        await until(lambda: shift.in_thread)
    shift.thread_gate.set()
    with pytest.raises(CallTimeoutError):
        await stuck
    assert "resources_left_open" in capsys.readouterr().err


# --- room ----------------------------------------------------------------------------------


async def test_so_many_run_so_many_wait_and_the_next_is_busy() -> None:
    async with serving(Shift(), max_concurrent_jobs=2, max_queued_jobs=1) as at:
        tasks = [asyncio.create_task(at.client.call("hold", {"name": "x"})) for _ in range(3)]
        await until(lambda: _queued(at, 1))
        with pytest.raises(BusyError, match="2 jobs run and 1 wait"):
            await at.client.call("hold")
        assert (await at.client.call("get_metrics"))["in_flight"] == 2
        at.handler.gate.set()  # type: ignore[attr-defined]
        assert await asyncio.gather(*tasks) == ["x", "x", "x"]


async def test_a_method_with_concurrency_one_leaves_room_for_others() -> None:
    shift = Shift()
    async with serving(shift) as at:
        first = asyncio.create_task(at.client.call("alone", {"name": "a"}))
        second = asyncio.create_task(at.client.call("alone", {"name": "b"}))
        await until(lambda: _queued(at, 1))
        assert await at.client.call("echo", {"value": 1}) == 1
        assert len(shift.begun) == 1
        shift.gate.set()
        assert sorted(await asyncio.gather(first, second)) == ["a", "b"]


async def test_queued_runs_begin_in_order() -> None:
    shift = Shift()
    async with serving(shift, max_concurrent_jobs=1) as at:
        tasks = []
        for number in range(5):
            tasks.append(asyncio.create_task(at.client.call("hold", {"name": str(number)})))
            if number == 0:
                await started(at, 1)
            else:
                await until(partial(_queued, at, number))
        shift.gate.set()
        await asyncio.gather(*tasks)
        assert shift.begun == ["0", "1", "2", "3", "4"]


# --- drain ---------------------------------------------------------------------------------


async def test_drain_refuses_new_jobs_waits_for_old_ones_and_resume_ends_it() -> None:
    shift = Shift()
    async with serving(shift) as at:
        running = asyncio.create_task(at.client.call("hold"))
        await started(at, 1)
        drained = asyncio.create_task(at.client.call("drain"))
        await until(lambda: _status(at, "draining"))
        with pytest.raises(DrainingError):
            await at.client.call("count")
        assert (await at.client.ping())["status"] == "ok"
        assert not drained.done()
        shift.gate.set()
        await running
        assert await drained == {"status": "draining"}
        assert await at.client.call("resume") == {"status": "active"}
        assert await at.client.call("count") == {"count": 1}


async def _status(at: Serving, status: str) -> bool:
    return bool((await at.client.call("get_metrics"))["status"] == status)


async def test_drain_answers_at_its_timeout_and_goes_on() -> None:
    clock = ManualClock()
    shift = Shift()
    async with serving(shift, clock=clock) as at:
        running = asyncio.create_task(at.client.call("hold"))
        await started(at, 1)
        drained = asyncio.create_task(at.client.call("drain", timeout_s=3))
        await until(lambda: _status(at, "draining"))
        await clock.advance(3)
        with pytest.raises(CallTimeoutError):
            await drained
        assert await _status(at, "draining")
        shift.gate.set()
        await running


# --- what is reported --------------------------------------------------------------------------


async def test_list_runs_is_newest_first_and_filters() -> None:
    async with serving(Shift()) as at:
        await at.client.call("count")
        await at.client.request("echo", {"value": {"success": False}})
        await at.client.call("count")
        listed = (await at.client.call("list_runs", {"limit": 2}))["runs"]
        assert [run["method"] for run in listed] == ["count", "echo"]
        failed = (await at.client.call("list_runs", {"status": "error"}))["runs"]
        assert [run["method"] for run in failed] == ["echo"]
        assert failed[0]["code"] == "failed"


class Slow(Handler):
    """Reports its progress from the loop and from a thread."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.thread_gate = threading.Event()

    async def walk(self) -> None:
        self.report_progress(done=1)
        self.report_progress(of=3)
        await self.gate.wait()

    def climb(self) -> None:
        self.report_progress(metres=8)
        self.thread_gate.wait(20)


@pytest.mark.parametrize(
    ("method", "progress"), [("walk", {"done": 1, "of": 3}), ("climb", {"metres": 8})]
)
async def test_progress_is_seen_while_a_run_goes_on(method: str, progress: Any) -> None:
    slow = Slow()
    async with serving(slow) as at:
        running = asyncio.create_task(at.client.call(method, request_id="r"))

        async def reported() -> Any:
            try:
                return (await at.client.call("get_run", {"request_id": "r"})).get("progress")
            except UnknownRunError:
                return None

        assert await until(reported) == progress
        slow.gate.set()
        slow.thread_gate.set()
        await running

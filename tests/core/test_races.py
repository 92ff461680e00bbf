"""Moments between two others: cancelled before it began, dying while starting, closing.

And what an author's code can raise that is hard to catch: no reply may be lost by it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from catalogzero import DrainingError, FailedError, HandlerClient, RunCancelledError
from catalogzero.config.address import Address
from catalogzero.runtime import worker
from catalogzero.runtime.service import Service, serve_until
from catalogzero.runtime.sleep import Sleeper
from catalogzero.runtime.worker_child import spec_of
from catalogzero.testing import ManualClock, Serving, serving
from catalogzero.wire.zeromq import RouterServer

from examples.quickstart.processes import free_ports
from tests.core.rough_crew import Rough
from tests.core.support import is_gone, kill, until

REPLY_S = 20.0


async def nothing_left(at: Serving) -> None:
    """No run keeps a place, and the next one is served."""
    metrics = await at.client.call("get_metrics")
    assert (metrics["in_flight"], metrics["queued"]) == (0, 0)
    assert await at.client.call("fine", timeout_s=REPLY_S) == "fine"


# --- cancelled ----------------------------------------------------------------------------------


async def test_a_job_that_is_cancelled_before_it_began_is_answered_and_leaves_its_place() -> None:
    async with serving(Rough()) as at:

        async def pair(number: int) -> Any:
            name = f"r{number}"
            called = asyncio.create_task(at.client.request("wait", request_id=name))
            await asyncio.sleep(0)
            await at.client.call("cancel", {"request_id": name})
            return await called

        replies = await asyncio.gather(*(pair(number) for number in range(50)))

        assert {reply.code for reply in replies} == {"cancelled"}
        await nothing_left(at)


async def test_cancelling_while_the_worker_starts_answers_and_the_next_run_works() -> None:
    async with serving(Rough()) as at:
        called = asyncio.create_task(at.client.request("pid", request_id="one"))
        while not (await at.client.call("get_metrics"))["in_flight"]:
            pass
        await at.client.call("cancel", {"request_id": "one"})

        assert (await called).code == "cancelled"
        assert await at.client.call("pid", timeout_s=REPLY_S)


async def test_a_cancellation_of_the_author_s_own_is_a_failure() -> None:
    async with serving(Rough()) as at:
        with pytest.raises(FailedError, match="CancelledError"):
            await at.client.call("raise_async", {"what": "CancelledError"})
        await nothing_left(at)


# --- hard to catch ------------------------------------------------------------------------------

HARD = [
    *("StopIteration", "CancelledError", "KeyboardInterrupt", "SystemExit"),
    *("BaseExceptionGroup", "GeneratorExit"),
]
TEXTS = ["undecodable", "details", "unprintable"]


@pytest.mark.parametrize("method", ["raise_plain", "raise_async"])
@pytest.mark.parametrize("what", [*HARD, *TEXTS])
async def test_whatever_a_job_raises_its_caller_hears_of_it(method: str, what: str) -> None:
    async with serving(Rough()) as at:
        reply = await at.client.request(method, {"what": what}, timeout_s=REPLY_S)

        assert (reply.success, reply.code) == (False, "failed")
        await nothing_left(at)


async def test_whatever_an_isolated_job_raises_its_caller_hears_of_it() -> None:
    async with serving(Rough()) as at:
        for method in ("raise_isolated", "raise_isolated_async"):
            for what in [*HARD, *TEXTS]:
                reply = await at.client.request(method, {"what": what}, timeout_s=REPLY_S)
                assert (reply.success, reply.code) == (False, "failed"), (method, what)
        await nothing_left(at)


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("unprintable", "UnprintableError: its text cannot be made"),
        ("BaseExceptionGroup", "two (2 sub-exceptions); KeyboardInterrupt; ValueError: one"),
        ("GeneratorExit", "GeneratorExit"),
        ("details", "odd"),
    ],
)
@pytest.mark.parametrize("method", ["raise_plain", "raise_async", "raise_isolated"])
async def test_the_error_says_what_was_raised(method: str, what: str, text: str) -> None:
    async with serving(Rough()) as at:
        reply = await at.client.request(method, {"what": what}, timeout_s=REPLY_S)

        assert reply.error.endswith(text)
        await nothing_left(at)


async def test_an_async_method_behind_a_plain_decorator_is_awaited() -> None:
    async with serving(Rough()) as at:
        for method in ("decorated", "decorated_isolated"):
            assert await at.client.call(method, {"value": 4}, timeout_s=REPLY_S) == 4


async def test_progress_without_json_fails_its_own_run_and_spoils_no_list() -> None:
    async with serving(Rough()) as at:
        with pytest.raises(FailedError, match=r"TypeError: .*JSON"):
            await at.client.call("returns_no_json")
        (run,) = (await at.client.call("list_runs"))["runs"]
        assert run["status"] == "error"


async def test_a_result_longer_than_the_worker_s_line_leaves_the_worker_alive() -> None:
    async with serving(Rough()) as at:
        pid = await at.client.call("pid", timeout_s=REPLY_S)
        with pytest.raises(FailedError, match="return less"):
            await at.client.call("too_long", {"size": worker.MAX_LINE_BYTES + 1}, timeout_s=60)
        assert await at.client.call("pid", timeout_s=REPLY_S) == pid


@pytest.mark.parametrize("method", ["raise_plain", "raise_isolated"])
async def test_a_file_name_that_is_no_utf_8_stands_in_the_error(method: str) -> None:
    async with serving(Rough()) as at:
        reply = await at.client.request(method, {"what": "undecodable"}, timeout_s=REPLY_S)

        assert "cannot read caf" in reply.error


async def test_logs_that_cannot_be_written_lose_no_reply(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    flags = ("--scheduler", "none", "--port", str(port), "--set", f"state_dir={tmp_path}")
    with writing_to_a_full_disk("run", "tests.core.rough_crew:Rough", *flags):
        async with HandlerClient(f"tcp://127.0.0.1:{port}") as client:
            call = {"what": "undecodable"}
            reply = await client.request("raise_plain", call, timeout_s=30)
            assert reply.code == "failed"
            assert await client.call("fine") == "fine"


@contextmanager
def writing_to_a_full_disk(*arguments: str) -> Iterator[None]:
    """A catalogzero command whose output cannot be written."""
    command = [sys.executable, "-m", "catalogzero", *arguments]
    root = Path(__file__).parents[2]
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(command, cwd=root, stderr=full, stdout=full)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("what", ["CancelledError", "KeyboardInterrupt", "undecodable"])
async def test_whatever_metrics_raise_their_caller_hears_of_it(what: str) -> None:
    rough = Rough()
    async with serving(rough) as at:
        rough.rough_metrics = what
        reply = await at.client.request("get_metrics", timeout_s=REPLY_S)
        rough.rough_metrics = ""

        assert (reply.success, reply.code) == (False, "failed")
        await nothing_left(at)


async def test_a_hook_that_awaits_what_it_cancelled_leaves_a_handler_that_wakes() -> None:
    rough = Rough()
    async with serving(rough) as at:
        rough.rough_hook = True
        assert await at.client.call("sleep") == {"status": "sleeping"}
        assert "CancelledError" in (await at.client.call("get_metrics"))["last_error"]
        assert await at.client.call("fine", timeout_s=REPLY_S) == "fine"


# --- not twice ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "params", "result"),
    [
        ("spoil", {"x": 1, "inner": {"y": 2}}, 1),
        ("spoil_inside", {"inner": {"list": []}}, 1),
    ],
)
async def test_a_job_that_changes_its_params_is_still_known_when_it_is_called_again(
    method: str, params: dict[str, Any], result: int
) -> None:
    async with serving(Rough()) as at:
        first = await at.client.request(method, params, request_id="one")
        again = await at.client.request(method, params, request_id="one")

        assert (first.result, again.run_id) == (result, first.run_id)


# --- going down ---------------------------------------------------------------------------------


@asynccontextmanager
async def going_down(rough: Rough) -> AsyncIterator[HandlerClient]:
    """A handler that is closing, held at its `_on_stop` until the block ends."""
    rough.may_stop.clear()
    leave = asyncio.Event()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def life() -> None:
        async with serving(rough) as at:
            address.set_result(at.address)
            await leave.wait()

    living = asyncio.create_task(life())
    async with HandlerClient(await address) as client:
        await client.ping()
        leave.set()
        await rough.stopping.wait()
        try:
            yield client
        finally:
            rough.may_stop.set()
            await living


async def test_a_job_that_comes_while_it_closes_is_refused_and_never_begun() -> None:
    rough = Rough()
    async with going_down(rough) as client:
        with pytest.raises(DrainingError):
            await client.call("wait", timeout_s=5)
        assert (await client.ping())["status"] == "ok"

    assert rough.begun == 0


async def test_resume_does_not_bring_back_a_handler_that_goes_down() -> None:
    rough = Rough()
    async with serving(rough) as at:
        waiting = asyncio.create_task(at.client.request("wait"))
        await until(lambda: rough.begun)
        retiring = asyncio.create_task(at.service.retire())
        await until(lambda: _has_status(at, "draining"))
        with pytest.raises(DrainingError):
            await at.client.call("resume")
        rough.gate.set()
        await retiring

        assert (await waiting).result == "waited"
        with pytest.raises(DrainingError):
            await at.client.call("fine")


async def test_a_waking_that_ends_with_the_service_never_falls_asleep_again() -> None:
    clock, rough, life = ManualClock(), Rough(), AsyncExitStack()
    at = await life.enter_async_context(serving(rough, clock=clock))
    await at.client.call("sleep")
    rough.opening.clear()
    async with HandlerClient(at.address) as client:
        waking = asyncio.create_task(client.request("wake"))
        await until(lambda: rough.wakings)
        ending = asyncio.create_task(life.aclose())
        await rough.stopping.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        rough.opening.set()
        await ending
        waking.cancel()
    await clock.advance(1_000)

    assert rough.releases == 1


async def test_a_hook_that_never_ends_does_not_hold_up_the_end() -> None:
    rough = Rough()
    rough.held.clear()
    sleeper = Sleeper(rough, lambda: None, grace_s=0.2)
    async with asyncio.timeout(10):
        falling = asyncio.create_task(sleeper.sleep())
        await until(lambda: rough.releases)
        await sleeper.close()
        with pytest.raises(asyncio.CancelledError):
            await falling


# --- the worker ---------------------------------------------------------------------------------


async def test_arguments_that_are_no_json_leave_no_child_and_say_so() -> None:
    before = len(psutil.Process().children())
    async with serving(Rough(object())) as at:
        with pytest.raises(FailedError, match=r"same arguments: .* not JSON serializable"):
            await at.client.call("pid")
        assert len(psutil.Process().children()) == before
        await nothing_left(at)


async def test_a_worker_that_cannot_be_started_fails_the_run_and_the_next_try_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(Rough()) as at:
        with monkeypatch.context() as without_python:
            without_python.setattr(sys, "executable", "/nonexistent/python")
            with pytest.raises(FailedError, match="worker process cannot be started"):
                await at.client.call("pid")
        assert await at.client.call("pid", timeout_s=REPLY_S)


async def test_a_worker_that_could_not_come_back_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, rough = ManualClock(), Rough()
    async with serving(rough, clock=clock) as at:
        first = await at.client.call("pid", timeout_s=REPLY_S)
        rough.worker.status = {"busy": True, "next_due_s": 0.0}
        with monkeypatch.context() as without_python:
            without_python.setattr(sys, "executable", "/nonexistent/python")
            kill(first)
            await until(lambda: rough.worker.pid is None)
            await clock.advance(5)

        async def back() -> bool:
            await clock.advance(1)
            return rough.worker.pid is not None

        await until(back)


async def test_cancelling_a_run_brings_the_worker_back_where_it_had_more_to_do() -> None:
    clock, rough = ManualClock(), Rough()
    async with serving(rough, clock=clock) as at:
        first = await at.client.call("pid", timeout_s=REPLY_S)
        hanging = asyncio.create_task(at.client.request("hang", request_id="h"))
        while not (await at.client.call("get_metrics"))["in_flight"]:
            pass
        rough.worker.status = {"busy": True, "next_due_s": None}
        await at.client.call("cancel", {"request_id": "h"})
        assert (await hanging).code == "cancelled"
        await until(lambda: is_gone(first))

        async def back() -> bool:
            await clock.advance(1)
            return rough.worker.pid not in (None, first)

        await until(back)


async def test_a_grandchild_that_keeps_the_pipes_open_holds_up_nothing(tmp_path: Path) -> None:
    note = tmp_path / "grandchild"
    async with serving(Rough()) as at:
        try:
            call = {"note": str(note)}
            with pytest.raises(FailedError, match="exit status 9"):
                await at.client.call("leave_a_child_behind", call, timeout_s=REPLY_S)
            assert await at.client.call("pid", timeout_s=REPLY_S)
        finally:
            kill(int(note.read_text()))


async def test_a_worker_that_does_not_end_when_asked_is_replaced() -> None:
    rough = Rough()
    port = worker.WorkerPort(lambda: spec_of(rough), rough.clock, rough.log, end_grace_s=0.3)
    blocked = await port.call("block_the_loop")
    await until(lambda: "blocked" in port.status)
    port.rest()

    assert await port.call("pid") != blocked
    assert is_gone(blocked)
    await port.close()


async def test_a_start_under_way_at_the_end_leaves_no_child() -> None:
    before = len(psutil.Process().children())
    for _ in range(5):
        rough = Rough()
        async with serving(rough):
            starting = asyncio.create_task(rough.worker.start())
            await asyncio.sleep(0)
        await asyncio.wait([starting])
        assert rough.worker.pid is None
    assert len(psutil.Process().children()) == before


# --- registration -------------------------------------------------------------------------------


async def test_a_goodbye_that_is_cut_short_leaves_no_socket() -> None:
    def answer(envelope: Any, frame: bytes) -> None:
        if b"offline" not in frame:
            server.send(envelope, b'{"success": true}')

    server = RouterServer(answer)
    port = server.bind(Address("127.0.0.1")).port
    before = psutil.Process().num_fds()
    async with serving(Rough(), scheduler=f"tcp://127.0.0.1:{port}") as at:
        await at.service.registered()
        retiring = asyncio.create_task(at.service.retire())
        await asyncio.wait([retiring], timeout=0.2)
        retiring.cancel()
        await asyncio.wait([retiring])
    server.unbind()
    await until(lambda: psutil.Process().num_fds() <= before)


async def test_a_cancelled_caller_gets_nothing_and_harms_nobody() -> None:
    rough = Rough()
    async with serving(rough) as at:
        calls = [asyncio.create_task(at.client.call("wait")) for _ in range(3)]
        await until(lambda: rough.begun == 3)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        rough.gate.set()
        await until(lambda: _idle(at))
        await nothing_left(at)


async def _idle(at: Serving) -> bool:
    metrics: dict[str, Any] = await at.client.call("get_metrics")
    return not metrics["in_flight"]


async def _has_status(at: Serving, status: str) -> bool:
    metrics: dict[str, Any] = await at.client.call("get_metrics")
    return bool(metrics["status"] == status)


async def test_a_run_is_cancelled_at_the_end_and_its_caller_reported() -> None:
    rough = Rough()
    life = AsyncExitStack()
    at = await life.enter_async_context(serving(rough))
    at.service.farewell_s = 0.2
    async with HandlerClient(at.address) as client:
        waiting = asyncio.create_task(client.request("wait"))
        await until(lambda: rough.begun)
        await life.aclose()
        reply = await waiting

    assert reply.code == RunCancelledError.code
    assert reply.details == {"by": "stop"}


async def test_a_hurried_end_ends() -> None:
    rough = Rough()
    stop, hurry = asyncio.Event(), asyncio.Event()
    ready: asyncio.Future[Service] = asyncio.get_running_loop().create_future()
    rough.runtime = rough.runtime.model_copy(update={"scheduler": "none"})
    living = asyncio.create_task(serve_until(rough, stop, hurry, on_ready=ready.set_result))
    async with HandlerClient((await ready).address) as client:
        waiting = asyncio.create_task(client.request("wait"))
        await until(lambda: rough.begun)
        stop.set()
        await asyncio.sleep(0)
        hurry.set()
        await asyncio.wait_for(living, 10)
        waiting.cancel()

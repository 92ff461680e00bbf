"""Backend, scheduler and SQL sources outlive a network that is mute, cut or closed."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from catalogzero.backend import CompletedUpload

from tests.backend.peer import serve_peer
from tests.cloud.site import until as until_async
from tests.scheduler.processes import (
    SchedulerProcess,
    check_grid,
    executions,
    handler_process,
    until,
)
from tests.sql.services import ANSWERED, AWAY, SERVICES, TIMEOUT_S, Service
from tests.sql.tcp_proxy import TcpProxy

pytestmark = pytest.mark.postgresql


@pytest.fixture(params=list(SERVICES))
def service(
    request: pytest.FixtureRequest, behind: str, postgresql: str, tmp_path: Path
) -> Iterator[Service]:
    """Each service in turn, on a database behind the proxy."""
    with SERVICES[request.param](behind, postgresql, tmp_path) as service:
        yield service


async def answers_again(service: Service) -> None:
    """Ask until it answers."""
    for _ in range(30):
        if await service.ask() == ANSWERED:
            return
    raise AssertionError("it does not answer again")


async def test_it_answers_again_after_a_mute_database(service: Service, proxy: TcpProxy) -> None:
    await answers_again(service)

    proxy.mute()
    silent = [await service.ask() for _ in range(2)]
    swallowed = proxy.swallowed
    proxy.speak()

    assert (silent, swallowed > 0) == ([AWAY, AWAY], True)
    await answers_again(service)


async def test_it_answers_again_after_cut_connections(service: Service, proxy: TcpProxy) -> None:
    await answers_again(service)
    opened = proxy.opened

    proxy.cut()

    await answers_again(service)
    assert proxy.opened > opened


async def test_it_answers_again_after_a_database_that_refuses(
    service: Service, proxy: TcpProxy
) -> None:
    await answers_again(service)

    proxy.refuse()
    refused = await service.ask()
    proxy.listen()

    assert refused == AWAY
    await answers_again(service)


async def test_sigterm_ends_it_while_its_database_is_mute(
    service: Service, proxy: TcpProxy
) -> None:
    await answers_again(service)
    proxy.mute()
    asking = asyncio.create_task(service.ask())
    await until_async(lambda: proxy.swallowed)

    service.process.send_signal(signal.SIGTERM)
    status = await asyncio.to_thread(service.process.wait, 60)

    assert status == 0
    asking.cancel()
    await asyncio.wait([asking])


def test_ticks_go_on_after_a_mute_database_and_none_is_lost_or_doubled(
    behind: str, proxy: TcpProxy, tmp_path: Path
) -> None:
    with (
        SchedulerProcess(
            behind, "--database-timeout-s", str(TIMEOUT_S), "--lease-s", "2"
        ) as scheduler,
        handler_process(scheduler.zmq_address, tmp_path),
    ):
        scheduler.wait_for_handler("chore")
        _every_second(scheduler)
        until(lambda: len(executions(scheduler.api, job_id="every")) > 2)
        proxy.mute()
        until(lambda: scheduler.api.get("/api/schedules").status_code == 503)
        proxy.speak()
        until(lambda: scheduler.api.get("/api/schedules").status_code == 200)
        so_far = len(executions(scheduler.api, job_id="every"))
        until(lambda: len(executions(scheduler.api, job_id="every")) > so_far + 2)
        until(lambda: scheduler.api.delete("/api/schedules/every").status_code == 200)
        until(lambda: all(r["completed_at"] for r in executions(scheduler.api, job_id="every")))
        records = executions(scheduler.api, job_id="every")

    check_grid(records)
    lines = (tmp_path / "notes").read_text().splitlines()
    began = Counter(line.split(" ")[1].partition(".")[0] for line in lines if "began" in line)
    ran = {record["execution_id"] for record in records if record["status"] == "success"}
    assert ran <= began.keys()
    assert set(began.values()) == {1}


def _every_second(scheduler: SchedulerProcess) -> None:
    body = {
        "handler_id": "chore",
        "job_method": "note",
        "job_id": "every",
        "job_params": {"text": "every", "seconds": 0.05},
        "trigger": {"type": "interval", "seconds": 1},
    }
    assert scheduler.api.post("/api/schedule", json=body).status_code == 201


async def test_a_hook_is_called_after_a_mute_database(behind: str, proxy: TcpProxy) -> None:
    called: list[str] = []

    async def hook(upload: CompletedUpload) -> None:
        called.append(upload.upload_id)

    async with serve_peer(behind, hook=hook, database_timeout_s=TIMEOUT_S) as peer:
        assert (await peer.put("first", 0, {"n": 1})).status == 201
        opened = proxy.opened
        proxy.mute()
        await until_async(lambda: proxy.opened > opened)  # it looks for what is due by itself
        proxy.speak()
        while (await peer.put("second", 0, {"n": 1})).status != 201:
            pass
        assert (await peer.complete("second")).status == 201
        await until_async(lambda: called)

    assert called == ["second"]

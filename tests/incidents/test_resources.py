"""No room on the disk, no memory, a process that is killed: where it shows, and what then helps."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.cloud.reference import ReferenceBackend
from tests.incidents.plant import CommandEnd, Plant, Row, until

ROWS = [{"n": 1}, {"n": 2}]
GROUPS = Path("/sys/fs/cgroup/memory")
KILLED = "the worker was killed by the kernel (signal 9)"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of all state, on a file system of a few megabytes."""
    folder = tmp_path / "state"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def little_memory(megabytes: int, pid: int) -> Iterator[Path]:
    """A memory cgroup with a process in it, its children, and what they start meanwhile."""
    group = GROUPS / f"catalogzero-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error.strerror}")
    try:
        (group / "memory.limit_in_bytes").write_text(str(megabytes << 20))
        (group / "cgroup.procs").write_text(str(pid))
        for child in psutil.Process(pid).children():
            (group / "cgroup.procs").write_text(str(child.pid))
        yield group
    finally:
        for left in (group / "cgroup.procs").read_text().split():
            with suppress(OSError):  # it has ended meanwhile
                (GROUPS / "cgroup.procs").write_text(left)
        group.rmdir()


def worker_of(plant: Plant) -> psutil.Process:
    """The worker process of the handler."""
    [worker] = psutil.Process(plant.handler.pid).children()
    return worker


def troubles(status: CommandEnd) -> list[Row]:
    """What `status --json` says is wrong with the handler."""
    return [one for one in status.json["troubles"] if one["of"] == "site"]


async def shows_the_failed_run(plant: Plant, backend: ReferenceBackend, error: str) -> None:
    """The log, the metrics, `status` with its next command, and health name the failed run."""
    line = await plant.logged("run_failed", level="warning", method="process_and_upload")
    assert error in line["error"]
    failed = (await plant.metrics())["last_failed_run"]
    [trouble] = [one for one in troubles(await plant.status()) if failed["run_id"] in one["what"]]
    run = (await plant.follow(trouble["next"])).json
    assert (run["status"], error in run["error"]) == ("error", True)
    report = await plant.health(backend)
    assert report["status"] == "failing"
    assert any(failed["run_id"] in reason for reason in report["reasons"])
    assert error not in str(report)


async def test_a_full_disk_shows_everywhere_and_room_ends_it(
    small_disk: Path, backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Plant(tmp_path, backend.url) as plant:
        plant.write("big.csv", [{"n": os.urandom(600).hex()} for _ in range(8_000)])
        await plant.start()
        refused = await plant.refused()
        checked, status = await asyncio.gather(plant.finding("disk"), plant.status())
        await shows_the_failed_run(plant, backend, "the disk is full at")
        full = await plant.health(backend)
        async with plant.conductor() as conductor:
            row = await conductor.site(where=lambda row: bool(row["troubles"]))

        assert f"the disk is full at {plant.state}: make room" in refused.message
        assert checked["status"] in ("warn", "fail")
        assert "make room" in checked["fix"]
        assert [one["next"] for one in troubles(status) if "disk" in one["what"]] == [
            f"df -h {plant.state}"
        ]
        assert any("disk of the outbox is nearly full" in reason for reason in full["reasons"])
        assert {one["cause"] for one in row["troubles"]} == {"run_failed", "disk_nearly_full"}

        assert (await plant.shell("mount", "-o", "remount,size=2g", str(small_disk))).code == 0
        assert (await plant.run())["status"] == "uploaded"
        await plant.delivered(backend)
        assert (await plant.health(backend))["reasons"] == []
        assert (await plant.status()).code == 0


async def test_a_worker_without_memory_fails_its_run_alone(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Plant(tmp_path, backend.url, class_name="Hungry") as plant:
        plant.write("a.csv", ROWS)
        await plant.start()
        with little_memory(250, plant.handler.pid) as group:
            refused = await plant.refused()
            counts = (group / "memory.oom_control").read_text().split()

            assert int(counts[counts.index("oom_kill") + 1]) >= 1
            assert refused.message.startswith(KILLED)
            await plant.logged("worker_died", level="warning", exit_status=-9)
            await shows_the_failed_run(plant, backend, KILLED)
            assert "raise the unit's MemoryMax=" in refused.message
            (group / "memory.limit_in_bytes").write_text(str(1 << 30))
            assert (await plant.run())["status"] == "uploaded"
        await plant.delivered(backend)
        assert (await plant.health(backend))["status"] == "ok"
        assert (await plant.status()).code == 0


async def test_a_killed_worker_fails_its_run_and_the_next_has_a_new_one(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Plant(tmp_path, backend.url, class_name="Held") as plant:
        plant.write("a.csv", ROWS)
        await plant.start()
        run = asyncio.create_task(plant.refused())
        await until((tmp_path / "began").exists, "the run began")
        worker_of(plant).kill()

        assert (await run).message.startswith(KILLED)
        await plant.logged("worker_died", level="warning", exit_status=-9)
        await shows_the_failed_run(plant, backend, KILLED)
        (tmp_path / "go").touch()
        assert (await plant.run())["status"] == "uploaded"
        await plant.delivered(backend)
        assert (await plant.health(backend))["status"] == "ok"


async def test_a_killed_handler_says_at_its_next_start_that_its_runs_are_lost(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Plant(tmp_path, backend.url, class_name="Held") as plant:
        plant.write("a.csv", ROWS)
        await plant.start()
        assert not plant.log("killed_before_this_start")
        body = {"data_source": str(plant.data)}
        call = asyncio.create_task(plant.client.run("process_and_upload", body, timeout_s=60))
        await until((tmp_path / "began").exists, "the run began")
        worker = worker_of(plant)
        plant.kill()
        await until(lambda: not worker.is_running(), "its worker ends with it")
        down = await plant.status()
        await plant.start()
        reply = await call

        assert [one["what"] for one in troubles(down)] == ["is not running"]
        assert troubles(down)[0]["next"].startswith("catalogzero run site")
        assert (reply.code, "restarted" in reply.error) == ("expired", True)
        await plant.logged("killed_before_this_start", level="warning")
        assert (await plant.status()).code == 0
        (tmp_path / "go").touch()
        assert (await plant.run())["status"] == "uploaded"
        await plant.delivered(backend)
        await plant.restart()
        assert len(plant.log("killed_before_this_start")) == 1
        assert (await plant.run())["status"] == "unchanged"
        await plant.delivered(backend)

"""The scheduler: ports taken, its database locked or damaged, a handler that is away."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from examples.quickstart.processes import free_ports
from tests.cloud.reference import ReferenceBackend
from tests.incidents.plant import Plant, until
from tests.incidents.timetable import Timetable

ROWS = [{"n": 1}, {"n": 2}]


@pytest.fixture
def timetable(plant: Plant) -> Timetable:
    return Timetable(plant)


@pytest.mark.parametrize(("number", "option"), [(0, "--port"), (1, "--zmq-port")])
async def test_a_taken_port_of_the_scheduler_names_its_option_and_who_has_it(
    plant: Plant, timetable: Timetable, number: int, option: str
) -> None:
    port = timetable.ports[number]
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        code = await asyncio.to_thread(timetable.begin().wait, 60)

    assert code == 75  # systemd tries again
    assert f"port {port} on 127.0.0.1" in timetable.log
    assert option in timetable.log
    assert f"process {os.getpid()})" in timetable.log
    await timetable.start()


async def test_a_taken_port_of_the_handler_names_the_setting_and_who_has_it(
    plant: Plant, backend: ReferenceBackend
) -> None:
    port = plant.section["port"]
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        await plant.start(answers=False)
        code = await asyncio.to_thread(plant.handler.wait, 60)
        said = (plant.processes.logs / "handler.log").read_text()
        found, status = await asyncio.gather(plant.finding("address"), plant.status())

    text = f"port {port} on 127.0.0.1 is taken ("
    assert code == 75
    assert text in said
    assert f"process {os.getpid()}): stop what listens there, or set another `port`" in said
    assert (found["status"], text in found["found"]) == ("fail", True)
    assert "port" in found["fix"]
    assert status.code == 1
    assert [one["what"] for one in status.json["troubles"]] == ["is not running"]

    plant.write("a.csv", ROWS)
    plant.section["port"] = free_ports(1)[0]
    plant.write_registry()
    await plant.start()
    await plant.run()
    await plant.delivered(backend)


async def test_a_locked_database_is_waited_for_and_named_at_a_start(
    plant: Plant, timetable: Timetable, backend: ReferenceBackend
) -> None:
    plant.write("a.csv", ROWS)
    await timetable.start()
    await plant.start()
    await timetable.registered()
    await timetable.add("often", "1s")
    await until(lambda: timetable.runs("often"), "it ran")
    with closing(sqlite3.connect(timetable.database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        await until(lambda: "database_away" in timetable.log, "the log names the database")
        other.execute("ROLLBACK")
        had = len(timetable.runs("often"))
        await until(lambda: len(timetable.runs("often")) > had + 1, "it goes on")
        await timetable.stop()
        other.execute("BEGIN EXCLUSIVE")
        code = await asyncio.to_thread(timetable.begin().wait, 60)

        assert code == 4
        assert f"cannot open the database {timetable.database}: database is locked" in timetable.log
        assert "another process holds it; end that one, or try again" in timetable.log
        other.execute("ROLLBACK")
    await timetable.start()
    await plant.delivered(backend)
    ticks = [run["scheduled_at"] for run in timetable.runs("often")]
    assert len(ticks) == len(set(ticks))


async def test_a_damaged_database_is_left_as_it_is_and_the_hint_goes_on(
    plant: Plant, timetable: Timetable, backend: ReferenceBackend
) -> None:
    plant.write("a.csv", ROWS)
    await timetable.start()
    await plant.start()
    await timetable.registered()
    await timetable.add("nightly", "1h")
    saved = plant.folder / "schedules.yaml"
    assert (await timetable.command("export", "-o", str(saved))).code == 0
    await timetable.stop()
    with closing(sqlite3.connect(timetable.database)) as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damaged = bytearray(timetable.database.read_bytes())
    damaged[100:3000] = os.urandom(2_900)
    timetable.database.write_bytes(damaged)
    code = await asyncio.to_thread(timetable.begin().wait, 60)

    assert code == 3
    said = timetable.log.splitlines()[-1]
    assert f"cannot open the database {timetable.database}: " in said
    assert "catalogzero state restore" in said
    assert timetable.database.read_bytes() == bytes(damaged)

    begin = said.partition("To begin without schedules: `")[2].partition("`")[0]
    assert (await plant.shell("sh", "-c", begin)).code == 0
    await timetable.start()
    assert "catalogzero schedule apply -f FILE" in said
    await timetable.registered()
    assert (await timetable.command("apply", "-f", str(saved))).code == 0
    assert (await timetable.command("run", "nightly")).code == 0
    await plant.delivered(backend)


async def test_a_schedule_waits_for_a_dead_handler_and_says_so_everywhere(
    plant: Plant, timetable: Timetable, backend: ReferenceBackend
) -> None:
    plant.write("a.csv", ROWS)
    await timetable.start()
    await plant.start()
    await timetable.registered()
    await timetable.add("often", "1s")
    await until(lambda: timetable.runs("often"), "it ran")
    plant.write("b.csv", [{"n": 3}])
    plant.kill()
    await until(
        lambda: any(run["waiting"] for run in timetable.runs("often")), "a run waits for it"
    )
    await until(lambda: "handler_away" in timetable.log, "the scheduler's log has it")

    async def parts() -> dict[str, str]:
        """What is in trouble on the machine, and how."""
        status = await timetable.status()
        assert status.code == 1
        return {one["of"]: one["what"] for one in status.json["troubles"]}

    async def is_named() -> bool:
        return "schedule often" in await parts()

    listed = await timetable.command("executions", "--job-id", "often")
    await until(is_named, "status names the schedule")
    async with plant.conductor() as conductor:
        row = await conductor.site(where=lambda row: row["state"] == "unreachable")

    assert "away" in listed.out
    assert (await parts())["site"] == "is not running"
    assert row["troubles"]

    await plant.start()
    await plant.delivered(backend)
    await until(lambda: "handler_back" in timetable.log, "the scheduler's log has it")
    await until(
        lambda: not any(run["waiting"] for run in timetable.runs("often")), "no run waits any more"
    )


async def test_a_handler_that_died_under_run_all_is_named_and_the_others_end(
    plant: Plant, backend: ReferenceBackend
) -> None:
    plant.write("a.csv", ROWS)
    plant.write_registry({**plant.section, "handler_id": "other", "port": free_ports(1)[0]})
    all_of_them = plant.begin("all", "run", "--all")
    log = plant.processes.logs / "all.log"
    await until(lambda: log.read_text().count('"serving"') == 2, "both serve")
    children = psutil.Process(all_of_them.pid).children()
    [other] = [one for one in children if one.cmdline()[-1] == "other"]
    await plant.run()
    other.kill()
    code = await asyncio.to_thread(all_of_them.wait, 60)
    status = await plant.status()

    assert code == 1
    assert "handler other ended with exit code -9" in log.read_text()
    assert "the others are ended too" in log.read_text()
    assert not any(one.is_running() for one in children)
    assert {one["of"] for one in status.json["troubles"]} == {"site", "other"}

    await plant.start()  # each as a unit of its own
    assert (await plant.run())["status"] == "unchanged"
    await plant.delivered(backend)


async def test_a_handler_that_sleeps_is_no_trouble(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    early = {"idle_after_s": 0.2, "sleep_after_s": 0.4}
    async with Plant(tmp_path, backend.url, runtime=early) as plant:
        plant.write("a.csv", ROWS)
        await plant.start()
        await plant.run()

        async def asleep() -> bool:
            return bool((await plant.metrics())["status"] == "sleeping")

        await until(asleep, "it sleeps")
        status, check = await asyncio.gather(plant.status(), plant.check())
        async with plant.conductor() as conductor:
            row = await conductor.site()

        assert (status.code, status.json["troubles"]) == (0, [])
        assert status.json["handlers"][0]["status"] == "sleeping"
        assert (check.code, row["state"], row["troubles"]) == (0, "sleeping", [])
        assert await asleep()
        assert {line["level"] for line in plant.log()} == {"info"}
        await plant.delivered(backend)

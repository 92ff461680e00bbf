"""The watch: how soon it notices, what it logs, and what a history that fails costs."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from catalogzero.testing import ManualClock, serving
from structlog.testing import LogCapture

from conductorzero import ConductorZero
from conductorzero.fleet import Fleet
from conductorzero.history import WHOLE_FLEET, History
from conductorzero.peers import Directory, peers_of_mapping
from conductorzero.watch import Watch
from fleets import Shop, addresses, free_port, shops, until
from simulated import SimulatedFleet, SimulatedHandler

INTERVAL_S = 5.0


def watching(fleet: Fleet, clock: ManualClock, registry: dict[str, int | str]) -> tuple[Any, Watch]:
    """A watch over these peers, and what it logs."""
    said = LogCapture()
    log = structlog.wrap_logger(structlog.ReturnLogger(), processors=[said])
    directory = Directory(peers_of_mapping(registry), [])
    return said, Watch(directory, fleet, clock, log, interval_s=INTERVAL_S)


def simulated(clock: ManualClock, *names: str) -> tuple[SimulatedFleet, dict[str, int | str]]:
    """A fleet that only says what handlers would say, and its registry."""
    handlers = {name: SimulatedHandler(number, busy=0.5) for number, name in enumerate(names)}
    registry: dict[str, int | str] = dict.fromkeys(names, 5001)
    return SimulatedFleet(clock, handlers), registry


async def test_a_death_shows_within_one_interval() -> None:
    clock = ManualClock()
    port = free_port()
    registry: dict[str, int | str] = {"shop": port}
    conductor = ConductorZero(registry, dashboard_port=0, interval_s=INTERVAL_S)
    async with serving(conductor, handler_id="conductor", clock=clock) as served:
        metrics = await served.client.call("get_metrics")
        async with aiohttp.ClientSession() as session:

            async def state() -> str:
                async with session.get(metrics["dashboard_url"] + "/api/fleet") as response:
                    (row,) = (await response.json())["handlers"]
                    return str(row["state"])

            async def alive() -> bool:
                await clock.advance(0.1)
                return await state() == "active"

            async with serving(Shop(), handler_id="shop", port=port):
                await until(alive)
            died_s = clock.monotonic()

            async def dead() -> bool:
                await clock.advance(0.1)
                return await state() == "unreachable"

            await until(dead)
            took_s = clock.monotonic() - died_s

    assert took_s <= INTERVAL_S


async def test_each_change_of_state_is_one_line_of_the_log() -> None:
    clock = ManualClock()
    fleet, registry = simulated(clock, "a", "b")
    said, watch = watching(fleet, clock, registry)
    await watch.look()
    fleet.handlers["a"].dead = True
    await watch.look()
    await watch.look()
    fleet.handlers["a"].dead = False
    await watch.look()

    lines = [one for one in said.entries if one["event"] == "handler_state"]
    assert [(one["handler"], one["log_level"], one["text"]) for one in lines] == [
        ("a", "debug", "unknown → active"),
        ("b", "debug", "unknown → active"),
        ("a", "warning", "active → unreachable"),
        ("a", "info", "unreachable → active"),
    ]


class FullHistory(History):
    """A history on a disk that is full for a while."""

    full = True

    def write(self, *given: Any) -> None:
        """Write, when there is room."""
        if self.full:
            raise sqlite3.OperationalError("database or disk is full")
        super().write(*given)


async def test_a_full_disk_is_a_problem_until_it_is_over_and_loses_no_event(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    fleet, registry = simulated(clock, "a")
    _, watch = watching(fleet, clock, registry)
    history = watch.history = FullHistory(tmp_path / "history.sqlite3")
    problems = []
    for moment in range(8):
        history.full = moment < 6
        await watch.look()
        problems.append(watch.problems)
        await clock.advance(30)
    stored = history.events(None, 10)
    history.close()

    told = f"{history.path}: the history cannot be written: database or disk is full"
    assert problems == [[], [], *[[told]] * 4, [], []]
    assert [event["kind"] for event in stored] == ["state", "joined"]


async def test_rows_are_counted_over_a_restart_of_the_conductor(tmp_path: Path) -> None:
    clock = ManualClock()
    fleet, registry = simulated(clock, "a", "b")
    handlers = fleet.handlers.values()
    for total in (100, 130, 180, 7):  # the last in a new outbox
        for one in handlers:
            one.delivered = total
        _, watch = watching(fleet, clock, registry)
        await watch.open_history(lambda: History(tmp_path / "history.sqlite3"))
        await watch.look()
        await watch.write(everything=True)
        of_all = sum(one.delivered for _, one in await watch.series(WHOLE_FLEET, 0))
        assert watch.history is not None
        watch.history.close()
        await clock.advance(60)

    assert of_all == 2 * (30 + 50 + 7)


async def reported_of(tmp_path: Path, fleet: dict[str, int | str]) -> dict[str, Any]:
    """What the fleet's page says, of a conductor with this state folder."""
    conductor = ConductorZero(fleet, dashboard_port=0)
    async with serving(conductor, handler_id="conductor", state_dir=tmp_path) as served:
        await served.client.call("health_check")
        url = (await served.client.call("get_metrics"))["dashboard_url"]
        async with aiohttp.ClientSession() as session:
            charts = await session.get(f"{url}/api/handlers/shop/history")
            assert charts.status == 200
            told: dict[str, Any] = await (await session.get(f"{url}/api/fleet")).json()
    return told


async def test_a_history_that_cannot_be_opened_keeps_nobody_from_watching(tmp_path: Path) -> None:
    (tmp_path / "conductor" / "history.sqlite3").mkdir(parents=True)
    async with shops("shop") as fleet:
        told = await reported_of(tmp_path, addresses(fleet))

    assert told["summary"]["alive"] == 1
    assert "no history is kept until a restart" in told["problems"][0]


async def test_a_damaged_history_is_reported_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "conductor" / "history.sqlite3"
    path.parent.mkdir()
    path.write_text("damaged " * 1_000)
    async with shops("shop") as fleet:
        told = await reported_of(tmp_path, addresses(fleet))
        again = await reported_of(tmp_path, addresses(fleet))

    assert "it was damaged, and a new one begun" in told["problems"][0]
    assert again["problems"] == []

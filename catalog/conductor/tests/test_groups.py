"""Several instances of one handler: each at its own address, and what they are as a whole."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from catalogzero.testing import Serving

from browsers import browsing, expect, names_of, page_of
from conductorzero.board import Board
from conductorzero.fleet import Answer
from conductorzero.groups import Group, groups_of, hosts_of
from conductorzero.peers import Peer
from fleets import Instances, conducting, free_port, real_scheduler, until

NATS = "nats://127.0.0.1:4222"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = ("a", "b", "c")


@pytest.fixture(params=["zeromq", "nats"])
def transport(request: pytest.FixtureRequest) -> str:
    """What carries the calls of the instances."""
    if request.param == "zeromq":
        return "zeromq"
    pytest.importorskip("nats", reason="the extra `nats` is not installed")
    with suppress(OSError), socket.create_connection(("127.0.0.1", 4222), 2):
        return NATS
    pytest.skip(f"no NATS server at {NATS}")


class Crew:
    """Three instances, each with two places, and a conductor that has them of their scheduler."""

    def __init__(self, toys: Instances, conductor: Serving, session: aiohttp.ClientSession) -> None:
        self.toys, self.conductor, self.session = toys, conductor, session
        self.name, self.key = toys.handler_id, toys.key
        self.url = ""

    async def read(self, path: str) -> Any:
        """The answer of the dashboard."""
        async with self.session.get(self.url + path) as response:
            if path == "/metrics":
                return await response.text()
            assert response.status == 200, await response.text()
            return await response.json()

    async def group(self) -> dict[str, Any]:
        """How they are as a whole."""
        groups = (await self.read("/api/fleet"))["groups"]
        return groups[0] if groups else {}

    async def is_known(self, **about: Any) -> None:
        """Wait until this holds of the whole."""

        async def held() -> bool:
            group = await self.group()
            return group.items() >= about.items()

        await until(held, within_s=40)

    async def kill(self, *names: str) -> None:
        """Kill these."""
        for name in names:
            await self.toys.processes[name].kill()

    async def call(self, called: str, **params: Any) -> Any:
        """Call a method of the conductor."""
        return await self.conductor.client.call(called, params, timeout_s=60)


@asynccontextmanager
async def working(folder: Path, transport: str, *names: str) -> AsyncIterator[Crew]:
    async with AsyncExitStack() as stack:
        url, address = await stack.enter_async_context(real_scheduler(folder))
        toys = Instances(stack, address, transport=transport, max_concurrent_jobs=2)
        await toys.start(*names)
        config: dict[str, Any] = {"scheduler_url": url, "discovery_interval_s": 1.0}
        conductor = await stack.enter_async_context(conducting(**config))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        crew = Crew(toys, conductor, session)
        crew.url = (await crew.call("get_metrics"))["dashboard_url"]
        await crew.is_known(answering=len(names))
        yield crew


@pytest.mark.timeout(120)
async def test_each_instance_is_asked_at_its_own_address_and_shown_under_its_handler(
    tmp_path: Path, transport: str
) -> None:
    async with working(tmp_path, transport, *NAMES) as crew:
        fleet = await crew.read("/api/fleet")
        group = await crew.read(f"/api/handlers/{crew.name}")
        one = await crew.read(f"/api/handlers/{crew.name}%2Fb")
        history = await crew.read(f"/api/handlers/{crew.name}/history")
        metrics = await crew.call("collect_metrics", handler_ids=[crew.name])
        scraped = await crew.read("/metrics")

    keys = [crew.key(name) for name in NAMES]
    rows = {row["key"]: row for row in fleet["handlers"]}
    hosts = ["127.0.0.1"] if transport == "zeromq" else [*NAMES]
    assert sorted(rows) == keys
    assert {row["handler_id"] for row in rows.values()} == {crew.name}
    assert [rows[key]["instance_id"] for key in keys] == [*NAMES]
    assert [rows[key]["places"] for key in keys] == [2, 2, 2]
    assert len({row["address"] for row in rows.values()}) == 3
    assert fleet["summary"]["headline"] == "The one handler answers"
    assert fleet["groups"][0] == group["handler"]
    assert (group["handler"]["health"], group["handler"]["members"]) == ("well", keys)
    assert (group["handler"]["places"], group["handler"]["load"]) == (6, 0)
    assert sorted(row["host"] for row in fleet["hosts"]) == hosts
    assert sum(row["places"] for row in fleet["hosts"]) == 6
    assert one["handler"]["key"] == crew.key("b")
    assert one["description"]["handler_id"] == crew.name
    assert history["total"]["asked"] >= 3
    assert sorted(metrics["handlers"]) == keys
    labels = f'handler_id="{crew.name}",instance_id="b"'
    assert f"catalogzero_handler_up{{{labels}}} 1" in scraped
    assert f'host="{rows[crew.key("b")]["host"]}",instance_id="b"}} 2' in scraped


@pytest.mark.timeout(120)
async def test_one_of_three_away_is_a_warning_with_its_name_and_all_away_a_failure(
    tmp_path: Path, transport: str
) -> None:
    async with working(tmp_path, transport, *NAMES) as crew:
        await crew.kill("b")
        await crew.is_known(health="warning")
        one_away = await crew.read("/api/fleet")
        scraped = await crew.read("/metrics")
        health = await crew.call("health_check")
        pong = await crew.call("ping_handler", handler_id=crew.name)
        silent = await crew.call("ping_handler", handler_id=crew.key("b"))
        await crew.kill("a", "c")
        await crew.is_known(health="failing")
        all_away = await crew.read("/api/fleet")
        events = (await crew.read(f"/api/events?handler_id={crew.name}"))["events"]

    (group,), (trouble,) = one_away["groups"], one_away["troubles"]
    assert (group["away"], group["answering"], group["places"]) == (["b"], 2, 4)
    assert one_away["summary"]["headline"].startswith(f"{crew.key('b')} is away")
    assert (trouble["cause"], trouble["tone"]) == ("instance_away", "warn")
    assert trouble["handler_ids"] == [crew.key("b")]
    labels = f'handler_id="{crew.name}",instance_id="b"'
    assert f'catalogzero_handler_trouble{{cause="instance_away",{labels}}} 1' in scraped
    assert f"catalogzero_handler_up{{{labels}}} 0" in scraped
    assert health["handlers"][crew.key("b")]["alive"] is False
    assert health["groups"][crew.name]["health"] == "warning"
    assert health["groups"][crew.name]["away"] == ["b"]
    assert (pong["alive"], pong["away"], silent["alive"]) == (True, [crew.key("b")], False)
    (group,), (trouble,) = all_away["groups"], all_away["troubles"]
    assert (group["state"], sorted(group["away"])) == ("unreachable", [*NAMES])
    assert all_away["summary"]["headline"] == "1 of 1 handler does not answer"
    assert (trouble["cause"], trouble["handler_ids"]) == ("no_answer", [crew.name])
    assert {event["handler_id"] for event in events} == {crew.key(name) for name in NAMES}


@pytest.mark.timeout(120)
async def test_a_signal_to_a_handler_says_of_each_instance_what_came_of_it(
    tmp_path: Path, transport: str
) -> None:
    async with working(tmp_path, transport, *NAMES) as crew:
        await crew.kill("b")
        await crew.is_known(health="warning")
        slept = await crew.call("signal", action="sleep", handler_ids=[crew.name])
        woken = await crew.call("signal", action="wake", handler_ids=[crew.key("a")])
        metrics = (await crew.call("collect_metrics"))["handlers"]
        unknown = await crew.call("signal", action="wake", handler_ids=[crew.key("nobody")])

    ok = {name: slept["handlers"][crew.key(name)]["ok"] for name in NAMES}
    states = {name: metrics[crew.key(name)].get("status") for name in ("a", "c")}
    assert ok == {"a": True, "b": False, "c": True}
    assert slept["handlers"][crew.key("b")]["error"]
    assert slept["summary"] == {"total": 3, "succeeded": 2, "failed": 1}
    assert list(woken["handlers"]) == [crew.key("a")]
    assert states["a"] in ("active", "idle")
    assert states["c"] == "sleeping"
    assert unknown["summary"] == {"total": 1, "succeeded": 0, "failed": 1}


@pytest.mark.timeout(120)
async def test_a_job_goes_to_an_instance_that_is_awake_and_has_a_free_place(
    tmp_path: Path, transport: str
) -> None:
    async with working(tmp_path, transport, "a", "b") as crew:
        await crew.call("signal", action="sleep", handler_ids=[crew.key("a")])
        greet = {"method": "greet", "params": {"name": "ann"}, "among": [crew.name]}
        # The gates are shut: each job that began keeps its place.
        loads = []
        async with asyncio.TaskGroup() as calls:
            waiting = []
            for number in range(3):
                waiting.append(calls.create_task(crew.call("dispatch", **greet)))

                async def begun(number: int = number) -> bool:
                    metrics = (await crew.call("collect_metrics"))["handlers"]
                    now = {name: metrics[crew.key(name)]["in_flight"] for name in ("a", "b")}
                    if sum(now.values()) == number + 1:
                        loads.append(now)
                    return len(loads) == number + 1

                await until(begun, within_s=30)
            for one in waiting:
                one.cancel()

    assert loads == [{"a": 0, "b": 1}, {"a": 0, "b": 2}, {"a": 1, "b": 2}]


@pytest.mark.timeout(120)
async def test_an_instance_that_restarts_is_found_again_as_the_same(
    tmp_path: Path, transport: str
) -> None:
    async with working(tmp_path, transport, "a", "b") as crew:
        before = (await crew.read(f"/api/handlers/{crew.name}%2Fb"))["handler"]["address"]
        await crew.kill("b")
        await crew.is_known(answering=1)
        await crew.toys.start("b")
        await crew.is_known(answering=2, health="well")
        after = (await crew.read(f"/api/handlers/{crew.name}%2Fb"))["handler"]["address"]
        events = (await crew.read(f"/api/events?handler_id={crew.name}%2Fb"))["events"]

    assert before != after
    if transport != "zeromq":
        assert "restarted" in {event["kind"] for event in events}


@pytest.mark.timeout(120)
async def test_an_instance_that_was_stopped_is_missed_by_nobody(
    tmp_path: Path, transport: str
) -> None:
    async with working(tmp_path, transport, *NAMES) as crew:
        await crew.toys.processes["b"].stop()
        await crew.is_known(instances=2, health="well")
        fleet = await crew.read("/api/fleet")

    assert sorted(row["instance_id"] for row in fleet["handlers"]) == ["a", "c"]
    assert fleet["troubles"] == []


# --- keys for a NATS server


@asynccontextmanager
async def nats_with_keys(folder: Path, *users: str) -> AsyncIterator[str]:
    """A NATS server that knows these public keys alone; its address."""
    program = shutil.which("nats-server")
    if program is None:
        pytest.skip("no nats-server on this machine")
    port = free_port()
    known = "\n".join(f'{{ nkey: "{user}" }}' for user in users)
    config = folder / "nats.conf"
    config.write_text(f'listen: "127.0.0.1:{port}"\nauthorization {{ users: [\n{known}\n] }}\n')
    process = await asyncio.create_subprocess_exec(
        *(program, "-c", str(config)), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(20):
            while b"Server is ready" not in (line := await process.stderr.readline()):
                assert line, "the NATS server ended"
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.communicate()


def written_seed(path: Path) -> str:
    """Write the seed of an NKEY of its own; its public key."""
    nkeys = pytest.importorskip("nkeys", reason="the extra `nats` is not installed")
    seed = nkeys.encode_seed(path.name.encode().ljust(32, b"."), nkeys.PREFIX_BYTE_USER)
    path.touch(0o600)
    path.write_bytes(seed)
    public: str = nkeys.from_seed(bytearray(seed)).public_key.decode()
    return public


@pytest.mark.timeout(120)
async def test_a_nats_server_is_reached_with_the_conductors_own_key(tmp_path: Path) -> None:
    users = [written_seed(tmp_path / name) for name in ("toys", "conductor")]
    written_seed(tmp_path / "stranger")
    async with nats_with_keys(tmp_path, *users) as server, AsyncExitStack() as stack:
        key = str(tmp_path / "toys")
        opening = real_scheduler(tmp_path, "--nats-key-file", key)
        url, address = await stack.enter_async_context(opening)
        toys = Instances(stack, address, transport=server, nats={"key_file": key})
        await toys.start("a", "b")
        said: dict[str, Any] = {}
        for name in ("conductor", "stranger", "missing"):
            config = {"scheduler_url": url, "nats": {"key_file": str(tmp_path / name)}}
            async with conducting(**config, timeout_s=2.0) as conductor:

                async def listed(name: str = name, conductor: Serving = conductor) -> bool:
                    said[name] = await conductor.client.call("health_check", timeout_s=30)
                    return len(said[name]["handlers"]) == 2

                await until(listed, within_s=30)

    assert said["conductor"]["summary"]["healthy"] == 2
    assert said["stranger"]["summary"]["healthy"] == 0
    errors = {name: said[name]["handlers"][toys.key("a")]["error"] for name in said}
    assert "refuses this process" in errors["stranger"]
    assert "No such file or directory: see `nats.key_file`" in errors["missing"]


# --- how a group is judged


def board(*states: str, failed: str = "") -> Board:
    """Instances a, b, c… of `toy` that are in these states; one of them had a run that failed."""
    one = Board()
    names = "abcdef"[: len(states)]
    one.set_peers([Peer("toy", f"tcp://{name}:1", "scheduler", name, 2) for name in names], NOW)
    for name, state in zip(names, states, strict=True):
        key = f"toy/{name}"
        if state == "unreachable":
            silence = Answer(success=False, handler_id=key, replied=False, error="Timeout")
            one.saw_ping(silence, NOW)
        elif state != "unknown":
            said: dict[str, Any] = {"status": state, "in_flight": 1, "queued": 1}
            if name == failed:
                said["last_failed_run"] = {"run_id": "r", "ended_at": NOW.isoformat()}
            one.saw_metrics(Answer(success=True, handler_id=key, result=said), NOW)
    return one


def group_of(one: Board) -> Group:
    (group,) = groups_of(one)
    return group


@pytest.mark.parametrize(
    ("states", "health", "state", "words"),
    [
        (("active", "sleeping"), "well", "active", []),
        (("sleeping", "draining"), "well", "sleeping", []),
        (("draining", "draining"), "well", "draining", []),
        (("unknown", "unknown"), "well", "unknown", []),
        (("idle", "unreachable", "idle"), "warning", "idle", ["1 of 3 away"]),
        (("unreachable", "unreachable", "idle"), "warning", "idle", ["2 of 3 away"]),
        (("unreachable", "unreachable"), "failing", "unreachable", ["no answer"]),
    ],
)
def test_a_group_is_as_bad_as_matters(
    states: tuple[str, ...], health: str, state: str, words: list[str]
) -> None:
    group = group_of(board(*states))

    assert (group.health()["health"], group.state) == (health, state)
    assert [one.words for one in group.troubles] == words


def test_a_failed_run_of_one_instance_is_a_failure_and_comes_before_one_that_is_away() -> None:
    one = board("active", "unreachable", "active", failed="a")

    assert group_of(one).health()["health"] == "failing"
    assert [each.cause for each in group_of(one).troubles] == ["run_failed", "instance_away"]
    assert one.summary()["headline"] == "1 of 1 handler needs you"


def test_one_that_comes_back_takes_the_others_silence_from_a_failure_to_a_warning() -> None:
    one = board("unreachable", "unreachable")
    before = [trouble["cause"] for trouble in one.troubles()]
    one.saw_ping(Answer(success=True, handler_id="toy/a", result={"boot_id": "x"}), NOW)

    assert before == ["no_answer"]
    assert [trouble["cause"] for trouble in one.troubles()] == ["instance_away"]
    assert one.summary()["headline"] == "toy/b is away; other instances take the calls"


def test_places_and_load_are_those_of_the_instances_that_answer() -> None:
    one = board("active", "unreachable", "active")

    shown = group_of(one).as_json()
    assert (shown["places"], shown["load"]) == (4, 4)
    assert [(row["host"], row["places"], row["load"]) for row in hosts_of(one.rows.values())] == [
        ("a", 2, 2),
        ("b", None, 0),
        ("c", 2, 2),
    ]


def test_the_outbox_that_instances_share_is_counted_once_as_one_that_is_awake_says_it() -> None:
    one = board("sleeping", "active", "unreachable")
    for name, waits in (("a", 9), ("b", 4), ("c", 7)):
        metrics = {**one.rows[f"toy/{name}"].metrics, "outbox": {"uploads": waits, "records": 2}}
        one.rows[f"toy/{name}"].metrics = metrics

    summary = one.summary()
    assert summary["senders"] == 1
    assert summary["waiting"] == {"uploads": 4, "records": 2, "dead": 0}


# --- the page


@pytest.mark.browser
@pytest.mark.timeout(120)
async def test_a_killed_instance_shows_under_its_handler_by_itself(tmp_path: Path) -> None:
    async with (
        browsing() as browser,
        working(tmp_path, "zeromq", *NAMES) as crew,
        page_of(browser, crew.url) as page,
    ):
        await page.get_by_role("heading", name="The one handler answers").wait_for()
        await expect(page.locator("#rows tr.instance")).to_have_count(3)
        names = await names_of(page)
        await crew.kill("b")
        await page.get_by_role("heading", name=f"{crew.key('b')} is away").wait_for()
        await page.locator("#rows tr.warn").get_by_text("1 of 3 away").wait_for()
        await crew.kill("a", "c")
        await page.get_by_role("heading", name="1 of 1 handler does not answer").wait_for()
        await expect(page.locator("#rows tr.gone")).to_have_count(4)

    assert names == [crew.name, *(crew.key(name) for name in NAMES)]

"""Where the handlers come from, and how changes are noticed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import web
from catalogzero import ConfigError
from catalogzero.testing import ManualClock, serving
from hypothesis import given
from hypothesis import strategies as st

from conductorzero import ConductorZero
from conductorzero.peers import (
    Directory,
    Peer,
    RegistryFile,
    SchedulerListing,
    address_of,
    peers_of_file,
    peers_of_listing,
    peers_of_mapping,
)
from fleets import Shop, addresses, conducting, free_port, scheduler, shops, until


@pytest.mark.parametrize(
    ("value", "address"),
    [
        (5001, "tcp://127.0.0.1:5001"),
        ("5001", "tcp://127.0.0.1:5001"),
        ("box:5001", "tcp://box:5001"),
        ("tcp://10.0.0.7:5001", "tcp://10.0.0.7:5001"),
        ("tcp://[::1]:5001", "tcp://[::1]:5001"),
        ("ipc:///run/acme/acme.sock", "ipc:///run/acme/acme.sock"),
        ("nats://box/acme", "nats://box:4222/acme"),
        ("tls://box:4333/acme/boot-1", "tls://box:4333/acme/boot-1"),
    ],
)
def test_ports_and_addresses_are_both_understood(value: int | str, address: str) -> None:
    assert address_of(value) == address


@given(st.none() | st.booleans() | st.floats() | st.text("a1:/.[]@ ") | st.lists(st.integers()))
def test_any_other_value_is_a_configuration_error(value: object) -> None:
    with suppress(ConfigError):
        assert address_of(value).startswith("tcp://")


def test_a_registry_file_names_its_handlers(tmp_path: Path) -> None:
    path = tmp_path / "handler_registry.yaml"
    path.write_text(
        "handlers:\n"
        "  - {handler_id: a, port: 5001}\n"
        "  - {handler_id: b, host: 0.0.0.0, port: 5002}\n"
        "  - {handler_id: c, host: '::1', port: 5003}\n"
        "  - {handler_id: s, host: 'ipc:///run/acme/acme.sock'}\n"
        "  - {handler_id: i, instance_id: north, port: 5004}\n"
        "  - {handler_id: n, transport: 'nats://box:4222'}\n"
        "  - {handler_id: m, transport: 'nats://box:4222', instance_id: north}\n"
        "  - {handler_id: free, port: 0}\n"
        "  - {handler_id: without}\n"
    )

    assert [(peer.key, peer.address) for peer in peers_of_file(path)] == [
        ("a", "tcp://127.0.0.1:5001"),
        ("b", "tcp://127.0.0.1:5002"),
        ("c", "tcp://[::1]:5003"),
        ("s", "ipc:///run/acme/acme.sock"),
        ("i/north", "tcp://127.0.0.1:5004"),
        ("n", "nats://box:4222/n"),
    ]


NINE = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))


@pytest.mark.parametrize(
    "text",
    [
        *("handlers: 3", "a: [", "[]", "\x00", "handlers: {a: 1}", "handlers: &a [*a]", "~: 1"),
        *(f"a0: &a0 x\n{NINE}handlers: *a9\n", "handlers: " + "[" * 200_000),
    ],
    ids=lambda text: text[:20].encode("unicode_escape").decode(),
)
def test_a_file_that_is_no_registry_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=r"registry\.yaml"):
        peers_of_file(path)


@given(st.recursive(st.none() | st.text("a1:/.") | st.integers(), st.lists, max_leaves=5))
def test_no_answer_of_a_scheduler_breaks_the_list(body: object) -> None:
    for answer in (body, {"handlers": body}, {"handlers": [body, {"id": body, "address": body}]}):
        with suppress(ConfigError):
            assert isinstance(peers_of_listing(answer), list)


async def test_the_first_source_that_has_an_id_wins(tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text("handlers: [{handler_id: a, port: 7001}, {handler_id: me, port: 7002}]")
    directory = Directory(
        peers_of_mapping({"a": 5001}), [RegistryFile(path)], leave_out=frozenset({"me"})
    )

    assert await directory.refresh() == {"a": Peer("a", "tcp://127.0.0.1:5001", "config")}


async def test_a_file_that_breaks_keeps_its_last_handlers_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text("handlers: [{handler_id: a, port: 7001}]")
    directory = Directory([], [RegistryFile(path)])
    await directory.refresh()

    path.write_text("handlers: [")

    assert set(await directory.refresh()) == {"a"}
    assert "cannot be read" in directory.problems[0]
    path.write_text("handlers: [{handler_id: bb, port: 7001}]")
    assert set(await directory.refresh()) == {"bb"}
    assert directory.problems == []


async def test_a_changed_registry_file_is_noticed_without_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "handler_registry.yaml"
    async with shops("one", "two") as fleet:
        ports = {name: one.service.port for name, one in fleet.items()}
        path.write_text(f"handlers: [{{handler_id: one, port: {ports['one']}}}]")
        async with conducting(path) as conductor:
            first = await conductor.client.call("health_check")
            path.write_text(
                f"handlers: [{{handler_id: two, port: {ports['two']}}},"
                " {handler_id: conductor, port: 5999}]"
            )
            second = await conductor.client.call("health_check")

    assert set(first["handlers"]) == {"one"}
    assert set(second["handlers"]) == {"two"}


async def test_without_settings_the_registry_of_the_environment_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.yaml"
    monkeypatch.setenv("CATALOGZERO_REGISTRY", str(path))
    async with shops("one") as fleet:
        path.write_text(f"handlers: [{{handler_id: one, port: {fleet['one'].service.port}}}]")
        async with ConductorZero() as conductor:
            assert (await conductor.ping_handler("one"))["alive"] is True


async def test_a_scheduler_lists_its_handlers() -> None:
    listed: list[dict[str, str]] = []
    tokens: list[str | None] = []

    async def handlers(request: web.Request) -> web.Response:
        tokens.append(request.headers.get("Authorization"))
        return web.json_response({"handlers": listed})

    app = web.Application()
    app.router.add_get("/api/handlers", handlers)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    async with (
        shops("one") as fleet,
        conducting(scheduler_url=url, discovery_interval_s=1.0) as conductor,
    ):
        assert (await conductor.client.call("health_check"))["summary"]["total"] == 0
        listed.append({"id": "one", "address": fleet["one"].address, "status": "Connected"})

        async def found() -> bool:
            health = await conductor.client.call("health_check")
            return bool(health["summary"]["healthy"] == 1)

        await until(found)
    await runner.cleanup()

    assert set(tokens) == {None}


async def test_a_scheduler_that_hangs_holds_up_nothing_and_keeps_its_list() -> None:
    clock = ManualClock()
    hanging, asked = asyncio.Event(), asyncio.Event()

    async def answer() -> web.Response:
        if hanging.is_set():
            asked.set()
            await asyncio.Event().wait()
        return web.json_response({"handlers": [{"id": "a", "address": "tcp://127.0.0.1:5001"}]})

    async with scheduler(answer) as url:
        listing = SchedulerListing(url, clock.monotonic, interval_s=15, token=None)
        directory = Directory([], [listing])
        first = await directory.refresh()
        hanging.set()
        await clock.advance(16)
        second = await directory.refresh()
        await asked.wait()
        third = await directory.refresh()
        await directory.close()

    assert set(first) == set(second) == set(third) == {"a"}


async def test_a_scheduler_says_what_runs_next() -> None:
    schedules = [
        {"id": "late", "handler_id": "a", "next_fire_time": "2026-01-02T00:00:00+00:00"},
        {"id": "soon", "handler_id": "b", "next_fire_time": "2026-01-01T00:00:00+00:00"},
        {"id": "held", "handler_id": "a", "next_fire_time": "2026-01-01", "paused": True},
        {"id": "done", "handler_id": "a", "next_fire_time": None},
        7,
    ]

    async def answer() -> web.Response:
        return web.json_response({"handlers": [], "schedules": schedules})

    async with scheduler(answer) as url:
        listing = SchedulerListing(url, ManualClock().monotonic, interval_s=15, token=None)
        directory = Directory([], [listing])
        await directory.refresh()
        await directory.close()

    assert [(run.job_id, run.handler_id) for run in directory.next_runs] == [
        ("soon", "b"),
        ("late", "a"),
    ]


async def test_a_scheduler_that_refuses_is_a_problem_until_it_answers() -> None:
    clock = ManualClock()
    status = 401

    async def answer() -> web.Response:
        return web.json_response({"handlers": []}, status=status)

    async with scheduler(answer) as url:
        listing = SchedulerListing(url, clock.monotonic, interval_s=15, token=None)
        directory = Directory([], [listing])
        problems = []
        for _ in range(3):
            await directory.refresh()
            problems.append(list(directory.problems))
            await clock.advance(1)
        status = 200
        await clock.advance(15)

        async def answered() -> bool:
            await directory.refresh()
            return not directory.problems

        await until(answered)

    assert problems == [[f"{url}/api/handlers wants a token: set scheduler_token_file"]] * 3


async def test_one_handler_with_a_bad_address_hides_no_other() -> None:
    listed = [{"id": "odd", "address": "ipc:///tmp/x"}, {"id": "a", "address": "127.0.0.1:5001"}]

    assert peers_of_listing({"handlers": listed}) == [
        Peer("odd", "ipc:///tmp/x", "scheduler"),
        Peer("a", "tcp://127.0.0.1:5001", "scheduler"),
    ]


def test_a_scheduler_lists_instances_each_with_its_places() -> None:
    instances = [
        {"instance_id": "a", "address": "tcp://10.0.0.1:5001", "places": 4, "left": False},
        {"instance_id": "b", "address": "nats://box:4222/toy/boot-1", "places": "many"},
        {"instance_id": "c", "address": "tcp://10.0.0.3:5001", "left": True},
        {"instance_id": "d"},
        7,
    ]
    handler = {"id": "toy", "address": "tcp://10.0.0.9:1"}

    peers = peers_of_listing({"handlers": [{**handler, "instances": instances}]})
    alone = peers_of_listing({"handlers": [{**handler, "instances": instances[2:]}]})

    assert [(one.key, one.host, one.places) for one in peers] == [
        ("toy/a", "10.0.0.1", 4),
        ("toy/b", "b", None),
    ]
    assert [(one.key, one.address) for one in alone] == [("toy", "tcp://10.0.0.9:1")]


async def test_instances_take_the_place_of_their_handler_whatever_source_has_it() -> None:
    async def answer() -> web.Response:
        instances = [{"instance_id": name, "address": f"tcp://{name}:1"} for name in ("a", "b")]
        listed = {"id": "toy", "address": "tcp://b:1", "instances": instances}
        return web.json_response({"handlers": [listed], "schedules": []})

    async with scheduler(answer) as url:
        listing = SchedulerListing(url, ManualClock().monotonic, interval_s=15, token=None)
        fixed = peers_of_mapping({"toy": 5001, "toy/b": 5002, "shop": 5003})
        directory = Directory(fixed, [listing])
        peers = await directory.refresh()
        await directory.close()

    assert {key: (one.address, one.source) for key, one in peers.items()} == {
        "toy/b": ("tcp://127.0.0.1:5002", "config"),
        "shop": ("tcp://127.0.0.1:5003", "config"),
        "toy/a": ("tcp://a:1", "scheduler"),
    }


@pytest.mark.parametrize("key", ["toy/", "/a", "/"])
def test_an_instance_without_a_name_is_refused_by_its_key(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"handler_registry: {key}: write handler_id"):
        peers_of_mapping({key: 5001})


async def test_a_registry_file_that_vanishes_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    path.write_text("handlers: [{handler_id: a, port: 7001}]")
    directory = Directory([], [RegistryFile(path)])
    await directory.refresh()
    path.unlink()
    without = set(await directory.refresh()), list(directory.problems)
    path.write_text("handlers: [{handler_id: b, port: 7001}]")
    again = set(await directory.refresh()), list(directory.problems)

    assert without == ({"a"}, [f"{path}: there is no such registry file"])
    assert again == ({"b"}, [])


async def test_an_address_that_changes_is_called_at_the_new_one() -> None:
    async with shops("one") as fleet:
        conductor = ConductorZero(addresses(fleet), timeout_s=0.5)
        assert (await conductor.ping_handler("one"))["alive"] is True
        async with serving(Shop(), handler_id="one") as moved:
            conductor.settings.handler_registry = {"one": moved.address}
            await conductor.close()
            assert (await conductor.ping_handler("one"))["alive"] is True
        await conductor.close()


async def test_the_registry_named_on_the_command_line_is_the_one_that_is_watched(
    tmp_path: Path,
) -> None:
    path = tmp_path / "elsewhere.yaml"
    path.write_text(
        f"scheduler: none\nhandlers:\n"
        f"  - {{handler_id: conductor, module_path: conductorzero, class_name: ConductorZero,\n"
        f"     state_dir: {tmp_path}, config: {{dashboard_port: null, timeout_s: 0.2}}}}\n"
        f"  - {{handler_id: shop, module_path: shops, class_name: Shop, port: {free_port()}}}\n"
    )
    command = ["run", "conductor", "--registry", str(path), "--once", "health_check"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "catalogzero", *command),
        cwd=tmp_path.parent,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    told, _ = await process.communicate()

    assert list(json.loads(told)["handlers"]) == ["shop"]


def test_the_limit_of_open_files_is_raised_for_a_large_fleet_only() -> None:
    code = (
        "import resource, sys; from conductorzero.fleet import allow_connections as allow\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (700, hard))\n"
        "for number in (10, 1_000, 10**9):\n"
        "    allow(number); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 700)\n"
        "print(hard - 700)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    few, many, endless, hard = map(int, told.stdout.split())
    assert few == 0
    assert many == 512 + 6_000 - 700
    assert endless == hard

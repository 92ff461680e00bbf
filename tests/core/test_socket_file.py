"""A handler at a socket file: for members of a group alone, and called as any other."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from catalogzero import ConfigError, HandlerClient
from catalogzero.config.address import Address
from catalogzero.scheduler.server import SchedulerSettings, serve_scheduler
from catalogzero.testing import serving

from tests.core.support import Bench, finished, kill, running, served_address, until

BENCH = "tests.core.support:Bench"
JSON_LOG = {"CATALOGZERO_LOG_FORMAT": "json"}


@pytest.mark.parametrize(
    "text",
    [
        "tcp://127.0.0.1:5001",
        "tcp://[::1]:5001",
        "tcp://box.lan:1",
        "ipc:///run/acme/acme.sock",
    ],
)
def test_an_address_is_written_as_it_was_read(text: str) -> None:
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "5001", "localhost:5001", "tcp://", "tcp://host", "tcp://host:65536", "udp://h:1"),
        *("tcp://a b:1", "tcp://::1:5", "tcp://h:1/x", "ipc://", "ipc://run.sock", "ipc://@name"),
        *("ipc:///run/", "ipc:///" + "x" * 101, "ipc:///run/\n.sock"),
    ],
)
def test_what_is_no_address_is_reported_with_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigError, match="is not an address: write tcp://host:port, ipc:///"):
        Address.parse(text)


async def test_it_is_called_and_its_file_is_for_its_group_alone(tmp_path: Path) -> None:
    where = tmp_path / "h.sock"
    group = next((g for g in os.getgroups() if g != os.getgid()), os.getgid())
    os.chown(tmp_path, -1, group)
    before = os.umask(0)
    os.umask(before)
    async with serving(Bench(), host=f"ipc://{where}") as at:
        assert at.address == f"ipc://{where}"
        assert await at.client.call("echo", {"value": 1}) == 1
        found = where.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, group)
        assert os.umask(before) == before
    assert not where.exists()


async def test_another_live_handler_is_refused_and_goes_on(tmp_path: Path) -> None:
    host = f"ipc://{tmp_path}/h.sock"
    async with serving(Bench(), host=host) as at:
        with pytest.raises(ConfigError, match=r"h\.sock is taken: stop what listens there"):
            async with serving(Bench(), host=host):
                """Never reached."""
        assert await at.client.call("echo", {"value": 1}) == 1


async def test_a_file_that_a_killed_handler_left_is_replaced(tmp_path: Path) -> None:
    where = tmp_path / "h.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(where))
    assert where.is_socket()
    async with serving(Bench(), host=f"ipc://{where}") as at:
        assert await at.client.call("echo", {"value": 1}) == 1


async def test_a_file_that_is_no_socket_is_kept(tmp_path: Path) -> None:
    where = tmp_path / "notes"
    where.write_text("mine")
    with pytest.raises(ConfigError, match="notes is not a socket"):
        async with serving(Bench(), host=f"ipc://{where}"):
            """Never reached."""
    assert where.read_text() == "mine"


async def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make its folder"):
        async with serving(Bench(), host=f"ipc://{tmp_path}/none/h.sock"):
            """Never reached."""


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"host": "ipc:///run/a.sock", "port": 5}, "a socket file has no port"),
        ({"host": "tcp://127.0.0.1"}, "or ipc:///folder/name.sock"),
        ({"host": "ipc://a.sock"}, "or ipc:///folder/name.sock"),
        ({"scheduler": "ipc://a.sock"}, "or ipc:///folder/name.sock, or none"),
    ],
)
async def test_a_wrong_address_is_reported_with_its_field(
    settings: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ConfigError, match=fault):
        async with serving(Bench(), **settings):
            """Never reached."""


async def test_a_client_reaches_it_again_after_its_restart(tmp_path: Path) -> None:
    host = f"ipc://{tmp_path}/h.sock"
    async with HandlerClient(host) as client:
        for _ in range(2):
            async with serving(Bench(), host=host):
                assert await client.call("echo", {"value": 1}) == 1


async def test_a_handler_registers_its_socket_file_at_a_scheduler_of_one(tmp_path: Path) -> None:
    settings = SchedulerSettings(
        port=0, zmq_host=f"ipc://{tmp_path}/s.sock", database=f"sqlite:///{tmp_path}/s.db"
    )
    async with serve_scheduler(settings) as scheduler:
        assert scheduler.zmq_address == f"ipc://{tmp_path}/s.sock"
        host = f"ipc://{tmp_path}/h.sock"
        async with serving(Bench(), host=host, scheduler=scheduler.zmq_address) as at:
            await at.service.registered()
            links = scheduler.runner.links

            async def answered() -> bool:
                await links.probe("bench")
                return links.absence(("bench", "")) == (True, None)

            await until(answered)
            assert (await links.get("bench")).address == host


async def test_the_command_line_reaches_it_by_its_name_and_its_address(tmp_path: Path) -> None:
    where = f"ipc://{tmp_path}/h.sock"
    registry = tmp_path / "handler_registry.yaml"
    registry.write_text(
        f"""\
scheduler: none
handlers:
  - handler_id: bench
    module_path: tests.core.support
    class_name: Bench
    host: {where}
    state_dir: {tmp_path}
"""
    )
    named = ("--registry", str(registry))

    def found() -> tuple[str, str]:
        told = json.loads(finished("check", "bench", *named, "--json").stdout)
        one = next(one for one in told["findings"] if one["name"] == "address")
        return one["status"], one["found"]

    assert await asyncio.to_thread(found) == ("pass", where)
    with running("run", "bench", *named, cwd=None, **JSON_LOG) as process:
        assert served_address(process) == where
        for target in (("bench", *named), (where,)):
            for command in ("ping", "metrics", "describe"):
                asked = await asyncio.to_thread(finished, command, *target)
                assert asked.returncode == 0, asked.stderr
        called = await asyncio.to_thread(
            finished, "call", where, "echo", "--params", '{"value": 7}'
        )
        assert json.loads(called.stdout) == 7
        status, said = await asyncio.to_thread(found)
        assert (status, said.startswith(f"bench runs at {where} (")) == ("warn", True)
        kill(process.pid)
    # its file is left, and the next start replaces it
    assert await asyncio.to_thread(Path(where.removeprefix("ipc://")).exists)
    with running("run", "bench", *named, cwd=None, **JSON_LOG) as process:
        assert served_address(process) == where
    unit = finished("systemd", "bench", *named).stdout
    assert f"ReadWritePaths=-{tmp_path}\n" in unit


def test_the_unit_of_a_handler_in_run_makes_its_folder(tmp_path: Path) -> None:
    registry = tmp_path / "handler_registry.yaml"
    registry.write_text(
        """\
handlers:
  - {handler_id: acme, module_path: tests.core.support, class_name: Bench, \
host: "ipc:///run/acme/acme.sock"}
  - {handler_id: other, module_path: tests.core.support, class_name: Bench, port: 5001}
"""
    )
    acme = finished("systemd", "acme", "--registry", str(registry)).stdout.splitlines()
    other = finished("systemd", "other", "--registry", str(registry)).stdout
    assert {"RuntimeDirectory=acme", "RuntimeDirectoryMode=0750"} <= set(acme)
    assert any("Group=" in line for line in acme if line.startswith("#"))
    assert "RuntimeDirectory=" not in other
    assert "# Any local user can call it over loopback TCP" in other

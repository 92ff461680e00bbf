"""Handlers behind a NATS server: who is called, what a broken server costs, keys and limits."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import nats
import nkeys
import pytest
from catalogzero import (
    CallTimeoutError,
    ConfigError,
    HandlerClient,
    TooLargeError,
    UnreachableError,
)
from catalogzero.compat import ZMQHandlerBase
from catalogzero.config.address import Address
from catalogzero.config.settings import RuntimeSettings
from catalogzero.runtime.service import check_exposure, serve
from catalogzero.testing import serving
from catalogzero.wire import nats as carrier
from catalogzero.wire.nats import Nats

from tests.core.nats_servers import nats_server, need_nats
from tests.core.support import Bench, finished, running, served_address, until


@pytest.fixture
def server() -> str:
    return need_nats()


@pytest.fixture
def name() -> str:
    """A handler_id that no other test uses."""
    return f"bench-{os.getpid()}-{os.urandom(4).hex()}"


# --- who is called -------------------------------------------------------------------------


async def asked(server: str, subject: str) -> dict[str, Any]:
    """What a service answers."""
    connection = await nats.connect(server)
    reply = await connection.request(subject, timeout=10)
    await connection.close()
    found: dict[str, Any] = json.loads(reply.data)
    return found


async def test_a_handler_is_a_micro_service_that_names_its_instance(server: str, name: str) -> None:
    async with serving(Bench(), transport=server, handler_id=name) as at:
        boot_id = (await at.client.ping())["boot_id"]
        ping = await asked(server, f"$SRV.PING.{name}")
        info = await asked(server, f"$SRV.INFO.{name}")
        stats = await asked(server, f"$SRV.STATS.{name}")

    assert ping["metadata"] == {"handler_id": name, "instance": boot_id}
    subjects = {one["name"]: one["subject"] for one in info["endpoints"]}
    assert subjects["instance"] == f"catalogzero.instance.{name}.{boot_id}"
    counted = {one["name"]: one["num_requests"] for one in stats["endpoints"]}
    assert counted["group"] >= 1


async def test_a_client_stays_with_the_instance_that_answered_it(server: str, name: str) -> None:
    benches = [Bench(), Bench(), Bench()]
    async with AsyncExitStack() as stack:
        for bench in benches:
            serves = serving(bench, transport=server, handler_id=name)
            address = (await stack.enter_async_context(serves)).address
        for calls in range(1, 6):
            async with HandlerClient(address) as client:
                for _ in range(4):
                    await client.call("count")
            assert sum(len(bench.begun) for bench in benches) == 4 * calls
            assert all(len(bench.begun) % 4 == 0 for bench in benches)


async def test_a_call_to_an_instance_reaches_no_other(server: str, name: str) -> None:
    one, other = Bench(), Bench()
    async with serving(other, transport=server, handler_id=name):
        async with serving(one, transport=server, handler_id=name) as at:
            while not one.begun:  # until the group's turn is this one's
                async with HandlerClient(at.address) as client:
                    pong = await client.ping()
                    await client.call("count")
        gone = Address.parse(at.address).called(name, pong["boot_id"])
        before = len(other.begun)
        async with HandlerClient(str(gone)) as client:
            async with asyncio.timeout(20):  # at once, not at the caller's timeout
                with pytest.raises(UnreachableError, match="nobody takes calls there"):
                    await client.call("count", timeout_s=3_600)
    assert len(other.begun) == before


async def test_a_client_finds_the_handler_again_that_was_started_again_in_its_place(
    server: str, name: str
) -> None:
    async with serving(Bench(), transport=server, handler_id=name) as at:
        client = await AsyncExitStack().enter_async_context(HandlerClient(at.address))
        await client.call("count")
    async with serving(Bench(), transport=server, handler_id=name):
        assert await client.call("count") == {"count": 1}
    with pytest.raises(UnreachableError):
        await client.call("count", timeout_s=3_600)
    await client.__aexit__()


async def test_a_handler_that_dies_owes_no_reply_for_ever(
    server: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(carrier, "BEAT_S", 0.05)
    (tmp_path / "holds.py").write_text(HOLDS)
    arguments = ("run", "holds:Holds", "--transport", server, "--handler-id", name)
    environment = {"CATALOGZERO_LOG_FORMAT": "json", "CATALOGZERO_STATE_DIR": str(tmp_path / "s")}
    with running(*arguments, "--scheduler", "none", cwd=tmp_path, **environment) as process:
        async with HandlerClient(await asyncio.to_thread(served_address, process)) as client:
            call = asyncio.create_task(client.call("hold", timeout_s=3_600))
            await until(lambda: in_flight(client))
            process.kill()
            with pytest.raises(CallTimeoutError):
                await asyncio.wait_for(call, 20)


HOLDS = """
import asyncio
from catalogzero import Handler
class Holds(Handler):
    async def hold(self) -> None:
        await asyncio.Event().wait()
"""


async def in_flight(client: HandlerClient) -> int:
    """How many jobs run."""
    return int((await client.call("get_metrics"))["in_flight"])


# --- a broken server -----------------------------------------------------------------------


async def test_a_broken_server_ends_the_calls_and_nothing_is_kept_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench()
    async with AsyncExitStack() as stack:
        with nats_server(tmp_path) as port:
            at = await stack.enter_async_context(
                serving(bench, transport=f"nats://127.0.0.1:{port}", max_concurrent_jobs=9)
            )
            call = asyncio.create_task(at.client.call("hold", timeout_s=3_600))
            await until(lambda: bench.begun)
        with pytest.raises(CallTimeoutError):
            await asyncio.wait_for(call, 20)
        with pytest.raises(UnreachableError, match=r"no NATS server answers|broke"):
            await at.client.call("count", timeout_s=0.5)
        with nats_server(tmp_path, port=port):
            again = await at.client.run("echo", {"value": 1}, timeout_s=60)
            assert again.result == 1
            assert "count" not in bench.begun
    assert capsys.readouterr().err.count('"server_lost"') in (1, 2)


async def test_what_was_not_published_is_reported_as_undelivered(tmp_path: Path) -> None:
    absent: list[bytes] = []
    ready = asyncio.Event()
    with nats_server(tmp_path) as port:
        peer = Nats().connect(
            f"nats://127.0.0.1:{port}/nobody/here",
            lambda reply: None,
            ready.set,
            lambda frames, error: absent.extend(frames),
        )
        await asyncio.wait_for(ready.wait(), 20)
        connection = peer._link._connection
        assert connection is not None
        assert peer.try_send(b"1")
        await connection.close()  # before the loop has published it
        assert not peer.try_send(b"2")
        await until(lambda: absent == [b"1"])
        peer.close()
        await peer.wait_closed()


async def test_without_a_server_it_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no NATS server answers at nats://127\.0\.0\.1:1"):
        async with serving(Bench(), transport="nats://127.0.0.1:1"):
            """Never reached."""


# --- limits --------------------------------------------------------------------------------


class Doubling(Bench):
    """Whose reply is longer than the call."""

    async def doubled(self, value: str) -> str:
        return value + value


async def test_the_servers_limit_holds_where_it_is_the_smaller_one(tmp_path: Path) -> None:
    with nats_server(tmp_path, "max_payload: 20000\n") as port:
        async with serving(Doubling(), transport=f"nats://127.0.0.1:{port}") as at:
            assert (await at.client.call("describe"))["max_message_bytes"] == 20_000
            value = "x" * 19_000
            assert await at.client.call("echo", {"value": value}) == value
            with pytest.raises(TooLargeError):
                await at.client.call("echo", {"value": "x" * 20_000})
            with pytest.raises(TooLargeError):
                await at.client.request_plain("echo", {"value": "x" * 20_000})
            with pytest.raises(TooLargeError, match="the reply has"):
                await at.client.call("doubled", {"value": "x" * 15_000})


# --- keys ----------------------------------------------------------------------------------


def new_seed() -> tuple[str, str]:
    """An NKEY of a user: its seed and its public key."""
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    return seed.decode(), nkeys.from_seed(bytearray(seed)).public_key.decode()


def key_file(folder: Path, name: str, seed: str) -> Path:
    """A file with a seed, its owner's alone."""
    path = folder / name
    path.write_text(f"{seed}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def certificate(tmp_path: Path) -> str:
    """The `tls` block of a server, whose certificate is its own CA at `ca.pem`."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "ca.pem")]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return f'tls {{ cert_file: "{tmp_path}/ca.pem", key_file: "{tmp_path}/key.pem" }}\n'


PERMITTED = """
authorization {{ users: [
  {{ nkey: "{handler}", permissions: {{
      subscribe: ["catalogzero.group.acme", "catalogzero.instance.acme.*", "$SRV.>",
                  "_INBOX.{handler}.>"],
      publish: {{ deny: ">" }}, allow_responses: {{ max: 1, expires: "24h" }} }} }}
  {{ nkey: "{client}", permissions: {{
      publish: ["catalogzero.group.acme", "catalogzero.instance.acme.*"],
      subscribe: ["_INBOX.{client}.>"] }} }}
  {{ nkey: "{stranger}", permissions: {{
      publish: ["catalogzero.group.other"], subscribe: ["_INBOX.{stranger}.>"] }} }}
] }}
"""
"""The permissions that docs/how-to/call-through-nats.md gives."""


async def test_keys_and_permissions_let_in_who_may_and_nobody_else(
    tmp_path: Path, certificate: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = {who: new_seed() for who in ("handler", "client", "stranger", "unknown")}
    files = {who: key_file(tmp_path, who, seed) for who, (seed, _) in seeds.items()}
    publics = {who: public for who, (_, public) in seeds.items()}
    ca_file = tmp_path / "ca.pem"
    with nats_server(tmp_path, certificate + PERMITTED.format(**publics)) as port:
        keys = {"ca_file": ca_file, "key_file": files["handler"]}
        given: dict[str, Any] = {"transport": f"tls://localhost:{port}", "handler_id": "acme"}
        alone = {"scheduler": "none", "state_dir": tmp_path / "state", "nats": keys, **given}
        async with serve(Bench(), **alone) as service:
            address = service.address
            async with HandlerClient(address, transport=Nats(files["client"], ca_file)) as client:
                assert await client.call("echo", {"value": 1}) == 1
                described = await client.call("describe")
            for who, why in (("stranger", "refuses"), ("unknown", "refuses this process")):
                async with HandlerClient(address, transport=Nats(files[who], ca_file)) as client:
                    with pytest.raises(UnreachableError, match=why):
                        await client.call("echo", timeout_s=1.0)
        for wrong, why in (
            ({"key_file": files["unknown"]}, "refuses this process: name credentials"),
            ({"key_file": files["stranger"]}, "permissions violation for subscription"),
            ({"ca_file": None}, "name its CA in `nats.ca_file`"),
        ):
            with pytest.raises(ConfigError, match=why):
                async with serving(Bench(), **given, nats={**keys, **wrong}):
                    """Never reached."""
    said = capsys.readouterr().err + json.dumps(described)
    assert not [seed for seed, _ in seeds.values() if seed in said]


async def test_a_server_without_tls_gets_no_credentials_where_tls_is_asked_for(
    tmp_path: Path,
) -> None:
    seed, public = new_seed()
    config = f'authorization {{ users: [ {{ nkey: "{public}" }} ] }}\n'
    key = key_file(tmp_path, "key", seed)
    with nats_server(tmp_path, config) as port, pytest.raises(ConfigError, match="offers no TLS"):
        async with serving(Bench(), transport=f"tls://localhost:{port}", nats={"key_file": key}):
            """Never reached."""


def new_credentials(folder: Path) -> tuple[str, Path]:
    """The configuration of a server with an operator, and a user's credentials file."""

    def pair(prefix: int) -> tuple[nkeys.KeyPair, str, str]:
        seed = nkeys.encode_seed(os.urandom(32), prefix)
        key = nkeys.from_seed(bytearray(seed))
        return key, key.public_key.decode(), seed.decode()

    def signed(issuer: tuple[nkeys.KeyPair, str, str], subject: str, kind: str) -> str:
        def part(value: dict[str, Any]) -> str:
            return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

        claims = {"jti": kind, "iat": 1, "iss": issuer[1], "name": kind, "sub": subject}
        unlimited = dict.fromkeys(("subs", "data", "payload"), -1)
        about = {"type": kind, "version": 2, "limits": {**unlimited, "conn": -1}, **unlimited}
        text = f"{part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{part({**claims, 'nats': about})}"
        signature = base64.urlsafe_b64encode(issuer[0].sign(text.encode())).rstrip(b"=").decode()
        return f"{text}.{signature}"

    operator, account, user = map(
        pair, (nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_USER)
    )
    config = (
        f"operator: {signed(operator, operator[1], 'operator')}\nresolver: MEMORY\n"
        f"resolver_preload: {{ {account[1]}: {signed(operator, account[1], 'account')} }}\n"
    )
    text = (
        f"-----BEGIN NATS USER JWT-----\n{signed(account, user[1], 'user')}\n"
        f"------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user[2]}\n------END USER NKEY SEED------\n"
    )
    return config, key_file(folder, "user.creds", text)


async def test_a_credentials_file_is_a_key_too(tmp_path: Path) -> None:
    config, creds = new_credentials(tmp_path)
    runtime: dict[str, Any] = {"scheduler": "none", "state_dir": tmp_path / "state"}
    with nats_server(tmp_path, config) as port:
        at, keys = f"nats://127.0.0.1:{port}", {"key_file": creds}
        async with serve(Bench(), transport=at, nats=keys, **runtime) as service:
            async with HandlerClient(service.address, transport=Nats(creds)) as client:
                assert await client.call("echo", {"value": 1}) == 1
            async with HandlerClient(service.address) as stranger:
                with pytest.raises(UnreachableError, match="refuses this process"):
                    await stranger.call("echo", timeout_s=1.0)


async def test_a_file_that_holds_no_key_is_named_and_not_shown(tmp_path: Path) -> None:
    path = key_file(tmp_path, "key", "geheim")
    with pytest.raises(ConfigError, match="holds no NKEY seed") as caught:
        async with serving(Bench(), transport="nats://127.0.0.1:1", nats={"key_file": path}):
            """Never reached."""
    assert str(path) in str(caught.value)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("url", ["nats://user:geheim@10.0.0.1", "tls://geheimnis@nats.lan:4222"])
def test_a_password_in_an_address_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Address.parse(f"{url}/acme")
    assert "nats.key_file" in str(caught.value)
    assert "geheim" not in str(caught.value)
    done = finished("run", "tests.core.support:Bench", "--transport", url, "--scheduler", "none")
    assert done.returncode == 3
    assert "nats.key_file" in done.stderr
    assert "geheim" not in done.stderr


@pytest.mark.parametrize(
    ("settings", "is_refused"),
    [
        ({"transport": "nats://127.0.0.1:4222"}, False),
        ({"transport": "nats://10.0.0.1:4222"}, True),
        ({"transport": "nats://10.0.0.1:4222", "allow_plaintext": True}, False),
        ({"transport": "tls://10.0.0.1:4222"}, False),
        ({"transport": "nats://10.0.0.1:4222", "nats": {"key_file": "key"}}, False),
        ({"transport": "nats://10.0.0.1:4222", "nats": {"ca_file": "ca"}}, False),
    ],
)
def test_beyond_loopback_a_server_needs_tls_or_a_key(
    settings: dict[str, Any], is_refused: bool
) -> None:
    runtime = RuntimeSettings(**settings)
    if not is_refused:
        check_exposure(runtime)
        return
    with pytest.raises(ConfigError, match="write it as tls://"):
        check_exposure(runtime)


# --- the commands, and who does not use it -------------------------------------------------


def test_the_commands_call_a_handler_through_nats(server: str, name: str, tmp_path: Path) -> None:
    registry = tmp_path / "handler_registry.yaml"
    registry.write_text(
        f"handlers:\n- handler_id: {name}\n  module_path: tests.core.support\n"
        f"  class_name: Bench\n  transport: {server}\nscheduler: none\n"
    )
    at: dict[str, Any] = {
        "CATALOGZERO_STATE_DIR": str(tmp_path / "state"),
        "CATALOGZERO_LOG_FORMAT": "json",
    }
    named = (name, "--registry", str(registry))

    def asked(*arguments: str) -> subprocess.CompletedProcess[str]:
        return finished(*arguments, **at)

    before = asked("check", *named)
    assert before.returncode == 0, before.stdout
    assert f"{server}/{name}" in before.stdout
    with running("run", *named, **at) as process:
        address = served_address(process)
        assert address == f"{server}/{name}"
        assert json.loads(asked("call", address, "echo", "--params", '{"value": 7}').stdout) == 7
        assert "pong" in asked("ping", *named).stdout
        assert json.loads(asked("metrics", *named, "--json").stdout)["handler_id"] == name
        assert "runs at" in asked("check", *named).stdout
        assert json.loads(asked("describe", *named, "--json").stdout)["handler_id"] == name
        with running("call", address, "hold", **at):
            (held,) = until_listed(asked, address)
            assert "cancelling" in asked("cancel", name, held["run_id"], *named[1:]).stdout
        (shown,) = json.loads(asked("status", *named[1:], "--json").stdout)["handlers"]
        assert shown["status"] in ("active", "idle")
    gone = asked("ping", address, "--timeout-s", "60")
    assert gone.returncode == 4
    assert "nobody takes calls there" in gone.stderr


def test_of_two_hosts_the_commands_of_each_reach_its_own(
    server: str, name: str, tmp_path: Path
) -> None:
    registry = tmp_path / "handler_registry.yaml"
    registry.write_text(
        f"handlers:\n- handler_id: {name}\n  module_path: tests.core.support\n"
        f"  class_name: Bench\n  transport: {server}\nscheduler: none\n"
    )
    hosts: list[dict[str, Any]] = [
        {"CATALOGZERO_STATE_DIR": str(tmp_path / host), "CATALOGZERO_LOG_FORMAT": "json"}
        for host in ("one", "other")
    ]
    option = ("--registry", str(registry))

    def boots(number: int) -> set[str]:
        """Whom the commands of a host reach, asked several times."""
        asked = [finished("ping", name, *option, "--json", **hosts[number]) for _ in range(4)]
        return {json.loads(one.stdout)["boot_id"] for one in asked}

    def status(number: int) -> str:
        shown = finished("status", *option, "--json", **hosts[number]).stdout
        return str(json.loads(shown)["handlers"][0]["status"])

    with ExitStack() as undo:
        processes = [undo.enter_context(running("run", name, *option, **at)) for at in hosts]
        for process in processes:
            served_address(process)
        first, second = boots(0), boots(1)
        there = status(0), status(1)
        processes[0].kill()
        processes[0].wait()
        gone = status(0), status(1)
        any_of_its_name = boots(0)

    assert (len(first), len(second), len(first | second)) == (1, 1, 2)
    assert there == ("active", "active")
    assert gone == ("stopped", "active")
    assert any_of_its_name == second


def until_listed(
    asked: Callable[..., subprocess.CompletedProcess[str]], address: str
) -> list[dict[str, Any]]:
    """The runs of `hold` that go on, once there are some."""
    while True:
        done = asked("call", address, "list_runs")
        runs: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
        if found := [one for one in runs if one["method"] == "hold"]:
            return found


class Former(ZMQHandlerBase):
    """A handler written for ScheduleZero."""

    def greet(self, params: dict[str, Any]) -> dict[str, Any]:
        return {"success": True, "greeting": f"hello {params['name']}"}


async def test_a_handler_written_for_schedulezero_is_called_through_nats(
    server: str, name: str
) -> None:
    async with serving(Former(handler_id=name, transport=server)) as at:
        assert at.address == f"{server}/{name}"
        assert (await at.client.call("greet", {"name": "Ada"}))["greeting"] == "hello Ada"


def test_who_is_called_over_zeromq_imports_nothing_of_nats() -> None:
    code = """
import asyncio, sys
from tests.core.support import Bench
from catalogzero.testing import serving
async def main():
    async with serving(Bench()) as at:
        await at.client.call("echo")
asyncio.run(main())
assert not [name for name in sys.modules if name.split(".")[0] in ("nats", "nkeys")]
assert "catalogzero.wire.nats" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)

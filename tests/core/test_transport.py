"""The wire itself: keys, exposure, hostile peers, loops without add_reader, nothing left over."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from catalogzero import ConfigError, HandlerClient, UnreachableError
from catalogzero.runtime.service import serve
from catalogzero.testing import serving
from catalogzero.wire.keys import CurveClient, CurveKeys

from tests.core.support import Bench, RawPeer, until

# --- keys ----------------------------------------------------------------------------------


def key_files(folder: Path) -> tuple[dict[str, Path], CurveKeys, CurveKeys]:
    """The `curve` block of a handler, its own pair, and the pair of one allowed client."""
    server, client = CurveKeys.new(), CurveKeys.new()
    key_file, clients_file = folder / "server.key", folder / "clients"
    key_file.write_text(f"public: {server.public.decode()}\nsecret: {server.secret.decode()}\n")
    clients_file.write_text(f"# who may call\n{client.public.decode()} # the conductor\n\n")
    return {"key_file": key_file, "clients_file": clients_file}, server, client


async def test_a_listed_key_is_served_and_any_other_gets_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve, server, client = key_files(tmp_path)
    bench = Bench()
    async with serving(bench, curve=curve) as at:
        async with HandlerClient(at.address, curve=CurveClient(client, server.public)) as listed:
            assert await listed.call("echo", {"value": 1}) == 1
        unlisted = CurveKeys.new()
        strangers = [CurveClient(unlisted, server.public), None]
        wrong_server = CurveClient(client, CurveKeys.new().public)
        for keys in [*strangers, wrong_server]:
            async with HandlerClient(at.address, curve=keys) as stranger:
                with pytest.raises(UnreachableError):
                    await stranger.call("count", timeout_s=0.5)
        assert bench.begun == []
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    refused = [line["public_key"] for line in told if line["event"] == "client_key_refused"]
    assert refused == [unlisted.public.decode()]


async def test_two_handlers_with_keys_live_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    curve_a, server_a, client_a = key_files(tmp_path / "a")
    curve_b, server_b, client_b = key_files(tmp_path / "b")
    async with serving(Bench(), curve=curve_a) as a, serving(Bench(), curve=curve_b) as b:
        async with HandlerClient(a.address, curve=CurveClient(client_a, server_a.public)) as to_a:
            assert await to_a.call("echo", {"value": "a"}) == "a"
        async with HandlerClient(b.address, curve=CurveClient(client_b, server_b.public)) as to_b:
            assert await to_b.call("echo", {"value": "b"}) == "b"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])  # noqa: S104 - refused is the point
async def test_beyond_loopback_without_keys_is_refused_with_the_fix(host: str) -> None:
    with pytest.raises(ConfigError, match="catalogzero keys new"):
        async with serving(Bench(), host=host):
            """Never reached."""


async def test_plaintext_beyond_loopback_can_be_meant_and_is_warned_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    host = "0.0.0.0"  # noqa: S104 - what is tested
    async with serving(Bench(), host=host, allow_plaintext=True, advertise_host="box.lan") as at:
        assert at.address == f"tcp://box.lan:{at.service.port}"
    assert "served_without_encryption" in capsys.readouterr().err
    async with serving(Bench()):
        assert "served_without_encryption" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "clients", "text"),
    [
        (None, "", "server.key: no key pair"),
        ("public: x\nsecret: y\n", "", "40 characters"),
        ("good", None, "cannot be read"),
        ("good", "# none\nnot a key\n", "clients:2: not a public key"),
    ],
)
async def test_bad_key_files_are_named(
    tmp_path: Path, key: str | None, clients: str | None, text: str
) -> None:
    curve, server, _ = key_files(tmp_path)
    if key is None:
        curve["key_file"].unlink()
    elif key != "good":
        curve["key_file"].write_text(key)
    if clients is None:
        curve["clients_file"].unlink()
    else:
        curve["clients_file"].write_text(clients)
    with pytest.raises(ConfigError, match=text):
        async with serving(Bench(), curve=curve):
            """Never reached."""
    assert server.secret.decode() not in repr(server)


# --- addresses -----------------------------------------------------------------------------


async def test_a_taken_port_is_reported_with_the_fix() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is taken"):
            async with serving(Bench(), port=port):
                """Never reached."""


async def test_one_state_folder_serves_one_handler(tmp_path: Path) -> None:
    async with serving(Bench(), state_dir=tmp_path):
        with pytest.raises(ConfigError, match="in use"):
            async with serving(Bench(), state_dir=tmp_path):
                """Never reached."""


async def test_a_port_is_free_again_after_the_service() -> None:
    async with serving(Bench()) as at:
        port = at.service.port
    async with serving(Bench(), port=port) as again:
        assert again.service.port == port


# --- hostile peers -------------------------------------------------------------------------


async def test_a_peer_that_never_reads_delays_no_other() -> None:
    async with serving(Bench()) as at, RawPeer(at.address) as deaf:
        for _ in range(300):
            await deaf.send(b'{"method": "echo", "params": {"value": "' + b"x" * 10_000 + b'"}}')
        assert (await at.client.ping())["status"] == "ok"


async def test_a_peer_that_leaves_before_its_reply_harms_nobody() -> None:
    bench = Bench()
    async with serving(bench) as at:
        async with RawPeer(at.address) as leaving:
            await leaving.send(b'{"method": "hold"}')
            await until(lambda: bench.begun)
        bench.gate.set()
        assert await at.client.call("echo", {"value": 2}) == 2


async def test_two_peers_of_one_routing_id_do_not_get_each_others_replies() -> None:
    bench = Bench()
    context = zmq.asyncio.Context()
    async with serving(bench) as at:
        first, second = (context.socket(zmq.DEALER) for _ in range(2))
        for peer in (first, second):
            peer.linger = 0
            peer.routing_id = b"same"
        first.connect(at.address)
        await first.send(b'{"method": "hold", "request_id": "a"}')
        await until(lambda: bench.begun)
        second.connect(at.address)
        await second.send(b'{"method": "echo", "request_id": "b"}')
        bench.gate.set()
        await at.client.ping()
        received = b"".join(await asyncio.wait_for(first.recv_multipart(), 5))
        assert b'"a"' in received
        for peer in (first, second):
            peer.close()
    context.term()


# --- loops without add_reader --------------------------------------------------------------


class BareLoop(asyncio.SelectorEventLoop):
    """As Windows' proactor loop: it watches no descriptors for others."""

    def add_reader(self, *_: Any) -> None:  # type: ignore[override]  # refused whatever is given
        """Not here."""
        raise NotImplementedError

    remove_reader = add_reader  # type: ignore[assignment]  # neither of the two


def on_a_bare_loop(work: Callable[[], Any]) -> Any:
    """Run a coroutine function on such a loop, in a thread of its own."""
    found: list[Any] = []

    def main() -> None:
        with asyncio.Runner(loop_factory=BareLoop) as runner:
            found.append(runner.run(work()))

    thread = threading.Thread(target=main)
    thread.start()
    thread.join(30)
    return found[0]


def test_where_a_loop_has_no_add_reader_everything_still_works() -> None:
    async def work() -> list[Any]:
        async with serving(Bench(), max_queued_jobs=200) as at:
            calls = (at.client.call("echo", {"value": n}) for n in range(200))
            replies = await asyncio.gather(*calls)
            metrics = await at.client.call("get_metrics")
            return [*replies, metrics["runs_total"]]

    before = threading.active_count()
    assert on_a_bare_loop(work) == [*range(200), 200]
    assert threading.active_count() == before


# --- nothing left over ---------------------------------------------------------------------


async def test_serving_and_calling_leave_no_descriptor_task_or_thread() -> None:
    async def once() -> None:
        async with serving(Bench()) as at:
            await at.client.call("echo", {"value": 1})
            await at.client.call("get_metrics")

    await once()
    process = psutil.Process()
    before = process.num_fds(), len(asyncio.all_tasks())
    for _ in range(5):
        await once()
    await until(lambda: process.num_fds() <= before[0])
    assert len(asyncio.all_tasks()) == before[1]


async def test_serve_names_every_wrong_runtime_setting() -> None:
    with pytest.raises(ConfigError) as caught:
        async with serve(Bench(), port=99_999, sleep_after_s=-1, nope=1):
            """Never reached."""
    assert {fault["field"] for fault in caught.value.details} == {"port", "sleep_after_s", "nope"}

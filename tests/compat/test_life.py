"""start, stop and run of a ScheduleZero handler: on threads, in processes, by signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from catalogzero import ConfigError
from catalogzero.compat import ZMQHandlerBase
from catalogzero.runtime.launch import Flags, make_handler
from catalogzero.runtime.service import serve

from examples.quickstart.processes import free_ports

HERE = Path(__file__).parent


class Shop(ZMQHandlerBase):
    """Serves on threads."""

    def __init__(self, folder: Path, **runtime: Any) -> None:
        super().__init__("shop", state_dir=folder, scheduler="none", **runtime)
        self.gate = threading.Event()
        self.begun = threading.Event()

    def sell(self, params: dict[str, Any]) -> Any:
        return {"sold": params["what"]}

    def wait(self) -> str:
        self.begun.set()
        self.gate.wait(20)
        return "waited"

    def until_the_end(self) -> str:
        self.begun.set()
        return "ended" if self.shutdown_event.wait(20) else "late"

    def close_shop(self) -> str:
        self.stop()
        return "closing"


@contextmanager
def started(shop: Shop) -> Iterator[Shop]:
    """A shop that is stopped in the end, with no thread left."""
    before = set(threading.enumerate())
    shop.start()
    try:
        yield shop
    finally:
        shop.gate.set()
        shop.stop()
    assert {t for t in threading.enumerate() if not t.daemon} <= before
    assert not shop.running


class Caller:
    """A plain REQ socket, as a ScheduleZero server has."""

    def __init__(self, address: str | None) -> None:
        assert address
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.REQ)
        self.socket.setsockopt(zmq.RCVTIMEO, 20_000)
        self.socket.connect(address)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close(linger=0)
        self.context.term()

    def call(self, method: str, params: Any = None) -> Any:
        """One call, and its reply."""
        self.socket.send_json({"method": method, "params": params or {}})
        return self.socket.recv_json()


def test_start_returns_when_calls_are_answered(tmp_path: Path) -> None:
    with started(Shop(tmp_path)) as shop, Caller(shop.handler_address) as caller:
        assert caller.call("sell", {"what": "tea"}) == {"success": True, "sold": "tea"}
        assert shop.running


def test_starting_twice_is_as_once_and_after_a_stop_it_serves_again(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    with started(shop):
        shop.start()
    shop.stop()
    assert shop.handler_address is None
    with started(shop), Caller(shop.handler_address) as caller:
        assert not shop.shutdown_event.is_set()
        assert caller.call("sell", {"what": "ink"})["sold"] == "ink"


def test_stop_lets_a_job_end_and_its_caller_hear_of_it(tmp_path: Path) -> None:
    with (
        started(Shop(tmp_path)) as shop,
        Caller(shop.handler_address) as caller,
        ThreadPoolExecutor() as pool,
    ):
        waiting = pool.submit(caller.call, "wait")
        assert shop.begun.wait(10)
        stopping = pool.submit(shop.stop)
        assert shop.shutdown_event.wait(10)
        shop.gate.set()
        stopping.result(20)

        assert waiting.result(20)["result"] == "waited"


def test_a_long_job_sees_the_shutdown_event(tmp_path: Path) -> None:
    with (
        started(Shop(tmp_path)) as shop,
        Caller(shop.handler_address) as caller,
        ThreadPoolExecutor() as pool,
    ):
        waiting = pool.submit(caller.call, "until_the_end")
        assert shop.begun.wait(10)
        shop.stop()

        assert waiting.result(20)["result"] == "ended"


def test_a_job_may_stop_its_handler(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    with started(shop), Caller(shop.handler_address) as caller:
        assert caller.call("close_shop")["result"] == "closing"
        shop.stop()
        assert not shop.running


def test_running_set_to_false_ends_run(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    runner = threading.Thread(target=shop.run)
    runner.start()
    while not shop.running:
        pass
    shop.running = False
    runner.join(20)

    assert not runner.is_alive()


def test_a_shutdown_event_that_the_author_sets_ends_run(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    runner = threading.Thread(target=shop.run)
    runner.start()
    while not shop.running:
        pass
    shop.shutdown_event.set()
    runner.join(20)

    assert not runner.is_alive()
    assert not shop.running


def test_a_port_that_is_taken_is_an_error_of_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is taken"):
            Shop(tmp_path, port=port).start()


# --- under `catalogzero run` ---------------------------------------------------------------------


class Stall(ZMQHandlerBase):
    """Has a constructor as ScheduleZero's handlers do, and one parameter more."""

    def __init__(
        self, handler_id: str, handler_address: str, server_address: str, goods: str = "none"
    ) -> None:
        super().__init__(handler_id, handler_address, server_address)
        self.goods = goods

    def list_goods(self) -> str:
        return self.goods


def registry(folder: Path, config: str) -> Path:
    """A registry file with a stall."""
    path = folder / "handler_registry.yaml"
    path.write_text(
        "scheduler: none\nhandlers:\n  - handler_id: stall\n"
        f"    module_path: {__name__}\n    class_name: Stall\n    port: 0\n"
        f"    state_dir: {folder}\n    config: {config}\n"
    )
    return path


@pytest.fixture
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Stall.__module__])


@pytest.mark.usefixtures("_importable")
async def test_a_section_gives_id_and_addresses_and_the_constructor_others(
    tmp_path: Path,
) -> None:
    handler = make_handler("stall", registry=registry(tmp_path, "{goods: tea}"))
    async with serve(handler) as service:
        assert handler.handler_id == "stall"
        assert handler.runtime.scheduler == "none"
        assert service.port > 0
        author = handler.author  # type: ignore[attr-defined]
        assert (author.goods, author.handler_id, author.running) == ("tea", "stall", True)


@pytest.mark.usefixtures("_importable")
def test_a_config_that_does_not_fit_the_constructor_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config of Stall: .*'good'"):
        make_handler("stall", registry=registry(tmp_path, "{good: tea}"))


@pytest.mark.usefixtures("_importable")
def test_a_class_can_be_named_without_a_registry() -> None:
    handler = make_handler(f"{__name__}:Stall", flags=Flags(config={"goods": "ink"}))

    assert (handler.handler_id, type(handler).__qualname__) == ("stall", "Stall")


# --- as a script ---------------------------------------------------------------------------------


class Script:
    """The clockwork script, as a process."""

    def __init__(
        self, folder: Path, *, name: str = "clockwork.py", server_port: int = 0, **environ: str
    ) -> None:
        (self.port,) = free_ports(1)
        self.output = folder / "output"
        environment = {
            **os.environ,
            **environ,
            "CLOCKWORK_ID": f"clockwork-{uuid.uuid4().hex[:6]}",
            "CLOCKWORK_PORT": str(self.port),
            "CLOCKWORK_SERVER_PORT": str(server_port or free_ports(1)[0]),
            "CATALOGZERO_STATE_DIR": str(folder / "state"),
        }
        self.handler_id = environment["CLOCKWORK_ID"]
        command = (sys.executable, HERE / name, self.output)
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def caller(self) -> Caller:
        """A connection to it."""
        return Caller(f"tcp://127.0.0.1:{self.port}")

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal; exit code and what was written to standard error."""
        self.process.send_signal(number)
        _, written = self.process.communicate(timeout=40)
        return self.process.returncode, written


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_script_with_signal_handlers_of_its_own_ends_as_it_says(
    tmp_path: Path, number: int
) -> None:
    with Script(tmp_path) as script, script.caller() as caller:
        assert caller.call("strike_hour", {"hour": 27})["strikes"] == 3
        assert caller.call("chime")["message"] == "ding"
        assert caller.call("chime", {"message": "dong", "times": 2})["count"] == 3
        assert caller.call("read_strikes") == {"success": True, "entries": 1, "log": "hour x3\n"}
        assert caller.call("get_supported_methods")["result"] == ["strike_hour", "chime"]
        code, written = script.end(number)

    assert code == 0
    assert "Shutting down" in written
    assert "Clockwork shut down" in written
    log = tmp_path / "logs" / "handlers" / script.handler_id / "handler.log"
    assert "noted hour" in log.read_text()
    assert "Chime 3 message=dong" in log.read_text()


PLAIN = """
from catalogzero.compat import ZMQHandlerBase
import os, threading

class Plain(ZMQHandlerBase):
    def work(self, params):
        return {"worked": True}
    def hang(self):
        threading.Event().wait()

if __name__ == "__main__":
    port = os.environ["CLOCKWORK_PORT"]
    Plain("plain", f"tcp://127.0.0.1:{port}", "tcp://127.0.0.1:1").run()
    print("after run", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_script_without_signal_handlers_drains_and_goes_on_after_run(
    tmp_path: Path, number: int
) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    with Script(tmp_path, name=str(tmp_path / "plain.py")) as script, script.caller() as caller:
        assert caller.call("work")["worked"] is True
        code, written = script.end(number)

    assert (code, "Traceback" in written) == (0, False)


def test_a_second_signal_does_not_wait_for_a_job(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)
    with Script(tmp_path, name=str(tmp_path / "plain.py")) as script, script.caller() as caller:
        caller.socket.send_json({"method": "hang"})
        with script.caller() as other:
            while other.call("get_metrics")["in_flight"] == 0:
                pass
            script.process.send_signal(signal.SIGTERM)
            while other.call("get_metrics")["status"] != "draining":
                pass
        script.process.send_signal(signal.SIGTERM)
        reply = caller.socket.recv_json()

    assert isinstance(reply, dict)
    assert (reply["success"], reply["code"]) == (False, "cancelled")

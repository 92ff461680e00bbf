"""Real processes: signals, exit codes, every verb of the command line, logs, hostile peers."""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
import zmq.asyncio
from catalogzero import HandlerClient
from catalogzero.config import preflight

from tests.core.support import finished, is_gone, running, served_address, until

ROOT = Path(__file__).parents[2]
IDS = ("front", "back")
JSON_LOG = {"CATALOGZERO_LOG_FORMAT": "json"}
DESK = '''
import asyncio, logging, multiprocessing, threading, time
from catalogzero import Handler, HandlerSettings, job
from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict


class DeskSettings(HandlerSettings):
    model_config = SettingsConfigDict(env_prefix="DESK_")
    api_key: SecretStr
    greeting: str = "hello"


class Greeter(Handler):
    settings_model = DeskSettings

    async def greet(self, name: str) -> dict:
        """Greets by name."""
        key = self.settings.api_key.get_secret_value()
        self.log.info("greeting", name=name, note=f"with {key}")
        logging.getLogger("their.library").warning("sent %s", key)
        return {"said": f"{self.settings.greeting} {name}"}

    async def wait(self) -> None:
        self.log.info("waiting")
        await asyncio.Event().wait()

    async def finish(self, path: str) -> str:
        self.log.info("waiting")
        while not await asyncio.to_thread(__import__("os").path.exists, path):
            await self.clock.sleep(0.01)
        return "finished"

    def block(self) -> None:
        self.log.info("waiting")
        threading.Event().wait()

    @job(isolate=True)
    def apart(self) -> None:
        self.log.info("apart")

    def fork(self) -> int | None:
        child = multiprocessing.get_context("fork").Process(target=int)
        child.start()
        child.join()
        return child.exitcode

    fork_apart = job(isolate=True)(fork)

    async def fails(self) -> None:
        raise ValueError("no luck")
'''


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with a handler's module and a registry file of two handlers."""
    (tmp_path / "desk.py").write_text(DESK)
    (tmp_path / "handler_registry.yaml").touch(mode=0o600)
    (tmp_path / "handler_registry.yaml").write_text(
        f"""\
scheduler: none
handlers:
  - handler_id: front
    module_path: desk
    class_name: Greeter
    port: {_free_port()}
    state_dir: {tmp_path}
    config: {{api_key: k-front-123, greeting: from the file}}
  - handler_id: back
    module_path: desk
    class_name: Greeter
    port: {_free_port()}
    state_dir: {tmp_path}
    drain_timeout_s: 0.2
    config: {{api_key: k-back-123}}
"""
    )
    return tmp_path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until_event(process: subprocess.Popen[str], event: str) -> dict[str, Any]:
    """The next log line of that event."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            if found.get("event") == event:
                return found
    raise AssertionError(f"it ended without {event}")


# --- rest ----------------------------------------------------------------------------------


async def test_a_handler_that_nobody_calls_does_not_run(desk: Path) -> None:
    with running("run", "front", cwd=desk, **JSON_LOG) as process:
        found = psutil.Process(process.pid)
        async with HandlerClient(served_address(process)) as client:
            await client.call("sleep")

            async def rested() -> bool:
                before = found.num_ctx_switches().voluntary
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.Event().wait(), 1.0)
                return found.num_ctx_switches().voluntary - before <= 2

            await until(rested)
            await client.ping()


# --- signals -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_exits_with_0(desk: Path, number: signal.Signals) -> None:
    with running("run", "front", cwd=desk, **JSON_LOG) as process:
        async with HandlerClient(served_address(process)) as client:
            call = asyncio.create_task(client.request("finish", {"path": str(desk / "go")}))
            await asyncio.to_thread(_until_event, process, "waiting")
            process.send_signal(number)
            await asyncio.to_thread(_until_event, process, "draining")
            assert (await client.request("greet", {"name": "x"})).code == "draining"
            (desk / "go").touch()
            assert (await call).result == "finished"
        assert await asyncio.to_thread(process.wait, 20) == 0


@pytest.mark.parametrize("method", ["wait", "block"])
async def test_what_outlasts_the_drain_is_cancelled_and_the_exit_is_still_0(
    desk: Path, method: str
) -> None:
    with running("run", "back", cwd=desk, **JSON_LOG) as process:
        async with HandlerClient(served_address(process)) as client:
            call = asyncio.create_task(client.request(method))
            await asyncio.to_thread(_until_event, process, "waiting")
            process.terminate()
            assert (await call).code == "cancelled"
        assert await asyncio.to_thread(process.wait, 20) == 0


@pytest.mark.parametrize("method", ["fork", "fork_apart"])
async def test_a_process_that_a_method_forks_ends_well(desk: Path, method: str) -> None:
    with running("run", "front", cwd=desk) as process:
        async with HandlerClient(served_address(process)) as client:
            assert await client.call(method) == 0


async def test_a_second_ctrl_c_does_not_wait(desk: Path) -> None:
    with running("run", "front", cwd=desk, **JSON_LOG) as process:
        async with HandlerClient(served_address(process)) as client:
            call = asyncio.create_task(client.request("wait"))
            await asyncio.to_thread(_until_event, process, "waiting")
            process.send_signal(signal.SIGINT)
            await asyncio.to_thread(_until_event, process, "draining")
            process.send_signal(signal.SIGINT)
            assert (await call).code == "cancelled"
        assert await asyncio.to_thread(process.wait, 20) == 0


async def test_ctrl_c_ends_a_single_run_whatever_its_thread_does(desk: Path) -> None:
    with running("run", "front", "--once", "block", cwd=desk, **JSON_LOG) as process:
        await asyncio.to_thread(_until_event, process, "waiting")
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 20) == 130


async def test_all_serves_every_handler_and_one_signal_ends_all(desk: Path) -> None:
    with running("run", "--all", cwd=desk, CATALOGZERO_PORT="1", **JSON_LOG) as process:
        addresses = {served_address(process), served_address(process)}
        pids = [child.pid for child in psutil.Process(process.pid).children()]
        for address in addresses:
            async with HandlerClient(address) as client:
                assert (await client.ping())["status"] == "ok"
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 20) == 0
        assert all(is_gone(pid) for pid in pids)


async def test_all_names_the_handler_that_died_and_ends_the_others(desk: Path) -> None:
    with running("run", "--all", cwd=desk, **JSON_LOG) as process:
        addresses = {served_address(process), served_address(process)}
        children = psutil.Process(process.pid).children()
        assert len(addresses) == len(children) == 2
        children[0].kill()
        _, err = await asyncio.to_thread(process.communicate, timeout=60)
        assert process.returncode == 1
        assert re.search(r"handler (front|back) ended with exit code -9: \{.*; the others", err)
        assert all(is_gone(child.pid) for child in children)


async def test_all_names_a_handler_that_cannot_start_by_its_last_line(desk: Path) -> None:
    registry = desk / "handler_registry.yaml"
    registry.write_text(registry.read_text().replace("k-back", "k-back, nonsense: 1"))
    result = await asyncio.to_thread(finished, "run", "--all", cwd=desk)
    assert result.returncode == 1
    assert "handler back ended with exit code 3: " in result.stderr
    assert "there is no such key; the others are ended too" in result.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux to end them")
async def test_all_that_is_killed_ends_its_handlers(desk: Path) -> None:
    with running("run", "--all", cwd=desk, **JSON_LOG) as process:
        served_address(process), served_address(process)
        children = psutil.Process(process.pid).children()
        process.kill()
        await until(lambda: all(is_gone(child.pid) for child in children))
        assert len(children) == 2


# --- the verbs -----------------------------------------------------------------------------


async def test_call_ping_metrics_describe_and_cancel_by_handler_id(desk: Path) -> None:
    def asked(*arguments: str) -> Any:
        result = finished(*arguments, cwd=desk)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    with running("run", "front", cwd=desk, **JSON_LOG) as process:
        address = served_address(process)
        said = asked("call", "front", "greet", "--params", '{"name": "you"}')
        assert said == {"said": "from the file you"}
        assert asked("ping", "front", "--json")["message"] == "pong"
        assert asked("metrics", address, "--json")["handler_id"] == "front"
        described = asked("describe", "front", "--json")
        assert "greet" in {method["name"] for method in described["methods"]}
        async with HandlerClient(address) as client:
            call = asyncio.create_task(client.request("wait", request_id="r"))
            run_id = await until(lambda: _run_id(client))
            assert asked("cancel", "front", run_id)["cancelling"] is True
            assert (await call).code == "cancelled"
        wrong = finished("call", "front", "fails", cwd=desk)
        assert (wrong.returncode, wrong.stderr) == (1, "catalogzero: ValueError: no luck\n")


async def _run_id(client: HandlerClient) -> Any:
    runs = (await client.call("list_runs", {"status": "running"}))["runs"]
    return runs[0]["run_id"] if runs else None


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("ping", "front", "--timeout-s", "0.3"), 4, "is it running?"),
        (("ping", "nobody"), 3, "no handler_id 'nobody'; there are: front, back"),
        (("call", "front"), 2, "method"),
        (("call", "front", "greet", "--params", "nonsense"), 2, "JSON"),
        (("run",), 2, "TARGET"),
        (("run", "desk:Nobody"), 3, "no handler class"),
        (("run", "nowhere:X"), 3, "cannot be imported"),
        (("run", "front", "--set", "port"), 2, "name=value"),
        (("run", "front", "--set", "port=70000"), 3, "command line: port"),
        (("run", "front", "--config", "colour=red"), 3, "colour"),
        (("run", "desk:Greeter"), 3, "api_key"),
        (("run", "front", "--host", "0.0.0.0"), 3, "catalogzero keys new"),  # noqa: S104 - refused
        (("run", "front", "--registry", "nowhere.yaml"), 3, "nowhere.yaml"),
    ],
)
def test_what_goes_wrong_has_its_exit_code_and_says_why(
    desk: Path, arguments: tuple[str, ...], code: int, text: str
) -> None:
    result = finished(*arguments, cwd=desk)
    assert result.returncode == code, result.stderr
    assert text in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_once_runs_one_method_here_and_flags_beat_environment_beat_file(desk: Path) -> None:
    once = ("run", "front", "--once", "greet", "--params", '{"name": "you"}')
    by_file = finished(*once, cwd=desk)
    assert json.loads(by_file.stdout) == {"said": "from the file you"}
    by_environment = finished(*once, cwd=desk, DESK_GREETING="from outside")
    assert json.loads(by_environment.stdout) == {"said": "from outside you"}
    by_flag = finished(*once, "--config", "greeting=flagged", cwd=desk, DESK_GREETING="outside")
    assert json.loads(by_flag.stdout) == {"said": "flagged you"}
    assert finished("run", "front", "--once", "fails", cwd=desk).returncode == 1


def test_a_systemd_credential_holds_the_key(desk: Path) -> None:
    (desk / "credentials").mkdir()
    (desk / "credentials" / "DESK_api_key").write_text("k-from-systemd")
    once = ("run", "desk:Greeter", "--once", "greet", "--params", '{"name": "you"}')
    result = finished(*once, cwd=desk, CREDENTIALS_DIRECTORY=str(desk / "credentials"))
    assert result.returncode == 0, result.stderr
    assert "k-from-systemd" not in result.stderr + result.stdout


def test_check_passes_warns_fails_and_names_the_next_command(desk: Path) -> None:
    good = finished("check", "front", "--json", cwd=desk)
    told = json.loads(good.stdout)
    assert good.returncode == 0
    assert {finding["status"] for finding in told["findings"]} == {"pass"}
    assert told["next"] == "catalogzero run front"
    assert [f["name"] for f in told["findings"]][:3] == ["configuration", "methods", "state folder"]
    registry = desk / "handler_registry.yaml"
    registry.write_text(registry.read_text().replace("scheduler: none", "scheduler: tcp://[::1]:9"))
    bad = finished("check", "front", cwd=desk)
    assert bad.returncode == 1
    assert "nobody answers at tcp://[::1]:9" in bad.stdout
    registry.write_text(registry.read_text().replace("greeting:", "greting:"))
    wrong = finished("check", "front", cwd=desk)
    assert wrong.returncode == 3
    assert "handler_registry.yaml:8: config.greting" in wrong.stdout
    assert wrong.stdout.splitlines()[-1] == "next: catalogzero check front"


def test_keys_are_made_once_and_readable_by_their_owner_only(tmp_path: Path) -> None:
    made = finished("keys", "new", "front.key", cwd=tmp_path)
    assert made.returncode == 0
    assert (tmp_path / "front.key").stat().st_mode & 0o777 == 0o600
    secret = (tmp_path / "front.key").read_text().split("secret: ")[1].strip()
    assert secret not in made.stdout
    assert finished("keys", "new", "front.key", cwd=tmp_path).returncode == 3


def test_check_binds_the_address_reads_the_keys_and_knows_its_own(desk: Path) -> None:
    registry = desk / "handler_registry.yaml"
    with running("run", "front", cwd=desk, **JSON_LOG) as process:
        served_address(process)
        assert _found(desk, "address") == ("warn", "stop it before you start another")
        registry.write_text(registry.read_text().replace("handler_id: front", "handler_id: other"))
        assert _found(desk, "address", "other")[0] == "fail"
    registry.write_text(
        registry.read_text().replace(
            "handler_id: other", "curve: {key_file: k, clients_file: c}\n    handler_id: front"
        )
    )
    (desk / "c").touch()
    assert _found(desk, "keys") == ("fail", "make it: `catalogzero keys new`")
    assert finished("keys", "new", "k", cwd=desk).returncode == 0
    assert _found(desk, "keys")[0] == _found(desk, "address")[0] == "pass"
    (desk / "k").chmod(0o644)
    assert _found(desk, "keys") == ("warn", "chmod 600 k")
    (desk / "desk.py").write_text(DESK.replace("name: str", "name: 'Strange'"))
    assert _found(desk, "methods")[0] == "fail"


def _found(desk: Path, name: str, target: str = "front") -> tuple[str, str]:
    """Status and fix of one check."""
    told = json.loads(finished("check", target, "--json", cwd=desk).stdout)
    finding = next(finding for finding in told["findings"] if finding["name"] == name)
    return finding["status"], finding["fix"]


def test_a_handler_with_keys_is_asked_from_the_command_line(desk: Path) -> None:
    public = finished("keys", "new", "mine", cwd=desk).stdout.splitlines()[-1]
    server = finished("keys", "new", "front.key", cwd=desk).stdout.splitlines()[-1]
    (desk / "clients").write_text(public)
    registry = desk / "handler_registry.yaml"
    curve = "curve: {key_file: front.key, clients_file: clients}\n    handler_id: front"
    registry.write_text(registry.read_text().replace("handler_id: front", curve))
    with running("run", "front", cwd=desk, **JSON_LOG) as process:
        address = served_address(process)
        assert finished("ping", "front", "--key-file", "mine", cwd=desk).returncode == 0
        by_key = ("--key-file", "mine", "--server-key", server)
        called = finished("call", address, "greet", "--params", '{"name": "x"}', *by_key, cwd=desk)
        assert json.loads(called.stdout)["said"] == "from the file x"
        for arguments, text in (
            (("metrics", "front"), "name your own pair with --key-file"),
            (("ping", address, "--key-file", "mine"), "--server-key"),
            (("ping", address, "--key-file", "mine", "--server-key", "x"), "no public key"),
        ):
            refused = finished(*arguments, cwd=desk)
            assert (refused.returncode, text in refused.stderr) == (3, True), refused.stderr


def test_a_check_that_hangs_is_reported_and_holds_up_nothing() -> None:
    checks = [
        preflight.Check("hangs", threading.Event().wait, "see that it is up", timeout_s=0.2),
        preflight.Check("raises", lambda: 1 // 0, "count again"),
        preflight.Check("fine", lambda: "as it should be", ""),
    ]
    hanging, raising, fine = asyncio.run(preflight.run_checks(checks))
    assert (hanging.status, hanging.found) == ("fail", "no answer within 0.2 s")
    assert (hanging.fix, raising.fix) == ("see that it is up", "count again")
    assert (raising.status, raising.found[:17]) == ("fail", "ZeroDivisionError")
    assert (fine.status, fine.found) == ("pass", "as it should be")


def test_the_systemd_unit_names_what_its_section_needs(desk: Path) -> None:
    (desk / "my data").mkdir()
    registry = desk / "handler_registry.yaml"
    data = 'config: {data_roots: ["my data"], api_key'
    registry.write_text(registry.read_text().replace("config: {api_key: k-back", f"{data}: k-back"))
    front, back = (finished("systemd", name, cwd=desk).stdout.splitlines() for name in IDS)
    assert {"StateDirectory=catalogzero/front", "TimeoutStopSec=45"} <= set(front)
    assert {"StateDirectory=catalogzero/back", "TimeoutStopSec=15"} <= set(back)
    is_hidden = desk.is_relative_to(tempfile.gettempdir())  # by PrivateTmp=
    line = "BindReadOnlyPaths" if is_hidden else "ReadOnlyPaths"
    assert f'{line}=-"{desk}/my data"' in back
    assert {f"ReadWritePaths=-{desk}", f"WorkingDirectory={desk}"} <= set(front)
    assert {"RestartPreventExitStatus=2 3 243", "Type=notify", "OOMPolicy=continue"} <= set(front)
    start = next(line for line in front if line.startswith("ExecStart="))
    assert start.endswith(f"run front --registry {registry}")
    assert Path(start.removeprefix("ExecStart=").split()[0]).exists()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
def test_the_systemd_unit_is_hardened(desk: Path) -> None:
    unit = desk / "front.service"
    unit.write_text(finished("systemd", "front", cwd=desk).stdout)
    valid = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (valid.returncode, valid.stdout + valid.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", str(unit)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout[-2_000:] + told.stderr


# --- logs ----------------------------------------------------------------------------------


async def test_a_service_logs_json_lines_that_name_handler_and_run_and_hide_secrets(
    desk: Path,
) -> None:
    with running("run", "front", cwd=desk, **JSON_LOG) as process:
        async with HandlerClient(served_address(process)) as client:
            reply = await client.request("greet", {"name": "x"}, request_id="r-1")
            await client.request("fails")
            apart_reply = await client.request("apart", request_id="r-2")
        process.terminate()
        _, err = await asyncio.to_thread(process.communicate)
    lines = [json.loads(line) for line in err.splitlines()]
    greeting = next(line for line in lines if line["event"] == "greeting")
    assert {line["handler_id"] for line in lines} == {"front"}
    assert (greeting["run_id"], greeting["request_id"]) == (reply.run_id, "r-1")
    apart = next(line for line in lines if line["event"] == "apart")
    assert (apart["run_id"], apart["request_id"]) == (apart_reply.run_id, "r-2")
    assert greeting["note"] == "with **********"
    theirs = next(line for line in lines if line.get("logger") == "their.library")
    assert (theirs["event"], theirs["level"]) == ("sent **********", "warning")
    assert theirs["run_id"] == reply.run_id
    failed = next(line for line in lines if line["event"] == "run_failed")
    assert "ValueError: no luck" in failed["exception"]
    assert "k-front-123" not in err


async def test_a_console_log_shows_the_traceback_of_a_failed_run(desk: Path) -> None:
    with running("run", "front", cwd=desk, CATALOGZERO_LOG_FORMAT="console") as process:
        port = (desk / "handler_registry.yaml").read_text().split("port: ")[1].split("\n")[0]
        async with HandlerClient(f"tcp://127.0.0.1:{port}") as client:
            await client.ping(timeout_s=20)
            await client.request("fails")
        process.terminate()
        _, err = await asyncio.to_thread(process.communicate)
    assert "run_failed" in err
    assert "ValueError: no luck" in err
    assert "Traceback" in err


# --- hostile peers -------------------------------------------------------------------------

CHANCE = random.Random(11)  # noqa: S311 - not for secrets
FRAMES: dict[str, Callable[[], bytes]] = {
    "random bytes": lambda: CHANCE.randbytes(CHANCE.randrange(300)),
    "cut JSON": lambda: b'{"method": "greet", "params": {"name": "x"}}'[: CHANCE.randrange(44)],
    "deep nesting": lambda: b"[" * CHANCE.randrange(1, 5_000),
    "deep params": lambda: b'{"method":"greet","params":' + b'{"a":' * 400 + b"1" + b"}" * 401,
    "wrong kinds": lambda: json.dumps({"method": CHANCE.choice([1, [], None, {}])}).encode(),
    "unknown method": lambda: json.dumps({"method": "x" * CHANCE.randrange(1, 2_000)}).encode(),
    "bad params": lambda: b'{"method": "greet", "params": {"nope": [1, 2]}}',
    "invalid UTF-8": lambda: b'{"method": "\xff\xfe"}',
    "lone surrogate": lambda: b'{"method": "\\ud800"}',
    "NaN": lambda: b'{"method": "greet", "params": {"name": NaN}}',
    "large": lambda: b'{"method": "' + b"x" * 50_000 + b'"}',
}
GREETINGS: dict[str, Callable[[], bytes]] = {
    "HTTP": lambda: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "random bytes": lambda: CHANCE.randbytes(64),
    "half a ZMTP greeting": lambda: b"\xff\0\0\0\0\0\0\0\x01\x7f\x03",
    "ZMTP, then nonsense": lambda: (
        b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL" + b"\0" * 48 + CHANCE.randbytes(40)
    ),
    "nothing": lambda: b"",
}
EACH_FRAME, EACH_GREETING = 800, 400


@pytest.mark.timeout(120)
async def test_ten_thousand_malformed_frames_and_connections_harm_nothing(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running("run", "front", "--set", "log_level=error", cwd=desk) as process:
        port = int((desk / "handler_registry.yaml").read_text().split("port: ")[1].split("\n")[0])
        context = zmq.asyncio.Context()
        peer = context.socket(zmq.DEALER)
        peer.linger = 0
        peer.connect(f"tcp://127.0.0.1:{port}")
        async with HandlerClient(f"tcp://127.0.0.1:{port}") as client:
            await client.ping(timeout_s=20)
            tally = await _hostile(peer, port, EACH_FRAME // 2, EACH_GREETING // 2)
            before_mb = psutil.Process(process.pid).memory_info().rss / 2**20
            tally += await _hostile(peer, port, EACH_FRAME // 2, EACH_GREETING // 2)
            assert (await client.call("greet", {"name": "x"}))["said"]
            grown_mb = psutil.Process(process.pid).memory_info().rss / 2**20 - before_mb
        peer.close()
        context.term()
    with capsys.disabled():
        print(f"\n{tally.total()} malformed; RSS grew by {grown_mb:.1f} MB in the second half")  # noqa: T201 - asked for
        for kind, count in tally.items():
            print(f"  {count:6} {kind}")  # noqa: T201 - asked for
    assert tally.total() >= 10_000
    assert grown_mb <= 5


async def _hostile(peer: Any, port: int, frames: int, greetings: int) -> Counter[str]:
    """Send that number of each kind; every frame must get an error for an answer."""
    tally: Counter[str] = Counter()
    for kind, number in _shuffled(FRAMES, frames):
        await peer.send(FRAMES[kind]())
        reply = json.loads(await peer.recv())
        assert reply["success"] is False, (kind, number)
        tally[f"frame, {kind}: {reply['code']}"] += 1
    for kind, _ in _shuffled(GREETINGS, greetings):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(GREETINGS[kind]())
        tally[f"connection, {kind}"] += 1
    return tally


def _shuffled(kinds: dict[str, Any], each: int) -> Iterator[tuple[str, int]]:
    order = [(kind, number) for kind in kinds for number in range(each)]
    CHANCE.shuffle(order)
    yield from order

"""From `catalogzero run` to the first reply, and the command's help, beside what nothing can beat.

    python -m benchmarks.startup [--quick] [--rounds 7] [--json]

The floor of the first reply is `python -c "import zmq, psutil, asyncio"`, started and ended; all of
`catalogzero` is put beside the import of the libraries that it uses, and `--help`, in a pipe and on
a terminal, beside the help of an empty typer app with as many commands. Rounds are interleaved.
Processor time suffers less than wall time from what else the machine does.

All run compiled, as an install is: a round is thrown away in which Python writes its bytecode.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import orjson
import zmq
from catalogzero.cli.main import COMMANDS

from benchmarks.report import Figure, Section, main, ratios

ROOT = Path(__file__).parents[1]
FLOOR = "import zmq, psutil, asyncio"
LIBRARIES = "asyncio, orjson, psutil, pydantic, pydantic_settings, structlog, zmq, zmq.asyncio"
"""What the names of `catalogzero` import; tests/house/test_dependencies.py holds it to these."""
FULL = {"rounds": 7}
QUICK = {"rounds": 1}
REPLY_BUDGET, IMPORT_BUDGET, HELP_BUDGET = 4.0, 1.15, 1.5
Cost = tuple[float, float]
"""(wall seconds, processor seconds)"""


def ended(command: list[str], environment: dict[str, str], *, terminal: bool = False) -> Cost:
    """Start a command, read what it prints, wait for its end."""
    ours, theirs = os.openpty() if terminal else os.pipe()
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=theirs, cwd=ROOT, env=environment)
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as printed, suppress(OSError):  # a terminal that closed
        while printed.read(1 << 16):
            pass
    cost = cost_of(process, began)
    assert process.returncode == 0, command
    return cost


def cost_of(process: subprocess.Popen[bytes], began: float) -> Cost:
    """What a process cost that ends by now."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    wall_s = time.perf_counter() - began
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return wall_s, usage.ru_utime + usage.ru_stime


def first_reply(state: Path, environment: dict[str, str]) -> Cost:
    """`catalogzero run` until its first reply to a job call."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "catalogzero", "run", "benchmarks.peers.heavy_entry:Heavy"]
    command += ["--port", str(port), "--scheduler", "none", "--set", f"state_dir={state}"]
    context = zmq.Context()
    asking = context.socket(zmq.DEALER)
    asking.linger, asking.rcvtimeo = 0, 60_000
    asking.setsockopt(zmq.RECONNECT_IVL, 5)
    asking.connect(f"tcp://127.0.0.1:{port}")
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        call = b'{"method": "echo", "params": {"data": 1}, "request_id": "r"}'
        asking.send_multipart((b"", call))
        assert orjson.loads(asking.recv_multipart()[-1])["result"] == 1
        wall_s = time.perf_counter() - began
    finally:
        process.kill()
        _, cpu_s = cost_of(process, began)
        asking.close()
        context.term()
    return wall_s, cpu_s


def empty_app(folder: Path) -> Path:
    """A typer app with as many commands as ours, which do nothing."""
    path = folder / "empty.py"
    commands = (
        f'@app.command("c{number}")\ndef c{number}() -> None:\n    """Do nothing."""\n'
        for number in range(len(COMMANDS))
    )
    path.write_text("\n".join(["import typer", "app = typer.Typer()", *commands, "app()", ""]))
    return path


def ways(folder: Path) -> dict[str, Callable[[], Cost]]:
    """What is measured in each round."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
    environment |= {"TERM": "xterm", "COLUMNS": "100"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def python(*words: str, terminal: bool = False) -> Callable[[], Cost]:
        return lambda: ended([sys.executable, *words], environment, terminal=terminal)

    empty, ours = (str(empty_app(folder)), "--help"), ("-m", "catalogzero", "--help")
    return {
        "floor": python("-c", FLOOR),
        "reply": lambda: first_reply(folder / "state", environment),
        "libraries": python("-c", f"import {LIBRARIES}"),
        "import": python("-c", "from catalogzero import *"),
        "empty help": python(*empty),
        "help": python(*ours),
        "empty help, terminal": python(*empty, terminal=True),
        "help, terminal": python(*ours, terminal=True),
    }


def measure(rounds: int) -> Section:
    """Every figure."""
    with tempfile.TemporaryDirectory() as folder:
        measured = ways(Path(folder))
        samples = [{name: act() for name, act in measured.items()} for _ in range(rounds + 1)][1:]
    wall = {name: [one[name][0] for one in samples] for name in measured}
    cpu = {name: [one[name][1] for one in samples] for name in measured}

    def ratio(what: str, name: str, peer: str, budget: float) -> list[Figure]:
        return [
            Figure(
                what=f"{what}, {kind}", samples=ratios(of[name], of[peer]), unit="x", at_most=budget
            )
            for kind, of in (("wall", wall), ("processor", cpu))
        ]

    return Section(
        figures=[
            Figure(what="the bare imports, started and ended", samples=wall["floor"], unit="s"),
            Figure(what="catalogzero run, first reply", samples=wall["reply"], unit="s"),
            *ratio("first reply / bare imports", "reply", "floor", REPLY_BUDGET),
            *ratio("all of catalogzero / its libraries", "import", "libraries", IMPORT_BUDGET),
            Figure(what="catalogzero --help, in a pipe", samples=wall["help"], unit="s"),
            *ratio("--help / empty typer app, in a pipe", "help", "empty help", HELP_BUDGET),
            *ratio(
                "--help / empty typer app, on a terminal",
                "help, terminal",
                "empty help, terminal",
                HELP_BUDGET,
            ),
        ]
    )


if __name__ == "__main__":
    sys.exit(main(__name__))

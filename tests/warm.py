"""`catalogzero …` in a process of its own, forked from one that has imported the package before.

Most of what a command costs is the import, half a second of a core each time. Here one process
imports it once for all tests of a worker, and forks for each command: what runs then is the same
`main`, in a process with its own folder, environment, streams, user and end. What a test proves of
the start itself, of imports, signals or what is installed, needs `python -m catalogzero`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 30.0
REQUEST_BYTES = 1 << 18
COMMANDS = ("bundle", "call", "check", "outbox", "run", "schedule", "state", "status")
_STARTING = threading.Lock()
IMPORTED = (
    *(f"catalogzero.cli.{name}" for name in COMMANDS),
    *("catalogzero.cloud.processor", "catalogzero.cloud.sending.bounded"),
    *("httpx_aiohttp", "sqlalchemy.orm", "typer.rich_utils", "yaml"),
)
"""What is there before the fork: commands, and what they would import in the middle."""


class Request(NamedTuple):
    """What a command's process has of its own, beside its streams."""

    words: list[str]
    cwd: str
    environment: dict[str, str]
    user: int | None


def run_command(
    *words: str,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    said: str = "",
    user: int | None = None,
    timeout_s: float = TIMEOUT_S,
) -> subprocess.CompletedProcess[str]:
    """Run `catalogzero …` to its end.

    Args:
        words: The command's.
        cwd: Its folder; that of the tests by default.
        environment: All of its variables; those of the tests by default.
        said: What stands on its standard input.
        user: The number of another user, and of its group.
        timeout_s: After which it is killed.

    Raises:
        subprocess.TimeoutExpired: It took longer.
    """
    request = Request([*words], str(cwd or Path.cwd()), dict(environment or os.environ), user)
    reading, writing = os.pipe()
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        os.fdopen(reading) as news,
    ):
        given.write(said.encode())
        given.seek(0)
        streams = [given.fileno(), out.fileno(), err.fileno(), writing]
        try:
            with _STARTING:
                _, requests = _warm_process()
            socket.send_fds(requests, [json.dumps(request).encode()], streams)
        finally:
            os.close(writing)
        pid = int(news.readline())
        if not select.select([news], [], [], timeout_s)[0]:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(["catalogzero", *words], timeout_s)
        code = int(news.readline())
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
    return subprocess.CompletedProcess(["catalogzero", *words], code, *texts)


@cache
def _warm_process() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """The warm process, and the connection to it; it ends when this process does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", str(theirs.fileno())],
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    return process, ours


def _next_command(requests: socket.socket) -> None:
    """Fork for each request; returns only in a command's own process, and never else."""
    while True:
        text, streams, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 4)
        if not text:
            sys.exit()
        keeper = os.fork()
        if keeper == 0:
            requests.close()
            *own, news = streams
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            command = os.fork()
            if command == 0:
                os.close(news)
                _become(Request(*json.loads(text)), own)
                return
            os.write(news, f"{command}\n".encode())
            _, status = os.waitpid(command, 0)
            os.write(news, f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os._exit(0)
        for stream in streams:
            os.close(stream)


def _become(request: Request, streams: list[int]) -> None:
    """Take over what the command's process has of its own."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.environment)
    added = filter(None, request.environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [request.cwd, *added]
    sys.argv = ["catalogzero", *request.words]
    if request.user is not None:
        os.setgroups([])
        os.setgid(request.user)
        os.setuid(request.user)


if __name__ == "__main__":
    del sys.path[0]  # the checkout: a command has it by its own PYTHONPATH, or not
    from catalogzero.cli.main import main

    for name in IMPORTED:
        importlib.import_module(name)
    sys.modules["__main__"].__package__ = None  # else usage texts name this module
    os.umask(0o022)  # a handler that a test serves in its own process makes it 077
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with suppress(KeyboardInterrupt):
        _next_command(socket.socket(fileno=int(sys.argv[1])))
    main()

"""The demo's processes: each in a group of its own, and none left behind, whatever happens.

Owns starting, waiting for and stopping them. A guardian process holds the other end of a pipe:
when the demo ends, even by kill -9, the pipe closes and the guardian kills every group that is
still listed. It never looks for a process by its name.

Layer: edge.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import psutil

MARK = "QUICKSTART_RUN"
_HOLDERS: list[socket.socket] = []
"""What keeps the ports of `free_ports`."""
GUARDIAN = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""

Found = TypeVar("Found")


class DemoError(Exception):
    """A step did not hold; its text says which, and where to look."""


class Processes:
    """Everything that the demo started; leaving it stops all of it.

    `logs` is the folder that takes each process's output, `<name>.log`.
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.mark = uuid.uuid4().hex
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        self._guardian = subprocess.Popen(
            [sys.executable, "-c", GUARDIAN],
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
            bufsize=1,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop_all()
        self._guardian.communicate()

    def start(
        self, name: str, *command: str | Path, cwd: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process in a group of its own; its output goes to `<name>.log`."""
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=cwd,
                env={**os.environ, MARK: self.mark, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        self._report("+", process.pid)
        self._running[name] = process
        return process

    def run(
        self,
        name: str,
        *command: str | Path,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 300.0,
    ) -> str:
        """Run a command to its end and return what it said.

        Raises:
            DemoError: It failed, or took longer than `timeout_s`.
        """
        before = self._size(name)
        process = self.start(name, *command, cwd=cwd, env=env)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            code = None
        self.stop(name)
        said = (self.logs / f"{name}.log").read_bytes()[before:].decode(errors="replace")
        if code != 0:
            raise DemoError(f"`{_shown(command)}` ended with {code}:\n{_tail(said)}")
        return said

    def stop(self, name: str, timeout_s: float = 15.0) -> int | None:
        """End a process and what is left of its group, kindly first; its exit code."""
        process = self._running.pop(name, None)
        if process is None:
            return None
        if process.poll() is None:
            process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
        kill_group(process.pid)
        process.wait()
        self._report("-", process.pid)
        return process.returncode

    def stop_all(self) -> None:
        """End everything, the last started first."""
        for name in reversed(list(self._running)):
            self.stop(name)

    def kill(self, name: str) -> None:
        """kill -9 of one process, as a crash would be; its children are left to see to it."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def assert_running(self) -> None:
        """Raise if a service has ended by itself.

        Raises:
            DemoError: With the end of its log.
        """
        for name, process in self._running.items():
            if process.poll() is not None:
                said = (self.logs / f"{name}.log").read_text(errors="replace")
                raise DemoError(f"{name} ended with {process.returncode}:\n{_tail(said)}")

    def wait_for(
        self, what: str, look: Callable[[], Found | None], timeout_s: float = 60.0
    ) -> Found:
        """Look ten times a second until there is something, and return it.

        Raises:
            DemoError: Nothing came within `timeout_s`, or a service ended.
        """
        deadline = time.monotonic() + timeout_s
        while not (found := look()):
            self.assert_running()
            if time.monotonic() > deadline:
                raise DemoError(f"{what}: not within {timeout_s:.0f} s; see {self.logs}")
            time.sleep(0.1)
        return found

    def left_behind(self) -> list[str]:
        """The processes of this run that still live, by the mark in their environment."""
        return [_named(process) for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark
        except psutil.Error:
            return False

    def _report(self, sign: str, group: int) -> None:
        pipe = self._guardian.stdin
        if pipe:
            pipe.write(f"{sign}{group}\n")

    def _size(self, name: str) -> int:
        path = self.logs / f"{name}.log"
        return path.stat().st_size if path.exists() else 0


def kill_group(group: int) -> None:
    """kill -9 of a whole process group, if any of it is left."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on, kept from others until this process ends."""
    # A socket that is bound, but does not listen, keeps others from this port. Servers set
    # SO_REUSEADDR, as it does, and so can still listen here. It does so only once it is bound:
    # else two processes could be given the same port.
    for _ in range(count):
        holder = socket.socket()
        holder.bind(("127.0.0.1", 0))
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _HOLDERS.append(holder)
    return [int(holder.getsockname()[1]) for holder in _HOLDERS[-count:]]


def _named(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return f"{process.pid} {' '.join(process.cmdline())[:100]}"
    return str(process.pid)


def _shown(command: Sequence[str | Path]) -> str:
    return " ".join(str(part) for part in command)


def _tail(text: str, lines: int = 25) -> str:
    return "\n".join(text.rstrip().splitlines()[-lines:])

"""What the tests of the core share: raw peers, waiting for conditions, a handler to call.

Nothing here sleeps: `until` polls a condition against a deadline.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import zmq
import zmq.asyncio
from catalogzero import Handler, job
from catalogzero.config.address import Address
from catalogzero.wire.carriers import transport_for
from catalogzero.wire.transport import Peer

from tests.warm import run_command

POLL_S = 0.01
DEADLINE_S = 20.0


async def until(condition: Callable[[], Any], within_s: float = DEADLINE_S) -> Any:
    """What a condition, plain or coroutine, gives as soon as that is true."""
    never = asyncio.Event()
    async with asyncio.timeout(within_s):
        while True:
            found = condition()
            if inspect.isawaitable(found):
                found = await found
            if found:
                return found
            with suppress(TimeoutError):
                await asyncio.wait_for(never.wait(), POLL_S)


async def breathe() -> None:
    """Let sockets and other tasks do what they can in a moment."""
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), POLL_S)


class RawPeer:
    """A bare ZeroMQ socket of a kind: what any other program may send.

    At an address of NATS it is a connection that sends the last of the frames.
    """

    def __init__(self, address: str, kind: int = zmq.DEALER) -> None:
        self._peer: Peer | None = None
        self._replies: asyncio.Queue[Any] = asyncio.Queue()
        if address.startswith("nats://"):
            transport = transport_for(Address.parse(address))
            heard, ready = self._replies.put_nowait, asyncio.Event()
            self._ready = ready
            self._peer = transport.connect(address, heard, ready.set, lambda frames, error: None)
            return
        self._context = zmq.asyncio.Context()
        self.socket = self._context.socket(kind)
        self.socket.linger = 0
        self.socket.connect(address)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._peer is not None:
            self._peer.close()
            await self._peer.wait_closed()
            return
        self.socket.close()
        self._context.term()

    async def send(self, *frames: bytes) -> None:
        """Send the frames as they are."""
        if self._peer is not None:
            await self._ready.wait()
            assert self._peer.try_send(frames[-1])
            return
        await self.socket.send_multipart(frames)

    async def receive(self, within_s: float = DEADLINE_S) -> dict[str, Any]:
        """The next reply's last frame, as JSON."""
        async with asyncio.timeout(within_s):
            if self._peer is not None:
                frames = [await self._replies.get()]
            else:
                frames = await self.socket.recv_multipart()
        reply: dict[str, Any] = json.loads(frames[-1])
        return reply

    async def ask(self, call: Any) -> dict[str, Any]:
        """Send one call, bytes or JSON, and wait for a reply."""
        await self.send(call if isinstance(call, bytes) else json.dumps(call).encode())
        return await self.receive()


class Bench(Handler):
    """Jobs that wait to be let go, so that a test holds each moment as long as it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.begun: list[Any] = []
        self.hooks: list[str] = []

    async def echo(self, value: Any = None) -> Any:
        """Its parameter."""
        return value

    async def hold(self, name: str = "") -> str:
        """Waits for the gate."""
        self.begun.append(name)
        await self.gate.wait()
        return name

    @job(quiet=True)
    async def peek(self) -> str:
        """A quiet job."""
        self.begun.append("peek")
        return "quiet"

    @job(retry_safe=True)
    async def count(self) -> dict[str, int]:
        """How often it ran."""
        self.begun.append("count")
        return {"count": self.begun.count("count")}

    def _release_resources(self) -> None:
        self.hooks.append("release")

    def _ensure_resources(self) -> None:
        self.hooks.append("ensure")

    async def _warm_cache(self) -> None:
        self.hooks.append("warm")


@contextmanager
def running(
    *arguments: str, cwd: Path | None = None, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A `catalogzero …` process with its output in pipes; killed at the end if it still runs."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CATALOGZERO_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "catalogzero", *arguments],
        cwd=cwd,
        env={**kept, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finished(
    *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A `catalogzero …` command, run to its end."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CATALOGZERO_")}
    return run_command(*arguments, cwd=cwd, environment={**kept, **environment})


def served_address(process: subprocess.Popen[str]) -> str:
    """The address that a process says it serves, from its JSON log."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        with suppress(ValueError):
            event = json.loads(line)
            if event.get("event") == "serving":
                return str(event["address"])
    raise AssertionError(f"it ended without serving: {''.join(said)}")


def is_gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def kill(pid: int) -> None:
    """kill -9."""
    os.kill(pid, signal.SIGKILL)

"""Fleets for the tests: handlers that are really served, and peers that really are not there."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web
from catalogzero import Handler, job
from catalogzero.testing import Serving, serving

from conductorzero import ConductorZero
from conductorzero.fleet import Fleet
from conductorzero.peers import Directory, RegistryFile, peers_of_mapping
from conductorzero.watch import Watch

_HOLDERS: list[socket.socket] = []


class Shop(Handler):
    """A handler with a job that its test can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.began = asyncio.Event()
        self.calls: list[str] = []
        self.described = 0

    async def describe(self) -> dict[str, Any]:
        """The handler's own description, counted."""
        self.described += 1
        return await super().describe()

    async def greet(self, name: str) -> dict[str, Any]:
        """Greet somebody, once the gate is open."""
        self.calls.append(name)
        self.began.set()
        await self.gate.wait()
        return {"greeting": f"hello {name}", "by": self.handler_id}

    @job(retry_safe=True)
    async def count(self) -> dict[str, Any]:
        """Count; may be run again."""
        self.calls.append("count")
        self.began.set()
        await self.gate.wait()
        return {"by": self.handler_id}

    async def fail(self) -> None:
        """Fail."""
        raise ValueError("no such shop")


def free_port() -> int:
    """A port that nobody listens on, kept from others until this process ends."""
    # Bound, but not listening: servers, which set SO_REUSEADDR too, can still listen there.
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    _HOLDERS.append(holder)
    return int(holder.getsockname()[1])


@asynccontextmanager
async def shops(*names: str, **runtime: Any) -> AsyncIterator[dict[str, Serving]]:
    """Handlers of these names, served."""
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(serving(Shop(), handler_id=name, **runtime))
            for name in names
        }


def addresses(fleet: dict[str, Serving]) -> dict[str, int | str]:
    """The registry of a fleet."""
    return {name: one.address for name, one in fleet.items()}


class ShopProcess:
    """A shop in a process of its own, that a test can kill; its gate is shut.

    Args:
        handler_id: Its id.
        port: Where it listens.
        script: What serves it, with `more` arguments; here those of `serve_shop`.
    """

    def __init__(
        self, handler_id: str, port: int, *, script: str = __file__, more: tuple[str, ...] = ()
    ) -> None:
        self._arguments = script, handler_id, str(port), *more
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> ShopProcess:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *self._arguments, stdout=asyncio.subprocess.PIPE
        )
        await self.said("serving")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.kill()

    async def said(self, word: str) -> None:
        """Wait until it says this word."""
        assert self._process is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            while (line := await self._process.stdout.readline()).decode().strip() != word:
                assert line, "the shop's process ended"

    def freeze(self) -> None:
        """Let it stand still, as a machine without memory does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def stop(self) -> None:
        """End it as Ctrl-C does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        await self._process.communicate()

    async def kill(self) -> None:
        """End it as kill -9 does."""
        assert self._process is not None
        self._process.kill()
        await self._process.communicate()


async def serve_shop(handler_id: str, port: str, settings: str = "{}") -> None:
    """Serve a shop with its gate shut, and say when a job has begun; `settings` are JSON."""
    shop = Shop()
    shop.gate.clear()
    async with serving(shop, handler_id=handler_id, port=int(port), **json.loads(settings)):
        sys.stdout.write("serving\n")
        sys.stdout.flush()
        await shop.began.wait()
        sys.stdout.write("began\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


@asynccontextmanager
async def conducting(registry: Any = None, **config: Any) -> AsyncIterator[Serving]:
    """A conductor that is served, its dashboard on a free port.

    A round waits 0.45 of the interval for its replies: long enough that a living handler on a busy
    machine is never called unreachable.
    """
    config = {"dashboard_port": 0, "interval_s": 4.0, "timeout_s": 5.0, **config}
    async with serving(ConductorZero(registry, **config), handler_id="conductor") as one:
        yield one


@asynccontextmanager
async def scheduler(answer: Callable[[], Awaitable[web.Response]]) -> AsyncIterator[str]:
    """An HTTP server whose lists of handlers and schedules are what this function answers."""
    app = web.Application()

    async def handlers(_: web.Request) -> web.Response:
        return await answer()

    app.router.add_get("/api/handlers", handlers)
    app.router.add_get("/api/schedules", handlers)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def real_scheduler(folder: Path, *options: str) -> AsyncIterator[tuple[str, str]]:
    """A scheduler as a process; its HTTP address, and the one where handlers register."""
    database = f"sqlite:///{folder / 'scheduler.db'}"
    ports = ("--port", "0", "--zmq-port", "0")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "catalogzero", "scheduler", *ports, "--database", database),
        *("--json", *options),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        said = json.loads(await process.stdout.readline())
        yield said["url"], said["zmq_address"]
    finally:
        process.kill()
        await process.communicate()


class Instances:
    """Processes that share the calls of one handler_id, which no other test uses.

    Args:
        stack: Ends them.
        scheduler: Where they register.
        runtime: Settings of each of them.
    """

    def __init__(self, stack: AsyncExitStack, scheduler: str, **runtime: Any) -> None:
        self.handler_id = f"toy-{uuid.uuid4().hex[:8]}"
        self.processes: dict[str, ShopProcess] = {}
        self._stack, self._runtime = stack, {"scheduler": scheduler, **runtime}

    def key(self, name: str) -> str:
        """The name of one of them in the fleet."""
        return f"{self.handler_id}/{name}"

    async def start(self, *names: str) -> None:
        """Start these."""
        for name in names:
            settings = json.dumps({"instance_id": name, **self._runtime})
            one = ShopProcess(self.handler_id, 0, more=(settings,))
            self.processes[name] = await self._stack.enter_async_context(one)


@asynccontextmanager
async def watching(registry: dict[str, int | str] | Path) -> AsyncIterator[Watch]:
    """A watch over the handlers of a registry, which is read once; `refresh` reads a file again."""
    clock = Handler().clock
    fixed = peers_of_mapping(registry) if isinstance(registry, dict) else []
    sources = [RegistryFile(registry)] if isinstance(registry, Path) else []
    log = structlog.wrap_logger(structlog.ReturnLogger())
    watch = Watch(Directory(fixed, [*sources]), Fleet(clock), clock, log, interval_s=4.0)
    await watch.refresh()
    try:
        yield watch
    finally:
        watch.fleet.close()


async def until(
    condition: Callable[[], Awaitable[bool]] | Callable[[], bool], *, within_s: float = 10.0
) -> None:
    """Wait until a condition holds, looking again as the loop turns."""
    async with asyncio.timeout(within_s):
        while True:
            held = condition()
            if isinstance(held, Awaitable):
                held = await held
            if held:
                return
            await pause()


async def pause(seconds: float = 0.01) -> None:
    """Let the loop turn for a moment."""
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), seconds)


if __name__ == "__main__":
    asyncio.run(serve_shop(*sys.argv[1:]))

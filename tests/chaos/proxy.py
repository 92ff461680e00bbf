"""A proxy that does to requests what networks do: cuts, delays, repeats, reorders, storms.

It reads a whole request, rolls a die, and passes on what the die says, byte for byte. A scene of
the storm can step in before the die is rolled.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

STORM = (429, 500, 503)
STORM_S = (0.1, 1.0)
FAULTS = ("cut before", "cut inside", "cut answer", "slow", "twice", "late", "storm")


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as it came; `kind` is chunk, complete, health or register."""

    raw: bytes

    @property
    def kind(self) -> str:
        """What it asks for."""
        path = self.raw.split(b" ", 2)[1]
        words = {b"/chunks/": "chunk", b"/complete": "complete", b"/health": "health"}
        return next((word for mark, word in words.items() if mark in path), "register")

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of a `complete`."""
        found = json.loads(self.raw.partition(b"\r\n\r\n")[2])
        assert isinstance(found, dict)
        return found


Meddling = Callable[[Request], Awaitable[bytes | None]]
"""Answers a request in the backend's stead (nothing: the connection is cut); None: go on."""


class FaultProxy:
    """An async context: listens on `port`, passes on to the backend's port.

    Args:
        port: Where it listens.
        backend_port: Where the backend is, while it is.
        rate: How many of the requests meet a fault, from 0 to 1.
        dice: Decides; seeded, so that a run can be repeated.

    Attributes:
        hits: What the dice did, by name.
        answers: What the backend answered, by kind of request.
        under_way: Requests that the backend has now.
        meddling: A scene's own hand, where there is one.
    """

    def __init__(self, port: int, backend_port: int, rate: float, dice: random.Random) -> None:
        self._port, self._backend_port = port, backend_port
        self.rate, self._dice = rate, dice
        self.hits: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.meddling: Meddling | None = None
        self.under_way = 0
        self._storm_until = 0.0
        self._late: set[asyncio.Task[None]] = set()
        self._serving: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        owned = [*self._late, *self._serving]
        for task in owned:
            task.cancel()
        await asyncio.gather(*owned, return_exceptions=True)

    async def calm(self) -> None:
        """No more faults; what is late arrives now."""
        self.rate, self.meddling, self._storm_until = 0.0, None, 0.0
        await asyncio.gather(*self._late)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection."""
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        async with _closing(writer):
            with suppress(OSError, asyncio.IncompleteReadError, ValueError):
                request = Request(await _one_request(reader))
                answer = await self.meddling(request) if self.meddling else None
                answer = await self._meet(request) if answer is None else answer
                if answer:
                    writer.write(answer)
                    await writer.drain()

    async def _meet(self, request: Request) -> bytes:
        """The answer to a request; empty where the connection is to be cut."""
        if time.monotonic() < self._storm_until:
            return self._stormy()
        fault = self._dice.choice(FAULTS) if self._dice.random() < self.rate else "none"
        self.hits[fault] += 1
        match fault:
            case "cut before":
                return b""
            case "cut inside":
                await self._torn(request.raw)
                return b""
            case "cut answer":
                await self.pass_on(request)
                return b""
            case "slow":
                await asyncio.sleep(self._dice.uniform(0.05, 0.5))
            case "twice":
                await self.pass_on(request)
            case "late":
                self._later(request)
                return b""
            case "storm":
                self._storm_until = time.monotonic() + self._dice.uniform(*STORM_S)
                return self._stormy()
        return await self.pass_on(request)

    def _stormy(self) -> bytes:
        """What a backend under load answers, now and then with when to come back."""
        status = self._dice.choice(STORM)
        self.hits[f"storm {status}"] += 1
        retry = "Retry-After: 1\r\n" if self._dice.random() < 0.3 else ""
        return f"HTTP/1.1 {status} Storm\r\n{retry}Content-Length: 0\r\n\r\n".encode()

    def _later(self, request: Request) -> None:
        """Deliver a request that its sender has given up, after others."""

        async def deliver() -> None:
            await asyncio.sleep(self._dice.uniform(0.05, 3.0))
            await self.pass_on(request)

        task = asyncio.create_task(deliver())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def pass_on(self, request: Request) -> bytes:
        """The backend's answer to a request; nothing where it is not there."""
        answer = b""
        self.under_way += 1
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._backend_port)
            async with _closing(writer):
                writer.write(request.raw)
                await writer.drain()
                answer = await reader.read()
        self.under_way -= 1
        self._note(request, answer)
        return answer

    async def _torn(self, raw: bytes) -> None:
        """A part of a request, and no more."""
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", self._backend_port)
            async with _closing(writer):
                writer.write(raw[: self._dice.randrange(len(raw))])
                await writer.drain()

    def _note(self, request: Request, answer: bytes) -> None:
        """Count what a request came to."""
        words = [request.kind]
        if request.kind == "complete":
            words += [request.body["mode"], *(["full"] if request.body["full"] else [])]
        words += [answer[9:12].decode() or "no answer"]
        words += [word for word in ("superseded", "duplicate") if f'"{word}"'.encode() in answer]
        self.answers[" ".join(words)] += 1


@asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close a connection at the end of a block, and wait until its socket is closed."""
    try:
        yield
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _one_request(reader: asyncio.StreamReader) -> bytes:
    """Head and body of a request, made to close its connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    lines = []
    for line in head.split(b"\r\n"):
        name = line.partition(b":")[0].lower()
        if name == b"content-length":
            length = int(line.partition(b":")[2])
        if name != b"connection" and line:
            lines.append(line)
    body = await reader.readexactly(length)
    return b"\r\n".join([*lines, b"Connection: close", b"", b""]) + body

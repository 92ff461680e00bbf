"""A proxy that does to requests what networks do: cuts, delays, repeats, reorders, storms.

It reads a whole request, rolls a die, and passes on what the die says, byte for byte.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress

STORM = (429, 500, 503)
FAULTS = ("cut_before", "cut_inside", "cut_answer", "twice", "late", "storm")


class FaultProxy:
    """An async context: listens on `port`, passes on to the backend's port.

    Args:
        port: Where it listens.
        backend_port: Where the backend is, while it is.
        rate: How many of the requests meet a fault, from 0 to 1.
        dice: Decides; seeded, so that a run can be repeated.
    """

    def __init__(self, port: int, backend_port: int, rate: float, dice: random.Random) -> None:
        self._port, self._backend_port = port, backend_port
        self.rate, self._dice = rate, dice
        self.hits: Counter[str] = Counter()
        self._late: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._late):
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection."""
        with suppress(OSError, asyncio.IncompleteReadError, ValueError):
            request = await _one_request(reader)
            answer = await self._meet(request)
            if answer:
                writer.write(answer)
                await writer.drain()
        writer.close()

    async def _meet(self, request: bytes) -> bytes:
        """The answer to a request; empty where the connection is to be cut."""
        fault = self._dice.choice(FAULTS) if self._dice.random() < self.rate else "none"
        self.hits[fault] += 1
        match fault:
            case "cut_before":
                return b""
            case "cut_inside":
                await self._pass_on(request[: self._dice.randrange(len(request))], wait=False)
                return b""
            case "cut_answer":
                await self._pass_on(request)
                return b""
            case "twice":
                await self._pass_on(request)
            case "late":
                self._later(request)
                return b""
            case "storm":
                status = self._dice.choice(STORM)
                return f"HTTP/1.1 {status} Storm\r\nContent-Length: 0\r\n\r\n".encode()
        return await self._pass_on(request)

    def _later(self, request: bytes) -> None:
        """Deliver a request that its sender has given up, after others."""

        async def deliver() -> None:
            await asyncio.sleep(self._dice.uniform(0.05, 3.0))
            await self._pass_on(request)

        task = asyncio.create_task(deliver())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _pass_on(self, request: bytes, *, wait: bool = True) -> bytes:
        """Send bytes to the backend and take its whole answer."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._backend_port)
        except OSError:
            return b""
        try:
            writer.write(request)
            await writer.drain()
            return await reader.read() if wait else b""
        except OSError:
            return b""
        finally:
            writer.close()


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

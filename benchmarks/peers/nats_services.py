"""NATS services (ADR-32) that answer `$SRV.PING`, and one that asks them; the bare text protocol.

Run with a port of the server and a number: that many services, a connection each.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":false}\r\n'


class NatsService(asyncio.Protocol):
    """One service: subscribes to `$SRV.PING`, answers each question with its identity."""

    def __init__(self, number: int) -> None:
        identity = {"name": "handler", "id": f"s{number}", "version": "1.0.0", "metadata": {}}
        self._answer = json.dumps({"type": "io.nats.micro.v1.ping_response", **identity}).encode()
        self._buffer = b""
        self.ready = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Subscribe."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(CONNECT + b"SUB $SRV.PING 1\r\nPING\r\n")

    def data_received(self, data: bytes) -> None:
        """Answer each message."""
        lines = (self._buffer + data).split(b"\r\n")
        self._buffer = lines.pop()
        for line in lines:
            if line == b"PING":
                self._transport.write(b"PONG\r\n")
            elif line == b"PONG" and not self.ready.done():
                self.ready.set_result(None)
            elif line.startswith(b"MSG "):
                reply_to = line.split(b" ")[3]
                head = b"PUB %s %d\r\n" % (reply_to, len(self._answer))
                self._transport.write(head + self._answer + b"\r\n")


async def ask_services(port: int, *, alive: int, timeout_s: float) -> tuple[float, int]:
    """Publish one `$SRV.PING` and wait for `alive` answers; returns seconds and answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    await reader.readline()
    writer.write(CONNECT + b"SUB _INBOX.fanout 1\r\nPING\r\n")
    while (await reader.readline()) != b"PONG\r\n":
        pass
    began_s = time.perf_counter()
    writer.write(b"PUB $SRV.PING _INBOX.fanout 0\r\n\r\n")
    answered = 0
    try:
        async with asyncio.timeout(timeout_s):
            while answered < alive:
                line = await reader.readline()
                if line.startswith(b"MSG "):
                    json.loads(await reader.readexactly(int(line.split()[-1])))
                    answered += 1
    except TimeoutError:
        pass
    took_s = time.perf_counter() - began_s
    writer.close()
    await writer.wait_closed()
    return took_s, answered


async def serve(port: int, number: int) -> None:
    """Be this many services until the parent ends this process."""
    loop = asyncio.get_running_loop()
    services = [NatsService(one) for one in range(number)]
    waiting = iter(services)
    for _ in services:
        await loop.create_connection(lambda: next(waiting), "127.0.0.1", port)
    await asyncio.gather(*(service.ready for service in services))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))

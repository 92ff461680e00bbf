"""A server that does nothing but append what comes to a file: what the backend is held against.

    python -m benchmarks.append_server FILE

Answers once the line is on the disk; requests that come together share an fsync. It prints its
endpoint, and takes health reports and uploads.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web


class Appender:
    """Appends lines, and syncs those that came meanwhile at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._arrived = asyncio.Event()

    async def post(self, request: web.Request) -> web.Response:
        """Append the body."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((await request.read() + b"\n", done))
        self._arrived.set()
        await done
        status = 201 if "/uploads/" in request.path else 200
        return web.json_response({"job_id": "appended"}, status=status)

    async def run(self) -> None:
        """Write batch after batch."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            batch, self._waiting = self._waiting, []
            await asyncio.to_thread(self._write, b"".join(line for line, _ in batch))
            for _, done in batch:
                done.set_result(None)

    def _write(self, lines: bytes) -> None:
        self._file.write(lines)
        os.fsync(self._file.fileno())


@contextmanager
def appending(path: Path) -> Iterator[str]:
    """The endpoint of such a server in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.append_server", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


async def main() -> None:
    """Serve until the process ends."""
    appender, app = Appender(Path(sys.argv[1])), web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/v1/{path:.*}", appender.post)
    runner = web.AppRunner(app, auto_decompress=False, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
    await appender.run()


if __name__ == "__main__":
    asyncio.run(main())

"""A backend that takes everything and keeps nothing: the same far end for every way of sending.

`GET …/completed` lists when uploads were completed, in seconds of a clock of its own.
"""

from __future__ import annotations

import asyncio
import sys
import time

from aiohttp import web

_completed: list[float] = []


async def take(request: web.Request) -> web.Response:
    """Read the body, answer as the protocol does."""
    await request.read()
    if request.path.endswith("/completed"):
        return web.json_response(_completed)
    if request.path.endswith("/complete"):
        _completed.append(time.monotonic())
    if request.method == "PUT":
        return web.json_response({}, status=201 if "chunks" in request.path else 200)
    return web.json_response({"job_id": "sink"}, status=201)


async def serve() -> None:
    """Serve on a free port, print it, stay."""
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", take)
    runner = web.AppRunner(app, auto_decompress=False, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    sys.stdout.write(f"{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())

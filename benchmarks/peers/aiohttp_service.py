"""An aiohttp service that echoes JSON, same codec."""

from __future__ import annotations

import asyncio
import sys

import orjson
from aiohttp import web


async def answer(request: web.Request) -> web.Response:
    """Echo."""
    call = orjson.loads(await request.read())
    result = call["params"].get("data", "pong")
    reply = {"success": True, "request_id": call["request_id"], "result": result}
    return web.Response(body=orjson.dumps(reply), content_type="application/json")


async def main() -> None:
    """Serve for ever; the port is the first line printed."""
    app = web.Application()
    app.router.add_post("/call", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    sys.stdout.write(f"{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())

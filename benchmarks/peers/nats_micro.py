"""A NATS micro service (nats-py) on a server at the port given, same codec."""

from __future__ import annotations

import asyncio
import sys

import nats
import nats.micro
import orjson
from nats.micro.request import Request


async def main(server: int) -> None:
    """Serve for ever; the server's port is the first line printed."""
    connection = await nats.connect(f"nats://127.0.0.1:{server}")
    service = await nats.micro.add_service(connection, name="echo", version="1.0.0")

    async def answer(request: Request) -> None:
        call = orjson.loads(request.data)
        result = call["params"].get("data", "pong")
        reply = {"success": True, "request_id": call["request_id"], "result": result}
        await request.respond(orjson.dumps(reply))

    await service.add_endpoint(name="call", handler=answer)
    await connection.flush()
    sys.stdout.write(f"{server}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))

"""The same echo on `zmq.asyncio`, same codec, a task per call."""

from __future__ import annotations

import asyncio
import sys

import orjson
import zmq
import zmq.asyncio


async def main() -> None:
    """Serve for ever; the port is the first line printed."""
    socket = zmq.asyncio.Context().socket(zmq.ROUTER)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    tasks: set[asyncio.Task[None]] = set()

    async def answer(frames: list[bytes]) -> None:
        call = orjson.loads(frames[-1])
        result = call["params"].get("data", "pong")
        reply = {"success": True, "request_id": call["request_id"], "result": result}
        await socket.send_multipart([*frames[:-1], orjson.dumps(reply)])

    while True:
        task = asyncio.create_task(answer(await socket.recv_multipart()))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


if __name__ == "__main__":
    asyncio.run(main())

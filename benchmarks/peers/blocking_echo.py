"""The floor: a blocking ROUTER socket that decodes a call and echoes its data, same codec."""

from __future__ import annotations

import sys

import orjson
import zmq


def main() -> None:
    """Serve for ever; the port is the first line printed."""
    socket = zmq.Context().socket(zmq.ROUTER)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    while True:
        *envelope, frame = socket.recv_multipart()
        call = orjson.loads(frame)
        result = call["params"].get("data", "pong")
        reply = {"success": True, "request_id": call["request_id"], "result": result}
        socket.send_multipart([*envelope, orjson.dumps(reply)])


if __name__ == "__main__":
    main()

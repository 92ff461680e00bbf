"""A handler as ScheduleZero's base class serves it: a REP socket, stdlib json, one at a time."""

from __future__ import annotations

import json
import sys
from typing import Any

import zmq


class Echo:
    """Methods found by name; each takes one dict and returns one."""

    def ping(self, params: dict[str, Any]) -> dict[str, Any]:
        """Pong."""
        return {"success": True, "message": "pong"}

    def echo(self, params: dict[str, Any]) -> dict[str, Any]:
        """The data."""
        return {"success": True, "result": params["data"]}


def main() -> None:
    """Serve for ever; the port is the first line printed."""
    socket = zmq.Context().socket(zmq.REP)
    socket.setsockopt(zmq.RCVTIMEO, 1_000)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    handler = Echo()
    while True:
        try:
            request = json.loads(socket.recv_string())
        except zmq.Again:
            continue
        method = getattr(handler, request.get("method"), None)
        try:
            reply = method(request.get("params", {})) if method else {"success": False}
        except Exception as error:  # noqa: BLE001 - as that base class does
            reply = {"success": False, "error": str(error)}
        socket.send_string(json.dumps(reply))


if __name__ == "__main__":
    main()

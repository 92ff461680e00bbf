"""The floor of a handler's memory: imports asyncio, pyzmq and psutil, and answers REP."""

from __future__ import annotations

import asyncio  # noqa: F401 - imported for its memory
import sys

import psutil  # noqa: F401 - imported for its memory
import zmq


def main() -> None:
    """Serve for ever; the port is the first line printed."""
    socket = zmq.Context().socket(zmq.REP)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    while True:
        socket.recv()
        socket.send(b"{}")


if __name__ == "__main__":
    main()

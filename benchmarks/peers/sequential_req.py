"""The naive way to ask many handlers: one REQ socket after the other, each with its own timeout."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import zmq


def ask_in_turn(addresses: Sequence[str], *, timeout_s: float) -> tuple[float, int]:
    """Ping each address in turn: a fresh REQ socket, one question, the wait, close.

    Returns:
        Seconds for the whole round, and how many answered.
    """
    context = zmq.Context()
    answered = 0
    began_s = time.perf_counter()
    for address in addresses:
        socket = context.socket(zmq.REQ)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(address)
        socket.send(b'{"method": "ping", "params": {}, "request_id": "ping"}')
        if socket.poll(int(timeout_s * 1_000)):
            answered += bool(json.loads(socket.recv())["success"])
        socket.close()
    took_s = time.perf_counter() - began_s
    context.term()
    return took_s, answered

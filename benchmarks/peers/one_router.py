"""The floor of a fan-out: a bare loop over one ROUTER socket that is connected to every handler."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import zmq

PING = b'{"method":"ping","params":{},"request_id":"ping"}'


class OneRouter:
    """One socket, a routing id for each address; no event loop, no futures, no matching."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 16_384)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._names = []
        for number, address in enumerate(addresses):
            name = b"h%d" % number
            self._socket.setsockopt(zmq.CONNECT_ROUTING_ID, name)
            self._socket.connect(address)
            self._names.append(name)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        self._context.term()

    def ask_all(self, *, timeout_s: float, alive: int) -> tuple[float, int]:
        """Ping everybody and wait for `alive` answers; returns seconds and answers."""
        began_s = time.perf_counter()
        for name in self._names:
            self._socket.send_multipart((name, b"", PING))
        answered = 0
        while answered < alive and self._socket.poll(int(timeout_s * 1_000)):
            answered += bool(json.loads(self._socket.recv_multipart()[-1])["success"])
        return time.perf_counter() - began_s, answered

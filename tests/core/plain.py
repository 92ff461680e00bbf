"""A plain handler, as ScheduleZero's base class makes them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeAlias

import zmq

Answer: TypeAlias = bytes | Callable[[], bytes]

PONG = b'{"success": true, "message": "pong", "handler_id": "plain"}'


class PlainHandler:
    """A REP socket in a thread: one call at a time, and no `request_id` in any reply.

    Args:
        answers: By method, the bytes that it replies, or what makes them; `ping` has its own.
    """

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self.calls: list[dict[str, Any]] = []
        self._answers: dict[str, Answer] = {"ping": PONG, **answers}
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self._socket.linger = 0
        self.address = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"
        self._thread = threading.Thread(target=self._serve, name="plain-handler")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._context.term()
        self._thread.join()

    def called(self, method: str) -> list[dict[str, Any]]:
        """The calls of one method that came."""
        return [call for call in self.calls if call["method"] == method]

    def _serve(self) -> None:
        with self._socket:
            while True:
                try:
                    call = json.loads(self._socket.recv())
                    self.calls.append(call)
                    self._socket.send(self._answer(call["method"]))
                except zmq.ContextTerminated:
                    return

    def _answer(self, method: str) -> bytes:
        refused = {"success": False, "error": f"Unknown method: {method}"}
        answer = self._answers.get(method, json.dumps(refused).encode())
        return answer if isinstance(answer, bytes) else answer()

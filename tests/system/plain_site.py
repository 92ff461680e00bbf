"""A plain handler with results of every kind: on a REP socket, or on ScheduleZero's own base.

`python plain_site.py HANDLER_ID ADDRESS SERVER` serves until it is killed. Where the package
`schedule_zero` can be imported, its handler base serves; else a socket that answers as it does.
It needs pyzmq alone.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from typing import Any

import zmq

try:
    Base: Any = importlib.import_module("schedule_zero.zmq_handler_base").ZMQHandlerBase
except ImportError:

    class Plain:
        """One call at a time; the reply is the result with `success`."""

        def __init__(self, handler_id: str, handler_address: str, server_address: str) -> None:
            self.handler_id = handler_id
            self._address, self._server = handler_address, server_address

        def ping(self) -> dict[str, Any]:
            """Answer that it is there."""
            return {"success": True, "message": "pong", "handler_id": self.handler_id}

        def run(self) -> None:
            """Register once, and serve."""
            context = zmq.Context()
            wire, scheduler = context.socket(zmq.REP), context.socket(zmq.REQ)
            wire.bind(self._address)
            scheduler.connect(self._server)
            told = {"handler_id": self.handler_id, "address": self._address, "methods": METHODS}
            scheduler.send_json({"method": "register", "params": told})
            scheduler.recv()
            while True:
                call = json.loads(wire.recv())
                try:
                    reply = json.dumps(self._answer(call))
                except Exception as error:  # noqa: BLE001 - whatever an author's method does
                    reply = json.dumps({"success": False, "error": str(error)})
                wire.send_string(reply)

        def _answer(self, call: dict[str, Any]) -> dict[str, Any]:
            method = getattr(self, call["method"])
            result = method(call["params"]) if inspect.signature(method).parameters else method()
            if isinstance(result, dict):
                return {"success": True, **result}
            return {"success": True, "result": result}

    Base = Plain


class Site(Base):  # type: ignore[misc]
    """Methods by the kind of their result."""

    def add(self, params: dict[str, Any]) -> dict[str, Any]:
        """A sum, as a dict."""
        return {"sum": params["left"] + params["right"], "summary": {"total": 1}}

    def echo(self, params: dict[str, Any]) -> dict[str, Any]:
        """What it was given."""
        return dict(params)

    def words(self) -> list[str]:
        """A list."""
        return ["one", "two"]

    def text(self) -> str:
        """A text."""
        return "größer"

    def nothing(self) -> None:
        """Null."""

    def number(self) -> float:
        """A number."""
        return 7.5

    def long_integer(self) -> int:
        """More digits than 64 bits hold."""
        return 123456789012345678901234567890

    def not_a_number(self) -> dict[str, Any]:
        """NaN and infinity."""
        return {"mean": float("nan"), "most": float("inf")}

    def order(self) -> dict[str, Any]:
        """A key that our own protocol uses."""
        return {"request_id": "order-7", "result": {"paid": True}}

    def large(self) -> dict[str, Any]:
        """300 kB."""
        return {"rows": "x" * 300_000}

    def refuse(self) -> dict[str, Any]:
        """Say itself that it failed."""
        return {"success": False, "error": "no such table"}

    def fail(self) -> None:
        """Fail."""
        raise ValueError("no such file")

    def unwritable(self) -> dict[str, Any]:
        """A result that JSON has no form for."""
        return {"made": {1, 2}}


METHODS = [
    *("add", "echo", "words", "text", "nothing", "number", "long_integer", "not_a_number"),
    *("order", "large", "refuse", "fail", "unwritable", "ping"),
]

if __name__ == "__main__":
    Site(*sys.argv[1:4]).run()

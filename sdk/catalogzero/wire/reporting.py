"""What befalls a server's socket, for its operator: counted, and logged at growing intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from catalogzero.clock import Clock
from catalogzero.config.logs import Logger
from catalogzero.config.seldom import Seldom

MAX_REFUSED_KEYS = 100
FIXES = {
    "client_key_refused": "if it may call, write it into `curve.clients_file`",
    "call_too_large": "send less, or raise `max_message_bytes`",
    "peer_cut": "look at what that peer sends, and whether it reads its replies",
    "reply_dropped": "look at why its caller does not read",
    "keys_renewed": "give the callers this public key",
    "socket_reopened": "look at who may connect",
    "socket_lost": "stop what took the address; it is tried again",
    "server_lost": "look at the NATS server; it is tried again",
    "server_refused": "correct the permissions of this handler's user at the NATS server",
}
"""Each event (see `transport.Report`), and what an operator can do about it."""


class Reporter:
    """A `transport.Report` that logs: each refused key once, other events at growing intervals.

    Attributes:
        times: How often each event came.
    """

    def __init__(self, log: Logger, clock: Clock) -> None:
        self._log, self._seldom = log, Seldom(clock)
        self.times: Counter[str] = Counter()

    def __call__(self, event: str, fields: Mapping[str, object]) -> None:
        """Count an event, and log it where it is its turn."""
        self.times[event] += 1
        # Each refused key is worth a line, and an attacker has endlessly many of them.
        key = event
        if event == "client_key_refused":
            key = str(fields["public_key"])
            if key in self._seldom or len(self._seldom) >= MAX_REFUSED_KEYS:
                return
        if self._seldom.is_due(key):
            self._log.warning(event, **fields, fix=FIXES[event], times=self.times[event])

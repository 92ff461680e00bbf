"""What befalls a server's socket, for its operator: counted, and logged once in a while."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from catalogzero.clock import Clock
from catalogzero.config.logs import Logger

LOG_EVERY_S = 10.0
MAX_REFUSED_KEYS = 100
FIXES = {
    "client_key_refused": "if it may call, write it into `curve.clients_file` and start again",
    "call_too_large": "send less, or raise `max_message_bytes`",
    "peer_cut": "look at what that peer sends, and whether it reads its replies",
    "reply_dropped": "look at why its caller does not read",
    "socket_reopened": "look at who may connect",
    "socket_lost": "stop what took the address; it is tried again",
}
"""Each event (see `transport.Report`), and what an operator can do about it."""


class Reporter:
    """A `transport.Report` that logs: each refused key once, other events every 10 s at most.

    Attributes:
        times: How often each event came.
    """

    def __init__(self, log: Logger, clock: Clock) -> None:
        self._log, self._clock = log, clock
        self._logged_s: dict[str, float] = {}
        self.times: Counter[str] = Counter()

    def __call__(self, event: str, fields: Mapping[str, object]) -> None:
        """Count an event, and log it where it is its turn."""
        self.times[event] += 1
        key = event
        if event == "client_key_refused":
            key = str(fields["public_key"])
            if key in self._logged_s or len(self._logged_s) >= MAX_REFUSED_KEYS:
                return
        now_s = self._clock.monotonic()
        if now_s - self._logged_s.get(key, -LOG_EVERY_S) < LOG_EVERY_S:
            return
        self._logged_s[key] = now_s
        self._log.warning(event, **fields, fix=FIXES[event], times=self.times[event])

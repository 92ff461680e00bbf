"""How long a database may take: the one place that sets a limit on our own side.

A server that is gone behind a proxy which takes bytes and passes nothing on looks alive to TCP:
keepalives are answered, sent bytes are acknowledged. Only a deadline of our own ends that wait.
"""

from __future__ import annotations

import math

from catalogzero.clock import SystemClock

CONNECT_S = 5.0
_monotonic = SystemClock().monotonic


class AnswerLimits:
    """How long an answer may take; one object for all connections of a database.

    PostgreSQL itself ends a statement after four fifths of the time and a wait for a lock after
    half of it, so that where it still answers, its own error says what took so long. It ends a
    transaction whose client is silent for twice the time, so that its locks are free again.

    Args:
        answer_s: Longest wait for the next answer, in seconds.
    """

    def __init__(self, answer_s: float) -> None:
        self.answer_s = answer_s
        self._end_s = math.inf

    def end_within(self, delay_s: float) -> None:
        """That many seconds from now, every wait that still goes on ends with an error."""
        self._end_s = min(self._end_s, _monotonic() + delay_s)

    def start(self) -> float:
        """The moment at which a wait begins, for `left_s`."""
        return _monotonic()

    def left_s(self, began_s: float) -> float:
        """How much longer a wait may take that began then."""
        return min(began_s + self.answer_s, self._end_s) - _monotonic()

    def parameters(self) -> dict[str, int]:
        """What libpq is to do by itself: give up a connection that makes no progress."""
        return {
            "connect_timeout": math.ceil(min(self.answer_s, CONNECT_S)),
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": round(min(self.answer_s, 30.0) * 1_000),
        }

    def statement(self, *, in_transaction: bool) -> str:
        """The statement that gives PostgreSQL its limits, of the transaction or the session."""
        seconds = {
            "statement_timeout": 0.8 * self.answer_s,
            "lock_timeout": 0.5 * self.answer_s,
            "idle_in_transaction_session_timeout": 2 * self.answer_s,
        }
        return "SELECT " + ", ".join(
            f"set_config('{name}', '{round(limit_s * 1_000)}', {in_transaction})"
            for name, limit_s in seconds.items()
        )

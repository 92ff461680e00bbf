"""A connection to PostgreSQL that never waits for ever: the one module that knows psycopg.

Every wait of a connection (for a ping, a statement, a commit, a part of a COPY) goes through its
`wait`, and psycopg looks there ten times a second whether to go on: there the limit is kept, in the
waiting thread itself.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Self

import psycopg

from catalogzero.sql.limits import AnswerLimits


class BoundedConnection(psycopg.Connection[Any]):
    """Closes itself, with an `OperationalError`, where an answer takes too long."""

    limits: AnswerLimits

    @classmethod
    def open(cls, limits: AnswerLimits, *args: Any, **named: Any) -> Self:
        """Connect, unless the database is being closed; see `psycopg.Connection.connect`."""
        if limits.left_s(limits.start()) <= 0:
            raise psycopg.OperationalError("the database is being closed")
        connection = cls.connect(*args, **named)
        connection.limits = limits
        return connection

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **named: Any) -> Any:
        """See `psycopg.Connection.wait`."""
        return super().wait(self._bounded(gen), *args, **named)

    def _bounded(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """The same steps of waiting; an error instead of the next one where the time is over."""
        began_s = self.limits.start()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and self.limits.left_s(began_s) <= 0:
                    # What the server still sends would be taken for the next answer.
                    self.close()
                    waited_s = self.limits.start() - began_s
                    raise psycopg.OperationalError(f"no answer for {waited_s:.1f} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value

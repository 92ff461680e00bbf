"""How fast one tenant may ask: a token bucket each.

Owns the arithmetic alone; times are monotonic seconds that it is told.
"""

from __future__ import annotations

import math

MAX_BUCKETS = 10_000


class RateLimit:
    """At most `per_s` a second on average, and `2 * per_s` at once (one at least), for each key."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._burst = max(1.0, 2 * per_s)
        self._buckets: dict[object, tuple[float, float]] = {}

    def wait_s(self, key: object, now_s: float) -> float:
        """Take one token: 0, or the seconds until there is one again (and none is taken)."""
        tokens, at_s = self._buckets.get(key, (self._burst, now_s))
        tokens = min(self._burst, tokens + (now_s - at_s) * self._per_s)
        if tokens < 1:
            return (1 - tokens) / self._per_s
        if len(self._buckets) >= MAX_BUCKETS:
            self._buckets.clear()
        self._buckets[key] = (tokens - 1, now_s)
        return 0.0


def retry_after(wait_s: float) -> str:
    """The `Retry-After` header: whole seconds, one at least."""
    return str(max(1, math.ceil(wait_s)))

"""Delays between tries: one rule for every part that tries again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

MAX_DOUBLINGS = 32


class Attempted(Protocol):
    """What is read of tenacity's `RetryCallState`."""

    attempt_number: int


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays, bounded and jittered; itself a `wait` of tenacity.

    Args:
        base_s: Seconds after the first failed try; each further one doubles them.
        max_s: Their bound, before the jitter.
        jitter: The delay is multiplied by a random number between these two. The default spreads
            over all of it, which keeps many callers of one peer farthest from each other.
        min_s: No delay is shorter.
    """

    base_s: float
    max_s: float
    jitter: tuple[float, float] = (0.0, 1.0)
    min_s: float = 0.0

    def delay_s(self, tries: int) -> float:
        """Seconds to wait after this many failed tries, 1 or more."""
        # Bounded: 2.0 ** 1024 would be an OverflowError after a long outage.
        doublings = min(max(tries, 1) - 1, MAX_DOUBLINGS)
        delay_s: float = min(self.max_s, self.base_s * 2**doublings)
        return max(self.min_s, delay_s * random.uniform(*self.jitter))  # noqa: S311 - no secret

    def __call__(self, state: Attempted) -> float:
        """As tenacity asks for it."""
        return self.delay_s(state.attempt_number)

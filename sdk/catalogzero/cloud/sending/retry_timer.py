"""When to try again what failed, and what was taken back."""

from __future__ import annotations

from dataclasses import dataclass

from catalogzero.backoff import Backoff

_DELAYS = Backoff(1.0, 300.0)


@dataclass(slots=True)
class RetryTimer:
    """When to try again: jittered exponential, or as the backend asked.

    `relapses` are successes that the backend took back: they count as attempts until the end.
    """

    attempts: int = 0
    not_before: float = 0.0
    relapses: int = 0

    def failed(self, now: float, retry_after_s: float | None = None) -> None:
        """Put the next try off; several that fail at once count as one."""
        if now < self.not_before and not retry_after_s:
            return
        self.attempts += 1
        self.not_before = now + max(_DELAYS.delay_s(self.attempts), retry_after_s or 0.0)

    def relapsed(self, now: float) -> None:
        """What was there is to be sent again: each time that follows waits longer."""
        self.relapses += 1
        self.attempts = max(self.attempts, self.relapses - 1)
        self.failed(now)

    def succeeded(self) -> None:
        """The next try may be at once."""
        self.attempts, self.not_before = self.relapses, 0.0

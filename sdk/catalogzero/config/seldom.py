"""When what goes on happening is worth a line: the first time, then at growing intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from catalogzero.clock import Clock

FIRST_S, FACTOR, LONGEST_S = 60.0, 4.0, 6 * 3_600.0
"""The interval after the first line, what each is longer than the one before, and their bound."""
FORGOTTEN_S = 86_400.0
"""An event without a line for so long is a first one again."""

Times = tuple[int, float, float]
"""How often an event came, when its last line was (Unix seconds), and the wait from then on."""


class Seldom:
    """Counts events by name, and says which of them are worth a line.

    Args:
        clock: Time; the wall clock, so that the counts can outlive a process.
        known: The counts that an earlier process kept.
        keep: Takes all counts after each line, to keep them.
    """

    def __init__(
        self,
        clock: Clock,
        known: Mapping[str, Sequence[float]] | None = None,
        keep: Callable[[dict[str, Times]], None] = lambda times: None,
    ) -> None:
        self._clock, self._keep = clock, keep
        self._times: dict[str, Times] = {
            name: (int(one[0]), one[1], one[2]) for name, one in (known or {}).items()
        }

    def is_due(self, name: str) -> int:
        """Count an event; how often it came where that is worth a line now, else 0."""
        now = self._clock.now().timestamp()
        count, line_at, wait_s = self._times.get(name, (0, now, 0.0))
        since_s = now - line_at
        if since_s >= FORGOTTEN_S:
            count, wait_s = 0, 0.0
        elif 0 <= since_s < wait_s:  # never for a clock that was set back
            self._times[name] = (count + 1, line_at, wait_s)
            return 0
        self._times[name] = (count + 1, now, min(max(wait_s * FACTOR, FIRST_S), LONGEST_S))
        self._keep(self._times)
        return count + 1

    def over(self, name: str) -> int:
        """It has ended: how often it came, 0 if it did not; the next one is a first."""
        count, _, _ = self._times.pop(name, (0, 0.0, 0.0))
        if count:
            self._keep(self._times)
        return count

    def __len__(self) -> int:
        return len(self._times)

    def __contains__(self, name: str) -> bool:
        return name in self._times

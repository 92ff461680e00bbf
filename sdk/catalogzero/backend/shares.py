"""What one tenant may have of the backend at once: requests, bytes, places, rows.

Owns the counting. Whoever is at its share is answered 429 with `Retry-After`; nothing waits here
for room, so that one tenant's work never queues before another's.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from catalogzero.backend.settings import BackendSettings
from catalogzero.clock import Clock
from catalogzero.protocol.problems import Kind, ProblemError

MAX_BUCKETS = 10_000
ACTIVE_S = 10.0
"""For how long a tenant that asked for something counts as one that others share with."""
AT_WORK = 4
"""Beside others, a tenant has one large chunk decoded for this many it may have in flight."""


@dataclass(frozen=True, slots=True)
class Share:
    """A tenant's share; None is what the settings say.

    Attributes:
        requests_per_s: On average; twice as many in a burst.
        held_bytes: Bodies in memory at once, as sent.
        chunks: Large chunks decoded or being stored at once.
        rows_per_s: Rows stored, on average.
    """

    requests_per_s: float | None = None
    held_bytes: int | None = None
    chunks: int | None = None
    rows_per_s: float | None = None


SHARE_NAMES = ("requests_per_s", "held_bytes", "chunks", "rows_per_s")


@dataclass(slots=True)
class InUse:
    """What a tenant has now."""

    held_bytes: int = 0
    chunks: int = 0
    users: int = 0
    working: int = 0
    freed: asyncio.Condition = field(default_factory=asyncio.Condition)
    small: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a small body of the tenant is decoded."""


class RateLimit:
    """A token bucket for each key: `per_s` tokens a second on average, twice that at once."""

    def __init__(self) -> None:
        self._buckets: dict[object, tuple[float, float]] = {}

    def wait_s(self, key: object, now_s: float, per_s: float) -> float:
        """Seconds until there is a token; 0 where there is one."""
        return max(0.0, (1 - self._left(key, now_s, per_s)) / per_s)

    def take(self, key: object, now_s: float, per_s: float, tokens: float) -> None:
        """Take tokens; what is missing is owed."""
        left = self._left(key, now_s, per_s)
        # what is forgotten here is at worst another burst
        if len(self._buckets) >= MAX_BUCKETS:
            self._buckets.clear()
        self._buckets[key] = (left - tokens, now_s)

    def _left(self, key: object, now_s: float, per_s: float) -> float:
        burst = max(1.0, 2 * per_s)
        left, at_s = self._buckets.get(key, (burst, now_s))
        return min(burst, left + (now_s - at_s) * per_s)


class Shares:
    """Counts what each tenant has, against its share."""

    def __init__(self, settings: BackendSettings, clock: Clock) -> None:
        self._settings, self._clock = settings, clock
        self._rate, self._rows = RateLimit(), RateLimit()
        self._in_use: dict[int, InUse] = {}
        self._held_bytes = 0
        self._active: dict[int, float] = {}
        self.refused = dict.fromkeys(SHARE_NAMES, 0)
        """How many requests were answered 429, by what the tenant had too much of."""

    def admit(self, tenant_id: int, share: Share) -> None:
        """Let one more request pass.

        Raises:
            ProblemError: The tenant asks too often.
        """
        per_s = share.requests_per_s or self._settings.max_requests_per_s
        now_s = self._clock.monotonic()
        wait_s = self._rate.wait_s(tenant_id, now_s, per_s)
        if wait_s:
            raise self._too_much("requests_per_s", f"{per_s:g} requests a second", wait_s)
        self._rate.take(tenant_id, now_s, per_s, 1)
        if len(self._active) >= MAX_BUCKETS:
            self._active.clear()
        self._active[tenant_id] = now_s

    def check_rows(self, tenant_id: int, share: Share) -> None:
        """Let a body with rows pass, however many they are.

        Raises:
            ProblemError: The tenant's last rows were more than it may store until now.
        """
        per_s = share.rows_per_s or self._settings.tenant_rows_per_s
        if per_s is not None:
            wait_s = self._rows.wait_s(tenant_id, self._clock.monotonic(), per_s)
            if wait_s:
                raise self._too_much("rows_per_s", f"{per_s:g} rows a second", wait_s)

    def count_rows(self, tenant_id: int, share: Share, rows: int) -> None:
        """Note how many rows it was; more than there is room for are owed."""
        per_s = share.rows_per_s or self._settings.tenant_rows_per_s
        if per_s is not None:
            self._rows.take(tenant_id, self._clock.monotonic(), per_s, rows)

    @contextmanager
    def using(self, tenant_id: int) -> Iterator[InUse]:
        """What the tenant has now; forgotten with its last request."""
        mine = self._in_use.setdefault(tenant_id, InUse())
        mine.users += 1
        try:
            yield mine
        finally:
            mine.users -= 1
            if not mine.users:
                del self._in_use[tenant_id]

    def hold(self, mine: InUse, share: Share, size: int) -> None:
        """Count bytes of a body in memory.

        Raises:
            ProblemError: There is no room, for this tenant or for any.
        """
        # counted before it is refused: whoever reads lets go of it in either case
        self._held_bytes += size
        mine.held_bytes += size
        own = share.held_bytes or self._settings.tenant_held_bytes
        if mine.held_bytes > own:
            raise self._too_much("held_bytes", f"{own} bytes at once", 1)
        if self._held_bytes > self._settings.max_held_bytes:
            raise ProblemError(
                Kind.UNAVAILABLE, "too much is arriving at once", headers={"Retry-After": "2"}
            )

    def let_go(self, mine: InUse, size: int) -> None:
        """The bytes are no longer in memory."""
        self._held_bytes -= size
        mine.held_bytes -= size

    @asynccontextmanager
    async def place(self, tenant_id: int, mine: InUse, share: Share) -> AsyncIterator[None]:
        """A place for one large chunk, until it is stored; entered when it may be worked on.

        That is at once where no other tenant asks for anything; else a quarter of a tenant's
        chunks, one at least, are worked on at a time, so that the others' need not wait.

        Raises:
            ProblemError: The tenant has as many as it may.
        """
        most = share.chunks or self._settings.tenant_chunks
        if mine.chunks >= most:
            raise self._too_much("chunks", f"{most} large chunks at once", 1)
        mine.chunks += 1
        try:
            async with mine.freed:
                await mine.freed.wait_for(lambda: mine.working < self._at_once(tenant_id, most))
                mine.working += 1
            try:
                yield
            finally:
                mine.working -= 1
                async with mine.freed:
                    mine.freed.notify_all()
        finally:
            mine.chunks -= 1

    def _at_once(self, tenant_id: int, most: int) -> int:
        """How many of a tenant's large chunks may be worked on now."""
        since_s = self._clock.monotonic() - ACTIVE_S
        others = any(at > since_s for other, at in self._active.items() if other != tenant_id)
        return max(1, most // AT_WORK) if others else most

    def _too_much(self, name: str, what: str, wait_s: float) -> ProblemError:
        self.refused[name] += 1
        return ProblemError(
            Kind.RATE_LIMITED, f"more than {what}", headers={"Retry-After": retry_after(wait_s)}
        )


def retry_after(wait_s: float) -> str:
    """The `Retry-After` header: whole seconds, one at least."""
    return str(max(1, math.ceil(wait_s)))

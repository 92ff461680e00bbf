"""Calling until the handler has judged: the one state machine of every caller.

A ping gives the stamp: the handler's boot, and the uptime past which the call must not begin. The
call is sent with it, and sent again unchanged, until the handler has judged. The handler alone
knows whether a run began, so no lost reply, wait that ended, takeover or other boot_id in a ping
decides anything: the same call goes out again, and a handler that restarted answers `expired`.

It reads no clock, and sends through its caller only, who sends what `PendingCall` says, passes
each reply to `judge`, and decides how long a silence it bears.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from catalogzero.errors import UnreachableError
from catalogzero.wire.messages import Reply, StartBy, may_get_better

NEVER_BEGAN = frozenset({"busy", "draining", "wake_failed"})
"""Codes of refusals: the handler remembers them, so that this id never begins later."""

MAX_BOOT_ID_CHARS = 200


class CallVerdict(StrEnum):
    """What a reply means for a call."""

    SUCCESS = "success"
    ERROR = "error"
    """The run ended badly, or the call is wrong as it is."""

    LOST = "lost"
    """The handler restarted or forgot: nobody can know whether it ran."""

    REFUSED = "refused"
    """It never began; the call has its next `n`, to be stamped before it is sent."""

    RETRY = "retry"
    """It failed or was lost, and may run again: the call has its next `n` and `attempt`."""

    PENDING = "pending"
    """The run goes on: send the same call again, unchanged."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a ping says: which boot of the handler, and until which uptime a call may begin.

    A plain handler has no `boot_id`.
    """

    boot_id: str | None
    start_by_s: float = 0.0
    retry_safe: frozenset[str] = frozenset()

    @classmethod
    def read(cls, pong: Any, retry_safe: frozenset[str] = frozenset()) -> Stamp:
        """The stamp of a ping's result; `retry_safe` are methods that may run more than once.

        Raises:
            UnreachableError: It has a boot_id, and no uptime and window: it keeps no promise.
        """
        answer = pong if isinstance(pong, Mapping) else {}
        boot_id = answer.get("boot_id")
        if not isinstance(boot_id, str) or not 0 < len(boot_id) <= MAX_BOOT_ID_CHARS:
            return cls(None)
        try:
            start_by_s = float(answer["uptime_s"]) + float(answer["dedupe_window_s"])
        except (KeyError, TypeError, ValueError):
            start_by_s = math.nan
        if not math.isfinite(start_by_s):
            raise UnreachableError("its ping has no uptime_s and dedupe_window_s")
        return cls(boot_id, start_by_s, retry_safe)


@dataclass(slots=True)
class KnownBoot:
    """What a caller knows of the boot that a handler is in; each boot is described once.

    `boot_id` is None before the first ping, and for a plain handler, which describes nothing.
    `described` is its answer to `describe`.
    """

    boot_id: str | None = None
    described: Any = None

    async def stamp(self, ask: Callable[[str], Awaitable[Any]]) -> Stamp:
        """The stamp for a call that is sent next, by a ping and, of a new boot, its description.

        Args:
            ask: Calls a control method of the handler, and gives its result. What it raises is
                raised here, and nothing is noted.

        Raises:
            UnreachableError: As `Stamp.read`.
        """
        stamp = Stamp.read(await ask("ping"))
        if stamp.boot_id not in (None, self.boot_id):
            self.described = await ask("describe")
        self.boot_id = stamp.boot_id
        if stamp.boot_id is None:
            return stamp
        safe = (name for name, is_safe in described_methods(self.described).items() if is_safe)
        return replace(stamp, retry_safe=frozenset(safe))


def described_methods(described: Any) -> dict[str, bool]:
    """The job methods in an answer to `describe`, and whether each is retry_safe."""
    listed = described.get("methods") if isinstance(described, dict) else None
    if isinstance(listed, dict):  # of other implementations: by name
        listed = [{"name": name, **about} for name, about in listed.items()]
    about = [one for one in listed or () if isinstance(one, dict) and "name" in one]
    return {str(one["name"]): bool(one.get("retry_safe")) for one in about}


@dataclass(slots=True, kw_only=True)
class PendingCall:
    """How far one call is.

    `n` numbers its ids: a refused or failed id is never sent again. `attempt` counts the runs that
    may have begun, `max_attempts` bounds them. `boot_id` and `start_by_s` are the stamp of this n;
    whoever may be replaced by another caller stores it before the first send.
    """

    n: int = 1
    attempt: int = 1
    max_attempts: int = 1
    boot_id: str | None = None
    start_by_s: float | None = None
    retry_safe: bool | None = None

    @property
    def start_by(self) -> StartBy | None:
        """What the call is to be sent with; None when the handler must be pinged first."""
        return None if self.boot_id is None else StartBy(self.boot_id, self.start_by_s or 0.0)

    @property
    def attempts_left(self) -> int:
        """How often it may run again after this attempt."""
        return max(0, self.max_attempts - self.attempt)

    def take(self, stamp: Stamp, method: str) -> None:
        """Note the stamp of this n. A plain handler's leaves it without: it is sent as it is."""
        self.boot_id, self.start_by_s = stamp.boot_id, stamp.start_by_s
        self.retry_safe = method in stamp.retry_safe

    def judge(self, reply: Reply, *, over_time: bool = False) -> CallVerdict:
        """What a reply to the stamped call means; n and attempt grow where it says so.

        Args:
            reply: The handler's answer.
            over_time: The caller cancelled the run: a `cancelled` is the end of it.
        """
        if reply.success:
            return CallVerdict.SUCCESS
        running = isinstance(reply.details, dict) and reply.details.get("running") is True
        # `busy` has two meanings: no slot for a run, or too many callers that wait for this one.
        # To take the second for a refusal would run it twice.
        if reply.code == "timeout" or (reply.code == "busy" and running):
            return CallVerdict.PENDING
        if reply.code in NEVER_BEGAN:
            self._next()
            return CallVerdict.REFUSED
        if over_time and reply.code == "cancelled":
            return CallVerdict.ERROR
        if self.retry_safe and self.attempts_left and may_get_better(reply):
            self.attempt += 1
            self._next()
            return CallVerdict.RETRY
        # An earlier copy may have begun in the boot before, whether or not its reply was heard.
        return CallVerdict.LOST if reply.code == "expired" else CallVerdict.ERROR

    def leave(self) -> bool:
        """Give its handler up for the next attempt at another; false where it may not run twice,
        or no attempt is left.
        """
        if not (self.retry_safe and self.attempts_left):
            return False
        self.attempt += 1
        self._next()
        return True

    def judge_plain(self, reply: Reply | None) -> CallVerdict:
        """What a plain handler's reply means, or None, the lack of one: at least once."""
        if reply is not None:
            return CallVerdict.SUCCESS if reply.success else CallVerdict.ERROR
        if not self.attempts_left:
            return CallVerdict.ERROR
        self.attempt += 1
        return CallVerdict.RETRY

    def _next(self) -> None:
        # The stamp goes with the id: one of before would let the new id begin in a boot, or at an
        # uptime, that was not asked for it.
        self.n += 1
        self.boot_id = self.start_by_s = None

"""Who waits for answers: a bounded number, each answered once, and no later than it waits."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from catalogzero.clock import Clock, Timer
from catalogzero.wire.transport import Envelope

MAX_WAITING = 64


@dataclass(slots=True, eq=False)
class Waiter:
    """One who waits; `key` is what is waited for, or by whom."""

    key: Hashable
    envelope: Envelope
    timer: Timer | None = None
    is_answered: bool = False


class Waiting:
    """Those who wait, at most `MAX_WAITING` under one key.

    Under a run's key its end answers all of them; under a peer's its flood takes no other's turn.

    Args:
        send: Sends a frame to an envelope.
        clock: Times the waits.

    Attributes:
        send: For an answer that nobody had to wait for.
    """

    def __init__(self, send: Callable[[Envelope, bytes], None], clock: Clock) -> None:
        self.send = send
        self._clock = clock
        self._waiters: dict[Hashable, list[Waiter]] = {}

    def enter(self, key: Hashable, envelope: Envelope) -> Waiter | None:
        """Wait until `leave` or `answer_all`; None where too many do."""
        waiters = self._waiters.setdefault(key, [])
        if len(waiters) >= MAX_WAITING:
            return None
        waiters.append(waiter := Waiter(key, envelope))
        return waiter

    def answer_after(self, waiter: Waiter, wait_s: float, frame: Callable[[], bytes]) -> None:
        """Answer in any case once that many seconds are over."""
        waiter.timer = self._clock.call_later(wait_s, lambda: self.answer(waiter, frame()))

    def answer(self, waiter: Waiter, frame: bytes) -> None:
        """Send the answer to one who has none yet; it holds its place until it leaves."""
        if waiter.timer is not None:
            waiter.timer.cancel()
        if not waiter.is_answered:
            waiter.is_answered = True
            self.send(waiter.envelope, frame)

    def leave(self, waiter: Waiter) -> None:
        """Give up its place; without an answer until now it gets none."""
        if waiter.timer is not None:
            waiter.timer.cancel()
        waiters = self._waiters[waiter.key]
        waiters.remove(waiter)
        if not waiters:
            del self._waiters[waiter.key]

    def answer_all(self, key: Hashable, frame: bytes) -> None:
        """Send all under a key the same answer; they give up their places."""
        for waiter in self._waiters.pop(key, ()):
            self.answer(waiter, frame)

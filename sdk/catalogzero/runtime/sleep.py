"""How a handler falls asleep and wakes: the hooks, resources, worker and memory around `idle`.

One timer, armed for the next moment at which something can be due; nothing polls.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

from catalogzero.clock import Timer
from catalogzero.errors import BusyError, DrainingError, WakeFailedError, text_of, type_of
from catalogzero.runtime.control_answers import Failure
from catalogzero.runtime.handler import Handler
from catalogzero.runtime.idle import IdleWatch, SleepState
from catalogzero.runtime.methods import awaited
from catalogzero.runtime.resources import is_stop
from catalogzero.wire.traffic import hand_back_memory

CLOSE_GRACE_S = 5.0


class Sleeper:
    """Puts one handler to sleep, and wakes it.

    Args:
        handler: Its hooks, resources, worker, clock and runtime settings are used.
        on_asleep: Called when it has fallen asleep, before memory is handed back.
        grace_s: How long the end waits for a transition under way, and for resources to close.

    Attributes:
        wakes_total: How often it woke.
        hook_error: What the last failing hook raised; empty when the last ones went well.
        hook_failure: The same without any text: code, exception type, hook.
    """

    def __init__(
        self, handler: Handler, on_asleep: Callable[[], None], *, grace_s: float = CLOSE_GRACE_S
    ) -> None:
        self._grace_s = grace_s
        self._handler = handler
        self._clock = handler.clock
        self._on_asleep = on_asleep
        self._watch = IdleWatch(
            idle_after_s=handler.runtime.idle_after_s,
            sleep_after_s=handler.runtime.sleep_after_s,
            now_s=self._clock.monotonic(),
        )
        self._timer: Timer | None = None
        self._transition: asyncio.Task[None] | None = None
        self._closed = False
        self.wakes_total = 0
        self.hook_error = ""
        self.hook_failure: Failure | None = None

    @property
    def state(self) -> SleepState:
        """Where the handler stands."""
        return self._watch.state

    @property
    def awake(self) -> bool:
        """Whether a job may run at once."""
        return self._watch.state in (SleepState.ACTIVE, SleepState.IDLE)

    @property
    def idle_s(self) -> float:
        """Seconds since the last job ended."""
        return self._watch.idle_s(self._clock.monotonic())

    def job_came(self) -> None:
        """A job that counts as activity was accepted."""
        self._watch.job_came()

    def job_ended(self) -> None:
        """Such a job is over."""
        self._watch.job_ended(self._clock.monotonic())
        if self._timer is None:
            self.arm()

    async def wake(self) -> None:
        """Be awake: wait out a falling asleep, then run the hooks.

        Raises:
            WakeFailedError: A hook raised; the handler stays asleep.
        """
        while not self.awake:
            await self._step(self._wake)

    async def sleep(self) -> None:
        """Fall asleep now.

        Raises:
            BusyError: A job is queued or running.
        """
        while self.state is not SleepState.SLEEPING:
            if self._watch.jobs:
                raise BusyError("a job is running or queued: it cannot sleep now")
            await self._step(self._fall)

    async def close(self, *, resources: bool = True) -> None:
        """Stop watching, and close resources; a transition under way, and that, have `grace_s`."""
        self._closed = True
        self.arm()
        if self._transition is not None:
            await asyncio.wait([self._transition], timeout=self._grace_s)
        if self._transition is not None:
            self._transition.cancel()
            await asyncio.wait([self._transition], timeout=self._grace_s)

        if not resources:
            return

        async def close_resources() -> None:
            async with asyncio.timeout(self._grace_s):
                await self._handler._resources.close()

        await self._hook("close", close_resources)

    async def _step(self, transition: Callable[[], Any]) -> None:
        """Wait out the transition under way, or make this one."""
        if self._closed:
            raise DrainingError("the handler is going down: it neither wakes nor sleeps any more")
        if self._transition is None or self._transition.done():
            self._transition = self._start(transition())
        # Others may wait for the same transition: a caller who gives up does not cancel it.
        await asyncio.shield(self._transition)

    def _start(self, transition: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        def done(task: asyncio.Task[None]) -> None:
            if self._transition is task:
                self._transition = None
            if not task.cancelled():
                task.exception()  # raised already to those who wait
            self.arm()

        task = asyncio.create_task(transition, name="sleep-transition")
        task.add_done_callback(done)
        return task

    def arm(self) -> None:
        """Set the timer to the next moment at which something can be due."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        due_s = self._watch.next_tick_s(self._clock.monotonic())
        if due_s is not None and not self._closed:
            self._timer = self._clock.call_later(due_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        before = self.state
        fall = self._watch.tick(self._clock.monotonic())
        if self.state is not before:
            self._handler.log.debug("state", state=str(self.state))
        if fall and self._transition is None:
            self._transition = self._start(self._fall())
        else:
            self.arm()

    async def _fall(self) -> None:
        handler = self._handler
        self._watch.fall()
        self.hook_error, self.hook_failure = "", None
        await self._hook("_release_resources", handler._release_resources)
        await self._hook("close", handler._resources.close)
        handler.worker.rest()
        self._watch.asleep()
        handler.log.info("asleep")
        self._on_asleep()
        # Both take long, and a call may come meanwhile.
        await asyncio.to_thread(gc.collect)
        await asyncio.to_thread(hand_back_memory)

    async def _wake(self) -> None:
        handler = self._handler
        self._watch.wake()
        try:
            await awaited(handler._ensure_resources())
            await awaited(handler._warm_cache())
        except BaseException as error:
            self._watch.asleep()
            if is_stop(error):
                raise
            self._note("wake", error)
            handler.log.error("wake_failed", error=self.hook_error)
            failed = WakeFailedError(f"cannot wake: {self.hook_error}")
            failed.cause_type = type_of(error)
            raise failed from error
        handler.worker.work()
        self.hook_error, self.hook_failure = "", None
        self.wakes_total += 1
        self._watch.awake(self._clock.monotonic())
        handler.log.info("awake")

    def _note(self, hook: str, error: BaseException) -> None:
        self.hook_error = self._handler.mask(f"{hook}: {text_of(error)}")
        self.hook_failure = {"code": "hook_failed", "type": type_of(error), "method": hook}

    async def _hook(self, name: str, hook: Callable[[], Any]) -> None:
        """Run a hook of falling asleep: a fault is logged and reported, and sleep goes on."""
        try:
            await awaited(hook())
        except BaseException as error:
            if is_stop(error):
                raise
            self._note(name, error)
            self._handler.log.error("sleep_hook_failed", hook=name, error=self.hook_error)

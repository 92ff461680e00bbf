"""Serves a handler on a thread of its own, so that its author's thread stays theirs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from catalogzero.runtime.handler import Handler
from catalogzero.runtime.runs import current_run
from catalogzero.runtime.service import Service, serve_until


class ServingThread:
    """One time of being served, from `start` to the end.

    Args:
        handler: What is served.
        on_end: Called on the serving thread when the end begins, however it came.
    """

    def __init__(self, handler: Handler, on_end: Callable[[], None]) -> None:
        self._handler = handler
        self._on_end = on_end
        self._service: Future[Service] = Future()
        self._loop = asyncio.new_event_loop()
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="handler", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it serves, or drains."""
        return self._thread.is_alive()

    @property
    def address(self) -> str:
        """Where it can be called."""
        return self._service.result().address

    def start(self) -> None:
        """Serve, and return when calls are answered.

        Raises:
            ConfigError: It cannot be served.
        """
        self._thread.start()
        try:
            self._service.result()
        except BaseException:
            self._thread.join()
            raise

    @property
    def ending(self) -> bool:
        """Whether the end has begun."""
        return self._stop.is_set()

    def end(self) -> None:
        """Begin the end: drain, then close. From any thread, and from a signal handler."""
        self._report(self._stop)

    def hurry(self) -> None:
        """Do not wait for what runs."""
        self._report(self._hurry)

    def join(self) -> None:
        """Wait for the end; from inside a run, which it would wait for, return at once."""
        if threading.current_thread() is not self._thread and current_run.get() is None:
            self._thread.join()

    def _report(self, event: asyncio.Event) -> None:
        # A loop that is closed has ended, which is what was wanted.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(event.set)
            self._loop.call_soon_threadsafe(self._on_end)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._serve())
            except BaseException as error:
                if self._service.done():
                    raise
                self._service.set_exception(error)
            finally:
                self._on_end()

    async def _serve(self) -> None:
        await serve_until(self._handler, self._stop, self._hurry, on_ready=self._service.set_result)

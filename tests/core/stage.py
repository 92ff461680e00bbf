"""The handler of the property tests; its worker process imports this module by name."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from catalogzero import Handler, internal, job

LOOK_S = 0.002


class Stage(Handler):
    """Jobs of every kind, each of which gives back the token of its call.

    Args:
        gate_file: While it is there, `toil` ends.

    Attributes:
        begun: How often each token's job began in this process.
        broken: Whether the hooks raise.
        opened: Whether resources are open: only quiet jobs may run while they are not.
        most_together: How many `hold` ran at once at most.
    """

    def __init__(self, gate_file: str) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate_file = Path(gate_file)
        self.begun: Counter[Any] = Counter()
        self.broken = False
        self.opened = True
        self.together = 0
        self.most_together = 0

    @internal
    def open(self) -> None:
        """Let what holds and toils end."""
        self.gate.set()
        self.gate_file.touch()

    @internal
    def shut(self) -> None:
        """From now on `hold` and `toil` wait."""
        self.gate.clear()
        self.gate_file.unlink(missing_ok=True)

    async def hold(self, token: str) -> str:
        """Until the gate opens."""
        self._begin(token)
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        try:
            await self.gate.wait()
        finally:
            self.together -= 1
        return token

    async def echo(self, token: Any = None) -> Any:
        """At once."""
        self._begin(token)
        return token

    def thread(self, token: str) -> str:
        """In a thread."""
        self._begin(token)
        return token

    @job(quiet=True)
    async def peek(self, token: str) -> str:
        """Also while it sleeps."""
        self.begun[token] += 1
        return token

    async def fail(self, token: str) -> None:
        """Raise."""
        self._begin(token)
        raise ValueError(token)

    @job(isolate=True)
    async def toil(self, token: str) -> str:
        """In the worker, until the gate opens or the worker is killed."""
        while not self.gate_file.exists():  # noqa: ASYNC110 - another process opens it
            await asyncio.sleep(LOOK_S)
        return token

    def _begin(self, token: Any) -> None:
        if isinstance(token, str):
            self.begun[token] += 1
        if not self.opened:
            raise RuntimeError("a job runs with its resources closed")

    def _release_resources(self) -> None:
        self.opened = False
        if self.broken:
            raise OSError("release")

    def _ensure_resources(self) -> None:
        if self.broken:
            raise OSError("ensure")

    def _warm_cache(self) -> None:
        self.opened = True

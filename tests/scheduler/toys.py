"""Handlers that the scheduler's tests call, and how to wait for what they lead to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import httpx
from catalogzero import Handler, HandlerSettings, PermanentError, job
from catalogzero.testing import Serving, serving

T = TypeVar("T")

POLL_S = 0.02


class ToySettings(HandlerSettings):
    """None are needed."""


class Toy(Handler):
    """Counts its runs, and ends them when it is asked to."""

    settings_model = ToySettings

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.starts = 0
        self.going = asyncio.Event()

    async def quick(self, x: int = 1) -> dict[str, Any]:
        """Return at once."""
        self.starts += 1
        return {"x": x, "summary": {"total": self.starts}}

    async def sends(self, status: str) -> dict[str, Any]:
        """Return what a processor's run does: what it sent, and where that is."""
        self.starts += 1
        files = [{"path": "a.csv", "rows": 1}, {"path": "b.csv", "rows": 2}]
        return {"status": status, "records": 3, "files": files, "upload_ids": ["7f20c1"]}

    async def long(self) -> dict[str, Any]:
        """Return when `going` is set."""
        self.starts += 1
        await self.going.wait()
        return {"done": True}

    async def fail(self) -> None:
        """Fail."""
        self.starts += 1
        raise ValueError("no such table")

    async def echo(self, text: str) -> str:
        """Return the text."""
        return text

    @job(retry_safe=True)
    def missing(self) -> None:
        """Read a file that is not there."""
        self.starts += 1
        open("/nowhere/at-all")  # noqa: SIM115

    @job(retry_safe=True)
    async def never(self) -> None:
        """Fail for good."""
        self.starts += 1
        raise PermanentError("no such customer", details={"customer": 7})

    @job(retry_safe=True)
    async def flaky(self) -> dict[str, Any]:
        """Fail twice, then return."""
        self.starts += 1
        if self.starts < 3:
            raise ValueError(f"failure {self.starts}")
        return {"starts": self.starts}


@asynccontextmanager
async def toy(scheduler: str, api: httpx.AsyncClient, **runtime: Any) -> AsyncIterator[Serving]:
    """A toy that has registered as `toy`."""
    given = {"handler_id": "toy", "scheduler": scheduler, **runtime}
    async with serving(Toy(), **given) as served:
        await until(lambda: connected(api, "toy", served.address))
        yield served


async def until(look: Callable[[], Awaitable[T | None]], timeout_s: float = 20.0) -> T:
    """Look again and again until what is seen is true."""
    never = asyncio.Event()
    async with asyncio.timeout(timeout_s):
        while not (seen := await look()):
            with suppress(TimeoutError):
                await asyncio.wait_for(never.wait(), POLL_S)
    return seen


async def executions(api: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    """The records of a query, newest first."""
    answer = await api.get("/api/executions", params=query)
    records: list[dict[str, Any]] = answer.json()["records"]
    return records


async def ended(api: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    """The records of a query that are final."""
    return [record for record in await executions(api, **query) if record["completed_at"]]


async def connected(api: httpx.AsyncClient, handler_id: str, address: str) -> bool:
    """Whether the scheduler has found a handler there, at this address."""
    handlers = (await api.get("/api/handlers")).json()["handlers"]
    there = {"id": handler_id, "address": address, "status": "Connected"}
    return any(there.items() <= one.items() for one in handlers)

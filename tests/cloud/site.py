"""A client's site in the test's own process: an engine with its sender, without a handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import structlog
from catalogzero import CloudProcessor
from catalogzero.clock import Clock
from catalogzero.cloud.engine import Engine
from catalogzero.cloud.outbox.outbox import Outbox
from catalogzero.config.settings import RuntimeSettings

from tests.cloud.processors import Plain
from tests.cloud.stores import stores


class Site:
    """An async context: the engine of one installation, sending."""

    def __init__(
        self,
        endpoint: str,
        folder: Path,
        *,
        author: type[CloudProcessor] = Plain,
        clock: Clock | None = None,
        runtime: dict[str, Any] | None = None,
        **config: Any,
    ) -> None:
        data = folder / "exports"
        data.mkdir(exist_ok=True)
        key = {} if "api_key_file" in config else {"api_key": "test-key"}
        self.author = author(endpoint=endpoint, data_roots=[data], **{**key, **config})
        given = {"min_file_age_s": 0, "state_dir": folder / "state", "installation_id": "site"}
        place = (runtime or {}).get("state_dir", given["state_dir"])
        if (url := stores.url_of(Path(place) / "site")) is not None:
            given["state"] = url
        self.author._attach(
            runtime=RuntimeSettings(**{**given, **(runtime or {})}), handler_id="site", clock=clock
        )
        self.author.log = structlog.get_logger()
        self.folder, self.data = folder, data
        self.status: dict[str, Any] = {}
        self.engine: Engine
        self.main: asyncio.Task[None]

    @property
    def outbox(self) -> Outbox:
        """The engine's own outbox."""
        return self.engine.outbox

    async def __aenter__(self) -> Site:
        self.engine = Engine(self.author, lambda status: setattr(self, "status", status))
        self.main = asyncio.create_task(self.engine.main())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.main.cancel()
        await asyncio.wait([self.main])
        self.engine.close()

    async def run(
        self, data_source: Any = None, params: Any = None, chunk_format: str = "ndjson", **more: Any
    ) -> dict[str, Any]:
        """One run over a source, by default all of the data root."""
        result = await asyncio.to_thread(
            self.engine.run,
            str(data_source or self.data),
            params or {},
            chunk_format,
            full=more.get("full", False),
            progress=lambda **fields: None,
        )
        return dict(result)

    def write(self, name: str, text: str) -> Path:
        """A file below the data root."""
        path = self.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, 30 s at most."""
    never = asyncio.Event()
    async with asyncio.timeout(30):
        while not condition():
            with suppress(TimeoutError):
                await asyncio.wait_for(never.wait(), 0.01)


@asynccontextmanager
async def nudged(site: Site) -> AsyncIterator[None]:
    """The sender looks again all the time, as its waits are those of a hasty clock."""

    async def nudge() -> None:
        while True:
            site.engine.sender.wake()
            await asyncio.sleep(0.01)

    task = asyncio.create_task(nudge())
    yield
    task.cancel()
    await asyncio.wait([task])

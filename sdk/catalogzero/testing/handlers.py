"""Serving a handler inside a test, over real ZeroMQ."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalogzero.clock import Clock
from catalogzero.runtime.handler import Handler, Hosted
from catalogzero.runtime.service import Service, serve
from catalogzero.wire.client import HandlerClient


@dataclass(frozen=True)
class Serving:
    """A handler that is served, and a client connected to it."""

    handler: Handler
    service: Service
    client: HandlerClient

    @property
    def address(self) -> str:
        """Where it can be called."""
        return self.service.address


@asynccontextmanager
async def serving(
    handler: Handler | Hosted, *, clock: Clock | None = None, **runtime: Any
) -> AsyncIterator[Serving]:
    """Serve a handler on a free loopback port, with a state folder of its own.

    It registers nowhere unless `scheduler` is given.

    Args:
        handler: What to serve.
        clock: Time, such as a `ManualClock`; the machine's by default.
        runtime: Runtime settings by name.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = {"state_dir": Path(folder), "scheduler": "none", **runtime}
        async with (
            serve(handler, clock=clock, **given) as service,
            HandlerClient(service.address) as client,
        ):
            yield Serving(service.handler, service, client)

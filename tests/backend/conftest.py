"""Every test of the backend runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.backend.peer import KINDS, Peer, postgresql_url, serve_peer, sqlite_url


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, of each kind in turn."""
    yield from sqlite_url(tmp_path) if request.param == "sqlite" else postgresql_url()


@pytest.fixture
async def peer(database_url: str) -> AsyncIterator[Peer]:
    """A served backend with its default settings."""
    async with serve_peer(database_url) as peer:
        yield peer

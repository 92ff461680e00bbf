"""Every test of the backend runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.backend.peer import KINDS, Peer, postgresql_url, serve_peer


@pytest.fixture(params=KINDS, scope="module")
def database_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of a database that a module's tests share, each with a tenant of its own."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('database') / 'backend.db'}"
    else:
        yield from postgresql_url()


@pytest.fixture
async def peer(database_url: str) -> AsyncIterator[Peer]:
    """A served backend with its default settings."""
    async with serve_peer(database_url) as peer:
        yield peer

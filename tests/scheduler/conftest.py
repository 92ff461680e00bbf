"""A database of each kind, a scheduler on it, and handlers that it calls."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from catalogzero.scheduler.links import CallSettings
from catalogzero.scheduler.runner import RunnerSettings
from catalogzero.scheduler.server import SchedulerServer, SchedulerSettings, serve_scheduler
from catalogzero.scheduler.store import Store

POSTGRESQL = os.environ.get(
    "CATALOGZERO_TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432/test"
)
QUICK = RunnerSettings(
    lease_s=3.0,
    poll_s=0.1,
    calls=CallSettings(
        ping_timeout_s=1.0,
        ping_every_s=0.3,
        probe_every_s=0.2,
        wait_s=1.0,
        retry_base_s=0.05,
        retry_max_s=0.2,
    ),
)


@pytest.fixture
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL database of the test's own."""
    name = f"catalogzero_{uuid.uuid4().hex[:12]}"
    try:
        server = psycopg.connect(POSTGRESQL, autocommit=True, connect_timeout=3)
    except psycopg.OperationalError as error:
        pytest.skip(f"no PostgreSQL at CATALOGZERO_TEST_POSTGRESQL: {error}")
    with server:
        server.execute(f"CREATE DATABASE {name}")
        yield POSTGRESQL.rpartition("/")[0] + f"/{name}"
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'scheduler.db'}"
    return str(request.getfixturevalue("postgresql"))


@pytest.fixture
def make_store(database: str) -> Iterator[Callable[..., Store]]:
    """Opens stores on the database, and closes them."""
    stores: list[Store] = []

    def make(**named: object) -> Store:
        stores.append(Store(database, **named))  # type: ignore[arg-type]
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
async def scheduler(database: str) -> AsyncIterator[SchedulerServer]:
    """A running scheduler with short waits."""
    settings = SchedulerSettings(port=0, zmq_port=0, database=database, runner=QUICK)
    async with serve_scheduler(settings) as server:
        yield server


@pytest.fixture
async def api(scheduler: SchedulerServer) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of it."""
    async with httpx.AsyncClient(base_url=scheduler.url, timeout=20) as client:
        yield client

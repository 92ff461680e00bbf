"""Modules with `BOTH_STORES = True` run on a file and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.cloud.stores import POSTGRESQL, stores


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test of such a module, twice."""
    if getattr(metafunc.module, "BOTH_STORES", False):
        metafunc.fixturenames.insert(0, "store_kind")
        kinds = ["file", pytest.param("postgresql", marks=pytest.mark.postgresql)]
        metafunc.parametrize("store_kind", kinds, indirect=True)


@pytest.fixture
def postgresql() -> None:
    """PostgreSQL, if it is here."""
    try:
        psycopg.connect(POSTGRESQL, connect_timeout=5).close()
    except psycopg.OperationalError as error:
        pytest.skip(f"no PostgreSQL at CATALOGZERO_TEST_POSTGRESQL: {error}")


@pytest.fixture
def on_postgresql(postgresql: None) -> Iterator[None]:
    """Outboxes lie in databases."""
    stores.kind = "postgresql"
    yield
    stores.drop()


@pytest.fixture
def store_kind(request: pytest.FixtureRequest) -> str:
    """Outboxes of one kind."""
    if request.param == "postgresql":
        request.getfixturevalue("on_postgresql")
    return str(request.param)

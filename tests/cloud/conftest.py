"""Modules with `BOTH_STORES = True` run on a file and on PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psycopg
import pytest

from tests.cloud.stores import POSTGRESQL, stores


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if getattr(metafunc.module, "BOTH_STORES", False) or os.environ.get("ALL_STORES"):
        kinds = (
            [os.environ["ALL_STORES"]] if os.environ.get("ALL_STORES") else ["file", "postgresql"]
        )
        metafunc.fixturenames.insert(0, "store_kind")
        metafunc.parametrize("store_kind", kinds, indirect=True)


@pytest.fixture
def store_kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """Have outboxes of one kind."""
    if request.param == "postgresql":
        try:
            psycopg.connect(POSTGRESQL, connect_timeout=5).close()
        except psycopg.OperationalError as error:
            pytest.skip(f"no PostgreSQL at CATALOGZERO_TEST_POSTGRESQL: {error}")
    stores.kind = request.param
    yield request.param
    stores.drop()

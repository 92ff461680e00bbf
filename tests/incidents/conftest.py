"""What most incidents begin with: a machine of a client, and its vendor's backend."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cloud.reference import ReferenceBackend
from tests.incidents.plant import KEY, Plant


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend(KEY) as reference:
        yield reference


@pytest.fixture
async def plant(backend: ReferenceBackend, tmp_path: Path) -> AsyncIterator[Plant]:
    async with Plant(tmp_path, backend.url) as machine:
        yield machine

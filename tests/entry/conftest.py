"""What the tests of catalogs share: a shelf of small wheels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.entry.wheels import write_entry, write_wheel

MakeWheel = Callable[..., Path]


@pytest.fixture
def make_wheel() -> MakeWheel:
    """See `write_wheel`."""
    return write_wheel


@pytest.fixture
def make_entry() -> MakeWheel:
    """See `write_entry`."""
    return write_entry


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an entry, the SDK's adapter and what the entry needs: no index is asked."""
    folder = tmp_path_factory.mktemp("catalog") / "shelf"
    write_entry(folder)
    write_wheel(folder, "catalogzero", "0.1.0")
    write_wheel(folder, "acme-helper", "2.0")
    return folder

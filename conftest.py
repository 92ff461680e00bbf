"""What holds for every test: the settings of who runs them are not the tests' own."""

import os
from collections.abc import Iterator

import pytest

# Sizes of the chaos tests, the soak's time and the database are the tests' own; nothing else is.
FOR_TESTS = ("CATALOGZERO_CHAOS_", "CATALOGZERO_SOAK_", "CATALOGZERO_TEST_")

for name in [*os.environ]:
    if name.startswith("CATALOGZERO_") and not name.startswith(FOR_TESTS):
        del os.environ[name]


@pytest.fixture(autouse=True)
def own_umask() -> Iterator[None]:
    """A handler that a test serves in its own process makes all that follows private."""
    before = os.umask(0o022)
    yield
    os.umask(before)

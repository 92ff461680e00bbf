"""What holds for every test: the settings of who runs them are not the tests' own."""

import os

# Sizes of the chaos tests and the database that tests use are for the tests; nothing else is.
FOR_TESTS = ("CATALOGZERO_CHAOS_", "CATALOGZERO_TEST_")

for name in [*os.environ]:
    if name.startswith("CATALOGZERO_") and not name.startswith(FOR_TESTS):
        del os.environ[name]

"""What holds for every test: the settings of who runs them are not the tests' own."""

import os

# Sizes of the chaos tests, the soak's time and the database are the tests' own; nothing else is.
FOR_TESTS = ("CATALOGZERO_CHAOS_", "CATALOGZERO_SOAK_", "CATALOGZERO_TEST_")

for name in [*os.environ]:
    if name.startswith("CATALOGZERO_") and not name.startswith(FOR_TESTS):
        del os.environ[name]

"""A PostgreSQL database of the test's own."""

from tests.scheduler.conftest import postgresql as postgresql

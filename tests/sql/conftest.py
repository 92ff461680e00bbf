"""A PostgreSQL database of the test's own, straight and behind a proxy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import make_url

from tests.scheduler.conftest import postgresql as postgresql
from tests.sql.tcp_proxy import TcpProxy


@pytest.fixture
def proxy(postgresql: str) -> Iterator[TcpProxy]:
    """A proxy before the database server."""
    url = make_url(postgresql)
    with TcpProxy(url.host or "127.0.0.1", url.port or 5432) as proxy:
        yield proxy


@pytest.fixture
def behind(postgresql: str, proxy: TcpProxy) -> str:
    """The URL of the database, through the proxy."""
    url = make_url(postgresql).set(host="127.0.0.1", port=proxy.port)
    return url.render_as_string(hide_password=False)

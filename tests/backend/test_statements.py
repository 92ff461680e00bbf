"""What a request costs the database: statements, counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread
from typing import Any

from catalogzero.backend.reports import StoredReport, store_reports
from catalogzero.backend.store import BackendDatabase
from catalogzero.backend.tenants import add_tenant, list_tenants, tenant_id_of
from sqlalchemy import Engine, event

from tests.backend.peer import AT, Peer


@contextmanager
def counted() -> Iterator[list[str]]:
    """The statements that are sent meanwhile, but for SQLite's BEGIN, and what only reads."""
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "backend-read" not in current_thread().name and not statement.startswith("BEGIN"):
            sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", note)


async def test_an_upload_takes_few_statements_however_many_came_before(peer: Peer) -> None:
    costs = []
    for number in range(1, 5):
        with counted() as chunk:
            await peer.put(f"u{number}", 0, {"n": number})
        with counted() as end:
            await peer.complete(f"u{number}", source_seq=number, upload_key=f"k{number}")
        costs.append((len(chunk), len(end)))

    assert max(chunk for chunk, _ in costs[1:]) <= 4
    assert max(end for _, end in costs[1:]) <= 14
    assert costs[-1] == costs[1]


def test_health_reports_that_share_a_transaction_share_its_statements(database_url: str) -> None:
    database = BackendDatabase(database_url)

    def cost(count: int) -> int:
        rows = [StoredReport(tenant, f"site-{n}", AT, "{}") for n in range(count)]
        with counted() as sent:
            database.write_now(lambda connection: store_reports(connection, rows))
        return len(sent)

    try:
        name = "shared-statements"
        tenant = database.write_now(lambda connection: tenant_of(connection, name))
        assert cost(1) == cost(500) <= 6
    finally:
        database.close()


def tenant_of(connection: Any, name: str) -> int:
    """A tenant of the test's own."""
    if name not in {one.name for one in list_tenants(connection)}:
        add_tenant(connection, name, AT)
    return tenant_id_of(connection, name)

"""The fleet of ten thousand: what a page of it weighs, and that it finds the one among them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from catalogzero.backend.reports import StoredReport, store_reports
from catalogzero.backend.store import BackendDatabase
from catalogzero.clock import SystemClock
from sqlalchemy import text

from tests.backend.peer import Answer, Peer, serve_peer

INSTALLATIONS = 10_000
PAGE_BYTES = 100 * 1024
WIDE = "\U0001f9ca" * 190
"""An id that is as long as can be once it is escaped."""


@pytest.fixture
async def many(database_url: str) -> AsyncIterator[Peer]:
    """Ten thousand installations that all say as much as they may."""
    async with serve_peer(database_url, access_log=False) as peer:
        at = SystemClock().now().isoformat(timespec="milliseconds")
        database = BackendDatabase(database_url)

        def fill(connection: object) -> None:
            [[tenant_id]] = connection.execute(  # type: ignore[attr-defined]
                text("SELECT tenant_id FROM tenants WHERE name = :name"), {"name": peer.name}
            )
            for first in range(0, INSTALLATIONS, 1_000):
                store_reports(
                    connection,  # type: ignore[arg-type]
                    [
                        StoredReport(tenant_id, f"{WIDE}{n:05}", at, _body(n))
                        for n in range(first, first + 1_000)
                    ],
                )

        database.write_now(fill)
        database.close()
        yield peer


def _body(number: int) -> str:
    """A report: one in a hundred fails, with reasons beyond any bound."""
    failing = number % 100 == 7
    reasons = f'["{"x<" * 2_000}"]' if failing else "[]"
    figures = f'{{"uploads": {number}, "bytes": 7, "oldest_age_s": 61, "dead": 3, "missing": 2}}'
    return (
        f'{{"client_id": "x", "status": "{"failing" if failing else "ok"}", "reasons": {reasons},'
        f' "version": "{number % 9}{"<" * 500}", "entry": "{"&" * 500}", "interval_s": 86400,'
        f' "outbox": {figures}}}'
    )


async def ask(peer: Peer, query: str) -> Answer:
    answer = await peer.ask("GET", query)
    assert answer.status == 200
    return answer


async def test_no_page_of_ten_thousand_is_larger_than_its_bound(many: Peer) -> None:
    sizes = {}
    for query in ("?state=trouble", "?page=400&sort=-waiting", f"?q={many.name}&sort=version"):
        sizes[query] = len((await ask(many, f"/{query}")).body)
        sizes["json" + query] = len((await ask(many, f"/fleet.json{query}")).body)
    one = f"?tenant={many.name}&id={WIDE}00007"
    sizes["one"] = len((await ask(many, f"/installation{one}")).body)

    assert {query: size for query, size in sizes.items() if size > PAGE_BYTES} == {}


async def test_the_server_finds_sorts_and_counts_among_ten_thousand(many: Peer) -> None:
    mine = f"q={many.name}"
    every = (await ask(many, f"/fleet.json?{mine}&sort=-waiting")).json
    last = (await ask(many, f"/fleet.json?{mine}&state=failing&page=4")).json
    beyond = (await ask(many, f"/fleet.json?{mine}&state=failing&page=5")).json
    one = (await ask(many, f"/fleet.json?{mine} 04321")).json

    assert (every["found"], every["pages"], len(every["installations"])) == (10_000, 400, 25)
    assert [row["backlog"] for row in every["installations"]] == list(range(9_999, 9_974, -1))
    assert every["totals"]["states"]["failing"] == 100
    assert every["totals"]["dead"] == 30_000
    assert [row["backlog"] for row in last["installations"]] == list(range(7_507, 10_000, 100))
    assert (beyond["found"], beyond["installations"]) == (100, [])
    assert [row["installation_id"] for row in one["installations"]] == [f"{WIDE}04321"]

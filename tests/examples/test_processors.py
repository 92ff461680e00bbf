"""The example processors on real data: PostgreSQL, an API with a rate limit, Parquet files."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa
from aiohttp import web

from examples.processors.nightly_rollup import NightlyRollup
from examples.processors.orders_database import OrdersDatabase
from tests.backend.peer import postgresql_url
from tests.cloud.environments import environment
from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site

EXAMPLES = Path(__file__).parents[2] / "examples" / "processors"
PAGES, ROWS_A_PAGE = 100, 5


database = pytest.fixture(postgresql_url)


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


class OrdersApi:
    """An API with pages of orders, which answers 429 to each tenth request."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.holds: int | None = None
        self.is_held = asyncio.Event()
        self.url = ""

    async def __aenter__(self) -> OrdersApi:
        app = web.Application()
        app.router.add_get("/orders", self.serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def serve(self, request: web.Request) -> web.Response:
        """The page behind an order, or the limit."""
        since = int(request.query["since"])
        page = since // ROWS_A_PAGE + 1
        self.asked.append(page)
        if page == self.holds:
            self.is_held.set()
            await asyncio.Event().wait()
        if len(self.asked) % 10 == 0:
            return web.Response(status=429, headers={"Retry-After": "0.01"})
        orders = range(since + 1, since + 1 + ROWS_A_PAGE) if page <= PAGES else ()
        rows = [{"order_id": order} for order in orders]
        return web.json_response(rows)


async def test_a_run_killed_at_page_80_goes_on_at_page_80(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("test-key")
    key.chmod(0o600)
    section: dict[str, Any] = {
        "handler_id": "api",
        "module_path": "examples.processors.rate_limited_api",
        "class_name": "RateLimitedApi",
        "state_dir": str(tmp_path / "state"),
        "config": {"endpoint": backend.url, "api_key_file": str(key)},
    }
    registry = tmp_path / "handler_registry.yaml"
    registry.write_text(json.dumps({"scheduler": "none", "handlers": [section]}))
    async with OrdersApi() as api:
        params = json.dumps({"data_source": api.url})

        async def begin() -> asyncio.subprocess.Process:
            once = ("--once", "process_and_upload", "--params", params)
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "catalogzero", "run", "api", *once),
                *("--registry", str(registry)),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )

        api.holds = 80
        first = await begin()
        await asyncio.wait_for(api.is_held.wait(), 60)
        kill_group(first.pid)
        await first.wait()
        before, api.holds = len(api.asked), None
        second = await begin()
        said, _ = await asyncio.wait_for(second.communicate(), 60)

    assert second.returncode == 0, said.decode()
    assert api.asked[before:][0] == 80
    assert max(api.asked[before:]) == PAGES + 1
    found = sorted(row["order_id"] for row in backend.rows())
    assert found == list(range(1, PAGES * ROWS_A_PAGE + 1))


async def test_the_tap_that_it_is_counted_beside_reads_the_same_orders(tmp_path: Path) -> None:
    tap = EXAMPLES / "singer_sdk" / "orders_tap.py"
    python = environment("tap-postgres") / "bin" / "python"  # the SDK comes with that tap
    config = tmp_path / "config.json"
    async with OrdersApi() as api:
        config.write_text(json.dumps({"url": api.url}))
        process = await asyncio.create_subprocess_exec(
            *(str(python), str(tap), "--config", str(config)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, logged = await asyncio.wait_for(process.communicate(), 60)

    assert process.returncode == 0, logged.decode()
    messages = [json.loads(line) for line in said.splitlines()]
    found = [one["record"]["order_id"] for one in messages if one["type"] == "RECORD"]
    assert found == list(range(1, PAGES * ROWS_A_PAGE + 1))


def kill_group(pid: int) -> None:
    """End a process and its worker at once."""
    os.killpg(pid, signal.SIGKILL)


class OrdersTable:
    """The client's table, in which orders are put and deleted."""

    def __init__(self, url: str) -> None:
        self.url = url.replace("postgresql://", "postgresql+psycopg://")
        self._engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        self._run(
            "CREATE TABLE orders (order_id bigint PRIMARY KEY, shop text, cents bigint,"
            " updated_at timestamptz, deleted boolean)"
        )

    def put(self, order: int, minutes: int, cents: int, *, deleted: bool | None = None) -> None:
        """Insert or update an order."""
        at = datetime(2026, 3, 1, 12, tzinfo=UTC) + timedelta(minutes=minutes)
        self._run(
            "INSERT INTO orders VALUES (:order, 'north', :cents, :at, :deleted)"
            " ON CONFLICT (order_id) DO UPDATE SET cents = :cents, updated_at = :at,"
            " deleted = :deleted",
            order=order,
            cents=cents,
            at=at,
            deleted=deleted,
        )

    def _run(self, sql: str, **values: Any) -> None:
        with self._engine.begin() as connection:
            connection.execute(sa.text(sql), values)


@pytest.mark.postgresql
async def test_orders_arrive_updated_late_and_deleted(
    database: str, backend: ReferenceBackend, tmp_path: Path
) -> None:
    table = OrdersTable(database)
    query = "SELECT order_id, shop, cents, updated_at, deleted FROM orders"
    source = {"url": table.url, "query": query, "watermark": "updated_at", "lookback": 3600}
    sources = {"orders": source}
    async with Site(backend.url, tmp_path, author=OrdersDatabase, sources=sources) as site:
        for order in range(100):
            table.put(order, order % 30, order * 100)
        await site.run("sql:orders")
        table.put(3, 40, 777)
        table.put(200, 5, 900)  # late, below the watermark
        await site.run("sql:orders")
        table.put(4, 50, 400, deleted=True)
        await site.run("sql:orders")
        result = await site.run("sql:orders")

    assert result["status"] == "unchanged"
    newest = {}
    for upload in sorted(backend.uploads.values(), key=lambda one: one.body["source_seq"]):
        assert upload.body["mode"] == "merge"
        for seq in sorted(upload.chunks):
            newest.update({row["order_id"]: row for row in upload.chunks[seq]})
    kept = {key: row["price"] for key, row in newest.items() if not row["deleted"]}
    assert kept == {
        **{float(order): float(order) for order in range(100) if order not in {3, 4}},
        3: 7.77,
        200: 9.0,
    }


async def test_a_night_is_rolled_up_and_an_export_of_it_again_replaces_its_own(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    def night(name: str, prices: list[float]) -> None:
        at = datetime(2026, 3, 1, 9, tzinfo=UTC)
        sold = pl.DataFrame(
            {
                "shop": ["north" if n % 2 else "south" for n in range(len(prices))],
                "sold_at": [at + timedelta(days=n % 3) for n in range(len(prices))],
                "price": prices,
            }
        )
        sold.write_parquet(site.data / name, row_group_size=7)

    async with Site(backend.url, tmp_path, author=NightlyRollup) as site:
        night("2026-03-01.parquet", [float(n) for n in range(60)])
        night("2026-03-02.parquet", [1.0] * 12)
        await site.run()
        night("2026-03-02.parquet", [2.0] * 12)
        result = await site.run()

    assert (result["uploads"], result["skipped"]) == (1, 1)
    rows = backend.rows()
    assert len(rows) == 12
    assert sum(row["orders"] for row in rows) == 72
    assert sum(row["price"] for row in rows) == sum(range(60)) + 24

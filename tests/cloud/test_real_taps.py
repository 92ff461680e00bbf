"""Singer taps from the package index, in runs to a backend: a database, a REST API with faults."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from aiohttp import web
from catalogzero.errors import FailedError

from examples.processors.shop_tap import ShopTap
from tests.cloud.environments import environment
from tests.cloud.processors import Plain
from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site, until
from tests.cloud.test_queries import POSTGRESQL

PAGE_ROWS, DAYS = 10, 6
FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)


def configured(folder: Path, command: Path, config: Any, streams: list[Any]) -> dict[str, str]:
    """A tap as a handler's config names it."""
    paths = {"config_file": folder / "tap.json", "catalog_file": folder / "catalog.json"}
    for path, content in zip(paths.values(), (config, {"streams": streams}), strict=True):
        path.touch(mode=0o600)
        path.write_text(json.dumps(content))
    return {"command": str(command), **{key: str(path) for key, path in paths.items()}}


def newest(backend: ReferenceBackend, key: str) -> dict[Any, dict[str, Any]]:
    """The newest row of each key: what the last upload that has it says."""
    return {row[key]: row for row in backend.rows() if key in row}


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


# A database.


@pytest.fixture
def database() -> Iterator[tuple[sa.URL, psycopg.Connection[Any], str]]:
    """A schema of its own with orders and countries; its URL as a tap needs it."""
    url = sa.make_url(POSTGRESQL)
    schema = f"tap_{uuid.uuid4().hex[:8]}"
    plain = url.set(drivername="postgresql")
    try:
        connection = psycopg.connect(plain.render_as_string(hide_password=False), autocommit=True)
    except psycopg.OperationalError as error:
        pytest.skip(f"no PostgreSQL: {error}")
    with closing(connection) as db:
        db.execute(f"CREATE SCHEMA {schema}")
        db.execute(f"SET search_path TO {schema}")
        db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, at TIMESTAMPTZ, price NUMERIC)")
        db.execute("CREATE TABLE countries (code TEXT)")
        try:
            yield plain.set(password=plain.password or "any-password"), db, schema
        finally:
            db.execute(f"DROP SCHEMA {schema} CASCADE")


@pytest.mark.postgresql
async def test_a_database_s_updates_replace_rows_by_key_and_a_whole_table_follows(
    database: tuple[sa.URL, psycopg.Connection[Any], str],
    backend: ReferenceBackend,
    tmp_path: Path,
) -> None:
    url, db, schema = database
    backend.codings = ("",)
    command = (await asyncio.to_thread(environment, "tap-postgres")) / "bin" / "tap-postgres"
    config = {
        "sqlalchemy_url": url.render_as_string(hide_password=False),
        "filter_schemas": [schema],
    }
    tap = configured(tmp_path, command, config, [])
    discover = [tap["command"], "--config", tap["config_file"], "--discover"]
    found = await asyncio.to_thread(subprocess.check_output, discover, stderr=subprocess.PIPE)
    catalog = json.loads(found)
    for stream in catalog["streams"]:
        root = next(one["metadata"] for one in stream["metadata"] if not one["breadcrumb"])
        root["selected"] = True
        if stream["tap_stream_id"] == f"{schema}-orders":
            root |= {"replication-method": "INCREMENTAL", "replication-key": "at"}
            stream |= {"replication_method": "INCREMENTAL", "replication_key": "at"}
    (tmp_path / "catalog.json").write_text(json.dumps(catalog))
    insert = "INSERT INTO orders VALUES (%s, %s, %s)"
    at, exact = "2026-01-01T0{}:00:00+00:00", "12345678901234567890.12345"
    for n in range(1, 4):
        db.execute(insert, (n, at.format(n), exact))
    db.execute("INSERT INTO countries VALUES ('de'), ('fr')")

    def codes() -> list[str]:
        return sorted(row["code"] for row in backend.rows() if "code" in row)

    north = {"shop": "north"}
    async with Site(backend.url, tmp_path, author=ShopTap, taps={"shop": tap}) as site:
        first = await site.run("singer:shop", north)
        same = await site.run("singer:shop", north)
        before = codes()
        db.execute("UPDATE orders SET price = 2, at = %s WHERE id = 1", (at.format(4),))
        db.execute(insert, (4, at.format(4), 4))
        db.execute(insert, (5, at.format(3), 5))  # it ties with the last one that was read
        db.execute(insert, (6, at.format(2), 6))  # and this one comes late
        db.execute("DELETE FROM countries WHERE code = 'fr'")
        second = await site.run("singer:shop", north)
        rows = newest(backend, "id")
        whole = await site.run("singer:shop", north, full=True)

    assert [one["status"] for one in (first, same, second, whole)] == [
        *("uploaded", "unchanged", "uploaded", "uploaded")
    ]
    assert (before, codes()) == (["de", "fr"], ["de"])
    assert exact.encode() in b"".join(body for _, path, body in backend.bodies if "chunks" in path)
    assert [rows[key]["price"] for key in (1, 4, 5)] == [2, 4, 5]
    assert {row.get("shop") for row in backend.rows()} == {"north", None}  # None: of a country
    assert 6 not in rows  # what a tap does not send again comes with `full`
    assert sorted(row["id"] for row in backend.rows() if "id" in row) == [1, 2, 3, 4, 5, 6]
    assert {b["mode"]: b.get("key") for b in bodies(backend)} == {"merge": ["id"], "replace": None}


def bodies(backend: ReferenceBackend) -> list[dict[str, Any]]:
    """What completed the uploads."""
    return [json.loads(body) for _, path, body in backend.bodies if path.endswith("/complete")]


# A REST API.


class Api:
    """Events of some days, ten a page and two pages a day; with faults, where a test asks.

    Attributes:
        asked: The days whose first page was asked for, in their order.
        stalls_on: The day whose second page is not answered.
        stalled: Set once that page was asked for.
        released: Answers it all the same.
    """

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.stalls_on: int | None = None
        self.stalled, self.released = asyncio.Event(), asyncio.Event()
        self._refuses = True

    async def answer(self, request: web.Request) -> web.Response:
        """A page; one of them is refused at first, as a rate limit does."""
        begin = datetime.fromisoformat(request.query["from"]).replace(tzinfo=UTC)
        day = (begin - FIRST_DAY).days
        page = int(request.query["page"])
        if page == 0:
            self.asked.append(day)
        if page and day == self.stalls_on:
            self.stalled.set()
            await self.released.wait()
        if (day, page) == (1, 1) and self._refuses:
            self._refuses = False
            return web.json_response({}, status=429)
        count = PAGE_ROWS if page < 1 else PAGE_ROWS - 1
        first = day * 100 + page * PAGE_ROWS
        at = FIRST_DAY + timedelta(days=day)
        events = [
            {"id": first + n, "at": (at + timedelta(minutes=first % 100 + n)).isoformat()}
            for n in range(count)
        ]
        return web.json_response(events)


@asynccontextmanager
async def served(api: Api) -> AsyncIterator[str]:
    """The API at an address."""
    app = web.Application()
    app.router.add_get("/events", api.answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/events"
    finally:
        await runner.cleanup()


class SmallBatches(Plain):
    """A range ends at the first STATE behind ten rows."""

    batch_rows = 10


async def test_a_rest_tap_that_is_killed_goes_on_where_it_was(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    tap_command = (await asyncio.to_thread(environment, "tap-rest-api")) / "bin" / "tap-rest-api"
    command = tmp_path / "tap"
    command.write_text(f'#!/bin/sh\necho $$ >{tmp_path}/pid\nexec {tap_command} "$@"\n')
    command.chmod(0o755)
    fields = {"id": {"type": "integer"}, "at": {"type": "string", "format": "date-time"}}
    schema = {"type": "object", "properties": fields, "selected": True}
    entry = {
        **{"stream": "events", "tap_stream_id": "events", "schema": schema},
        "key_properties": ["id"],
        "metadata": [
            {
                "breadcrumb": [],
                "metadata": {
                    "replication-method": "INCREMENTAL",
                    "replication-key": "at",
                },
            }
        ],
    }
    (tmp_path / "events.json").write_text(json.dumps(schema))
    api = Api()
    async with served(api) as url:
        query = "?from={start_datetime}&to={end_datetime}&page={current_page}"
        config = {
            **{"url": f"{url}{query}", "streams": "events", "items_per_page": PAGE_ROWS},
            **{"schema": "events", "schema_dir": str(tmp_path), "datetime_keys": {"events": "at"}},
            "start_datetime": FIRST_DAY.isoformat(),
            "end_datetime": (FIRST_DAY + timedelta(days=DAYS)).isoformat(),
            "window_size_hours": 24,
        }
        taps = {"events": configured(tmp_path, command, config, [entry])}
        async with Site(backend.url, tmp_path, author=SmallBatches, taps=taps) as site:
            api.stalls_on = 3
            run = asyncio.create_task(site.run("singer:events"))
            async with asyncio.timeout(60):
                await asyncio.wait(
                    [run, stalled := asyncio.create_task(api.stalled.wait())],
                    return_when=asyncio.FIRST_COMPLETED,
                )
            stalled.cancel()
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
            with pytest.raises(FailedError, match="the tap was killed by signal 9; it said last"):
                await run
            await until(lambda: len(backend.rows()) == 3 * 19)
            seen, asked = sorted(row["id"] for row in backend.rows()), [*api.asked]
            api.released.set()
            api.stalls_on = None
            second = await site.run("singer:events")

    per_day = [*range(19)]
    assert [one for n, one in enumerate(asked) if one not in asked[:n]] == [0, 1, 2, 3]
    assert seen == [day * 100 + n for day in range(3) for n in per_day]
    assert min(api.asked[len(asked) :]) == 3
    assert second["status"] == "uploaded"
    assert sorted(newest(backend, "id")) == [day * 100 + n for day in range(DAYS) for n in per_day]
    assert len(backend.rows()) == DAYS * 19

"""The reference backend: rows stored, and health reports taken, against the database alone.

    python -m benchmarks.backend [--quick] [--rows 200000] [--reports 4000] [--uploads 1000000]
        [--rounds 3] [--json]

A served backend (`catalogzero backend serve`, a process of its own) is sent uploads in zstd chunks
of JSON Lines over HTTP, each completed. The floors write the very same rows into the same tables
with nothing in front: `executemany` (SQLite, WAL, FULL, one transaction a chunk) and COPY
(PostgreSQL); for health, one FULL transaction of SQLite for each report, and a bare server
(`benchmarks/append_server.py`) that appends each to a file. Rounds are interleaved; figures are
medians.

A small upload and health are measured on an empty database, and on one with 10,000 installations
and a million uploads (`--uploads`); a small upload also beside another tenant's 16 connections of
large chunks. A step of housekeeping is measured among 600 uploads and among a million, with as many
rows to delete.

Budgets: rows at least 0.6 times the floor, 0.5 in chunks of 500; health at least 2 times that of
SQLite by hand and 0.8 times the bare server's, and a p99 below 50 ms at 10,000 installations that
report once a minute; at most 1.25 times as long on the full database as on the empty one; a step
among a million uploads at most 2 times one among 600; a small upload beside another tenant's 16
connections at most 3 times its p50 alone.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import psycopg
import zstandard
from catalogzero.backend import schema, uploads
from catalogzero.backend.housekeeping import clear_hidden
from catalogzero.backend.store import BackendDatabase, insert_many
from catalogzero.backend.tenants import add_tenant
from sqlalchemy import (
    ColumnElement,
    Connection,
    String,
    Table,
    cast,
    create_engine,
    insert,
    literal,
    select,
    text,
    true,
)

from benchmarks.append_server import appending
from benchmarks.report import Figure, Section, Series, main, ratios

FULL = {
    "rows": 200_000,
    "reports": 4_000,
    "uploads": 1_000_000,
    "installations": "1000,10000",
    "rounds": 2,
}
QUICK = {"rows": 5_000, "reports": 300, "uploads": 1_000, "installations": "10,100", "rounds": 1}
AT = "2026-01-01T00:00:00.000+00:00"
CHUNK_ROWS, SMALL_CHUNK_ROWS = 5_000, 500
UPLOAD_CHUNKS, INSTALLATIONS = 10, 10_000
SMALL_UPLOADS, HEAVY_CONNECTIONS = 100, 16
FEW, FILL_S = 600, 3_600.0
CONNECTIONS = 4
REPORTERS = 256
FLEET_PER_S = 10_000 / 60
FLEET_S = 10
POSTGRESQL = os.environ.get(
    "CATALOGZERO_TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432/test"
)
COMMAND = [sys.executable, "-c", "from catalogzero.cli.main import main; main()", "backend"]
REPORT = {
    "schema": "catalogzero.health/1",
    "metrics": {"memory_mb": 41.5, "cpu_percent": 0.1, "status": "idle"},
    "timestamp": "2026-01-01T00:00:00+00:00",
    "outbox": {"uploads": 0, "records": 0, "bytes": 0, "dead": 0},
    "status": "ok",
    "reasons": [],
}

Chunk = list[str]


def chunks_of(rows: int, size: int = CHUNK_ROWS) -> list[Chunk]:
    """Flights, as JSON texts, in chunks."""
    texts = [
        orjson.dumps(
            {
                "year": 2013,
                "month": row % 12 + 1,
                "day": row % 28 + 1,
                "dep_time": row % 2_400,
                "dep_delay": row % 90 - 10,
                "arr_delay": row % 120 - 20,
                "carrier": ("UA", "AA", "B6", "DL")[row % 4],
                "flight": row % 7_000,
                "tailnum": f"N{row % 9_999:05}",
                "origin": ("EWR", "JFK", "LGA")[row % 3],
                "dest": ("IAH", "MIA", "BQN", "ATL")[row % 4],
                "air_time": row % 400 + 30,
                "distance": row % 2_500 + 90,
                "time_hour": f"2013-{row % 12 + 1:02}-{row % 28 + 1:02}T05:00:00Z",
            }
        ).decode()
        for row in range(rows)
    ]
    return [texts[start : start + size] for start in range(0, rows, size)]


@contextmanager
def served(database: str, folder: Path) -> Iterator[tuple[str, str]]:
    """A backend in a process of its own; gives its endpoint and a key."""
    key_file = folder / f"key-{uuid.uuid4().hex}"
    add = ["tenants", "add", f"bench-{uuid.uuid4().hex[:6]}", "--key-file", str(key_file)]
    given = ["--database", database]
    subprocess.run([*COMMAND, *add, *given], check=True, stdout=subprocess.DEVNULL)
    settings = {**os.environ, "CATALOGZERO_BACKEND_MAX_REQUESTS_PER_S": "1000000"}
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", "--json", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a line for each request
        env=settings,
    )
    try:
        assert process.stdout
        yield json.loads(process.stdout.readline())["endpoint"], key_file.read_text().strip()
    finally:
        process.terminate()
        process.wait()


async def upload(endpoint: str, key: str, bodies: list[bytes], size: int) -> float:
    """Seconds to send and complete uploads of a few chunks of this size, over a few connections."""
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/x-ndjson",
        "Content-Encoding": "zstd",
    }
    waiting = [bodies[at : at + UPLOAD_CHUNKS] for at in range(0, len(bodies), UPLOAD_CHUNKS)]

    async def sender(session: aiohttp.ClientSession) -> None:
        while waiting:
            name, parts = uuid.uuid4().hex, waiting.pop(0)
            for seq, body in enumerate(parts):
                url = f"{endpoint}/uploads/{name}/chunks/{seq}"
                async with session.put(url, data=body) as answer:
                    assert answer.status == 201, await answer.text()
            await _complete(session, endpoint, name, len(parts), len(parts) * size)

    async with aiohttp.ClientSession(headers=headers) as session:
        begun = time.perf_counter()
        await asyncio.gather(*(sender(session) for _ in range(CONNECTIONS)))
        return time.perf_counter() - begun


def sqlite_floor(path: Path, chunks: list[Chunk]) -> float:
    """Seconds to `executemany` the rows, a transaction for each chunk."""
    with closing(_sqlite(path)) as database:
        database.execute(
            "CREATE TABLE records (upload_no INTEGER, seq INTEGER, row_index INTEGER,"
            " payload TEXT NOT NULL, PRIMARY KEY (upload_no, seq, row_index)) WITHOUT ROWID"
        )
        begun = time.perf_counter()
        for seq, chunk in enumerate(chunks):
            rows = [(1, seq, index, text) for index, text in enumerate(chunk)]
            database.execute("BEGIN IMMEDIATE")
            database.executemany("INSERT INTO records VALUES (?, ?, ?, ?)", rows)
            database.execute("COMMIT")
        return time.perf_counter() - begun


def postgresql_floor(schema: str, chunks: list[Chunk]) -> float:
    """Seconds to COPY the rows, a transaction for each chunk."""
    with psycopg.connect(POSTGRESQL, options=f"-csearch_path={schema}") as database:
        database.execute(
            "CREATE TABLE floor (upload_no bigint, seq bigint, row_index integer,"
            " payload text NOT NULL, PRIMARY KEY (upload_no, seq, row_index))"
        )
        database.commit()
        begun = time.perf_counter()
        for seq, chunk in enumerate(chunks):
            text = "".join(f"1\t{seq}\t{index}\t{line}\n" for index, line in enumerate(chunk))
            with database.cursor().copy("COPY floor FROM STDIN") as copy:
                copy.write(text)
            database.commit()
        taken = time.perf_counter() - begun
        database.execute("DROP TABLE floor")
        database.commit()
    return taken


def health_floor(path: Path, reports: int) -> float:
    """Seconds for one FULL transaction for each report, by hand."""
    with closing(_sqlite(path)) as database:
        database.execute(
            "CREATE TABLE reports (report_no INTEGER PRIMARY KEY, tenant INTEGER,"
            " installation TEXT, received_at TEXT, report TEXT)"
        )
        text = json.dumps({"client_id": "site-1", **REPORT})
        begun = time.perf_counter()
        for number in range(reports):
            database.execute("BEGIN IMMEDIATE")
            row = (1, f"site-{number}", "2026-01-01T00:00:00+00:00", text)
            database.execute("INSERT INTO reports VALUES (NULL, ?, ?, ?, ?)", row)
            database.execute("COMMIT")
        return time.perf_counter() - begun


async def report_all(endpoint: str, key: str, reports: int) -> float:
    """Seconds until every report is acknowledged, as fast as it goes."""
    async with _reporter(key) as session:
        waiting = list(range(reports))

        async def reporter() -> None:
            while waiting:
                await _report(session, endpoint, waiting.pop())

        begun = time.perf_counter()
        await asyncio.gather(*(reporter() for _ in range(REPORTERS)))
        return time.perf_counter() - begun


async def report_steadily(endpoint: str, key: str) -> list[float]:
    """The latencies in ms of 10,000 installations that report once a minute."""
    latencies: list[float] = []
    async with _reporter(key) as session, asyncio.TaskGroup() as tasks:

        async def one(number: int) -> None:
            begun = time.perf_counter()
            await _report(session, endpoint, number)
            latencies.append((time.perf_counter() - begun) * 1_000)

        begun = time.perf_counter()
        for number in range(int(FLEET_PER_S * FLEET_S)):
            await asyncio.sleep(max(0.0, begun + number / FLEET_PER_S - time.perf_counter()))
            tasks.create_task(one(number))
    return latencies


def measure_rows(folder: Path, rows: int, rounds: int, kind: str, size: int) -> list[Figure]:
    """Rows a second of the backend and of the floor, on one kind of database."""
    chunks = chunks_of(rows - rows % size, size)
    bodies = [zstandard.compress(("\n".join(chunk) + "\n").encode(), 1) for chunk in chunks]
    ours, floor = [], []
    with database_of(folder, kind) as (database, schema), served(database, folder) as (url, key):
        asyncio.run(upload(url, key, bodies[:2], size))
        for number in range(rounds):
            if kind == "sqlite":
                floor.append(rows / sqlite_floor(folder / f"floor-{size}-{number}.db", chunks))
            else:
                floor.append(rows / postgresql_floor(schema, chunks))
            ours.append(rows / asyncio.run(upload(url, key, bodies, size)))
    least = 0.5 if size == SMALL_CHUNK_ROWS else 0.6
    return _beside(f"rows in chunks of {size:,}, {kind}", "the database alone", ours, floor, least)


def measure_health(folder: Path, reports: int, rounds: int) -> list[Figure]:
    """Reports a second of the backend and of the floor, and the p99 of a steady fleet."""
    ours, floor = [], []
    with served(str(folder / "health.db"), folder) as (url, key):
        asyncio.run(report_all(url, key, REPORTERS))
        latencies = asyncio.run(report_steadily(url, key))
        for number in range(rounds):
            floor.append(reports / health_floor(folder / f"reports-{number}.db", reports))
            ours.append(reports / asyncio.run(report_all(url, key, reports)))
    p99 = statistics.quantiles(latencies, n=100)[98]
    what = "p99 of a health report, 10,000 installations once a minute"
    return [
        *_beside("health reports, SQLite", "a transaction each", ours, floor, 2.0),
        Figure(what=what, samples=[p99], unit="ms", at_most=50),
    ]


def measure_append(folder: Path, reports: int, rounds: int) -> list[Figure]:
    """Reports a second of the backend on PostgreSQL, and of a server that only appends them."""
    ours, floor = [], []
    with (
        database_of(folder, "postgresql") as (database, _),
        served(database, folder) as (url, key),
        appending(folder / "reports.jsonl") as bare,
    ):
        for where in (url, bare):
            asyncio.run(report_all(where, key, REPORTERS))
        for _ in range(rounds):
            floor.append(reports / asyncio.run(report_all(bare, key, reports)))
            ours.append(reports / asyncio.run(report_all(url, key, reports)))
    peer = "a bare server that appends"
    return _beside("health reports, PostgreSQL", peer, ours, floor, 0.8)


def measure_growth(
    folder: Path, count: int, installations: Sequence[int], reports: int, rounds: int
) -> Section:
    """A small upload and a health report on an empty database, and on full ones."""
    uploads_ms: dict[int, list[float]] = {}
    reports_ms: dict[int, list[float]] = {}
    with ExitStack() as stack:
        served_at: dict[int, tuple[str, str]] = {}
        for number in (0, *installations):
            if number:
                some = count * number // installations[-1]
                made = stack.enter_context(_filled(folder, some, "postgresql", number))
                url = made.url.render_as_string(hide_password=False)
            else:
                url, _ = stack.enter_context(database_of(folder, "postgresql"))
            served_at[number] = stack.enter_context(served(url, folder))
        for _ in range(rounds):
            for number, (url, key) in served_at.items():
                uploads_ms.setdefault(number, []).append(asyncio.run(_some_uploads(url, key)))
                taken_s = asyncio.run(report_all(url, key, reports))
                reports_ms.setdefault(number, []).append(taken_s * 1_000 / reports)
    figures, series = [], []
    for what, times in (("a small upload", uploads_ms), ("a health report", reports_ms)):
        most = installations[-1]
        full = f"{what} among {count:,} uploads of {most:,} installations"
        figures += [
            Figure(what=f"{what} on an empty database", samples=times[0], unit="ms"),
            Figure(what=full, samples=times[most], unit="ms"),
            Figure(
                what=f"{full} / on an empty one",
                samples=ratios(times[most], times[0]),
                unit="x",
                at_most=1.25,
            ),
        ]
        points = [(number, statistics.median(each)) for number, each in times.items()]
        series.append(Series(what=what, per="installations", unit="ms", points=points))
    return Section(figures=figures, series=series)


async def _some_uploads(endpoint: str, key: str) -> float:
    async with _reporter(key) as session:
        return await _small_uploads(session, endpoint, SMALL_UPLOADS)


async def _complete(
    session: aiohttp.ClientSession, endpoint: str, name: str, chunks: int, records: int
) -> None:
    """Complete an upload of a source of its own."""
    said = {"upload_key": name, "source_key": name, "source_seq": 1, "installation_id": "site"}
    body = orjson.dumps({**said, "chunks": chunks, "records": records})
    form = {"Content-Type": "application/json", "Content-Encoding": "identity"}
    url = f"{endpoint}/uploads/{name}/complete"
    async with session.post(url, data=body, headers=form) as answer:
        assert answer.status == 201, await answer.text()


def measure_fairness(folder: Path) -> list[Figure]:
    """A small upload's p50 in ms beside another tenant's 16 large connections, and alone."""
    rows = "\n".join(itertools.chain.from_iterable(chunks_of(CHUNK_ROWS)))
    body = zstandard.compress(rows.encode(), 1)
    with database_of(folder, "postgresql") as (url, _), served(url, folder) as (endpoint, key):
        other = folder / "other"
        add = ["tenants", "add", "other", "--key-file", str(other), "--database", url]
        subprocess.run([*COMMAND, *add], check=True, stdout=subprocess.DEVNULL)
        alone, beside = asyncio.run(_share(endpoint, key, other.read_text().strip(), body))
    what = f"a small upload beside {HEAVY_CONNECTIONS} heavy connections, PostgreSQL"
    return [
        Figure(what=what, samples=[beside], unit="ms"),
        Figure(what=f"{what} / alone", samples=[beside / alone], unit="x", at_most=3.0),
    ]


async def _share(endpoint: str, key: str, other: str, body: bytes) -> tuple[float, float]:
    """The p50 of small uploads alone, and while another tenant sends what it can."""

    async def heavy(session: aiohttp.ClientSession) -> None:
        headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "zstd"}
        while True:
            where = f"{endpoint}/uploads/{uuid.uuid4().hex}/chunks/0"
            async with session.put(where, data=body, headers=headers) as answer:
                wait_s = float(answer.headers.get("Retry-After", 0))
            await asyncio.sleep(wait_s)

    async with _reporter(key) as small, _reporter(other) as large:
        await _small_uploads(small, endpoint, 20)
        alone = await _small_uploads(small, endpoint, SMALL_UPLOADS)
        sending = [asyncio.create_task(heavy(large)) for _ in range(HEAVY_CONNECTIONS)]
        await asyncio.sleep(1)
        beside = await _small_uploads(small, endpoint, SMALL_UPLOADS)
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
    return alone, beside


async def _small_uploads(session: aiohttp.ClientSession, endpoint: str, count: int) -> float:
    """The median in ms of an upload of one row, sent and completed."""
    taken = []
    for _ in range(count):
        name, begun = uuid.uuid4().hex, time.perf_counter()
        url, form = f"{endpoint}/uploads/{name}", {"Content-Type": "application/x-ndjson"}
        async with session.put(f"{url}/chunks/0", data=b'{"n": 1}', headers=form) as answer:
            assert answer.status == 201, await answer.text()
        await _complete(session, endpoint, name, 1, 1)
        taken.append((time.perf_counter() - begun) * 1_000)
        await asyncio.sleep(0.02)
    return statistics.median(taken)


def measure_housekeeping(folder: Path, count: int, rounds: int, kind: str) -> list[Figure]:
    """Milliseconds of a step that deletes, among few uploads and among many."""
    with _filled(folder, FEW, kind) as few, _filled(folder, count, kind) as many:
        steps = [(_step_ms(few), _step_ms(many)) for _ in range(rounds + 1)]
    small, large = zip(*steps[1:], strict=True)
    what = f"a step of housekeeping among {count:,} uploads, {kind}"
    times = ratios(large, small)
    return [
        Figure(what=what, samples=large, unit="ms"),
        Figure(what=f"{what} / among {FEW}", samples=times, unit="x", at_most=2.0),
    ]


@contextmanager
def _filled(
    folder: Path, count: int, kind: str, installations: int = INSTALLATIONS
) -> Iterator[BackendDatabase]:
    """A database with that number of visible uploads, and of installations."""
    where = database_of(folder, kind, f"filled-{count}")
    with where as (url, _), closing(BackendDatabase(url, FILL_S)) as made:
        with made.writing() as connection:
            if kind == "postgresql":
                connection.execute(text("SET LOCAL statement_timeout = 0"))
            add_tenant(connection, "filled", AT)
            _fill(connection, count, installations)
        if kind == "postgresql":
            engine = create_engine(made.url, isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                connection.execute(text("VACUUM ANALYZE"))
            engine.dispose()
        yield made


def _fill(connection: Connection, count: int, installations: int) -> None:
    """Insert `count` visible uploads of the first tenant, of one chunk with one row each."""
    numbers = select(literal(1).label("i")).cte(recursive=True)
    following = select(numbers.c.i + 1).where(numbers.c.i < count)
    number = (series := numbers.union_all(following)).c.i
    name = literal("u") + cast(number, String)
    rows: dict[Table, dict[str, Any]] = {
        schema.uploads: {
            "upload_no": number,
            "tenant_id": 1,
            "upload_id": name,
            "state": "complete",
            "visible": true(),
            "opened_at": AT,
            "ended_at": AT,
            "job_id": name,
        },
        schema.chunks: {"upload_no": number, "seq": 0, "digest": "", "records": 1, "stored_at": AT},
        schema.records: {"upload_no": number, "seq": 0, "row_index": 0, "payload": '{"row": 1}'},
    }
    for table, values in rows.items():
        columns = [
            one if isinstance(one, ColumnElement) else literal(one) for one in values.values()
        ]
        chosen = select(*columns).select_from(series)
        connection.execute(insert(table).from_select(list(values), chosen))
    seen = {"tenant_id": 1, "first_seen_at": AT, "last_seen_at": AT}
    heard_of = [{**seen, "installation_id": f"old-{n}"} for n in range(installations)]
    insert_many(connection, schema.installations, heard_of)


def _step_ms(database: BackendDatabase) -> float:
    """Hide 50 uploads, and measure the step that deletes their rows."""
    visible = select(schema.uploads.c.upload_no).where(schema.uploads.c.visible)
    some = schema.uploads.c.upload_no.in_(visible.order_by(schema.uploads.c.upload_no).limit(50))
    database.write_now(lambda connection: uploads.hide(connection, some, AT))
    begun = time.perf_counter()
    assert database.write_now(clear_hidden)
    return (time.perf_counter() - begun) * 1_000


def _beside(
    what: str, peer: str, ours: list[float], floor: list[float], least: float
) -> list[Figure]:
    """A rate, that of its peer, and the ratio with its bar."""
    return [
        Figure(what=what, samples=ours, unit="/s"),
        Figure(what=f"{what}: {peer}", samples=floor, unit="/s"),
        Figure(what=f"{what} / {peer}", samples=ratios(ours, floor), unit="x", at_least=least),
    ]


def measure(rows: int, reports: int, uploads: int, installations: str, rounds: int) -> Section:
    """Everything; `installations` has commas between, the most last."""
    numbers = [int(number) for number in installations.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = [
            figure
            for kind in ("sqlite", "postgresql")
            for size in (CHUNK_ROWS, SMALL_CHUNK_ROWS)
            for figure in measure_rows(folder, rows, rounds, kind, size)
        ]
        figures += measure_health(folder, reports, rounds)
        figures += measure_append(folder, reports, rounds)
        growth = measure_growth(folder, uploads, numbers, reports, rounds)
        figures += [*growth.figures, *measure_fairness(folder)]
        for kind in ("sqlite", "postgresql"):
            figures += measure_housekeeping(folder, uploads, rounds, kind)
        return Section(figures=figures, series=growth.series)


def _sqlite(path: Path) -> sqlite3.Connection:
    """A connection as the backend has one."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    return database


@contextmanager
def database_of(folder: Path, kind: str, name: str = "backend") -> Iterator[tuple[str, str]]:
    """A database of one kind, and its schema."""
    if kind == "sqlite":
        yield str(folder / f"{name}.db"), ""
        return
    schema = f"bench_{uuid.uuid4().hex}"
    with psycopg.connect(POSTGRESQL, autocommit=True) as database:
        database.execute(f"CREATE SCHEMA {schema}".encode())
        try:
            yield f"{POSTGRESQL}?options=-csearch_path%3D{schema}", schema
        finally:
            database.execute(f"DROP SCHEMA {schema} CASCADE".encode())


def _reporter(key: str) -> aiohttp.ClientSession:
    """A session that carries the key over many connections."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=REPORTERS)
    return aiohttp.ClientSession(headers=headers, connector=connector)


async def _report(session: aiohttp.ClientSession, endpoint: str, number: int) -> None:
    """Send one installation's report."""
    body = orjson.dumps({"client_id": f"site-{number % 10_000}", **REPORT})
    async with session.post(endpoint + "/health", data=body) as answer:
        assert answer.status == 200, await answer.text()


if __name__ == "__main__":
    sys.exit(main(__name__))

"""A served backend on each kind of database, and a client that holds a tenant's key."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
import pytest
from catalogzero.backend import BackendSettings, create_app
from catalogzero.backend.server import serving
from catalogzero.backend.store import BackendDatabase
from catalogzero.backend.tenants import add_tenant
from sqlalchemy import create_engine, text

POSTGRESQL = os.environ.get(
    "CATALOGZERO_TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432/test"
)
NDJSON = {"Content-Type": "application/x-ndjson"}
AT = "2026-01-01T00:00:00.000+00:00"


def postgresql_url() -> Iterator[str]:
    """A schema of its own, dropped at the end."""
    schema = f"backend_{uuid.uuid4().hex}"
    engine = create_engine(POSTGRESQL.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {schema}"))
    except Exception as error:  # noqa: BLE001 - whatever keeps it away is the reason shown
        pytest.skip(f"no PostgreSQL at {POSTGRESQL}: {type(error).__name__}")
    yield f"{POSTGRESQL}?options=-csearch_path%3D{schema}"
    with engine.begin() as connection:
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    engine.dispose()


KINDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)]


@dataclass
class Answer:
    """A response, read to its end."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        """The JSON body."""
        return orjson.loads(self.body)

    @property
    def problem(self) -> str:
        """The last word of the problem's type."""
        return str(self.json["type"]).rpartition(":")[2]


class Peer:
    """What a tenant's installation, and its operator, can ask of a served backend."""

    def __init__(
        self, url: str, name: str, key: str, session: aiohttp.ClientSession, database: str
    ) -> None:
        self.url, self.name, self.key = url, name, key
        self.session, self.database = session, database

    async def ask(self, method: str, path: str, **request: Any) -> Answer:
        """Send one request with the key; `headers` of the request's own win."""
        headers = {"Authorization": f"Bearer {self.key}", **request.pop("headers", {})}
        sent = self.session.request(method, self.url + path, headers=headers, **request)
        async with sent as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def put(self, upload: str, seq: int, *records: Any, **request: Any) -> Answer:
        """Send one chunk of records as JSON Lines."""
        body = b"".join(orjson.dumps(record) + b"\n" for record in records)
        headers = {**NDJSON, **request.pop("headers", {})}
        path = f"/v1/uploads/{upload}/chunks/{seq}"
        return await self.ask("PUT", path, data=request.pop("data", body), headers=headers)

    async def complete(self, upload: str, **fields: Any) -> Answer:
        """Complete an upload; what is not given is as for one chunk of one record."""
        return await self.ask("POST", f"/v1/uploads/{upload}/complete", json=completion(**fields))

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """What the database answers to a query; `:tenant` is the peer's tenant."""
        database = BackendDatabase(self.database)
        try:
            return database.read_now(
                lambda connection: [
                    tuple(row) for row in connection.execute(text(statement), {"tenant": self.name})
                ]
            )
        finally:
            database.close()

    def execute(self, statement: str) -> None:
        """Change the database behind the backend's back; `:tenant` is the peer's tenant."""
        database, given = BackendDatabase(self.database), {"tenant": self.name}
        try:
            database.write_now(lambda connection: connection.execute(text(statement), given))
        finally:
            database.close()

    def visible(self) -> list[Any]:
        """The tenant's records that can be seen, in order of their upload."""
        rows = self.sql(
            "SELECT payload FROM visible_records WHERE tenant = :tenant"
            " ORDER BY upload_id, source_seq, seq, row_index"
        )
        return [orjson.loads(row[0]) for row in rows]


def completion(**fields: Any) -> dict[str, Any]:
    """A body of `complete`."""
    body = {
        "upload_key": "key-1",
        "source_key": "source-1",
        "source_seq": 1,
        "mode": "replace",
        "full": False,
        "chunks": 1,
        "records": 1,
        "stream": "flights",
        "source": "2013.csv",
        "params": {},
        "entry": "skylark",
        "version": "1.0",
        "installation_id": "site-1",
    }
    return {**body, **fields}


@asynccontextmanager
async def serve_peer(database_url: str, **options: Any) -> AsyncIterator[Peer]:
    """A served backend with one tenant; `options` are settings, `hook` and `clock` aside."""
    name = f"tenant-{uuid.uuid4().hex[:8]}"
    database = BackendDatabase(database_url)
    key = database.write_now(lambda connection: add_tenant(connection, name, AT))
    database.close()
    hook, clock = options.pop("hook", None), options.pop("clock", None)
    settings = BackendSettings(database=database_url, **options)
    app = create_app(settings, on_upload_completed=hook, clock=clock)
    async with serving(app) as url, aiohttp.ClientSession() as session:
        yield Peer(url, name, key, session, database_url)

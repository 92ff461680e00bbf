"""Every store that keeps a schema version, behind one face: opened, written, read, spoilt."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from catalogzero.backend import schema as backend_schema
from catalogzero.backend import store as backend_store
from catalogzero.backend.tenants import add_tenant
from catalogzero.clock import SystemClock
from catalogzero.cloud.outbox import outbox_file
from catalogzero.cloud.outbox.outbox import Opening, Outbox
from catalogzero.scheduler import schema as scheduler_schema
from catalogzero.scheduler.store import Store as SchedulerStore
from catalogzero.sql import sqlite as files
from conductorzero import history
from conductorzero.board import Event
from conductorzero.history import History

from tests.scheduler.simulation import make_schedule

NOW = SystemClock().now()
TIMEOUT_S = 0.5


@dataclass(frozen=True)
class Store:
    """A kind of store in a place of the test's own.

    `open` gives what is open; `write` puts one row in it that `read` then sees. `file` is its
    SQLite file, or None; `url` reaches it without the store.
    """

    open: Callable[[], Any]
    write: Callable[[Any], object]
    read: Callable[[Any], list[str]]
    url: str
    file: Path | None
    set_version: str
    add_step: Callable[[pytest.MonkeyPatch], None]
    table: str

    def execute(self, *statements: str) -> list[Any]:
        """The rows of the last statement, each as if another program wrote them."""
        engine = sa.create_engine(sa.make_url(self.url), poolclass=sa.NullPool)
        with engine.begin() as connection:
            *first, last = (sa.text(statement) for statement in statements)
            for statement in first:
                connection.execute(statement)
            done = connection.execute(last)
            return list(done.scalars()) if done.returns_rows else []


def _files_add_step(module: Any, name: str, table: str) -> Callable[[pytest.MonkeyPatch], None]:
    def add(patch: pytest.MonkeyPatch) -> None:
        step = f"ALTER TABLE {table} ADD COLUMN note TEXT DEFAULT 'new'"
        patch.setattr(module, name, (*getattr(module, name), step))

    return add


def _schema_add_step(module: Any, table: str) -> Callable[[pytest.MonkeyPatch], None]:
    def add(patch: pytest.MonkeyPatch) -> None:
        step = sa.text(f"ALTER TABLE {table} ADD COLUMN note VARCHAR(9) DEFAULT 'new'")
        known = module.SCHEMA.upgrades
        newer = replace(module.SCHEMA, upgrades=(*known, lambda at: at.execute(step)))
        patch.setattr(module, "SCHEMA", newer)

    return add


def outbox(folder: Path, url: str | None) -> Store:
    """The outbox of a handler."""
    path = folder / "made" / "outbox.sqlite"
    return Store(
        open=lambda: Outbox(path.parent, SystemClock(), repair=False),
        write=lambda it: it.begin(
            Opening("kept", "key", "a.csv", "replace", full=False, params={})
        ),
        read=lambda it: [upload.upload_id for upload in it.store.uploads()],
        url=f"sqlite:///{path}",
        file=path,
        set_version="PRAGMA user_version=99",
        add_step=_files_add_step(outbox_file, "MIGRATIONS", "uploads"),
        table="uploads",
    )


def conductor(folder: Path, url: str | None) -> Store:
    """The conductor's history."""
    path = folder / "made" / "history.sqlite3"
    return Store(
        open=lambda: History(path),
        write=lambda it: it.write(0, {}, [Event(1, NOW, "kept", "state", "text", "idle")]),
        read=lambda it: [event["handler_id"] for event in it.events(None, 9)],
        url=f"sqlite:///{path}",
        file=path,
        set_version="PRAGMA user_version=99",
        add_step=_files_add_step(history, "STEPS", "event"),
        table="event",
    )


def backend(folder: Path, url: str | None) -> Store:
    """The backend's database."""
    path = folder / "made" / "backend.db"
    where = url or f"sqlite:///{path}"
    names = sa.select(backend_schema.tenants.c.name)
    return Store(
        open=lambda: backend_store.BackendDatabase(where, TIMEOUT_S),
        write=lambda it: it.write_now(lambda c: add_tenant(c, "kept", NOW.isoformat())),
        read=lambda it: it.read_now(lambda c: list(c.scalars(names))),
        url=where.replace("postgresql:", "postgresql+psycopg:"),
        file=None if url else path,
        set_version="UPDATE backend_schema SET version = 99",
        add_step=_schema_add_step(backend_schema, "tenants"),
        table="tenants",
    )


def scheduler(folder: Path, url: str | None) -> Store:
    """The scheduler's database."""
    path = folder / "made" / "scheduler.db"
    where = url or str(path)
    return Store(
        open=lambda: SchedulerStore(where, answer_s=TIMEOUT_S, holds=scheduler_schema.SCHEMA),
        write=lambda it: it.add_schedule(make_schedule(job_id="kept")),
        read=lambda it: [schedule.job_id for schedule in it.list_schedules()],
        url=(url or f"sqlite:///{path}").replace("postgresql:", "postgresql+psycopg:"),
        file=None if url else path,
        set_version="UPDATE scheduler_version SET version = 99",
        add_step=_schema_add_step(scheduler_schema, "scheduler_schedules"),
        table="scheduler_schedules",
    )


FILES = {"outbox": outbox, "conductor": conductor, "backend": backend, "scheduler": scheduler}
SERVERS = {"backend-postgresql": backend, "scheduler-postgresql": scheduler}


def hold(path: Path) -> closing[sqlite3.Connection]:
    """A connection of another process's kind, that lets nobody else at the file."""
    holder = sqlite3.connect(path, isolation_level=None)
    for statement in ("PRAGMA locking_mode=EXCLUSIVE", "BEGIN EXCLUSIVE"):
        holder.execute(statement).fetchall()
    return closing(holder)


def short_waits(patch: pytest.MonkeyPatch) -> None:
    """Files wait for a lock no longer than databases do here."""
    patch.setattr(files, "BUSY_TIMEOUT_S", TIMEOUT_S)

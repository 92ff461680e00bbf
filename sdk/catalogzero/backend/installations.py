"""Installations in the database: what runs there, which epoch they took, what is known of them.

Owns the rows of `installations`, but for what reports say; every function takes the connection of a
running transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection, Row, and_, select, update
from sqlalchemy.sql import ColumnElement

from catalogzero.backend import generations, store, witness
from catalogzero.backend.schema import installations, sources, tenants
from catalogzero.backend.store import Columns
from catalogzero.errors import ConfigError
from catalogzero.protocol.bodies import Installation
from catalogzero.protocol.problems import Kind, ProblemError
from catalogzero.wire.messages import JsonObject

KEY = ("tenant_id", "installation_id")
HELD_COLUMNS = [
    installations.c[name]
    for name in (
        *("tenant_id", "installation_id", "registered_at", "epoch", "epoch_at", "epoch_nonces"),
        *("generation", "last_number", "last_upload_id"),
    )
]
PAGE_SOURCES, PAGE_BYTES = 1_000, 1 << 19
KEPT_NONCES = 64
MAX_LABELS = 16


@dataclass(slots=True)
class SourcesPage:
    """A part of what is known of an installation: its answer's body."""

    generation: str
    epoch: int
    states: dict[str, JsonObject] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    next: str | None = None
    acknowledged: JsonObject | None = None


def held(connection: Connection, tenant_id: int, installation_id: str, at: str) -> Row[Any]:
    """The installation's row, made where there is none, and locked to the transaction's end."""
    key = {"tenant_id": tenant_id, "installation_id": installation_id}
    new = {"first_seen_at": at, "last_seen_at": at, "seen_s": unix_s(at)}
    return store.held(connection, installations, key, new, *HELD_COLUMNS)


def seen(connection: Connection, row: Row[Any], at: str, **columns: Any) -> None:
    """Note that an installation was heard from at `at`, with what else became known."""
    changes = {"last_seen_at": at, "seen_s": unix_s(at), "removed_at": None, **columns}
    one = _one(row.tenant_id, row.installation_id)
    connection.execute(update(installations).where(one).values(**changes))


def register(
    connection: Connection, tenant_id: int, installation_id: str, body: Installation, at: str
) -> tuple[bool, SourcesPage]:
    """Store what an installation says of itself; a client that knows epochs takes the next one.

    Returns:
        Whether it registers for the first time, and the first page of its sources; all of them in
        `sources` for a client that asks for no further page.

    Raises:
        ProblemError: Another folder took a later epoch, or the start is for another generation.
    """
    row = held(connection, tenant_id, installation_id, at)
    columns: Columns = {
        "registered_at": at,
        "entry": body.entry,
        "version": body.version,
        "handler": body.handler,
        "host": orjson.dumps(body.host).decode(),
        "methods": orjson.dumps(body.methods).decode(),
    }
    if body.epoch is not None:
        taken = orjson.loads(row.epoch_nonces)
        generation = generations.of(generations.current(connection), row.generation)
        with generations.named(generation):
            if body.generation not in (None, generation):
                raise ProblemError(
                    Kind.GENERATION_CHANGED,
                    "this start is for another generation of the backend, and takes no epoch: "
                    "start again, for the one that is named here",
                    generation=generation,
                )
            if is_older(body, row.epoch, taken):
                raise _moved(row)
        now_ms = int(datetime.fromisoformat(at).timestamp() * 1000)
        # not below the clock: a database of before a restore gives no epoch a second time
        columns["epoch"] = max(row.epoch + 1, body.epoch + 1, now_ms)
        nonces = [body.nonce, *taken][:KEPT_NONCES]
        columns |= {"epoch_at": at, "epoch_nonces": orjson.dumps(nonces).decode()}
    seen(connection, row, at, **columns)
    page = page_of(connection, tenant_id, installation_id)
    if body.epoch is None:
        known = select(sources.c.source_key, sources.c.highest_seq)
        found = connection.execute(known.where(_known(tenant_id, installation_id)))
        page.sources = {row.source_key: row.highest_seq for row in found}
    return row.registered_at is None, page


def set_labels(
    connection: Connection, tenant: str, installation_id: str, changes: Mapping[str, str]
) -> dict[str, str]:
    """Change the operator's labels of an installation; an empty value takes a label away.

    Returns:
        All of its labels now.

    Raises:
        ConfigError: There is no such installation, or it would have too many labels.
    """
    tenant_id = connection.scalar(select(tenants.c.tenant_id).where(tenants.c.name == tenant))
    one = _one(-1 if tenant_id is None else tenant_id, installation_id)
    found = connection.scalar(select(installations.c.labels).where(one).with_for_update())
    if found is None:
        raise ConfigError(
            f"{tenant!r} has no installation {installation_id!r}: the fleet page lists them"
        )
    known = {**orjson.loads(found), **changes}
    labels = {name: known[name] for name in sorted(known) if known[name]}
    if len(labels) > MAX_LABELS:
        raise ConfigError(f"an installation has at most {MAX_LABELS} labels")
    stored = orjson.dumps(labels).decode()
    connection.execute(update(installations).where(one).values(labels=stored))
    return labels


def admit(connection: Connection, row: Row[Any], epoch: int | None, at: str) -> None:
    """Let an upload of the folder with this epoch pass; `row` is the installation's, held.

    Raises:
        ProblemError: Another folder took a later epoch.
    """
    if (epoch or 0) < row.epoch:
        raise _moved(row)
    # this database was put back: the folder took its epoch from what is gone
    if epoch is not None and epoch > row.epoch:
        one = _one(row.tenant_id, row.installation_id)
        connection.execute(update(installations).where(one).values(epoch=epoch, epoch_at=at))


def page_of(
    connection: Connection, tenant_id: int, installation_id: str, above: int = 0
) -> SourcesPage:
    """What is known of an installation's sources, from a place in their order on.

    Raises:
        ProblemError: There is no such installation.
    """
    one = select(installations).where(_one(tenant_id, installation_id))
    found = connection.execute(one).one_or_none()
    if found is None:
        raise ProblemError(Kind.NOT_FOUND, "no installation of that id is known")
    generation = generations.of(generations.current(connection), found.generation)
    page, size = SourcesPage(generation, found.epoch, acknowledged=witness.last_of(found)), 0
    rows = connection.execute(
        select(sources)
        .where(_known(tenant_id, installation_id), sources.c.source_id > above)
        .order_by(sources.c.source_id)
        # one more than a page: whether there is another
        .limit(PAGE_SOURCES + 1)
    ).all()
    for row in rows:
        size += len(row.source_key) + len(row.watermark)
        # one at least, however long its key is: else a client would ask for ever
        if len(page.states) == PAGE_SOURCES or (page.states and size > PAGE_BYTES):
            page.next = str(above)
            return page
        page.states[row.source_key] = {
            "source_seq": row.highest_seq,
            "watermark": orjson.loads(row.watermark),
            "full_seq": row.full_seq,
            "mode": row.mode,
        }
        if row.removed_in == page.generation:
            page.states[row.source_key]["removed"] = True
        page.sources[row.source_key], above = row.highest_seq, row.source_id
    return page


def unix_s(at: str) -> int:
    """A stored time in Unix seconds."""
    return int(datetime.fromisoformat(at).timestamp())


def _one(tenant_id: int, installation_id: str) -> ColumnElement[bool]:
    return and_(
        installations.c.tenant_id == tenant_id, installations.c.installation_id == installation_id
    )


def _known(tenant_id: int, installation_id: str) -> ColumnElement[bool]:
    """The installation's sources of which something was completed."""
    return and_(
        sources.c.tenant_id == tenant_id,
        sources.c.installation_id == installation_id,
        sources.c.highest_seq > 0,
    )


def is_older(body: Installation, epoch: int, taken: list[str]) -> bool:
    """Whether a start comes from a folder whose place was taken, or is an old request come late.

    `taken` are the nonces of the last starts, the newest first. Who made the newest is no other
    folder, by the nonce of this start or of the last one: a start that was repeated on its way.
    """
    newest = taken[0] if taken else ""
    if newest and newest in (body.nonce, body.last_nonce):
        return False
    if body.nonce and body.nonce in taken:
        return True
    return 0 < (body.epoch or 0) < epoch


def _moved(row: Row[Any]) -> ProblemError:
    return ProblemError(
        Kind.INSTALLATION_MOVED,
        "another folder took this installation over: catalogzero installation adopt takes it "
        "back, catalogzero installation new makes this folder one of its own",
        since=row.epoch_at,
    )

"""Removing for good what is kept of a tenant, an installation or a source.

Owns the order in which things go, in bounded transactions that a kill may end at any point: whoever
removes the same again, and housekeeping, goes on with it. Of a tenant nothing stays. Of a source
its key, numbers and watermark stay, and of an installation its epoch beside those of its sources,
so that no client takes for missing what was removed and sends it again; of an upload that it is
finished.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Table,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from catalogzero.backend import feed, generations
from catalogzero.backend.clearing import UPLOADS_A_STEP, Cleared, clear, delete_some
from catalogzero.backend.schema import (
    IS_SIMPLE,
    chunks,
    health_reports,
    installation_hours,
    installations,
    removals,
    sources,
    tenant_keys,
    tenants,
    uploads,
)
from catalogzero.backend.store import Database
from catalogzero.backend.tenants import tenant_id_of
from catalogzero.backend.uploads import hide, key_digest
from catalogzero.clock import Clock
from catalogzero.errors import ConfigError

SOURCES_A_STEP = 100
_OF_UPLOAD = "stream source params entry version upload_key key_digest mode source_seq chunks"
_NO_NAMES = dict.fromkeys(
    [*_OF_UPLOAD.split(), "records", "clear_since", "hook_due_at", "hook_failed_at", "hook_error"]
)
"""What goes of a finished upload beside its rows."""
_OF_INSTALLATION = "registered_at entry version handler host methods last_upload_at health_at"
_OF_REPORT = "health_report waiting waiting_bytes oldest_age_s dead missing"
_NOT_HEARD_OF = {
    **dict.fromkeys([*_OF_INSTALLATION.split(), *_OF_REPORT.split()]),
    **{"status": "unknown", "reasons": "", "labels": "{}"},
}


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be removed: a source, a whole installation, or a whole tenant."""

    tenant: str
    installation_id: str | None = None
    source_key: str | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a removal deleted, also over interruptions; times are ISO 8601.

    `removed` counts what is gone by kind, `transactions` what it took. `unfinished_uploads` are
    those of the tenant of which nobody knows yet what they are of: they are no part of the removal
    of a source or installation, and go when they are not completed in time. With `dry_run` nothing
    was removed, and `removed` counts what would be.
    """

    tenant: str
    installation_id: str | None
    source_key: str | None
    dry_run: bool
    began_at: str
    ended_at: str
    removed: dict[str, int]
    transactions: int
    unfinished_uploads: int


def remove(database: Database, target: Target, clock: Clock) -> Receipt:
    """Remove a target, one bounded transaction after the other, and say what is gone.

    Raises:
        ConfigError: There is no such tenant, installation or source.
    """

    def now() -> str:
        return clock.now().isoformat(timespec="milliseconds")

    number = database.write_now(lambda connection: _begin(connection, target, now()))
    while database.write_now(lambda connection: step(connection, number, now())):
        pass
    return database.read_now(lambda connection: _receipt(connection, target, number))


def preview(connection: Connection, target: Target, at: str) -> Receipt:
    """What `remove` would remove now.

    Raises:
        ConfigError: There is no such tenant, installation or source.
    """
    tenant_id = _find(connection, target)
    own = _sources_of(tenant_id, target.installation_id, target.source_key)
    its_uploads, reports = _tenant_is(uploads, tenant_id), _tenant_is(health_reports, tenant_id)
    found: dict[str, int] = {}
    if target.installation_id is None:
        keys = select(tenant_keys.c.key_id).where(_tenant_is(tenant_keys, tenant_id))
        found["keys"] = _count(connection, keys)
    else:
        of_source = uploads.c.source_id.in_(select(sources.c.source_id).where(own))
        simple = and_(IS_SIMPLE, uploads.c.installation_id == target.installation_id)
        whole = target.source_key is None
        named = and_(of_source, uploads.c.key_digest.is_not(None))
        its_uploads = and_(its_uploads, or_(named, simple) if whole else named)
        reports = and_(reports, health_reports.c.installation_id == target.installation_id)
    held = select(func.count(), func.coalesce(func.sum(chunks.c.records), 0)).select_from(
        chunks.join(uploads)
    )
    stored = connection.execute(held.where(its_uploads)).one()
    found["uploads"] = _count(connection, select(uploads.c.upload_no).where(its_uploads))
    found |= {"chunks": int(stored[0]), "records": int(stored[1])}
    found["sources"] = _count(connection, select(sources.c.source_id).where(own))
    if target.source_key is None:
        numbers = select(health_reports.c.report_no).where(reports)
        found["health_reports"] = _count(connection, numbers)
        some = installations.c.installation_id
        which = _tenant_is(installations, tenant_id)
        if target.installation_id is not None:
            which = and_(which, some == target.installation_id)
        found["installations"] = _count(connection, select(some).where(which))
    left = _unfinished_uploads(connection, tenant_id)
    of_tenant = target.installation_id is None
    return Receipt(
        **_named(target),
        dry_run=True,
        began_at=at,
        ended_at=at,
        removed={kind: count for kind, count in found.items() if count},
        transactions=0,
        unfinished_uploads=0 if of_tenant else left,
    )


def unfinished(connection: Connection) -> list[int]:
    """The removals that did not come to their end."""
    return list(
        connection.scalars(select(removals.c.removal_no).where(removals.c.ended_at.is_(None)))
    )


def step(connection: Connection, number: int, at: str) -> bool:
    """One bounded part of a removal; whether there may be more."""
    one = removals.c.removal_no == number
    removal = connection.execute(select(removals).where(one).with_for_update()).one()
    if removal.ended_at is not None:
        return False
    counts = Counter(orjson.loads(removal.counts))
    work = _remove_tenant if removal.installation_id is None else _remove_sources
    values: dict[str, Any] = {}
    more = work(connection, removal, counts, values, at)
    counts["transactions"] += 1
    values["counts"] = orjson.dumps(counts).decode()
    values["ended_at"] = None if more else at
    connection.execute(update(removals).where(one).values(**values))
    return more


def _begin(connection: Connection, target: Target, at: str) -> int:
    """Note the removal, or find the one of the same target that was not finished; its number."""
    tenant_id = _find(connection, target)
    key = {
        "tenant_id": tenant_id,
        "installation_id": target.installation_id,
        "source_key": target.source_key,
    }
    same = and_(*(removals.c[name].is_not_distinct_from(value) for name, value in key.items()))
    begun = select(removals.c.removal_no).where(same, removals.c.ended_at.is_(None))
    number = connection.scalar(begun)
    if number is not None:
        return int(number)
    counts: dict[str, int] = {}
    if target.installation_id is None:
        mine = _tenant_is(tenant_keys, tenant_id)
        counts["keys"] = connection.execute(delete(tenant_keys).where(mine)).rowcount
    row = {**key, "began_at": at, "counts": orjson.dumps(counts).decode()}
    made = connection.execute(insert(removals).values(row)).inserted_primary_key
    return int(made[0]) if made else 0


def _remove_tenant(
    connection: Connection,
    removal: Row[Any],
    counts: Counter[str],
    values: dict[str, Any],
    at: str,
) -> bool:
    """Delete some of a tenant's rows, and at last the tenant's own; whether there may be more."""
    tenant_id = removal.tenant_id
    if _delete_uploads(connection, tenant_id, counts, at):
        return True
    for table in (health_reports, installation_hours, sources):
        gone = delete_some(connection, table, _tenant_is(table, tenant_id))
        if table is not installation_hours:
            counts[str(table.name)] += gone
        if gone:
            return True
    # Whoever writes for the tenant holds its row, and is awaited here; none comes afterwards
    own = tenants.c.tenant_id == tenant_id
    connection.execute(select(tenants.c.tenant_id).where(own).with_for_update())
    if _delete_uploads(connection, tenant_id, counts, at):
        return True
    fleet = delete(installations).where(_tenant_is(installations, tenant_id))
    counts["installations"] += connection.execute(fleet).rowcount
    counts["tenants"] += connection.execute(delete(tenants).where(own)).rowcount
    return False


def _delete_uploads(connection: Connection, tenant_id: int, counts: Counter[str], at: str) -> bool:
    """Delete some of a tenant's uploads with their rows; whether there were any."""
    first = select(uploads.c.upload_no).where(_tenant_is(uploads, tenant_id))
    victims = _take(connection, first.order_by(uploads.c.upload_id))
    cleared = clear(connection, victims)
    feed.note_removed(connection, cleared.whole, at)
    connection.execute(delete(uploads).where(uploads.c.upload_no.in_(cleared.whole)))
    _add(counts, cleared)
    return bool(victims)


def _remove_sources(
    connection: Connection,
    removal: Row[Any],
    counts: Counter[str],
    values: dict[str, Any],
    at: str,
) -> bool:
    """Empty the next sources of an installation, then its simple form, then what it says of itself.

    The installation is locked, so that what a client completes comes before or after this.
    """
    of_installation = {"tenant_id": removal.tenant_id, "installation_id": removal.installation_id}
    held = select(installations.c.generation).filter_by(**of_installation).with_for_update()
    own = connection.scalar(held) or ""
    which = _sources_of(removal.tenant_id, removal.installation_id, removal.source_key)
    following = select(sources.c.source_id).where(which, sources.c.source_id > removal.up_to)
    first = following.order_by(sources.c.source_id).limit(SOURCES_A_STEP)
    ids = connection.scalars(first).all()
    if ids:
        counts["sources"] += _mark(connection, own, ids, at)
        of_them = uploads.c.source_id.in_(ids)
        shown = select(uploads.c.upload_no).where(of_them, uploads.c.visible)
        hidden = hide(connection, uploads.c.upload_no.in_(_take(connection, shown)), at)
        named = and_(of_them, ~uploads.c.visible, uploads.c.key_digest.is_not(None))
        if not _empty(connection, named, counts, at) and not hidden:
            values["up_to"] = ids[-1]
        return True
    if removal.source_key is not None:
        return False
    simple = and_(IS_SIMPLE, *(uploads.c[name] == one for name, one in of_installation.items()))
    shown = select(uploads.c.upload_no).where(simple, uploads.c.visible)
    hidden = hide(connection, uploads.c.upload_no.in_(_take(connection, shown)), at)
    old = and_(simple, ~uploads.c.visible)
    if _empty(connection, old, counts, at, installation_id=None) or hidden:
        return True
    mine = and_(*(health_reports.c[name] == one for name, one in of_installation.items()))
    gone = delete_some(connection, health_reports, mine)
    counts["health_reports"] += gone
    if gone:
        return True
    connection.execute(delete(installation_hours).filter_by(**of_installation))
    own = update(installations).filter_by(**of_installation)
    emptied = connection.execute(own.values(**_NOT_HEARD_OF, removed_at=at))
    counts["installations"] += emptied.rowcount
    return False


def _mark(connection: Connection, own: str, ids: Any, at: str) -> int:
    """Note that sources are removed, in the installation's generation; how many were not before."""
    generation = generations.of(generations.current(connection), own)
    new = sources.c.removed_in.is_distinct_from(generation)
    marked = update(sources).where(sources.c.source_id.in_(ids), new)
    return connection.execute(marked.values(removed_at=at, removed_in=generation)).rowcount


def _empty(
    connection: Connection,
    which: ColumnElement[bool],
    counts: Counter[str],
    at: str,
    **values: Any,
) -> bool:
    """Delete rows and names of some finished uploads; whether there were any."""
    victims = _take(connection, select(uploads.c.upload_no).where(which))
    cleared = clear(connection, victims)
    feed.note_removed(connection, cleared.whole, at)
    bare = update(uploads).where(uploads.c.upload_no.in_(cleared.whole))
    connection.execute(bare.values(**_NO_NAMES, **values))
    _add(counts, cleared)
    return bool(victims)


def _take(connection: Connection, which: Any) -> Any:
    """The first of these uploads, locked."""
    return connection.scalars(which.limit(UPLOADS_A_STEP).with_for_update()).all()


def _add(counts: Counter[str], cleared: Cleared) -> None:
    counts.update(uploads=len(cleared.whole), chunks=cleared.chunks, records=cleared.records)


def _find(connection: Connection, target: Target) -> int:
    """The target's tenant, where all that it names is there."""
    tenant_id = tenant_id_of(connection, target.tenant)
    if target.installation_id is not None:
        key = {"tenant_id": tenant_id, "installation_id": target.installation_id}
        if not _count(connection, select(installations.c.installation_id).filter_by(**key)):
            raise ConfigError(
                f"{target.tenant!r} has no installation {target.installation_id!r}: "
                f"`catalogzero backend installations list {target.tenant}` shows them"
            )
    if target.source_key is not None:
        which = _sources_of(tenant_id, target.installation_id, target.source_key)
        if not _count(connection, select(sources.c.source_id).where(which)):
            raise ConfigError(
                f"{target.installation_id!r} has no source {target.source_key!r}: `catalogzero "
                f"backend sources list {target.tenant} {target.installation_id}` shows them"
            )
    return tenant_id


def _receipt(connection: Connection, target: Target, number: int) -> Receipt:
    """What the removal noted of itself."""
    row = connection.execute(select(removals).where(removals.c.removal_no == number)).one()
    counts = orjson.loads(row.counts)
    transactions = counts.pop("transactions", 0)
    counts.pop("tenants", None)
    return Receipt(
        **_named(target),
        dry_run=False,
        began_at=row.began_at,
        ended_at=row.ended_at,
        removed={kind: count for kind, count in counts.items() if count},
        transactions=transactions,
        unfinished_uploads=_unfinished_uploads(connection, row.tenant_id),
    )


def _named(target: Target) -> dict[str, Any]:
    return {
        "tenant": target.tenant,
        "installation_id": target.installation_id,
        "source_key": target.source_key,
    }


def _sources_of(
    tenant_id: int, installation_id: str | None, source_key: str | None
) -> ColumnElement[bool]:
    """The sources of a target."""
    which = [_tenant_is(sources, tenant_id)]
    if installation_id is not None:
        which.append(sources.c.installation_id == installation_id)
    if source_key is not None:
        which.append(sources.c.key_digest == key_digest(source_key))
    return and_(*which)


def _unfinished_uploads(connection: Connection, tenant_id: int) -> int:
    still_open = and_(_tenant_is(uploads, tenant_id), uploads.c.ended_at.is_(None))
    return _count(connection, select(uploads.c.upload_no).where(still_open))


def _count(connection: Connection, rows: Any) -> int:
    """How many rows a statement has."""
    return connection.scalar(select(func.count()).select_from(rows.subquery())) or 0


def _tenant_is(table: Table, tenant_id: int) -> ColumnElement[bool]:
    found: ColumnElement[bool] = table.c.tenant_id == tenant_id
    return found

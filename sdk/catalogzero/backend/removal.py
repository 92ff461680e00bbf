"""Removing for good what is kept of a tenant, an installation or a source.

Owns the order in which things go, in bounded transactions that a kill may end at any point: whoever
removes the same again, and housekeeping, goes on with it. Of a tenant nothing stays. Of a source
its key, numbers and watermark stay, and of an installation its epoch beside those of its sources,
so that no client takes for missing what was removed and sends it again; of an upload that it is
finished.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson
import sqlalchemy as sa

from catalogzero.backend import feed, generations
from catalogzero.backend.clearing import STEP, StepSize, clear, delete_some
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
from catalogzero.backend.store import BackendDatabase, count_rows
from catalogzero.backend.tenants import tenant_id_of
from catalogzero.backend.uploads import hide, key_digest
from catalogzero.clock import Clock
from catalogzero.errors import ConfigError

_OF_UPLOAD = (
    "stream source params entry version upload_key key_digest mode merge_key source_seq chunks"
)
_NO_NAMES = dict.fromkeys(
    [*_OF_UPLOAD.split(), "records", "clear_since", "hook_due_at", "hook_failed_at", "hook_error"]
)
"""What goes of a finished upload beside its rows."""
_OF_INSTALLATION = "registered_at entry version handler host methods last_upload_at health_at"
_OF_REPORT = "health_report waiting waiting_bytes oldest_age_s dead missing"
_NOT_HEARD_OF = {
    **dict.fromkeys([*_OF_INSTALLATION.split(), *_OF_REPORT.split()]),
    **{"status": "unknown", "reasons": "", "labels": "{}", "cause": "", "status_since": None},
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


def remove(
    database: BackendDatabase, target: Target, clock: Clock, size: StepSize = STEP
) -> Receipt:
    """Remove a target, one bounded transaction after the other, and say what is gone.

    Raises:
        ConfigError: There is no such tenant, installation or source.
    """

    def now() -> str:
        return clock.now().isoformat(timespec="milliseconds")

    number = database.write_now(lambda connection: begin(connection, target, now()))
    while database.write_now(lambda connection: step(connection, number, now(), size)):
        pass
    return database.read_now(lambda connection: _receipt(connection, target, number))


def preview(connection: sa.Connection, target: Target, at: str) -> Receipt:
    """What `remove` would remove now.

    Raises:
        ConfigError: There is no such tenant, installation or source.
    """
    tenant_id = _find(connection, target)
    of_tenant, whole = target.installation_id is None, target.source_key is None
    own = _sources_of(tenant_id, target)
    its_uploads = uploads.c.tenant_id == tenant_id
    reports = health_reports.c.tenant_id == tenant_id
    places = installations.c.tenant_id == tenant_id
    if not of_tenant:
        of_source = uploads.c.source_id.in_(sa.select(sources.c.source_id).where(own))
        named = sa.and_(of_source, uploads.c.key_digest.is_not(None))
        simple = sa.and_(IS_SIMPLE, uploads.c.installation_id == target.installation_id)
        its_uploads = sa.and_(its_uploads, sa.or_(named, simple) if whole else named)
        reports = sa.and_(reports, health_reports.c.installation_id == target.installation_id)
        places = sa.and_(places, installations.c.installation_id == target.installation_id)
    held = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(chunks.c.records), 0))
    stored = held.select_from(chunks.join(uploads)).where(its_uploads)
    its_chunks, its_records = connection.execute(stored).one()
    its_keys = tenant_keys.c.tenant_id == tenant_id
    found = {
        "keys": count_rows(connection, tenant_keys, its_keys) if of_tenant else 0,
        "uploads": count_rows(connection, uploads, its_uploads),
        "chunks": int(its_chunks),
        "records": int(its_records),
        "sources": count_rows(connection, sources, own),
        "health_reports": count_rows(connection, health_reports, reports) if whole else 0,
        "installations": count_rows(connection, installations, places) if whole else 0,
    }
    return Receipt(
        **asdict(target),
        dry_run=True,
        began_at=at,
        ended_at=at,
        removed={kind: count for kind, count in found.items() if count},
        transactions=0,
        unfinished_uploads=0 if of_tenant else _unfinished_uploads(connection, tenant_id),
    )


def unfinished(connection: sa.Connection) -> list[int]:
    """The removals that did not come to their end."""
    return list(
        connection.scalars(sa.select(removals.c.removal_no).where(removals.c.ended_at.is_(None)))
    )


def begin(connection: sa.Connection, target: Target, at: str) -> int:
    """Note the removal, or find the one of the same target that was not finished; its number.

    Raises:
        ConfigError: There is no such tenant, installation or source.
    """
    key = {**asdict(target), "tenant_id": _find(connection, target)}
    del key["tenant"]
    same = (removals.c[name].is_not_distinct_from(value) for name, value in key.items())
    begun = sa.select(removals.c.removal_no).where(*same, removals.c.ended_at.is_(None))
    number = connection.scalar(begun)
    if number is not None:
        return int(number)
    counts: dict[str, int] = {}
    if target.installation_id is None:
        # the keys go first, so that soon no request of the tenant comes any more
        keys = sa.delete(tenant_keys).filter_by(tenant_id=key["tenant_id"])
        counts["keys"] = connection.execute(keys).rowcount
    row = {**key, "began_at": at, "counts": orjson.dumps(counts).decode()}
    made = sa.insert(removals).values(row).returning(removals.c.removal_no)
    return int(connection.execute(made).scalar_one())


def step(connection: sa.Connection, number: int, at: str, size: StepSize = STEP) -> bool:
    """One bounded part of a removal; whether there may be more."""
    one = removals.c.removal_no == number
    # locked: a command and housekeeping may both go on with it, in several processes
    removal = connection.execute(sa.select(removals).where(one).with_for_update()).one()
    if removal.ended_at is not None:
        return False
    part = RemovalStep(connection, removal, at, size)
    more = part.of_tenant() if removal.installation_id is None else part.of_installation()
    part.counts["transactions"] += 1
    values = {"counts": orjson.dumps(part.counts).decode(), "up_to": part.up_to}
    ended_at = None if more else at
    connection.execute(sa.update(removals).where(one).values(**values, ended_at=ended_at))
    return more


class RemovalStep:
    """What one transaction of a removal does; `counts` and `up_to` are the removal's afterwards."""

    def __init__(
        self, connection: sa.Connection, removal: sa.Row[Any], at: str, size: StepSize
    ) -> None:
        self._connection, self._removal, self._at, self._size = connection, removal, at, size
        self.counts, self.up_to = Counter(orjson.loads(removal.counts)), removal.up_to

    def of_tenant(self) -> bool:
        """Delete some of a tenant's rows, and at last its own; whether there may be more."""
        tenant = {"tenant_id": self._removal.tenant_id}
        its_uploads = uploads.c.tenant_id == self._removal.tenant_id
        if self._clear(its_uploads, sa.delete(uploads), uploads.c.upload_id):
            return True
        for table in (health_reports, installation_hours, sources):
            which = table.c.tenant_id == self._removal.tenant_id
            gone = delete_some(self._connection, table, which)
            if table is not installation_hours:
                self.counts[str(table.name)] += gone
            if gone:
                return True
        # Whoever writes for the tenant holds its row, and is awaited here; none comes afterwards
        own = sa.select(tenants.c.tenant_id).filter_by(**tenant)
        self._connection.execute(own.with_for_update())
        if self._clear(its_uploads, sa.delete(uploads), uploads.c.upload_id):
            return True
        for table in (installations, tenants):
            gone = self._connection.execute(sa.delete(table).filter_by(**tenant)).rowcount
            self.counts[str(table.name)] += gone
        return False

    def of_installation(self) -> bool:
        """Empty the next sources, then the simple form, then what the installation says of itself.

        The installation is locked, so that what a client completes comes before or after this.
        """
        connection, removal = self._connection, self._removal
        key = {"tenant_id": removal.tenant_id, "installation_id": removal.installation_id}
        own = sa.select(installations.c.generation).filter_by(**key).with_for_update()
        generation = connection.scalar(own) or ""
        target = Target("", removal.installation_id, removal.source_key)
        which = _sources_of(removal.tenant_id, target)
        following = sa.select(sources.c.source_id).where(which, sources.c.source_id > removal.up_to)
        first = following.order_by(sources.c.source_id).limit(self._size.sources)
        ids = connection.scalars(first).all()
        if ids:
            self.counts["sources"] += self._mark(ids, generation)
            of_them = uploads.c.source_id.in_(ids)
            if not self._empty(of_them, uploads.c.key_digest.is_not(None)):
                self.up_to = ids[-1]
            return True
        if removal.source_key is not None:
            return False
        simple = sa.and_(IS_SIMPLE, *(uploads.c[name] == one for name, one in key.items()))
        if self._empty(simple, installation_id=None):
            return True
        mine = sa.and_(*(health_reports.c[name] == one for name, one in key.items()))
        gone = delete_some(connection, health_reports, mine)
        self.counts["health_reports"] += gone
        if gone:
            return True
        connection.execute(sa.delete(installation_hours).filter_by(**key))
        emptied = sa.update(installations).filter_by(**key)
        said = emptied.values(**_NOT_HEARD_OF, removed_at=self._at)
        self.counts["installations"] += connection.execute(said).rowcount
        return False

    def _mark(self, ids: Sequence[int], own: str) -> int:
        """Note that sources are removed in the installation's generation; how many were not yet."""
        generation = generations.of(generations.current(self._connection), own)
        new = sources.c.removed_in.is_distinct_from(generation)
        marked = sa.update(sources).where(sources.c.source_id.in_(ids), new)
        removed = marked.values(removed_at=self._at, removed_in=generation)
        return self._connection.execute(removed).rowcount

    def _empty(self, which: sa.ColumnElement[bool], *finished: Any, **values: Any) -> bool:
        """Hide some uploads, and take rows and names of some hidden ones; whether there were any.

        `finished` is what a hidden upload has whose names did not go yet, `values` what goes of it
        beside them.
        """
        shown = sa.select(uploads.c.upload_no).where(which, uploads.c.visible)
        numbers = self._take(shown)
        hidden = hide(self._connection, uploads.c.upload_no.in_(numbers), self._at)
        old = sa.and_(which, ~uploads.c.visible, *finished)
        bare = sa.update(uploads).values(**_NO_NAMES, **values)
        return self._clear(old, bare) or hidden > 0

    def _clear(self, which: sa.ColumnElement[bool], then: Any, *order: Any) -> bool:
        """Delete rows of some uploads, and do the rest to those without any; whether there were."""
        found = sa.select(uploads.c.upload_no).where(which)
        victims = self._take(found.order_by(*order) if order else found)
        cleared = clear(self._connection, victims, size=self._size)
        feed.note_removed(self._connection, cleared.whole, self._at)
        self._connection.execute(then.where(uploads.c.upload_no.in_(cleared.whole)))
        self.counts.update(
            uploads=len(cleared.whole), chunks=cleared.chunks, records=cleared.records
        )
        return bool(victims)

    def _take(self, which: sa.Select[Any]) -> Sequence[int]:
        """The first of these uploads, locked."""
        return self._connection.scalars(which.limit(self._size.uploads).with_for_update()).all()


def _find(connection: sa.Connection, target: Target) -> int:
    """The target's tenant, where all that it names is there."""
    tenant_id = tenant_id_of(connection, target.tenant)
    if target.installation_id is not None:
        own = installations.c.tenant_id == tenant_id
        one = sa.and_(own, installations.c.installation_id == target.installation_id)
        if not count_rows(connection, installations, one):
            raise ConfigError(
                f"{target.tenant!r} has no installation {target.installation_id!r}: "
                f"`catalogzero backend installations list {target.tenant}` shows them"
            )
    if target.source_key is not None:
        which = _sources_of(tenant_id, target)
        if not count_rows(connection, sources, which):
            raise ConfigError(
                f"{target.installation_id!r} has no source {target.source_key!r}: `catalogzero "
                f"backend sources list {target.tenant} {target.installation_id}` shows them"
            )
    return tenant_id


def _receipt(connection: sa.Connection, target: Target, number: int) -> Receipt:
    """What the removal noted of itself."""
    row = connection.execute(sa.select(removals).where(removals.c.removal_no == number)).one()
    counts = orjson.loads(row.counts)
    transactions = counts.pop("transactions", 0)
    counts.pop("tenants", None)
    return Receipt(
        **asdict(target),
        dry_run=False,
        began_at=row.began_at,
        ended_at=row.ended_at,
        removed={kind: count for kind, count in counts.items() if count},
        transactions=transactions,
        unfinished_uploads=_unfinished_uploads(connection, row.tenant_id),
    )


def _sources_of(tenant_id: int, target: Target) -> sa.ColumnElement[bool]:
    """The sources of a target."""
    which = [sources.c.tenant_id == tenant_id]
    if target.installation_id is not None:
        which.append(sources.c.installation_id == target.installation_id)
    if target.source_key is not None:
        which.append(sources.c.key_digest == key_digest(target.source_key))
    return sa.and_(*which)


def _unfinished_uploads(connection: sa.Connection, tenant_id: int) -> int:
    still_open = sa.and_(uploads.c.tenant_id == tenant_id, uploads.c.ended_at.is_(None))
    return count_rows(connection, uploads, still_open)

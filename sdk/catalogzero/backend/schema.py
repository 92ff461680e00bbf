"""The backend's tables and the views `visible_records` and `latest_records`.

Owns what the database looks like on SQLite and PostgreSQL; it reads and writes no rows. Times are
ISO 8601 text in UTC (they sort as text); opaque values are JSON text.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

import orjson
import sqlalchemy as sa

from catalogzero.backend.report_columns import read_report
from catalogzero.sql.engines import Schema

metadata = sa.MetaData()
_Key = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_Time, _Id = sa.String(40), sa.String(200)
_ZERO, _EMPTY = sa.text("0"), sa.text("''")


def _partial(name: str, *columns: sa.Column[Any], where: sa.ColumnElement[bool]) -> None:
    """An index over the rows alone of which `where` is true."""
    sa.Index(name, *columns, sqlite_where=where, postgresql_where=where)


def _columns(names: str, kind: Any, **more: Any) -> list[sa.Column[Any]]:
    """Columns of one kind, one after the other."""
    return [sa.Column(name, kind, **more) for name in names.split()]


def _counts(names: str) -> list[sa.Column[Any]]:
    """Columns of numbers that begin at 0."""
    return _columns(names, sa.BigInteger, nullable=False, server_default=_ZERO)


def _tenant(**more: Any) -> sa.Column[Any]:
    """The column of the tenant that a row is of, with which it goes."""
    return sa.Column("tenant_id", sa.ForeignKey("tenants.tenant_id", ondelete="CASCADE"), **more)


versions = sa.Table("backend_schema", metadata, sa.Column("version", sa.Integer, nullable=False))

generations = sa.Table(
    "backend_generation", metadata, sa.Column("generation", sa.String(32), nullable=False)
)

tenants = sa.Table(
    "tenants",
    metadata,
    sa.Column("tenant_id", _Key, primary_key=True),
    sa.Column("name", sa.String(100), nullable=False, unique=True),
    sa.Column("created_at", _Time, nullable=False),
    sa.Column("requests_per_s", sa.Float),
    sa.Column("held_bytes", sa.BigInteger),
    sa.Column("chunks", sa.Integer),
    sa.Column("rows_per_s", sa.Float),
    sqlite_autoincrement=True,
)

tenant_keys = sa.Table(
    "tenant_keys",
    metadata,
    sa.Column("key_id", sa.String(16), primary_key=True),
    _tenant(nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("created_at", _Time, nullable=False),
    sa.Column("revoked_at", _Time),
)

installations = sa.Table(
    "installations",
    metadata,
    _tenant(primary_key=True),
    sa.Column("installation_id", _Id, primary_key=True),
    *_columns("first_seen_at last_seen_at", _Time, nullable=False),
    sa.Column("registered_at", _Time),
    *_columns("entry version handler host methods", sa.Text),
    *_columns("last_upload_at health_at", _Time),
    sa.Column("health_report", sa.Text),
    *_counts("epoch"),
    sa.Column("epoch_at", _Time),
    sa.Column("epoch_nonces", sa.Text, nullable=False, server_default=sa.text("'[]'")),
    sa.Column("removed_at", _Time),
    *_counts("seen_s"),
    sa.Column("patience_s", sa.BigInteger, nullable=False, server_default=sa.text("86400")),
    sa.Column("status", sa.String(8), nullable=False, server_default=sa.text("'unknown'")),
    sa.Column("reasons", sa.Text, nullable=False, server_default=_EMPTY),
    *_columns("waiting waiting_bytes", sa.BigInteger),
    sa.Column("oldest_age_s", sa.Float),
    *_columns("dead missing", sa.BigInteger),
    sa.Column("labels", sa.Text, nullable=False, server_default=sa.text("'{}'")),
    *_counts("last_number"),
    sa.Column("last_upload_id", _Id, nullable=False, server_default=_EMPTY),
    sa.Column("generation", sa.String(32), nullable=False, server_default=_EMPTY),
    sa.Column("cause", sa.String(8), nullable=False, server_default=_EMPTY),
    sa.Column("status_since", _Time),
    sqlite_with_rowid=False,
)

installation_hours = sa.Table(
    "installation_hours",
    metadata,
    sa.Column("tenant_id", _Key, primary_key=True, autoincrement=False),
    sa.Column("installation_id", _Id, primary_key=True),
    sa.Column("hour", sa.String(13), primary_key=True),
    *_counts("ok degraded failing waiting dead uploads records"),
    sa.ForeignKeyConstraint(
        ["tenant_id", "installation_id"],
        ["installations.tenant_id", "installations.installation_id"],
        ondelete="CASCADE",
    ),
    sqlite_with_rowid=False,
)
sa.Index("hours_by_time", installation_hours.c.hour)

sources = sa.Table(
    "sources",
    metadata,
    sa.Column("source_id", _Key, primary_key=True),
    _tenant(nullable=False),
    sa.Column("installation_id", _Id, nullable=False),
    sa.Column("source_key", sa.Text, nullable=False),
    sa.Column("key_digest", sa.String(64), nullable=False),
    *_counts("highest_seq"),
    sa.Column("watermark", sa.Text, nullable=False, server_default=sa.text("'null'")),
    *_counts("full_seq"),
    sa.Column("mode", sa.String(8)),
    sa.Column("watermark_of", sa.Text, nullable=False, server_default=_EMPTY),
    sa.Column("removed_at", _Time),
    sa.Column("removed_in", sa.String(32)),
    sa.Column("merge_key", sa.Text, nullable=False, server_default=_EMPTY),
    sa.UniqueConstraint("tenant_id", "installation_id", "key_digest"),
    sqlite_autoincrement=True,
)

uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("upload_no", _Key, primary_key=True),
    _tenant(nullable=False),
    sa.Column("upload_id", _Id, nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("visible", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("opened_at", _Time, nullable=False),
    *_columns("ended_at job_id hook_due_at", _Time),
    sa.Column("hook_attempts", sa.Integer, nullable=False, server_default=_ZERO),
    *_columns("clear_since hook_failed_at", _Time),
    sa.Column("hook_error", sa.Text),
    sa.Column("source_id", sa.ForeignKey("sources.source_id")),
    sa.Column("upload_key", sa.Text),
    sa.Column("key_digest", sa.String(64)),
    sa.Column("source_seq", sa.BigInteger),
    sa.Column("mode", sa.String(8)),
    *_columns("chunks records", sa.BigInteger),
    sa.Column("installation_id", _Id),
    *_columns("stream source params entry version merge_key", sa.Text),
    sa.UniqueConstraint("tenant_id", "upload_id"),
    sqlite_autoincrement=True,
)
_column = uploads.c
sa.Index("uploads_of_source", _column.source_id, _column.visible, _column.key_digest)
sa.Index("uploads_of_installation", _column.tenant_id, _column.installation_id, _column.ended_at)
VISIBLE: sa.ColumnElement[bool] = sa.literal_column("visible")
"""As an index has it: SQLite finds one only by the very same words."""
_partial(
    "uploads_by_hook",
    _column.tenant_id,
    _column.hook_due_at,
    where=_column.hook_due_at.is_not(None),
)
_partial("uploads_hook_failed", _column.hook_failed_at, where=_column.hook_failed_at.is_not(None))
_partial("uploads_to_clear", _column.clear_since, where=_column.clear_since.is_not(None))
_partial("uploads_unfinished", _column.opened_at, where=_column.ended_at.is_(None))
_partial("uploads_by_stream", _column.stream, _column.ended_at, where=VISIBLE)
IS_SIMPLE = sa.and_(_column.source_id.is_(None), _column.installation_id.is_not(None))
"""It came in the simple form, of an installation that named itself."""
_partial("uploads_simple", _column.tenant_id, _column.installation_id, where=IS_SIMPLE)

chunks = sa.Table(
    "chunks",
    metadata,
    sa.Column(
        "upload_no", sa.ForeignKey("uploads.upload_no", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("records", sa.BigInteger, nullable=False),
    sa.Column("stored_at", _Time, nullable=False),
    sa.Column("keyed_by", sa.String(64)),
    sqlite_with_rowid=False,
)

# without rowids SQLite keeps rows in the order of their key: a chunk is read in one piece
records = sa.Table(
    "records",
    metadata,
    *_columns("upload_no seq", _Key, primary_key=True, autoincrement=False),
    sa.Column("row_index", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("payload", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

record_keys = sa.Table(
    "record_keys",
    metadata,
    *_columns("upload_no seq", _Key, primary_key=True, autoincrement=False),
    sa.Column("row_index", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key_digest", sa.Uuid(as_uuid=False), nullable=False),
    sa.Column("source_seq", sa.BigInteger, nullable=False),
    sa.Column("tombstone", sa.Boolean, nullable=False),
    sqlite_with_rowid=False,
)
"""The key of each record in mode merge; its digest has the source in it."""
sa.Index(
    "record_keys_newest",
    record_keys.c.key_digest,
    record_keys.c.source_seq,
    record_keys.c.upload_no,
    record_keys.c.seq,
    record_keys.c.row_index,
)

health_reports = sa.Table(
    "health_reports",
    metadata,
    sa.Column("report_no", _Key, primary_key=True),
    sa.Column("tenant_id", _Key, nullable=False),
    sa.Column("installation_id", _Id, nullable=False),
    sa.Column("received_at", _Time, nullable=False),
    sa.Column("report", sa.Text, nullable=False),
)
sa.Index(
    "health_of_installation",
    health_reports.c.tenant_id,
    health_reports.c.installation_id,
    health_reports.c.received_at,
)

removals = sa.Table(
    "removals",
    metadata,
    sa.Column("removal_no", _Key, primary_key=True),
    sa.Column("tenant_id", _Key, nullable=False),
    sa.Column("installation_id", _Id),
    sa.Column("source_key", sa.Text),
    sa.Column("began_at", _Time, nullable=False),
    sa.Column("ended_at", _Time),
    *_counts("up_to"),
    sa.Column("counts", sa.Text, nullable=False, server_default=sa.text("'{}'")),
    sqlite_autoincrement=True,
)
_partial("removals_unfinished", removals.c.removal_no, where=removals.c.ended_at.is_(None))

events = sa.Table(
    "events",
    metadata,
    sa.Column("event_no", _Key, primary_key=True),
    sa.Column("place", sa.BigInteger, unique=True),
    sa.Column("kind", sa.String(8), nullable=False),
    sa.Column("at", _Time, nullable=False),
    sa.Column("tenant", sa.String(100)),
    sa.Column("installation_id", _Id),
    *_columns("stream source source_key", sa.Text),
    sa.Column("upload_id", _Id),
    sa.Column("upload_no", sa.BigInteger, nullable=False),
    sa.Column("job_id", _Time, nullable=False),
    sa.Column("mode", sa.String(8)),
    *_columns("chunks records", sa.BigInteger),
    sa.Column("completed_at", _Time),
    sa.Column("source_seq", sa.BigInteger),
    sa.Column("merge_key", sa.Text),
    sqlite_autoincrement=True,
)
"""What became of uploads that were visible once; `place` is given when the feed is read."""
_partial("events_without_place", events.c.event_no, where=events.c.place.is_(None))
sa.Index("events_of_upload", events.c.upload_no)

_VISIBLE_RECORDS = """
CREATE VIEW {name} AS
SELECT t.name AS tenant, u.installation_id, u.stream, u.source, u.params, u.upload_id,
       u.source_seq, r.seq, r.row_index, r.payload, u.job_id, u.ended_at AS completed_at,
       u.entry, u.version{data}
FROM uploads u
JOIN tenants t ON t.tenant_id = u.tenant_id
JOIN records r ON r.upload_no = u.upload_no
{keyed}WHERE u.visible
"""
_OF_KEYS = """
JOIN record_keys k ON k.upload_no = r.upload_no AND k.seq = r.seq AND k.row_index = r.row_index
    AND NOT k.tombstone AND {is_newest}
"""
_IS_NEWEST = {
    # joined as a whole: two seconds for a million rows, where a look at the index takes twenty
    "postgresql": """NOT EXISTS (
        SELECT 1 FROM record_keys n JOIN uploads v ON v.upload_no = n.upload_no
        WHERE n.key_digest = k.key_digest AND v.visible
        AND (n.source_seq, n.upload_no, n.seq, n.row_index)
            > (k.source_seq, k.upload_no, k.seq, k.row_index)
    )""",
    # one look at the index for each row, however many versions of its key there are
    "sqlite": """(k.upload_no, k.seq, k.row_index) = (
        SELECT n.upload_no, n.seq, n.row_index
        FROM record_keys n JOIN uploads v ON v.upload_no = n.upload_no
        WHERE n.key_digest = k.key_digest AND v.visible
        ORDER BY n.source_seq DESC, n.upload_no DESC, n.seq DESC, n.row_index DESC LIMIT 1
    )""",
}
"""Of each key the last visible row by source_seq, chunk and place: each database's quick way."""
_AS_JSONB = r"""
CREATE FUNCTION catalogzero_jsonb(payload text) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN payload::jsonb;
EXCEPTION WHEN others THEN
    BEGIN
        RETURN regexp_replace(payload, '(?<!\\)((?:\\\\)*)\\u0000', '\1\\ufffd', 'g')::jsonb;
    EXCEPTION WHEN others THEN
        RETURN NULL;
    END;
END $$
"""
"""PostgreSQL holds no U+0000 in jsonb, nor some numbers and depths: no record breaks a query."""


def _create(connection: sa.Connection) -> None:
    """Make the tables and the views of an empty database."""
    metadata.create_all(connection)
    _show_records(connection)
    _show_latest(connection)
    _begin_generation(connection)


def _show_records(connection: sa.Connection) -> None:
    """Make the view of what is visible, on PostgreSQL with each record as `data`."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_AS_JSONB)
    _show(connection, "visible_records")


def _show_latest(connection: sa.Connection) -> None:
    """Make the view of the newest row of each key, with the same columns."""
    keyed = _OF_KEYS.format(is_newest=_IS_NEWEST[connection.dialect.name])
    _show(connection, "latest_records", keyed)


def _show(connection: sa.Connection, name: str, keyed: str = "") -> None:
    is_postgresql = connection.dialect.name == "postgresql"
    data = ", catalogzero_jsonb(r.payload) AS data" if is_postgresql else ""
    statement = _VISIBLE_RECORDS.format(name=name, data=data, keyed=keyed)
    connection.execute(sa.text(statement))


def _begin_generation(connection: sa.Connection) -> None:
    connection.execute(sa.insert(generations).values(generation=uuid.uuid4().hex))


_NUMBERED = ("tenants", "sources", "uploads")
_REBUILT = ("chunks", "uploads", "sources", "installations", "tenant_keys", "tenants")
"""In the order in which they can be dropped: nothing refers to the first."""


def _number_once(connection: sa.Connection) -> None:
    """Rebuild tables whose numbers SQLite gives a second time once their row is gone.

    The view goes, and comes with the next version.
    """
    if connection.dialect.name != "sqlite":
        return
    # SQLite adds no AUTOINCREMENT to a table that is there: it is made again
    connection.execute(sa.text("DROP VIEW visible_records"))
    found = connection.execute(
        sa.text("SELECT tbl_name, type, name, sql FROM sqlite_master WHERE sql <> ''")
    )
    made = [tuple(row) for row in found if row.tbl_name in _REBUILT]
    for table, kind, name, _ in made:
        gone = f"ALTER TABLE {table} RENAME TO old_{table}"
        connection.exec_driver_sql(gone if kind == "table" else f"DROP INDEX {name}")
    statements = {table: sql for table, kind, _, sql in made if kind == "table"}
    for table in reversed(_REBUILT):
        sql = statements[table]
        connection.exec_driver_sql(_numbered(sql) if table in _NUMBERED else sql)
        connection.exec_driver_sql(f"INSERT INTO {table} SELECT * FROM old_{table}")  # noqa: S608
    for table in _REBUILT:
        connection.exec_driver_sql(f"DROP TABLE old_{table}")
    for sql in (sql for _, kind, _, sql in made if kind == "index"):
        connection.exec_driver_sql(sql)


def _numbered(statement: str) -> str:
    """A table's CREATE statement, its key given once."""
    [key] = re.findall(r"PRIMARY KEY \((\w+)\)", statement)
    column = f"{key} INTEGER NOT NULL"
    bare = re.sub(r"PRIMARY KEY \(\w+\),?\s*", "", statement)
    return bare.replace(column, f"{column} PRIMARY KEY AUTOINCREMENT", 1)


def _read_last_reports(connection: sa.Connection) -> None:
    """Fill what the fleet is found, sorted and counted by, from each last report."""
    one = [installations.c.tenant_id, installations.c.installation_id]
    # a thousand at a time: a fleet's reports together are too much for memory
    said = sa.select(*one, installations.c.last_seen_at, installations.c.health_report)
    above: tuple[int, str] = (-1, "")
    while True:
        further = sa.tuple_(*one) > sa.tuple_(*(sa.literal(part) for part in above))
        rows = connection.execute(said.where(further).order_by(*one).limit(1_000)).all()
        for row in rows:
            above = (row.tenant_id, row.installation_id)
            seen_s = int(datetime.fromisoformat(row.last_seen_at).timestamp())
            found = read_report(orjson.loads(row.health_report)) if row.health_report else {}
            values = {**found, "seen_s": seen_s}
            which = sa.and_(*(column == part for column, part in zip(one, above, strict=True)))
            connection.execute(sa.update(installations).where(which).values(**values))
        if not rows:
            return


def _widen_events(connection: sa.Connection) -> None:
    """Add columns to the events, unless version 5 made the table only now."""
    there = {column["name"] for column in sa.inspect(connection).get_columns("events")}
    for name, kind in (("source_seq", "BIGINT"), ("merge_key", "TEXT")):
        if name not in there:
            connection.execute(sa.text(f"ALTER TABLE events ADD COLUMN {name} {kind}"))


def _upgrade(*steps: str | Callable[[sa.Connection], None]) -> Callable[[sa.Connection], None]:
    """What brings a database to the next version: statements and functions, in their order."""

    def upgrade(connection: sa.Connection) -> None:
        for step in steps:
            if isinstance(step, str):
                connection.execute(sa.text(step))
            else:
                step(connection)

    return upgrade


# Version 2: epochs, the generation, and each source's kind.
_know_epochs_and_kinds = _upgrade(
    "ALTER TABLE installations ADD COLUMN epoch BIGINT DEFAULT 0 NOT NULL",
    "ALTER TABLE installations ADD COLUMN epoch_at VARCHAR(40)",
    "ALTER TABLE installations ADD COLUMN epoch_nonces TEXT DEFAULT '[]' NOT NULL",
    "ALTER TABLE sources ADD COLUMN full_seq BIGINT DEFAULT 0 NOT NULL",
    "ALTER TABLE sources ADD COLUMN mode VARCHAR(8)",
    "ALTER TABLE sources ADD COLUMN watermark_of TEXT DEFAULT '' NOT NULL",
    # No full upload was numbered: the highest number is not below its, nor above a later one.
    "UPDATE sources SET full_seq = highest_seq, mode = (SELECT u.mode FROM uploads u"
    " WHERE u.source_id = sources.source_id AND u.visible ORDER BY u.upload_no DESC LIMIT 1)",
    generations.create,
    _begin_generation,
)
# Version 3: since when an upload's rows may go, and indexes over what is to be done.
_know_what_may_go = _upgrade(
    "ALTER TABLE uploads ADD COLUMN clear_since VARCHAR(40)",
    "UPDATE uploads SET clear_since = ended_at WHERE state <> 'open' AND NOT visible"
    " AND NOT rows_gone",
    "UPDATE uploads SET hook_due_at = NULL WHERE NOT visible",
    "DROP INDEX uploads_by_state",
    "DROP INDEX uploads_by_hook",
    "DROP INDEX chunks_by_time",
    "ALTER TABLE uploads DROP COLUMN rows_gone",
    "CREATE INDEX uploads_by_state ON uploads (state)",
    "CREATE INDEX uploads_by_hook ON uploads (hook_due_at) WHERE hook_due_at IS NOT NULL",
    "CREATE INDEX uploads_to_clear ON uploads (clear_since) WHERE clear_since IS NOT NULL",
    "CREATE INDEX uploads_unfinished ON uploads (opened_at) WHERE ended_at IS NULL",
)
# Version 4: what was removed, and numbers that are given once, on SQLite too.
_know_removals = _upgrade(
    _number_once,
    "ALTER TABLE installations ADD COLUMN removed_at VARCHAR(40)",
    "ALTER TABLE sources ADD COLUMN removed_at VARCHAR(40)",
    "ALTER TABLE sources ADD COLUMN removed_in VARCHAR(32)",
    "CREATE INDEX uploads_by_stream ON uploads (stream, ended_at) WHERE visible",
    "CREATE INDEX uploads_simple ON uploads (tenant_id, installation_id)"
    " WHERE source_id IS NULL AND installation_id IS NOT NULL",
    "DROP INDEX health_by_time",
    "CREATE INDEX health_of_installation"
    " ON health_reports (tenant_id, installation_id, received_at)",
    removals.create,
)
# Version 5: the events, beginning with what is visible; more columns in the view.
_know_events = _upgrade(
    events.create,
    "INSERT INTO events (kind, at, tenant, installation_id, stream, source, source_key, upload_id,"
    " upload_no, job_id, mode, chunks, records, completed_at)"
    " SELECT 'visible', u.ended_at, t.name, u.installation_id, u.stream, u.source, s.source_key,"
    " u.upload_id, u.upload_no, u.job_id, u.mode, u.chunks, u.records, u.ended_at"
    " FROM uploads u JOIN tenants t ON t.tenant_id = u.tenant_id"
    " LEFT JOIN sources s ON s.source_id = u.source_id WHERE u.visible ORDER BY u.upload_no",
    "DROP VIEW IF EXISTS visible_records",
    _show_records,
)
# Version 6: a tenant's share, and uploads that the hook gave up.
_know_shares = _upgrade(
    "ALTER TABLE tenants ADD COLUMN requests_per_s FLOAT",
    "ALTER TABLE tenants ADD COLUMN held_bytes BIGINT",
    "ALTER TABLE tenants ADD COLUMN chunks INTEGER",
    "ALTER TABLE tenants ADD COLUMN rows_per_s FLOAT",
    "ALTER TABLE uploads ADD COLUMN hook_failed_at VARCHAR(40)",
    "ALTER TABLE uploads ADD COLUMN hook_error TEXT",
    "DROP INDEX uploads_by_hook",
    "CREATE INDEX uploads_by_hook ON uploads (tenant_id, hook_due_at)"
    " WHERE hook_due_at IS NOT NULL",
    "CREATE INDEX uploads_hook_failed ON uploads (hook_failed_at) WHERE hook_failed_at IS NOT NULL",
)
# Version 7: what the fleet is found, sorted and counted by; version 9 reads each last report.
_know_the_fleet = _upgrade(
    "ALTER TABLE installations ADD COLUMN seen_s BIGINT DEFAULT 0 NOT NULL",
    "ALTER TABLE installations ADD COLUMN patience_s BIGINT DEFAULT 86400 NOT NULL",
    "ALTER TABLE installations ADD COLUMN status VARCHAR(8) DEFAULT 'unknown' NOT NULL",
    "ALTER TABLE installations ADD COLUMN reasons TEXT DEFAULT '' NOT NULL",
    "ALTER TABLE installations ADD COLUMN waiting BIGINT",
    "ALTER TABLE installations ADD COLUMN waiting_bytes BIGINT",
    "ALTER TABLE installations ADD COLUMN oldest_age_s FLOAT",
    "ALTER TABLE installations ADD COLUMN dead BIGINT",
    "ALTER TABLE installations ADD COLUMN missing BIGINT",
    "ALTER TABLE installations ADD COLUMN labels TEXT DEFAULT '{}' NOT NULL",
    installation_hours.create,
    "CREATE INDEX uploads_of_installation ON uploads (tenant_id, installation_id, ended_at)",
    "DROP INDEX uploads_by_state",
)
# Version 8: the last number of each installation, and a generation of its own.
_know_what_was_acknowledged = _upgrade(
    "ALTER TABLE installations ADD COLUMN last_number BIGINT DEFAULT 0 NOT NULL",
    "ALTER TABLE installations ADD COLUMN last_upload_id VARCHAR(200) DEFAULT '' NOT NULL",
    "ALTER TABLE installations ADD COLUMN generation VARCHAR(32) DEFAULT '' NOT NULL",
)
# Version 9: why an installation fails and since when, and which keys were revoked.
_know_causes = _upgrade(
    "ALTER TABLE tenant_keys ADD COLUMN revoked_at VARCHAR(40)",
    "ALTER TABLE installations ADD COLUMN cause VARCHAR(8) DEFAULT '' NOT NULL",
    "ALTER TABLE installations ADD COLUMN status_since VARCHAR(40)",
    _read_last_reports,
)
# Version 10: mode merge, with the keys of its rows and the view of the newest of each.
_know_keys = _upgrade(
    "ALTER TABLE sources ADD COLUMN merge_key TEXT DEFAULT '' NOT NULL",
    "ALTER TABLE uploads ADD COLUMN merge_key TEXT",
    "ALTER TABLE chunks ADD COLUMN keyed_by VARCHAR(64)",
    _widen_events,
    record_keys.create,
    _show_latest,
)

SCHEMA = Schema(
    version=versions,
    create=_create,
    upgrades=(
        _know_epochs_and_kinds,
        _know_what_may_go,
        _know_removals,
        _know_events,
        _know_shares,
        _know_the_fleet,
        _know_what_was_acknowledged,
        _know_causes,
        _know_keys,
    ),
    lock_id=0x63617A30,
)

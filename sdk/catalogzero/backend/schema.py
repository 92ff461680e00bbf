"""The backend's tables and the view `visible_records`.

Owns what the database looks like on SQLite and PostgreSQL; it reads and writes no rows. Times are
ISO 8601 text in UTC (they sort as text); opaque values are JSON text.
"""

from __future__ import annotations

import re
import uuid
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    false,
    insert,
    literal,
    literal_column,
    select,
    text,
    tuple_,
    update,
)

from catalogzero.backend.report_columns import read_report
from catalogzero.sql.engines import Schema

metadata = MetaData()
_Key = BigInteger().with_variant(Integer, "sqlite")


def _partial(name: str, *columns: Column[Any], where: ColumnElement[bool]) -> None:
    """An index over the rows alone of which `where` is true."""
    Index(name, *columns, sqlite_where=where, postgresql_where=where)


versions = Table("backend_schema", metadata, Column("version", Integer, nullable=False))

generations = Table(
    "backend_generation", metadata, Column("generation", String(32), nullable=False)
)

tenants = Table(
    "tenants",
    metadata,
    Column("tenant_id", _Key, primary_key=True),
    Column("name", String(100), nullable=False, unique=True),
    Column("created_at", String(40), nullable=False),
    Column("requests_per_s", Float),
    Column("held_bytes", BigInteger),
    Column("chunks", Integer),
    Column("rows_per_s", Float),
    sqlite_autoincrement=True,
)

tenant_keys = Table(
    "tenant_keys",
    metadata,
    Column("key_id", String(16), primary_key=True),
    Column("tenant_id", ForeignKey("tenants.tenant_id", ondelete="CASCADE"), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("created_at", String(40), nullable=False),
)

installations = Table(
    "installations",
    metadata,
    Column("tenant_id", ForeignKey("tenants.tenant_id", ondelete="CASCADE"), primary_key=True),
    Column("installation_id", String(200), primary_key=True),
    Column("first_seen_at", String(40), nullable=False),
    Column("last_seen_at", String(40), nullable=False),
    Column("registered_at", String(40)),
    Column("entry", Text),
    Column("version", Text),
    Column("handler", Text),
    Column("host", Text),
    Column("methods", Text),
    Column("last_upload_at", String(40)),
    Column("health_at", String(40)),
    Column("health_report", Text),
    Column("epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("epoch_at", String(40)),
    Column("epoch_nonces", Text, nullable=False, server_default=text("'[]'")),
    Column("removed_at", String(40)),
    Column("seen_s", BigInteger, nullable=False, server_default=text("0")),
    Column("patience_s", BigInteger, nullable=False, server_default=text("86400")),
    Column("status", String(8), nullable=False, server_default=text("'unknown'")),
    Column("reasons", Text, nullable=False, server_default=text("''")),
    Column("waiting", BigInteger),
    Column("waiting_bytes", BigInteger),
    Column("oldest_age_s", Float),
    Column("dead", BigInteger),
    Column("missing", BigInteger),
    Column("labels", Text, nullable=False, server_default=text("'{}'")),
    Column("last_number", BigInteger, nullable=False, server_default=text("0")),
    Column("last_upload_id", String(200), nullable=False, server_default=text("''")),
    Column("generation", String(32), nullable=False, server_default=text("''")),
    sqlite_with_rowid=False,
)

installation_hours = Table(
    "installation_hours",
    metadata,
    Column("tenant_id", _Key, primary_key=True, autoincrement=False),
    Column("installation_id", String(200), primary_key=True),
    Column("hour", String(13), primary_key=True),
    Column("ok", BigInteger, nullable=False, server_default=text("0")),
    Column("degraded", BigInteger, nullable=False, server_default=text("0")),
    Column("failing", BigInteger, nullable=False, server_default=text("0")),
    Column("waiting", BigInteger, nullable=False, server_default=text("0")),
    Column("dead", BigInteger, nullable=False, server_default=text("0")),
    Column("uploads", BigInteger, nullable=False, server_default=text("0")),
    Column("records", BigInteger, nullable=False, server_default=text("0")),
    ForeignKeyConstraint(
        ["tenant_id", "installation_id"],
        ["installations.tenant_id", "installations.installation_id"],
        ondelete="CASCADE",
    ),
    sqlite_with_rowid=False,
)
Index("hours_by_time", installation_hours.c.hour)

sources = Table(
    "sources",
    metadata,
    Column("source_id", _Key, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.tenant_id", ondelete="CASCADE"), nullable=False),
    Column("installation_id", String(200), nullable=False),
    Column("source_key", Text, nullable=False),
    Column("key_digest", String(64), nullable=False),
    Column("highest_seq", BigInteger, nullable=False, server_default=text("0")),
    Column("watermark", Text, nullable=False, server_default=text("'null'")),
    Column("full_seq", BigInteger, nullable=False, server_default=text("0")),
    Column("mode", String(8)),
    Column("watermark_of", Text, nullable=False, server_default=text("''")),
    Column("removed_at", String(40)),
    Column("removed_in", String(32)),
    UniqueConstraint("tenant_id", "installation_id", "key_digest"),
    sqlite_autoincrement=True,
)

uploads = Table(
    "uploads",
    metadata,
    Column("upload_no", _Key, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.tenant_id", ondelete="CASCADE"), nullable=False),
    Column("upload_id", String(200), nullable=False),
    Column("state", String(12), nullable=False),
    Column("visible", Boolean(create_constraint=False), nullable=False, server_default=false()),
    Column("opened_at", String(40), nullable=False),
    Column("ended_at", String(40)),
    Column("job_id", String(40)),
    Column("hook_due_at", String(40)),
    Column("hook_attempts", Integer, nullable=False, server_default=text("0")),
    Column("clear_since", String(40)),
    Column("hook_failed_at", String(40)),
    Column("hook_error", Text),
    Column("source_id", ForeignKey("sources.source_id")),
    Column("upload_key", Text),
    Column("key_digest", String(64)),
    Column("source_seq", BigInteger),
    Column("mode", String(8)),
    Column("chunks", BigInteger),
    Column("records", BigInteger),
    Column("installation_id", String(200)),
    Column("stream", Text),
    Column("source", Text),
    Column("params", Text),
    Column("entry", Text),
    Column("version", Text),
    UniqueConstraint("tenant_id", "upload_id"),
    sqlite_autoincrement=True,
)
Index("uploads_of_source", uploads.c.source_id, uploads.c.visible, uploads.c.key_digest)
Index("uploads_of_installation", uploads.c.tenant_id, uploads.c.installation_id, uploads.c.ended_at)
VISIBLE: ColumnElement[bool] = literal_column("visible")
"""As an index has it: SQLite finds one only by the very same words."""
_column = uploads.c
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
IS_SIMPLE = and_(_column.source_id.is_(None), _column.installation_id.is_not(None))
"""It came in the simple form, of an installation that named itself."""
_partial("uploads_simple", _column.tenant_id, _column.installation_id, where=IS_SIMPLE)

chunks = Table(
    "chunks",
    metadata,
    Column("upload_no", ForeignKey("uploads.upload_no", ondelete="CASCADE"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("records", BigInteger, nullable=False),
    Column("stored_at", String(40), nullable=False),
    sqlite_with_rowid=False,
)

records = Table(
    "records",
    metadata,
    Column("upload_no", _Key, primary_key=True, autoincrement=False),
    Column("seq", _Key, primary_key=True, autoincrement=False),
    Column("row_index", Integer, primary_key=True, autoincrement=False),
    Column("payload", Text, nullable=False),
    sqlite_with_rowid=False,
)

health_reports = Table(
    "health_reports",
    metadata,
    Column("report_no", _Key, primary_key=True),
    Column("tenant_id", _Key, nullable=False),
    Column("installation_id", String(200), nullable=False),
    Column("received_at", String(40), nullable=False),
    Column("report", Text, nullable=False),
)
Index(
    "health_of_installation",
    health_reports.c.tenant_id,
    health_reports.c.installation_id,
    health_reports.c.received_at,
)

removals = Table(
    "removals",
    metadata,
    Column("removal_no", _Key, primary_key=True),
    Column("tenant_id", _Key, nullable=False),
    Column("installation_id", String(200)),
    Column("source_key", Text),
    Column("began_at", String(40), nullable=False),
    Column("ended_at", String(40)),
    Column("up_to", BigInteger, nullable=False, server_default=text("0")),
    Column("counts", Text, nullable=False, server_default=text("'{}'")),
    sqlite_autoincrement=True,
)
_partial("removals_unfinished", removals.c.removal_no, where=removals.c.ended_at.is_(None))

events = Table(
    "events",
    metadata,
    Column("event_no", _Key, primary_key=True),
    Column("place", BigInteger, unique=True),
    Column("kind", String(8), nullable=False),
    Column("at", String(40), nullable=False),
    Column("tenant", String(100)),
    Column("installation_id", String(200)),
    Column("stream", Text),
    Column("source", Text),
    Column("source_key", Text),
    Column("upload_id", String(200)),
    Column("upload_no", BigInteger, nullable=False),
    Column("job_id", String(40), nullable=False),
    Column("mode", String(8)),
    Column("chunks", BigInteger),
    Column("records", BigInteger),
    Column("completed_at", String(40)),
    sqlite_autoincrement=True,
)
"""What became of uploads that were visible once; `place` is given when the feed is read."""
_partial("events_without_place", events.c.event_no, where=events.c.place.is_(None))
Index("events_of_upload", events.c.upload_no)

_VISIBLE_RECORDS = """
CREATE VIEW visible_records AS
SELECT t.name AS tenant, u.installation_id, u.stream, u.source, u.params, u.upload_id,
       u.source_seq, r.seq, r.row_index, r.payload, u.job_id, u.ended_at AS completed_at,
       u.entry, u.version{data}
FROM uploads u
JOIN tenants t ON t.tenant_id = u.tenant_id
JOIN records r ON r.upload_no = u.upload_no
WHERE u.visible
"""
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


def _create(connection: Connection) -> None:
    """Make the tables and the view of an empty database."""
    metadata.create_all(connection)
    _show_records(connection)
    _begin_generation(connection)


def _show_records(connection: Connection) -> None:
    """Make the view, on PostgreSQL with each record as `data`."""
    data = ""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_AS_JSONB)
        data = ", catalogzero_jsonb(r.payload) AS data"
    connection.execute(text(_VISIBLE_RECORDS.format(data=data)))


_EPOCHS_AND_KINDS = (
    "ALTER TABLE installations ADD COLUMN epoch BIGINT DEFAULT 0 NOT NULL",
    "ALTER TABLE installations ADD COLUMN epoch_at VARCHAR(40)",
    "ALTER TABLE installations ADD COLUMN epoch_nonces TEXT DEFAULT '[]' NOT NULL",
    "ALTER TABLE sources ADD COLUMN full_seq BIGINT DEFAULT 0 NOT NULL",
    "ALTER TABLE sources ADD COLUMN mode VARCHAR(8)",
    "ALTER TABLE sources ADD COLUMN watermark_of TEXT DEFAULT '' NOT NULL",
    # No full upload was numbered: the highest number is not below its, nor above a later one.
    "UPDATE sources SET full_seq = highest_seq, mode = (SELECT u.mode FROM uploads u"
    " WHERE u.source_id = sources.source_id AND u.visible ORDER BY u.upload_no DESC LIMIT 1)",
)


def _know_epochs_and_kinds(connection: Connection) -> None:
    """Version 2: epochs, the generation, and each source's kind."""
    for statement in _EPOCHS_AND_KINDS:
        connection.execute(text(statement))
    generations.create(connection)
    _begin_generation(connection)


_CLEAR_SINCE = (
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


def _know_what_may_go(connection: Connection) -> None:
    """Version 3: since when an upload's rows may go, and indexes over what is to be done."""
    for statement in _CLEAR_SINCE:
        connection.execute(text(statement))


_NUMBERED = ("tenants", "sources", "uploads")
_REBUILT = ("chunks", "uploads", "sources", "installations", "tenant_keys", "tenants")
"""In the order in which they can be dropped: nothing refers to the first."""
_REMOVALS = (
    "ALTER TABLE installations ADD COLUMN removed_at VARCHAR(40)",
    "ALTER TABLE sources ADD COLUMN removed_at VARCHAR(40)",
    "ALTER TABLE sources ADD COLUMN removed_in VARCHAR(32)",
    "CREATE INDEX uploads_by_stream ON uploads (stream, ended_at) WHERE visible",
    "CREATE INDEX uploads_simple ON uploads (tenant_id, installation_id)"
    " WHERE source_id IS NULL AND installation_id IS NOT NULL",
    "DROP INDEX health_by_time",
    "CREATE INDEX health_of_installation"
    " ON health_reports (tenant_id, installation_id, received_at)",
)


def _know_removals(connection: Connection) -> None:
    """Version 4: what was removed, and numbers that are given once, on SQLite too."""
    if connection.dialect.name == "sqlite":
        _number_once(connection)
    for statement in _REMOVALS:
        connection.execute(text(statement))
    removals.create(connection)


_SHARES = (
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


def _know_shares(connection: Connection) -> None:
    """Version 6: a tenant's share, and uploads that the hook gave up."""
    for statement in _SHARES:
        connection.execute(text(statement))


def _number_once(connection: Connection) -> None:
    """Make tables anew whose numbers SQLite gives a second time once their row is gone.

    The view goes, and comes with the next version.
    """
    connection.execute(text("DROP VIEW visible_records"))
    found = connection.execute(
        text("SELECT tbl_name, type, name, sql FROM sqlite_master WHERE sql <> ''")
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


_SHOWN_ALREADY = (
    "INSERT INTO events (kind, at, tenant, installation_id, stream, source, source_key, upload_id,"
    " upload_no, job_id, mode, chunks, records, completed_at)"
    " SELECT 'visible', u.ended_at, t.name, u.installation_id, u.stream, u.source, s.source_key,"
    " u.upload_id, u.upload_no, u.job_id, u.mode, u.chunks, u.records, u.ended_at"
    " FROM uploads u JOIN tenants t ON t.tenant_id = u.tenant_id"
    " LEFT JOIN sources s ON s.source_id = u.source_id WHERE u.visible ORDER BY u.upload_no"
)


def _know_events(connection: Connection) -> None:
    """Version 5: the table of events, beginning with what is visible; more columns in the view."""
    events.create(connection)
    connection.execute(text(_SHOWN_ALREADY))
    connection.execute(text("DROP VIEW IF EXISTS visible_records"))
    _show_records(connection)


_FLEET_COLUMNS = (
    ("seen_s", "BIGINT DEFAULT 0 NOT NULL"),
    ("patience_s", "BIGINT DEFAULT 86400 NOT NULL"),
    ("status", "VARCHAR(8) DEFAULT 'unknown' NOT NULL"),
    ("reasons", "TEXT DEFAULT '' NOT NULL"),
    ("waiting", "BIGINT"),
    ("waiting_bytes", "BIGINT"),
    ("oldest_age_s", "FLOAT"),
    ("dead", "BIGINT"),
    ("missing", "BIGINT"),
    ("labels", "TEXT DEFAULT '{}' NOT NULL"),
)


_OF_INSTALLATION = (
    "CREATE INDEX uploads_of_installation ON uploads (tenant_id, installation_id, ended_at)",
    "DROP INDEX uploads_by_state",
)


def _know_the_fleet(connection: Connection) -> None:
    """Version 7: what the fleet is found, sorted and counted by, from each last report."""
    for name, kind in _FLEET_COLUMNS:
        connection.execute(text(f"ALTER TABLE installations ADD COLUMN {name} {kind}"))
    installation_hours.create(connection)
    for statement in _OF_INSTALLATION:
        connection.execute(text(statement))
    one = [installations.c.tenant_id, installations.c.installation_id]
    said = select(*one, installations.c.last_seen_at, installations.c.health_report)
    above: tuple[int, str] = (-1, "")
    while True:
        further = tuple_(*one) > tuple_(*(literal(part) for part in above))
        rows = connection.execute(said.where(further).order_by(*one).limit(1_000)).all()
        for row in rows:
            above = (row.tenant_id, row.installation_id)
            seen_s = int(datetime.fromisoformat(row.last_seen_at).timestamp())
            found = read_report(orjson.loads(row.health_report)) if row.health_report else {}
            values = {**found, "seen_s": seen_s}
            which = and_(*(column == part for column, part in zip(one, above, strict=True)))
            connection.execute(update(installations).where(which).values(**values))
        if not rows:
            return


_ACKNOWLEDGED = (
    "ALTER TABLE installations ADD COLUMN last_number BIGINT DEFAULT 0 NOT NULL",
    "ALTER TABLE installations ADD COLUMN last_upload_id VARCHAR(200) DEFAULT '' NOT NULL",
    "ALTER TABLE installations ADD COLUMN generation VARCHAR(32) DEFAULT '' NOT NULL",
)


def _know_what_was_acknowledged(connection: Connection) -> None:
    """Version 8: the last number of each installation, and a generation of its own."""
    for statement in _ACKNOWLEDGED:
        connection.execute(text(statement))


def _begin_generation(connection: Connection) -> None:
    connection.execute(insert(generations).values(generation=uuid.uuid4().hex))


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
    ),
    lock_id=0x63617A30,
)

"""The backend's tables and the view `visible_records`.

Owns what the database looks like on SQLite and PostgreSQL; it reads and writes no rows. Times are
ISO 8601 text in UTC (they sort as text); opaque values are JSON text.
"""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
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
    select,
    text,
    tuple_,
    update,
)

from catalogzero.backend.report_columns import read_report
from catalogzero.sql.engines import Schema

metadata = MetaData()
_Key = BigInteger().with_variant(Integer, "sqlite")

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
    UniqueConstraint("tenant_id", "installation_id", "key_digest"),
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
    Column("rows_gone", Boolean(create_constraint=False), nullable=False, server_default=false()),
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
)
Index("uploads_of_source", uploads.c.source_id, uploads.c.visible, uploads.c.key_digest)
Index("uploads_of_installation", uploads.c.tenant_id, uploads.c.installation_id, uploads.c.ended_at)
Index("uploads_by_hook", uploads.c.hook_due_at)
Index("uploads_by_state", uploads.c.state, uploads.c.visible, uploads.c.rows_gone)

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
Index("chunks_by_time", chunks.c.stored_at)

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
Index("health_by_time", health_reports.c.received_at)

VISIBLE_RECORDS = """
CREATE VIEW visible_records AS
SELECT t.name AS tenant, u.installation_id, u.stream, u.source, u.params, u.upload_id,
       u.source_seq, r.seq, r.row_index, r.payload
FROM uploads u
JOIN tenants t ON t.tenant_id = u.tenant_id
JOIN records r ON r.upload_no = u.upload_no
WHERE u.visible
"""


def _create(connection: Connection) -> None:
    """Make the tables and the view of an empty database."""
    metadata.create_all(connection)
    connection.execute(text(VISIBLE_RECORDS))
    _begin_generation(connection)


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
    "DROP VIEW visible_records",
    VISIBLE_RECORDS,
)


def _know_epochs_and_kinds(connection: Connection) -> None:
    """Version 2: epochs, the generation, each source's kind, and params in the view."""
    for statement in _EPOCHS_AND_KINDS:
        connection.execute(text(statement))
    generations.create(connection)
    _begin_generation(connection)


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


def _know_the_fleet(connection: Connection) -> None:
    """What the fleet pages find, sort and count by, out of the last report of each installation."""
    for name, kind in _FLEET_COLUMNS:
        connection.execute(text(f"ALTER TABLE installations ADD COLUMN {name} {kind}"))
    installation_hours.create(connection)
    connection.execute(
        text(
            "CREATE INDEX uploads_of_installation ON uploads (tenant_id, installation_id, ended_at)"
        )
    )
    one = [installations.c.tenant_id, installations.c.installation_id]
    said = select(*one, installations.c.last_seen_at, installations.c.health_report)
    above: tuple[int, str] = (-1, "")
    while True:
        further = tuple_(*one) > tuple_(*(literal(part) for part in above))
        rows = connection.execute(said.where(further).order_by(*one).limit(1_000)).all()
        for row in rows:
            above = (row.tenant_id, row.installation_id)
            seen_s = int(datetime.fromisoformat(row.last_seen_at).timestamp())
            found = read_report(row.health_report) if row.health_report else {}
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
    """The last number of each installation, and a generation of its own."""
    for statement in _ACKNOWLEDGED:
        connection.execute(text(statement))


def _begin_generation(connection: Connection) -> None:
    connection.execute(insert(generations).values(generation=uuid.uuid4().hex))


SCHEMA = Schema(
    version=versions,
    create=_create,
    upgrades=(_know_epochs_and_kinds, _know_the_fleet, _know_what_was_acknowledged),
    lock_id=0x63617A30,
)

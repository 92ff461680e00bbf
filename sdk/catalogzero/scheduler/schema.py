"""The scheduler's tables.

Moments are integers: microseconds since 1970 in UTC, so that a compare-and-swap is exact on every
database. JSON is text.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from catalogzero.sql.engines import Schema

metadata = MetaData()

ID = String(200)
SEQUENCE = BigInteger().with_variant(Integer, "sqlite")

version_table = Table(
    "scheduler_version",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("version", Integer, nullable=False),
)

handlers = Table(
    "scheduler_handlers",
    metadata,
    Column("handler_id", ID, primary_key=True),
    Column("address", String(500), nullable=False),
    Column("methods", Text, nullable=False),
    Column("status", String(10), nullable=False),
    Column("seen_us", BigInteger, nullable=False),
)

_IS_FOLDED = text("folded IS NOT NULL")

schedules = Table(
    "scheduler_schedules",
    metadata,
    Column("schedule_id", String(36), primary_key=True),
    Column("job_id", ID, nullable=False, unique=True),
    Column("handler_id", ID, nullable=False),
    Column("method", ID, nullable=False),
    Column("params", Text, nullable=False),
    Column("trigger_config", Text, nullable=False),
    Column("overlap", String(10), nullable=False),
    Column("misfire_grace_s", Float),
    Column("max_attempts", Integer, nullable=False),
    Column("timeout_s", Float),
    Column("jitter_s", Float, nullable=False),
    Column("max_runs", BigInteger),
    Column("end_us", BigInteger),
    Column("paused", Boolean, nullable=False),
    Column("runs", BigInteger, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("tick_us", BigInteger),
    Column("due_us", BigInteger),
    Column("folded", String(50)),
    Index("scheduler_schedules_due", "paused", "due_us"),
    Index(
        "scheduler_schedules_folded",
        "folded",
        sqlite_where=_IS_FOLDED,
        postgresql_where=_IS_FOLDED,
    ),
)

OPEN = ("running", "retry", "queued")
ACTIVE = ("running", "retry")
FINAL = ("success", "error", "missed", "skipped", "lost")
_IS_OPEN = text("status IN ('running', 'retry', 'queued')")

executions = Table(
    "scheduler_executions",
    metadata,
    Column("seq", SEQUENCE, primary_key=True, autoincrement=True),
    Column("execution_id", String(36), nullable=False, unique=True),
    Column("schedule_id", String(36)),
    Column("tick_us", BigInteger),
    Column("job_id", ID, nullable=False),
    Column("handler_id", ID, nullable=False),
    Column("method", ID, nullable=False),
    Column("params", Text, nullable=False),
    Column("status", String(10), nullable=False),
    Column("late", Boolean, nullable=False),
    Column("misfire_grace_s", Float),
    Column("timeout_s", Float),
    Column("max_attempts", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("n", Integer, nullable=False),
    Column("boot_id", ID),
    Column("start_by_s", Float),
    Column("retry_safe", Boolean),
    Column("owner", String(36)),
    Column("lease", Integer, nullable=False),
    Column("lease_until_us", BigInteger),
    Column("created_us", BigInteger, nullable=False),
    Column("started_us", BigInteger),
    Column("sent_us", BigInteger),
    Column("completed_us", BigInteger),
    Column("last_tick_us", BigInteger),
    Column("ticks", BigInteger, nullable=False),
    Column("result", Text),
    Column("error", Text),
    Column("idempotency_key", ID, unique=True),
    Column("request_digest", String(64)),
    UniqueConstraint("schedule_id", "tick_us", name="scheduler_executions_tick"),
    Index(
        "scheduler_executions_open",
        "schedule_id",
        "status",
        sqlite_where=_IS_OPEN,
        postgresql_where=_IS_OPEN,
    ),
    Index("scheduler_executions_handler", "handler_id", "seq"),
    Index("scheduler_executions_job", "job_id", "seq"),
    Index("scheduler_executions_status", "status", "seq"),
    sqlite_autoincrement=True,
)


def _create(connection: Connection) -> None:
    """Make the tables of an empty database.

    Every execution is written twice more: with room beside it in its page, PostgreSQL leaves the
    indexes alone.
    """
    metadata.create_all(connection)
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"ALTER TABLE {executions.name} SET (fillfactor = 50)"))


SCHEMA = Schema(version=version_table, create=_create, lock_id=7310420001)

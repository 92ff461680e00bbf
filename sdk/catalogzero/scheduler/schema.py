"""The scheduler's tables.

Moments are integers: microseconds since 1970 in UTC, so that a compare-and-swap is exact on every
database. JSON is text.
"""

from __future__ import annotations

import orjson
import sqlalchemy as sa

from catalogzero.protocol.outcomes import outcome_of
from catalogzero.sql.engines import Schema

metadata = sa.MetaData()

ID = sa.String(200)
SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")

version_table = sa.Table(
    "scheduler_version",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)

handlers = sa.Table(
    "scheduler_handlers",
    metadata,
    sa.Column("handler_id", ID, primary_key=True),
    sa.Column("address", sa.String(500), nullable=False),
    sa.Column("methods", sa.Text, nullable=False),
    sa.Column("status", sa.String(10), nullable=False),
    sa.Column("seen_us", sa.BigInteger, nullable=False),
)

instances = sa.Table(
    "scheduler_instances",
    metadata,
    sa.Column("handler_id", ID, primary_key=True),
    sa.Column("instance_id", ID, primary_key=True),
    sa.Column("address", sa.String(500), nullable=False),
    sa.Column("boot_id", ID, nullable=False),
    sa.Column("status", sa.String(10), nullable=False),
    sa.Column("seen_us", sa.BigInteger, nullable=False),
    sa.Column("places", sa.Integer, nullable=False),
)
"""The processes that share the calls of one handler_id; a handler that is alone has none here."""

_IS_FOLDED = sa.text("folded IS NOT NULL")

schedules = sa.Table(
    "scheduler_schedules",
    metadata,
    sa.Column("schedule_id", sa.String(36), primary_key=True),
    sa.Column("job_id", ID, nullable=False, unique=True),
    sa.Column("handler_id", ID, nullable=False),
    sa.Column("method", ID, nullable=False),
    sa.Column("params", sa.Text, nullable=False),
    sa.Column("trigger_config", sa.Text, nullable=False),
    sa.Column("overlap", sa.String(10), nullable=False),
    sa.Column("misfire_grace_s", sa.Float),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("timeout_s", sa.Float),
    sa.Column("jitter_s", sa.Float, nullable=False),
    sa.Column("max_runs", sa.BigInteger),
    sa.Column("end_us", sa.BigInteger),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("runs", sa.BigInteger, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("tick_us", sa.BigInteger),
    sa.Column("due_us", sa.BigInteger),
    sa.Column("folded", sa.String(50)),
    sa.Column("decided_us", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("steady_since_us", sa.BigInteger),
    sa.Column("partition", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("scheduler_schedules_due", "paused", "due_us"),
    sa.Index(
        "scheduler_schedules_folded", "folded", sqlite_where=_IS_FOLDED, postgresql_where=_IS_FOLDED
    ),
)

OPEN = ("running", "retry", "queued")
ACTIVE = ("running", "retry")
FINAL = ("success", "error", "missed", "skipped", "lost")
_IS_OPEN = sa.text("status IN ('running', 'retry', 'queued')")
IS_FAILED = sa.text(
    "CASE WHEN status = 'missed' THEN started_us IS NOT NULL ELSE status IN ('error', 'lost') END"
)
"""The executions that count as errors, as their index has it.

A missed one that had been started was missed because its handler was away; any other because no
scheduler was there. A literal without OR: a database can see that the index holds all of them,
and has no other way that looks as good.
"""

IS_WHOLE = "parent_id IS NULL"
"""No child of a partitioned run: what lists and counts of runs show."""

_TROUBLED = "outcome_state IN ('failed', 'missed')"
_UNSENT = "outcome_state = 'waiting'"
_BY_HAND = "tick_us IS NULL"
_FIRST_SHOWN = (("troubled", _TROUBLED), ("unsent", _UNSENT), ("by_hand", _BY_HAND))
"""As version 3 had them: before there were children."""

IS_TROUBLED, IS_UNSENT, IS_BY_HAND = (f"{those} AND {IS_WHOLE}" for _, those in _FIRST_SHOWN)
"""What pages and commands ask for, each with an index of its own: what failed or was missed, what
waits to be sent, and what no schedule's tick began. Texts, as the indexes have them.
"""

_SHOWN = (("troubled", IS_TROUBLED), ("unsent", IS_UNSENT), ("by_hand", IS_BY_HAND))
_IS_PART = sa.text("parent_id IS NOT NULL")
IS_DIVIDED = "parts IS NOT NULL AND completed_us IS NULL"
"""The runs whose children go on, as their index has it."""

_IS_COMPLETED = sa.text("completed_us IS NOT NULL")

executions = sa.Table(
    "scheduler_executions",
    metadata,
    sa.Column("seq", SEQUENCE, primary_key=True, autoincrement=True),
    sa.Column("execution_id", sa.String(36), nullable=False, unique=True),
    sa.Column("schedule_id", sa.String(36)),
    sa.Column("tick_us", sa.BigInteger),
    sa.Column("job_id", ID, nullable=False),
    sa.Column("handler_id", ID, nullable=False),
    sa.Column("method", ID, nullable=False),
    sa.Column("params", sa.Text, nullable=False),
    sa.Column("status", sa.String(10), nullable=False),
    sa.Column("late", sa.Boolean, nullable=False),
    sa.Column("misfire_grace_s", sa.Float),
    sa.Column("timeout_s", sa.Float),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("boot_id", ID),
    sa.Column("start_by_s", sa.Float),
    sa.Column("retry_safe", sa.Boolean),
    sa.Column("owner", sa.String(36)),
    sa.Column("lease", sa.Integer, nullable=False),
    sa.Column("lease_until_us", sa.BigInteger),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("started_us", sa.BigInteger),
    sa.Column("sent_us", sa.BigInteger),
    sa.Column("completed_us", sa.BigInteger),
    sa.Column("last_tick_us", sa.BigInteger),
    sa.Column("ticks", sa.BigInteger, nullable=False),
    sa.Column("result", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("waiting", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("idempotency_key", ID, unique=True),
    sa.Column("request_digest", sa.String(64)),
    sa.Column("outcome_state", sa.String(10)),
    sa.Column("instance_id", ID),
    sa.Column("partition", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("parts", sa.Integer),
    sa.Column("parent_id", sa.String(36)),
    sa.Column("item", sa.Text),
    sa.Column("stopped", sa.Text),
    sa.UniqueConstraint("schedule_id", "tick_us", name="scheduler_executions_tick"),
    sa.Index(
        "scheduler_executions_open",
        "schedule_id",
        "status",
        sqlite_where=_IS_OPEN,
        postgresql_where=_IS_OPEN,
    ),
    sa.Index("scheduler_executions_handler", "handler_id", "seq"),
    sa.Index(
        "scheduler_executions_job",
        "job_id",
        "seq",
        sqlite_where=sa.text(IS_WHOLE),
        postgresql_where=sa.text(IS_WHOLE),
    ),
    sa.Index("scheduler_executions_status", "status", "seq"),
    sa.Index("scheduler_executions_method", "method", "seq"),
    sa.Index(
        "scheduler_executions_failed", "seq", sqlite_where=IS_FAILED, postgresql_where=IS_FAILED
    ),
    *(
        sa.Index(
            f"scheduler_executions_{name}",
            "seq",
            sqlite_where=sa.text(those),
            postgresql_where=sa.text(those),
        )
        for name, those in _SHOWN
    ),
    sa.Index(
        "scheduler_executions_completed",
        "completed_us",
        sqlite_where=_IS_COMPLETED,
        postgresql_where=_IS_COMPLETED,
    ),
    # Not of all rows: a database would look for those without a parent in it.
    sa.Index(
        "scheduler_executions_item",
        "parent_id",
        "item",
        unique=True,
        sqlite_where=_IS_PART,
        postgresql_where=_IS_PART,
    ),
    sa.Index(
        "scheduler_executions_part",
        "parent_id",
        "status",
        sqlite_where=_IS_PART,
        postgresql_where=_IS_PART,
    ),
    sa.Index(
        "scheduler_executions_divided",
        "seq",
        sqlite_where=sa.text(IS_DIVIDED),
        postgresql_where=sa.text(IS_DIVIDED),
    ),
    sqlite_autoincrement=True,
)
"""One row for each run. `partition` is copied from its schedule; of such a run `parts` is how many
items were listed, once they were, and `parent_id` and `item` (JSON) are those of its children.
`stopped` is why a run is to end before its time.
"""

FORGOTTEN = "forgotten"
counts = sa.Table(
    "scheduler_counts",
    metadata,
    sa.Column("handler_id", ID, primary_key=True),
    sa.Column("status", sa.String(10), primary_key=True),
    sa.Column("started", sa.Boolean, primary_key=True),
    sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("count", sa.BigInteger, nullable=False),
    sa.Column("took_us", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""How many final executions there are, and how long these took, changed with them.

A scheduler adds to a shard, so that several seldom wait for each other; only the sums mean
something. `forgotten` is what was purged or cleared.
"""


def _create(connection: sa.Connection) -> None:
    """Make the tables of an empty database.

    Every execution is written twice more: with room beside it in its page, PostgreSQL leaves the
    indexes alone.
    """
    metadata.create_all(connection)
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text(f"ALTER TABLE {executions.name} SET (fillfactor = 50)"))


_VERSION_2 = (
    "ALTER TABLE scheduler_executions ADD COLUMN waiting BOOLEAN DEFAULT false NOT NULL",
    "ALTER TABLE scheduler_schedules ADD COLUMN decided_us BIGINT DEFAULT 0 NOT NULL",
    "ALTER TABLE scheduler_schedules ADD COLUMN steady_since_us BIGINT",
    "UPDATE scheduler_schedules SET decided_us = coalesce((SELECT max(coalesce(e.last_tick_us,"
    " e.tick_us)) FROM scheduler_executions e"
    " WHERE e.schedule_id = scheduler_schedules.schedule_id), created_us)",
    "INSERT INTO scheduler_counts SELECT handler_id, status, started_us IS NOT NULL, 0, count(*),"
    " coalesce(sum(completed_us - started_us), 0) FROM scheduler_executions"
    " WHERE completed_us IS NOT NULL GROUP BY handler_id, status, started_us IS NOT NULL",
    "INSERT INTO scheduler_counts SELECT '', 'forgotten', false, 0,"
    " coalesce(max(seq), 0) - count(*), 0 FROM scheduler_executions",
    "CREATE INDEX scheduler_executions_method ON scheduler_executions (method, seq)",
    f"CREATE INDEX scheduler_executions_failed ON scheduler_executions (seq) WHERE {IS_FAILED}",
    "CREATE INDEX scheduler_executions_completed ON scheduler_executions (completed_us)"
    f" WHERE {_IS_COMPLETED}",
)


def _to_version_2(connection: sa.Connection) -> None:
    """Counts of executions, indexes for history, absent handlers, until when ticks are decided."""
    counts.create(connection)
    for statement in _VERSION_2:
        connection.execute(sa.text(statement))


_VERSION_3 = (
    "ALTER TABLE scheduler_executions ADD COLUMN outcome_state VARCHAR(10)",
    "UPDATE scheduler_executions SET outcome_state ="
    " CASE status WHEN 'error' THEN 'failed' ELSE 'missed' END"
    " WHERE status IN ('error', 'missed', 'lost')",
    *(
        f"CREATE INDEX scheduler_executions_{name} ON scheduler_executions (seq) WHERE {those}"
        for name, those in _FIRST_SHOWN
    ),
)


def _to_version_3(connection: sa.Connection) -> None:
    """What executions came to, where that is trouble, or rows that wait to be sent.

    The others, which are most, stay as they are: a write of each would double the table.
    """
    for statement in _VERSION_3:
        connection.execute(sa.text(statement))
    known = executions.c.result.contains('"status"')
    found = sa.select(executions.c.seq, executions.c.result)
    seqs: dict[str, list[int]] = {}
    for seq, result in connection.execute(found.where(executions.c.status == "success", known)):
        came_to = outcome_of("success", orjson.loads(result))
        if came_to["state"] in ("failed", "waiting"):
            seqs.setdefault(came_to["state"], []).append(seq)
    for state, mine in seqs.items():
        for start in range(0, len(mine), 500):
            part = mine[start : start + 500]
            those = sa.update(executions).where(executions.c.seq.in_(part))
            connection.execute(those.values(outcome_state=state))


def _to_version_4(connection: sa.Connection) -> None:
    """Instances of handlers, and which one an execution is called at."""
    instances.create(connection)
    column = "ALTER TABLE scheduler_executions ADD COLUMN instance_id VARCHAR(200)"
    connection.execute(sa.text(column))


_VERSION_5 = (
    "ALTER TABLE scheduler_schedules ADD COLUMN partition BOOLEAN DEFAULT false NOT NULL",
    "ALTER TABLE scheduler_executions ADD COLUMN partition BOOLEAN DEFAULT false NOT NULL",
    "ALTER TABLE scheduler_executions ADD COLUMN parts INTEGER",
    "ALTER TABLE scheduler_executions ADD COLUMN parent_id VARCHAR(36)",
    "ALTER TABLE scheduler_executions ADD COLUMN item TEXT",
    "ALTER TABLE scheduler_executions ADD COLUMN stopped TEXT",
    "CREATE UNIQUE INDEX scheduler_executions_item ON scheduler_executions (parent_id, item)"
    f" WHERE {_IS_PART}",
    "CREATE INDEX scheduler_executions_part ON scheduler_executions (parent_id, status)"
    f" WHERE {_IS_PART}",
    f"CREATE INDEX scheduler_executions_divided ON scheduler_executions (seq) WHERE {IS_DIVIDED}",
    "DROP INDEX scheduler_executions_job",
    f"CREATE INDEX scheduler_executions_job ON scheduler_executions (job_id, seq) WHERE {IS_WHOLE}",
    *(
        statement
        for name, those in _SHOWN
        for statement in (
            f"DROP INDEX scheduler_executions_{name}",
            f"CREATE INDEX scheduler_executions_{name} ON scheduler_executions (seq) WHERE {those}",
        )
    ),
)


def _to_version_5(connection: sa.Connection) -> None:
    """Partitioned runs: a child for each item; lists and their indexes pass over the children."""
    for statement in _VERSION_5:
        connection.execute(sa.text(statement))
    if connection.dialect.name == "postgresql":
        # It takes a column that it has not looked at for seldom NULL, and reads all rows then.
        connection.execute(sa.text(f"ANALYZE {executions.name}"))


SCHEMA = Schema(
    version=version_table,
    create=_create,
    upgrades=(_to_version_2, _to_version_3, _to_version_4, _to_version_5),
    lock_id=7310420001,
)

"""The statements of a scheduler's every tick and heartbeat, built once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from catalogzero.scheduler.schema import ACTIVE, FORGOTTEN, OPEN, counts, executions, schedules
from catalogzero.wire.messages import encode_json

Given = Callable[[str], sa.ColumnElement[Any]]
Write: TypeAlias = sa.Insert | sa.Update | sa.Delete
Values: TypeAlias = dict[str, Any]
"""The values of one row, by the names of a statement's parameters."""


def is_open(status: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Whether a status is that of an open execution, written as the index of these has it.

    With parameters instead, a database cannot see that the index holds all that is asked for,
    and reads every execution that a schedule ever had.
    """
    return status.in_(sa.bindparam("open", OPEN, expanding=True, literal_execute=True))


IS_ACTIVE = sa.or_(*(executions.c.status == status for status in ACTIVE))
IS_FINAL = executions.c.completed_us.is_not(None)


class ForEach:
    """A statement that writes many rows.

    It has two forms: on SQLite it is executed for each row; on PostgreSQL once, with all rows in
    one JSON text, as there every statement costs a message and a plan.

    Args:
        values: The values of a row, by name, and the column that each is of.
        build: Makes the statement, given what stands for a value.
        each: Makes that of SQLite, where it is another.
    """

    def __init__(
        self,
        values: Mapping[str, sa.ColumnElement[Any]],
        build: Callable[[Given], Write],
        each: Callable[[Given], Write] | None = None,
    ) -> None:
        types = {name: of.type for name, of in values.items()}
        self._each = (each or build)(lambda name: sa.bindparam(name, type_=types[name]))
        # One parameter, whatever the number of rows: the statement's text stays the same.
        rows = sa.func.json_to_recordset(sa.cast(sa.bindparam("rows", type_=sa.Text), sa.JSON))
        given = rows.table_valued(*(sa.Column(name, kind) for name, kind in types.items()))
        self._at_once = build(given.render_derived("given", with_types=True).c.__getitem__)

    def write(self, c: sa.Connection, rows: Sequence[Values]) -> int:
        """Write the rows; how many of the table's were changed."""
        if not rows:
            return 0
        if c.dialect.name == "postgresql":
            done = c.execute(self._at_once, {"rows": encode_json(rows).decode()})
        else:
            done = c.execute(self._each, rows)
        return row_count(done)


def row_count(result: object) -> int:
    """How many rows a statement changed."""
    return cast("sa.CursorResult[Any]", result).rowcount


def changing(
    table: sa.Table, key: Sequence[str], names: Sequence[str], *conditions: sa.ColumnElement[bool]
) -> ForEach:
    """An UPDATE of the rows whose `key` columns have the `old_…` values, to the `new_…` ones."""
    old = {f"old_{name}": table.c[name] for name in key}
    new = {f"new_{name}": table.c[name] for name in names}
    return ForEach(
        old | new,
        lambda given: (
            sa.update(table)
            .where(*(column == given(name) for name, column in old.items()), *conditions)
            .values({name: given(f"new_{name}") for name in names})
        ),
    )


LEASED = ("execution_id", "owner", "lease")
"""What an execution's writer must still have right."""

OUTCOME = (
    *("status", "late", "attempt", "n", "boot_id", "start_by_s", "retry_safe"),
    *("started_us", "sent_us", "completed_us", "result", "error", "waiting", "outcome_state"),
    "instance_id",
)
"""What an execution's writer changes."""

_LATER = (
    *("seq", "boot_id", "start_by_s", "retry_safe", "sent_us", "result", "waiting"),
    *("idempotency_key", "request_digest", "instance_id", "parts", "stopped"),
)
ROW = {column.name: column for column in executions.c if column.name not in _LATER}

INSERT = ForEach(
    ROW,
    lambda given: sa.insert(executions).from_select(
        [*ROW], sa.select(*(given(name) for name in ROW))
    ),
)
"""New executions."""

SAVE = changing(executions, LEASED, OUTCOME, IS_ACTIVE)
"""Writes an outcome, on the condition that the lease is still its owner's."""

CLAIMED = ("schedule_id", "due_us")
SWAPPED = ("tick_us", "due_us", "runs", "folded", "decided_us", "steady_since_us")
SWAP = changing(schedules, CLAIMED, SWAPPED, schedules.c.paused.is_(False))
"""The compare-and-swap of a schedule's next time."""

MOVED = ("trigger_config", *SWAPPED)
MOVE = changing(schedules, ("schedule_id",), MOVED)
"""Another next time, after a step of the clock."""

TAKE = changing(
    executions, ("execution_id", "lease"), ("owner", "lease", "lease_until_us"), IS_ACTIVE
)
"""Takes over a lease that ended."""

BEGIN = changing(executions, ("execution_id",), ("status", "started_us"))
"""A queued execution begins."""

GROW = ForEach(
    {
        "old_execution_id": executions.c.execution_id,
        "new_last_tick_us": executions.c.last_tick_us,
        "more": executions.c.ticks,
        "new_error": executions.c.error,
    },
    lambda given: (
        sa.update(executions)
        .where(executions.c.execution_id == given("old_execution_id"))
        .values(
            last_tick_us=given("new_last_tick_us"),
            ticks=executions.c.ticks + given("more"),
            error=given("new_error"),
        )
    ),
)
"""Adds ticks to a missed or skipped row, and says why the last ones did not run."""

REMOVE = ForEach(
    {"old_schedule_id": schedules.c.schedule_id},
    lambda given: sa.delete(schedules).where(schedules.c.schedule_id == given("old_schedule_id")),
)
"""A schedule is over."""

_moving = (
    schedules.c.paused.is_(False),
    schedules.c.schedule_id.not_in(sa.bindparam("still", expanding=True)),
)

DUE = (
    sa.select(schedules)
    .where(*_moving, schedules.c.due_us <= sa.bindparam("now_us"))
    .order_by(schedules.c.due_us)
    .limit(sa.bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
"""The schedules that are due but for those that stand still, locked where the database can."""

NEXT_DUE = sa.select(sa.func.min(schedules.c.due_us)).where(*_moving)
"""The next due time of all but those that stand still."""

GOING_ON = (
    sa.select(
        executions.c.schedule_id,
        sa.func.count().label("open"),
        sa.func.sum(sa.case((executions.c.status == "queued", 1), else_=0)).label("queued"),
        sa.func.sum(sa.case((executions.c.waiting, 1), else_=0)).label("waiting"),
    )
    .where(
        is_open(executions.c.status),
        executions.c.schedule_id.in_(sa.bindparam("schedule_ids", expanding=True)),
    )
    .group_by(executions.c.schedule_id)
)
"""How many executions of some schedules are open; how many of those wait for their turn, and how
many for an absent handler.
"""

ANY_QUEUED = sa.select(executions.c.seq).where(executions.c.status == "queued").limit(1)
"""Whether any execution waits for an earlier one."""

# By `seq`, not by tick: the order in which they were recorded, which no clock changes.
_ahead = executions.alias()
_before = sa.or_(
    _ahead.c.status.in_(ACTIVE),
    (_ahead.c.status == "queued") & (_ahead.c.seq < executions.c.seq),
)
_blocked = sa.select(_ahead.c.seq).where(
    _ahead.c.schedule_id == executions.c.schedule_id, is_open(_ahead.c.status), _before
)

TURN = (
    sa.select(executions)
    .where(executions.c.status == "queued", executions.c.parent_id.is_(None), ~_blocked.exists())
    .limit(sa.bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
"""The queued executions whose turn has come: nothing of their schedule is going on. Children of a
partitioned run are taken by `partitions`.
"""

_of_some = executions.c.schedule_id.in_(sa.bindparam("schedule_ids", expanding=True))

RECORDED = sa.select(executions.c.schedule_id, executions.c.tick_us).where(
    _of_some, executions.c.tick_us > sa.bindparam("after_us")
)
"""The ticks of some schedules after a moment that are recorded already."""

UNRUN = (
    sa.select(executions)
    .where(
        _of_some,
        executions.c.tick_us > sa.bindparam("after_us"),
        (executions.c.status == "missed")
        | (executions.c.status.in_(OPEN) & executions.c.sent_us.is_(None)),
    )
    .with_for_update()
)
"""Of these, those that surely did not run, and may when their time comes."""

_some = executions.c.seq.in_(sa.bindparam("seqs", expanding=True))

FREE = sa.update(executions).where(_some).values(schedule_id=None)
"""Their ticks are free again."""

VOID = (
    sa.update(executions)
    .where(_some)
    .values(
        status="skipped",
        waiting=False,
        owner=None,
        lease=executions.c.lease + 1,
        completed_us=sa.bindparam("now_us"),
        error="the clock was set back before it began: its time is still to come",
    )
)
"""What waits to begin at a time that is to come: whoever waits holds it no more."""

SHORTEN = (
    sa.update(executions)
    .where(IS_ACTIVE, executions.c.lease_until_us > sa.bindparam("until_us"))
    .values(lease_until_us=sa.bindparam("until_us"))
)
"""Leases that were given by a clock that was ahead."""

AHEAD = (
    sa.select(schedules)
    .where(schedules.c.decided_us > sa.bindparam("now_us"))
    .with_for_update(skip_locked=True)
)
"""The schedules on which a clock decided that was ahead."""

_mine = (executions.c.owner == sa.bindparam("its_owner"), IS_ACTIVE)

RENEW = sa.update(executions).where(*_mine).values(lease_until_us=sa.bindparam("until_us"))
"""The heartbeat of an owner."""

_parent = executions.alias()
HELD = (
    sa.select(
        executions.c.execution_id,
        executions.c.lease,
        sa.func.coalesce(executions.c.stopped, _parent.c.stopped).label("stopped"),
    )
    .outerjoin(_parent, _parent.c.execution_id == executions.c.parent_id)
    .where(*_mine)
)
"""What an owner holds, and why some of it, or the run that it is a part of, is to end."""

ENDED_LEASES = (
    sa.select(executions)
    .where(IS_ACTIVE, executions.c.lease_until_us < sa.bindparam("now_us"))
    .order_by(executions.c.seq)
    .limit(sa.bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
"""The executions whose scheduler is gone, or frozen."""

_KEY = ("handler_id", "status", "started", "shard")


def counting(insert: Callable[[sa.Table], Any]) -> Callable[[Given], Write]:
    """What adds to the counts, by a dialect's own INSERT."""

    def build(given: Given) -> Write:
        names = [column.name for column in counts.c]
        new = insert(counts).from_select(names, sa.select(*(given(name) for name in names)))
        more = {name: counts.c[name] + new.excluded[name] for name in ("count", "took_us")}
        return cast("Write", new.on_conflict_do_update(index_elements=_KEY, set_=more))

    return build


COUNT = ForEach(
    {column.name: column for column in counts.c},
    counting(postgresql.insert),
    counting(sqlite.insert),
)
"""Adds to the counts of final executions."""


class CountChanges:
    """What a transaction adds to the counts."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, bool], tuple[int, int]] = {}

    def add(
        self,
        handler_id: str,
        status: str,
        started_us: int | None = None,
        completed_us: int | None = None,
        *,
        more: int = 1,
    ) -> None:
        """That many more executions that ended so, or fewer."""
        took_us = 0 if started_us is None or completed_us is None else completed_us - started_us
        if not more:
            return
        key = handler_id, status, started_us is not None
        count, total_us = self._found.get(key, (0, 0))
        self._found[key] = count + more, total_us + more * took_us

    def forget(self, rows: Sequence[sa.Row[Any]]) -> None:
        """These are deleted."""
        for row in rows:
            self.add(row.handler_id, row.status, row.started_us, row.completed_us, more=-1)
        self.add("", FORGOTTEN, more=len(rows))

    def write(self, c: sa.Connection, shard: int) -> None:
        """Add it all, in one order for all, so that none waits for another that waits for it."""
        rows = [
            {**dict(zip(_KEY, (*key, shard), strict=True)), "count": count, "took_us": took_us}
            for key, (count, took_us) in sorted(self._found.items())
        ]
        COUNT.write(c, rows)

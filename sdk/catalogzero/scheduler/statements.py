"""The statements of a scheduler's every tick and heartbeat, built once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import sqlalchemy as sa

from catalogzero.scheduler.schema import ACTIVE, OPEN, executions, schedules
from catalogzero.wire.messages import encode_json

Given = Callable[[str], sa.ColumnElement[Any]]


def _is_open(status: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Whether a status is that of an open execution, written as the index of these has it.

    With parameters instead, a database cannot tell that the index holds all that is asked for,
    and reads every execution that a schedule ever had.
    """
    return status.in_(sa.bindparam("open", OPEN, expanding=True, literal_execute=True))


IS_ACTIVE = sa.or_(*(executions.c.status == status for status in ACTIVE))


class ForEach:
    """A statement that writes many rows.

    It has two forms: on SQLite it is executed for each row; on PostgreSQL once, with all rows in
    one JSON text, as there every statement costs a message and a plan.

    Args:
        values: The values of a row, by name, and the column that each is of.
        build: Makes the statement, given what stands for a value.
    """

    def __init__(
        self,
        values: Mapping[str, sa.ColumnElement[Any]],
        build: Callable[[Given], sa.Insert | sa.Update | sa.Delete],
    ) -> None:
        types = {name: of.type for name, of in values.items()}
        self._each = build(lambda name: sa.bindparam(name, type_=types[name]))
        rows = sa.func.json_to_recordset(sa.cast(sa.bindparam("rows", type_=sa.Text), sa.JSON))
        told = rows.table_valued(*(sa.Column(name, kind) for name, kind in types.items()))
        self._at_once = build(told.render_derived("given", with_types=True).c.__getitem__)

    def write(self, c: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> int:
        """Write the rows; how many of the table's were changed."""
        if not rows:
            return 0
        if c.dialect.name == "postgresql":
            done = c.execute(self._at_once, {"rows": encode_json(rows).decode()})
        else:
            done = c.execute(self._each, rows)
        return cast("sa.CursorResult[Any]", done).rowcount


def _changing(
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
    *("sent_us", "completed_us", "result", "error"),
)
"""What an execution's writer changes."""

_LATER = (
    *("seq", "boot_id", "start_by_s", "retry_safe", "sent_us", "result"),
    *("idempotency_key", "request_digest"),
)
ROW = {column.name: column for column in executions.c if column.name not in _LATER}

INSERT = ForEach(
    ROW,
    lambda given: sa.insert(executions).from_select(
        [*ROW], sa.select(*(given(name) for name in ROW))
    ),
)
"""New executions."""

SAVE = _changing(executions, LEASED, OUTCOME, IS_ACTIVE)
"""Writes an outcome, on the condition that the lease is still its owner's."""

SWAP = _changing(
    schedules,
    ("schedule_id", "due_us"),
    ("tick_us", "due_us", "runs", "folded"),
    schedules.c.paused.is_(False),
)
"""The compare-and-swap of a schedule's next time."""

MOVED = ("trigger_config", "tick_us", "due_us", "folded")
MOVE = _changing(schedules, ("schedule_id",), MOVED)
"""Another next time, after a step of the clock."""

TAKE = _changing(
    executions, ("execution_id", "lease"), ("owner", "lease", "lease_until_us"), IS_ACTIVE
)
"""Takes over a lease that ended."""

BEGIN = _changing(executions, ("execution_id",), ("status", "started_us"))
"""A queued execution begins."""

GROW = ForEach(
    {
        "old_execution_id": executions.c.execution_id,
        "new_last_tick_us": executions.c.last_tick_us,
        "more": executions.c.ticks,
    },
    lambda given: (
        sa.update(executions)
        .where(executions.c.execution_id == given("old_execution_id"))
        .values(last_tick_us=given("new_last_tick_us"), ticks=executions.c.ticks + given("more"))
    ),
)
"""Adds ticks to a missed or skipped row."""

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
    )
    .where(
        _is_open(executions.c.status),
        executions.c.schedule_id.in_(sa.bindparam("schedule_ids", expanding=True)),
    )
    .group_by(executions.c.schedule_id)
)
"""How many executions of some schedules are open, and how many of those wait."""

ANY_QUEUED = sa.select(executions.c.seq).where(executions.c.status == "queued").limit(1)
"""Whether any execution waits for an earlier one."""

_ahead = executions.alias()
_before = sa.or_(
    _ahead.c.status.in_(ACTIVE),
    (_ahead.c.status == "queued") & (_ahead.c.seq < executions.c.seq),
)
_blocked = sa.select(_ahead.c.seq).where(
    _ahead.c.schedule_id == executions.c.schedule_id, _is_open(_ahead.c.status), _before
)

TURN = (
    sa.select(executions)
    .where(executions.c.status == "queued", ~_blocked.exists())
    .limit(sa.bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
"""The queued executions whose turn has come: nothing of their schedule is going on."""

RECORDED = sa.select(executions.c.schedule_id, executions.c.tick_us).where(
    executions.c.schedule_id == schedules.c.schedule_id,
    executions.c.tick_us > sa.bindparam("after_us"),
)
"""The ticks after a moment that are recorded already."""

_to_come = executions.c.tick_us > sa.bindparam("now_us")
_never_ran = executions.c.status.in_(("missed", "skipped"))

FORGIVE = sa.update(executions).where(_never_ran, _to_come).values(schedule_id=None)
"""Ticks that did not run under a clock that was ahead may run when their time comes."""

SHORTEN = (
    sa.update(executions)
    .where(IS_ACTIVE, executions.c.lease_until_us > sa.bindparam("until_us"))
    .values(lease_until_us=sa.bindparam("until_us"))
)
"""Leases that were given by a clock that was ahead."""

LATER = (
    sa.select(schedules)
    .where(sa.or_(*(schedules.c[n] > sa.bindparam("now_us") for n in ("due_us", "created_us"))))
    .with_for_update(skip_locked=True)
)
"""The schedules of which something is to come."""

_mine = (executions.c.owner == sa.bindparam("its_owner"), IS_ACTIVE)

RENEW = sa.update(executions).where(*_mine).values(lease_until_us=sa.bindparam("until_us"))
"""The heartbeat of an owner."""

HELD = sa.select(executions.c.execution_id, executions.c.lease).where(*_mine)
"""What an owner holds."""

ENDED_LEASES = (
    sa.select(executions)
    .where(IS_ACTIVE, executions.c.lease_until_us < sa.bindparam("now_us"))
    .order_by(executions.c.seq)
    .limit(sa.bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
"""The executions whose scheduler is gone, or frozen."""

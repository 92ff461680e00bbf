"""The statements of a scheduler's every tick and heartbeat, built once.

Layer: edge.
"""

from __future__ import annotations

from sqlalchemy import bindparam, case, delete, func, or_, select, update

from catalogzero.scheduler.schema import ACTIVE, OPEN, executions, schedules

_OUTCOME = (
    *("status", "late", "attempt", "n", "boot_id", "start_by_s", "retry_safe"),
    *("sent_us", "completed_us", "result", "error"),
)

IS_ACTIVE = or_(*(executions.c.status == status for status in ACTIVE))

SAVE = (
    update(executions)
    .where(
        executions.c.execution_id == bindparam("its_id"),
        executions.c.owner == bindparam("its_owner"),
        executions.c.lease == bindparam("its_lease"),
        IS_ACTIVE,
    )
    .values({name: bindparam(f"new_{name}") for name in _OUTCOME})
)
"""Writes an outcome, on the condition that the lease is still its owner's."""

SWAP = (
    update(schedules)
    .where(
        schedules.c.schedule_id == bindparam("its_id"),
        schedules.c.due_us == bindparam("old_due_us"),
        schedules.c.paused.is_(False),
    )
    .values({name: bindparam(f"new_{name}") for name in ("tick_us", "due_us", "runs", "folded")})
)
"""The compare-and-swap of a schedule's next time."""

TAKE = (
    update(executions)
    .where(
        executions.c.execution_id == bindparam("its_id"),
        executions.c.lease == bindparam("old_lease"),
        IS_ACTIVE,
    )
    .values({name: bindparam(f"new_{name}") for name in ("owner", "lease", "lease_until_us")})
)
"""Takes over a lease that ended."""

GROW = (
    update(executions)
    .where(executions.c.execution_id == bindparam("its_id"))
    .values(
        last_tick_us=bindparam("new_last_tick_us"), ticks=executions.c.ticks + bindparam("more")
    )
)
"""Adds ticks to a missed or skipped row."""


DUE = (
    select(schedules)
    .where(schedules.c.paused.is_(False), schedules.c.due_us <= bindparam("now_us"))
    .order_by(schedules.c.due_us)
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
"""The schedules that are due, locked where the database can."""

NEXT_DUE = select(func.min(schedules.c.due_us)).where(schedules.c.paused.is_(False))
"""The next due time of all."""

GOING_ON = (
    select(
        executions.c.schedule_id,
        func.count().label("open"),
        func.sum(case((executions.c.status == "queued", 1), else_=0)).label("queued"),
    )
    .where(
        executions.c.status.in_(OPEN),
        executions.c.schedule_id.in_(bindparam("schedule_ids", expanding=True)),
    )
    .group_by(executions.c.schedule_id)
)
"""How many executions of some schedules are open, and how many of those wait."""

ANY_QUEUED = select(executions.c.seq).where(executions.c.status == "queued").limit(1)
"""Whether any execution waits for an earlier one."""

_ahead = executions.alias()
_before = or_(
    _ahead.c.status.in_(ACTIVE),
    (_ahead.c.status == "queued") & (_ahead.c.seq < executions.c.seq),
)
_blocked = select(_ahead.c.seq).where(_ahead.c.schedule_id == executions.c.schedule_id, _before)

TURN = (
    select(executions)
    .where(executions.c.status == "queued", ~_blocked.exists())
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
"""The queued executions whose turn has come: nothing of their schedule is going on."""

BEGIN = (
    update(executions)
    .where(executions.c.execution_id == bindparam("its_id"))
    .values(status="running", started_us=bindparam("now_us"))
)
"""A queued execution begins."""

REMOVE = delete(schedules).where(schedules.c.schedule_id == bindparam("its_id"))
"""A schedule is over."""

_mine = (executions.c.owner == bindparam("its_owner"), IS_ACTIVE)

RENEW = update(executions).where(*_mine).values(lease_until_us=bindparam("until_us"))
"""The heartbeat of an owner."""

HELD = select(executions.c.execution_id, executions.c.lease).where(*_mine)
"""What an owner holds."""

ENDED_LEASES = (
    select(executions)
    .where(IS_ACTIVE, executions.c.lease_until_us < bindparam("now_us"))
    .order_by(executions.c.seq)
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True)
)
"""The executions whose scheduler is gone, or frozen."""

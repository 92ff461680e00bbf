"""How the schedules do: those in trouble first, counted, page by page, each with its last runs.

Owns what is in trouble: a schedule whose last run failed or was missed, whose run waits for a
handler that is away, or that stands still. A run that was skipped says nothing of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from catalogzero.scheduler.answers import ScheduleCounts
from catalogzero.scheduler.schema import executions, schedules
from catalogzero.scheduler.store import Store, mentions
from catalogzero.scheduler.ticks import Schedule

Standing = Literal["failing", "waiting", "well"]
PAGE_ROWS = 25
SHOWN = ("failing", "waiting", "paused")
_RANKS: tuple[Standing, ...] = ("failing", "waiting", "well")
_AWAY = "away"
_STANDINGS: Mapping[str, Standing] = {
    **{"failed": "failing", "missed": "failing", _AWAY: "failing"},
    "waiting": "waiting",
}

_last = (
    sa.select(sa.case((executions.c.waiting, _AWAY), else_=executions.c.outcome_state))
    .where(
        executions.c.job_id == schedules.c.job_id,
        executions.c.parent_id.is_(None),
        sa.or_(
            executions.c.waiting,
            executions.c.completed_us.is_not(None) & (executions.c.status != "skipped"),
        ),
    )
    .order_by(executions.c.seq.desc())
    .limit(1)
    .scalar_subquery()
)
"""What a schedule's last run came to, of those that ended or wait for their handler."""


@dataclass(frozen=True, slots=True)
class ScheduleQuery:
    """Which schedules are shown: those with this text in their names, of one kind, which page."""

    search: str = ""
    show: str = ""
    page: int = 1


@dataclass(frozen=True, slots=True)
class SchedulePage:
    """A page of schedules, failing ones first and paused ones last, with how each does.

    `counts` are of all that match the search; `next_us` is the next tick of these.
    """

    schedules: list[tuple[Schedule, Standing]]
    counts: ScheduleCounts
    next_us: int | None
    page: int
    pages: int


def read_overview(store: Store, asked: ScheduleQuery) -> SchedulePage:
    """One page of the schedules; each of them costs a look at an index, and nothing more."""
    names = (schedules.c.job_id, schedules.c.schedule_id, schedules.c.paused, schedules.c.tick_us)
    order = (schedules.c.paused, schedules.c.due_us, schedules.c.job_id)
    every = sa.select(*names, _last.label("came_to")).where(mentions(asked.search)).order_by(*order)
    with store.reading() as c:
        rows = c.execute(every).all()
    standings: dict[str, Standing] = {
        row.job_id: "failing"
        if store.stands_still(row.schedule_id)
        else _STANDINGS.get(row.came_to, "well")
        for row in rows
    }
    resting = {row.job_id for row in rows if row.paused}
    of_kind = [*standings.values()]
    counts = ScheduleCounts(
        all=len(rows),
        failing=of_kind.count("failing"),
        waiting=of_kind.count("waiting"),
        paused=len(resting),
    )
    ordered = sorted(standings, key=lambda job_id: _RANKS.index(standings[job_id]))
    if asked.show == "paused":
        ordered = [job_id for job_id in ordered if job_id in resting]
    elif asked.show:
        ordered = [job_id for job_id in ordered if standings[job_id] == asked.show]
    pages = max(1, -(-len(ordered) // PAGE_ROWS))
    page = min(asked.page, pages)
    shown = ordered[(page - 1) * PAGE_ROWS : page * PAGE_ROWS]
    there = {one.job_id: one for one in store.find_schedules(shown)}
    return SchedulePage(
        # One that was removed since is left out.
        [(there[job_id], standings[job_id]) for job_id in shown if job_id in there],
        counts,
        min((row.tick_us for row in rows if row.tick_us and not row.paused), default=None),
        page,
        pages,
    )

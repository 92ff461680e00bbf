"""What ran: queries over executions, their shape in the API, and how long they are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import orjson
from sqlalchemy import ColumnElement, RowMapping, and_, case, delete, func, or_, select

from catalogzero.scheduler.schema import FINAL, executions, schedules
from catalogzero.scheduler.store import Store
from catalogzero.scheduler.ticks import iso_of, seconds_us
from catalogzero.wire.messages import parse_json

PURGE_LIMIT = 2_000
SUMMARY_PARAMS = 5
SUMMARY_CHARS = 50
SAME = ("execution_id", "job_id", "handler_id", "status", "late", "error", "max_attempts")
"""What the API calls as the table does."""

FILTERS = {
    "handler_id": executions.c.handler_id,
    "job_id": executions.c.job_id,
    "method_name": executions.c.method,
    "status": executions.c.status,
}


class History:
    """The executions of a store, for reading and forgetting."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def newest(
        self, filters: Mapping[str, str], limit: int, before: int | None = None
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Records, newest first, and the cursor of the next page (None: there is none).

        Args:
            filters: Values by name of `FILTERS`; they combine.
            limit: At most so many.
            before: The cursor of an earlier answer.
        """
        wanted: list[ColumnElement[bool]] = [FILTERS[k] == v for k, v in filters.items()]
        if before is not None:
            wanted.append(executions.c.seq < before)
        query = select(executions).where(*wanted).order_by(executions.c.seq.desc())
        rows = self._store.all_of(query.limit(limit + 1), lambda row: row)
        more = rows[limit - 1]["seq"] if len(rows) > limit > 0 else None
        return [record_of(row) for row in rows[:limit]], more

    def find(self, execution_id: str) -> dict[str, Any] | None:
        """One record."""
        mine = select(executions).where(executions.c.execution_id == execution_id)
        return next(iter(self._store.all_of(mine, record_of)), None)

    def last_of(self, job_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The newest record of each of these schedules that has any, by job_id."""
        newest = select(func.max(executions.c.seq)).where(executions.c.job_id == schedules.c.job_id)
        seqs = select(newest.scalar_subquery()).where(schedules.c.job_id.in_(job_ids))
        records = self._store.all_of(
            select(executions).where(executions.c.seq.in_(seqs)), record_of
        )
        return {record["job_id"]: record for record in records}

    def stats(self) -> dict[str, Any]:
        """Counts by status and by handler, over all executions that are kept."""
        took = executions.c.completed_us - executions.c.started_us
        runs = case((executions.c.status.in_(("success", "error")), took))
        of_group = (executions.c.handler_id, executions.c.status)
        groups = select(*of_group, func.count(), func.sum(runs)).group_by(*of_group)
        with self._store.reading() as c:
            rows = c.execute(groups).all()
            lifetime = c.execute(select(func.max(executions.c.seq))).scalar() or 0
            schedule_count = c.execute(select(func.count()).select_from(schedules)).scalar_one()
        by_status: Counter[str] = Counter()
        by_handler: dict[str, dict[str, int]] = {}
        ran, took_us = 0, 0
        for handler_id, status, count, us in rows:
            by_status[status] += count
            of = by_handler.setdefault(handler_id, {"total": 0, "success": 0, "error": 0})
            of["total"] += count
            if status in ("success", "error"):
                of[status] += count
                ran, took_us = ran + count, took_us + int(us or 0)
        return {
            "total_executions": by_status.total(),
            "success_count": by_status["success"],
            "error_count": by_status["error"],
            "success_rate": by_status["success"] / ran * 100 if ran else 0.0,
            "avg_duration_ms": took_us / ran / 1_000 if ran else 0.0,
            "by_handler": by_handler,
            "by_status": by_status,
            "lifetime_executions": lifetime,
            "schedules": schedule_count,
        }

    def purge(self, retention_days: float, max_executions: int) -> int:
        """Forget the oldest final executions, a few at a time; how many went."""
        with self._store.writing() as c:
            now_us = self._store.now_us(c)
            old_us = now_us - seconds_us(retention_days * 86_400)
            newest = c.execute(select(func.max(executions.c.seq))).scalar() or 0
            too_old = _too_old(now_us, old_us)
            too_many = executions.c.seq <= newest - max_executions
            over = and_(executions.c.status.in_(FINAL), or_(too_old, too_many), _ungrown())
            oldest = select(executions.c.seq).where(over).order_by(executions.c.seq)
            chosen = c.execute(oldest.limit(PURGE_LIMIT)).scalars().all()
            if chosen:
                c.execute(delete(executions).where(executions.c.seq.in_(chosen)))
            return len(chosen)

    def clear(self) -> None:
        """Forget every final execution."""
        with self._store.writing() as c:
            c.execute(delete(executions).where(executions.c.status.in_(FINAL), _ungrown()))


def record_of(row: RowMapping) -> dict[str, Any]:
    """An execution as the API tells it."""
    started_us, completed_us = row["started_us"], row["completed_us"]
    ran = started_us is not None and completed_us is not None
    record = {name: row[name] for name in SAME} | {
        "method_name": row["method"],
        "scheduled_at": iso_of(row["tick_us"]),
        "started_at": iso_of(row["created_us"] if started_us is None else started_us),
        "completed_at": iso_of(completed_us),
        "duration_ms": (completed_us - started_us) / 1_000 if ran else None,
        "result": None if row["status"] != "success" else flat_result(row["result"]),
        "attempt_number": row["attempt"],
        "params_summary": summary_of(orjson.loads(row["params"])),
    }
    if row["status"] in ("missed", "skipped"):
        last_us = row["last_tick_us"] or row["tick_us"]
        span = {"first": iso_of(row["tick_us"]), "last": iso_of(last_us), "count": row["ticks"]}
        record["ticks"] = span
    return record


def flat_result(stored: str | None) -> dict[str, Any]:
    """A result as ScheduleZero records it: the method's own keys beside `success`."""
    result = None if stored is None else parse_json(stored, long_integer=orjson.Fragment)
    if not isinstance(result, dict):
        return {"success": True, "result": result}
    return {**result, "success": result.get("success", True)}


def summary_of(params: Mapping[str, Any]) -> str | None:
    """The first parameters, each cut short, as ScheduleZero shows them."""
    if not params:
        return None
    first = islice(params.items(), SUMMARY_PARAMS)
    shown = ", ".join(f"{key}={_cut(str(value))}" for key, value in first)
    more = len(params) - SUMMARY_PARAMS
    return f"{shown} (+{more} more)" if more > 0 else shown


def _too_old(now_us: int, old_us: int) -> ColumnElement[bool]:
    """Completed long ago; by a clock that was ahead: before another that is too old."""
    completed_us = executions.c.completed_us
    others = select(func.max(executions.c.seq)).where(completed_us < old_us).scalar_subquery()
    return or_(completed_us < old_us, and_(completed_us > now_us, executions.c.seq < others))


def _ungrown() -> ColumnElement[bool]:
    """Not a missed or skipped row to which its schedule may still add ticks."""
    growing = executions.c.status + ":" + executions.c.execution_id
    return ~select(schedules.c.folded).where(schedules.c.folded == growing).exists()


def _cut(text: str) -> str:
    """At most so many characters."""
    return text if len(text) <= SUMMARY_CHARS else f"{text[: SUMMARY_CHARS - 3]}..."

"""What ran: queries over executions, their shape in the API, and how long they are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson
import sqlalchemy as sa

from catalogzero.protocol.outcomes import OutcomeState, outcome_of
from catalogzero.scheduler.answers import (
    ExecutionRecord,
    HandlerCounts,
    OutcomeCounts,
    PartCounts,
    RunMark,
    Stats,
    TickSpan,
)
from catalogzero.scheduler.schema import (
    FINAL,
    FORGOTTEN,
    IS_BY_HAND,
    IS_FAILED,
    IS_TROUBLED,
    IS_UNSENT,
    IS_WHOLE,
    counts,
    executions,
    schedules,
)
from catalogzero.scheduler.statements import IS_FINAL, CountChanges, is_open
from catalogzero.scheduler.store import Store
from catalogzero.scheduler.ticks import from_us, iso_of, seconds_us
from catalogzero.wire.messages import JsonObject, parse_json

PURGE_LIMIT = 2_000
LOOK_LIMIT = 20_000
SUMMARY_PARAMS = 5
SUMMARY_CHARS = 50
SHOWN = {"failed": IS_TROUBLED, "waiting": IS_UNSENT, "by_hand": IS_BY_HAND}
"""The values of the filter `show`."""

FILTERS: Mapping[str, Callable[[str], sa.ColumnElement[Any]]] = {
    "parent": lambda value: executions.c.parent_id == value,
    "job_id": lambda value: executions.c.job_id == value,
    "show": lambda value: sa.literal_column(SHOWN[value]),
    "status": lambda value: executions.c.status == value,
    "method_name": lambda value: executions.c.method == value,
    "handler_id": lambda value: executions.c.handler_id == value,
}
"""By name: what the API filters by. Each has an index; the first that is asked for is used."""

WHOLE = sa.text(IS_WHOLE)

STRIP_RUNS = 30
COUNTED_S = 86_400
COUNTED_RUNS = 5_000


@dataclass(frozen=True, slots=True)
class Purged:
    """How many executions were forgotten as they were too old, and how many as there were more
    than are kept.
    """

    too_old: int
    too_many: int


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """An execution's record, the params it was called with, and the id of its last call."""

    record: ExecutionRecord
    params: JsonObject
    request_id: str


class History:
    """The executions of a store, for reading and forgetting.

    Args:
        store: Holds them.
        look_limit: How many executions a page looks at, where several filters combine.
    """

    def __init__(self, store: Store, *, look_limit: int = LOOK_LIMIT) -> None:
        self._store = store
        self._look_limit = look_limit

    def newest(
        self,
        filters: Mapping[str, str],
        limit: int,
        before: int | None = None,
    ) -> tuple[list[ExecutionRecord], int | None]:
        """Records, newest first, and the cursor of the next page (None on the last).

        Args:
            filters: Values by name of `FILTERS`; they combine. Children are shown with `parent`.
            limit: The most records of a page.
            before: The cursor of an earlier answer.
        """
        names = sorted(filters, key=[*FILTERS].index)
        if filters.get("status") == "success":  # as most are: another finds fewer
            names.sort(key="status".__eq__)
        wanted: list[sa.ColumnElement[Any] | sa.TextClause]
        wanted, end = [FILTERS[name](filters[name]) for name in names], None
        if "parent" not in filters:
            wanted.append(WHOLE)
        if before is not None:
            wanted.append(executions.c.seq < before)
        with self._store.reading() as c:
            if len(names) > 1:
                seqs, end = self.look_for(c, names, filters, before, limit + 1)
                wanted = [executions.c.seq.in_(seqs)]
            query = sa.select(executions).where(*wanted).order_by(executions.c.seq.desc())
            rows = c.execute(query.limit(limit + 1)).mappings().all()
            records = counted_parts(c, [record_of(row) for row in rows[:limit]])
        more = rows[limit - 1]["seq"] if len(rows) > limit > 0 else end
        return records, more

    def look_for(
        self,
        c: sa.Connection,
        names: Sequence[str],
        filters: Mapping[str, str],
        before: int | None,
        most: int,
    ) -> tuple[Sequence[int], int | None]:
        """The newest that pass several filters, and where the look for them ended early.

        The first filter's index is followed so far and no further: without that, a rare combination
        reads every execution.
        """
        passes = {name: FILTERS[name](filters[name]) for name in names}
        values = [executions.c.seq, *(passes[name].label(name) for name in names[1:])]
        found = sa.select(*values).where(passes[names[0]])
        if "parent" not in filters:
            found = found.where(WHOLE)
        if before is not None:
            found = found.where(executions.c.seq < before)
        looked = found.order_by(executions.c.seq.desc()).limit(self._look_limit).subquery()
        passing = sa.select(looked.c.seq).where(*(looked.c[name] for name in names[1:]))
        seqs = c.execute(passing.order_by(looked.c.seq.desc()).limit(most)).scalars().all()
        if len(seqs) == most:
            return seqs, None
        count, last = c.execute(sa.select(sa.func.count(), sa.func.min(looked.c.seq))).one()
        return seqs, last if count == self._look_limit else None

    def errors(self, limit: int) -> list[ExecutionRecord]:
        """Records of what counts as an error, newest first."""
        query = sa.select(executions).where(IS_FAILED, WHOLE).order_by(executions.c.seq.desc())
        return self._store.all_of(query.limit(limit), record_of)

    def find(self, execution_id: str) -> ExecutionRecord | None:
        """One record."""
        found = self.find_call(execution_id)
        return None if found is None else found.record

    def find_call(self, execution_id: str) -> RecordedCall | None:
        """One record, with what was called."""
        mine = sa.select(executions).where(executions.c.execution_id == execution_id)

        def call_of(row: sa.RowMapping) -> RecordedCall:
            params = orjson.loads(row["params"])
            return RecordedCall(record_of(row), params, f"{execution_id}.{row['n']}")

        with self._store.reading() as c:
            found = [call_of(row) for row in c.execute(mine).mappings()]
            counted_parts(c, [one.record for one in found])
        return next(iter(found), None)

    def last_of(self, job_ids: Sequence[str]) -> dict[str, ExecutionRecord]:
        """The newest record of each of these schedules that has any, by job_id."""
        newest = sa.select(sa.func.max(executions.c.seq)).where(
            executions.c.job_id == schedules.c.job_id, executions.c.parent_id.is_(None)
        )
        seqs = sa.select(newest.scalar_subquery()).where(schedules.c.job_id.in_(job_ids))
        found = sa.select(executions).where(executions.c.seq.in_(seqs))
        with self._store.reading() as c:
            records = [record_of(row) for row in c.execute(found).mappings()]
            return {record["job_id"]: record for record in counted_parts(c, records)}

    def marks_of(self, job_ids: Sequence[str]) -> dict[str, list[RunMark]]:
        """The last 30 runs of each of these schedules, the newest last, by job_id."""
        mine = executions.alias()
        newest = sa.select(mine.c.seq).where(
            mine.c.job_id == schedules.c.job_id, mine.c.parent_id.is_(None)
        )
        newest = newest.order_by(mine.c.seq.desc()).limit(1).offset(STRIP_RUNS - 1)
        since = sa.func.coalesce(newest.scalar_subquery(), 0)
        found = (
            sa.select(*MARK)
            .select_from(schedules)
            .join(
                executions,
                (executions.c.job_id == schedules.c.job_id) & (executions.c.seq >= since),
            )
        )
        found = found.where(schedules.c.job_id.in_(job_ids), executions.c.parent_id.is_(None))
        found = found.order_by(executions.c.seq)
        marks: dict[str, list[RunMark]] = {job_id: [] for job_id in job_ids}
        for job_id, mark in self._store.all_of(found, mark_of):
            marks[job_id].append(mark)
        return marks

    def around(self, record: ExecutionRecord) -> list[RunMark]:
        """A run among the last runs of its schedule before it and some after it, newest last; a
        child among those of its run.
        """
        mine = sa.select(*MARK).where(executions.c.job_id == record["job_id"], WHOLE)
        if record["parent_id"] is not None:
            mine = sa.select(*MARK).where(executions.c.parent_id == record["parent_id"])
        own = sa.select(executions.c.seq).where(executions.c.execution_id == record["execution_id"])
        seq = executions.c.seq
        after = mine.where(seq > own.scalar_subquery()).order_by(seq).limit(STRIP_RUNS // 3)
        until = mine.where(seq <= own.scalar_subquery()).order_by(seq.desc())
        later = self._store.all_of(after, mark_of)
        earlier = self._store.all_of(until.limit(STRIP_RUNS - len(later)), mark_of)
        return [mark for _, mark in [*reversed(earlier), *later]]

    def outcomes(self) -> OutcomeCounts:
        """What the runs of the last 24 hours came to; of many, the newest that a look may cost."""
        ended_us = executions.c.completed_us
        looked = sa.select(executions.c.status, executions.c.outcome_state, ended_us)
        with self._store.reading() as c:
            since_us = self._store.now_us(c) - seconds_us(COUNTED_S)
            newest = looked.where(ended_us >= since_us, WHOLE).order_by(ended_us.desc())
            of = newest.limit(COUNTED_RUNS).subquery().c
            counted = sa.select(
                of.status, of.outcome_state, sa.func.count(), sa.func.min(of.completed_us)
            )
            rows = c.execute(counted.group_by(of.status, of.outcome_state)).all()
        if sum(count for _, _, count, _ in rows) == COUNTED_RUNS:
            since_us = min(first_us for *_, first_us in rows)
        states: Counter[OutcomeState] = Counter()
        for status, state, count, _ in rows:
            if status != "skipped":
                states[state or outcome_of(status)["state"]] += count
        return OutcomeCounts(
            since=from_us(since_us).isoformat(), runs=states.total(), states=states
        )

    def stats(self) -> Stats:
        """Counts by status and by handler, over all executions that are kept.

        What is final was counted as it ended; what is open is counted here, by its index.
        """
        over = sa.select(
            *(counts.c.handler_id, counts.c.status, counts.c.started),
            *(sa.func.sum(counts.c[name]).label(name) for name in ("count", "took_us")),
        ).group_by(counts.c.handler_id, counts.c.status, counts.c.started)
        of_group = (executions.c.handler_id, executions.c.status)
        still = sa.select(*of_group, sa.false(), sa.func.count(), sa.literal(0))
        still = still.where(is_open(executions.c.status)).group_by(*of_group)
        with self._store.reading() as c:
            rows = c.execute(over.union_all(still)).all()
            schedule_count = c.execute(
                sa.select(sa.func.count()).select_from(schedules)
            ).scalar_one()
        by_status: Counter[str] = Counter()
        by_handler: dict[str, HandlerCounts] = {}
        failed, took_us = 0, 0
        for handler_id, status, started, count, us in rows:
            by_status[status] += int(count)
            if status == FORGOTTEN or not count:
                continue
            of = by_handler.setdefault(handler_id, {"total": 0, "success": 0, "error": 0})
            of["total"] += int(count)
            if status in ("error", "lost") or (status == "missed" and started):
                of["error"] += int(count)
                failed += int(count)
            elif status == "success":
                of["success"] += int(count)
            if status in ("success", "error"):
                took_us += int(us)
        lifetime, _ = by_status.total(), by_status.pop(FORGOTTEN, None)
        success, ran = by_status["success"], by_status["success"] + by_status["error"]
        return Stats(
            total_executions=by_status.total(),
            success_count=success,
            error_count=failed,
            success_rate=success / (success + failed) * 100 if success + failed else 0.0,
            avg_duration_ms=took_us / ran / 1_000 if ran else 0.0,
            by_handler=by_handler,
            by_status=+by_status,
            lifetime_executions=lifetime,
            schedules=schedule_count,
        )

    def purge(self, retention_days: float, max_executions: int) -> Purged:
        """Forget final executions that are too old or too many, a few at a time.

        What a clock that was ahead completed goes with its neighbours.
        """
        seq, completed_us = executions.c.seq, executions.c.completed_us
        with self._store.writing() as c:
            now_us = self._store.now_us(c)
            old_us = now_us - seconds_us(retention_days * 86_400)
            too_old = some_final(c, completed_us < old_us, order=completed_us)
            gone = self._forget(c, too_old)
            if too_old:
                # A moment that is to come never grows old: its row goes with the older ones around
                # it.
                before = seq < max(row.seq for row in too_old)
                ahead = some_final(c, completed_us > now_us, before, order=completed_us)
                gone += self._forget(c, ahead)
            newest = c.execute(sa.select(sa.func.max(seq))).scalar() or 0
            too_many = some_final(c, seq <= newest - max_executions, order=seq)
            return Purged(gone, self._forget(c, too_many))

    def clear(self) -> bool:
        """Forget final executions, the oldest first, a few at a time; whether more may be left."""
        with self._store.writing() as c:
            found = some_final(c, order=executions.c.seq)
            self._forget(c, found)
            return len(found) == PURGE_LIMIT or any(row.parts for row in found)

    def _forget(self, c: sa.Connection, rows: Sequence[sa.Row[Any]]) -> int:
        """Delete executions and take them off the counts; how many they are.

        Children go with their run, before it: of many only some are deleted here, and then their
        run stays until the others are.
        """
        parents = [row.execution_id for row in rows if row.parts]
        mine = sa.select(*(executions.c[name] for name in FORGOT))
        mine = mine.where(executions.c.parent_id.in_(parents)).limit(PURGE_LIMIT)
        children = c.execute(mine).all() if parents else []
        if children:
            rows = [row for row in rows if not row.parts]
        gone = [*children, *rows]
        for start in range(0, len(gone), PURGE_LIMIT):
            seqs = [row.seq for row in gone[start : start + PURGE_LIMIT]]
            c.execute(sa.delete(executions).where(executions.c.seq.in_(seqs)))
        counted = CountChanges()
        counted.forget(gone)
        counted.write(c, self._store.shard)
        return len(gone)


def some_final(
    c: sa.Connection, *conditions: sa.ColumnElement[bool], order: sa.ColumnElement[int]
) -> Sequence[sa.Row[Any]]:
    """Some of the final executions of which this is true, but for children, locked where the
    database can.
    """
    found = sa.select(*(executions.c[name] for name in FORGOT))
    found = found.where(IS_FINAL, WHOLE, is_complete(), *conditions).order_by(order)
    return c.execute(found.limit(PURGE_LIMIT).with_for_update(skip_locked=True)).all()


FORGOT = (
    *("seq", "execution_id", "handler_id", "status", "started_us", "completed_us"),
    "parts",
)
MARK = tuple(
    executions.c[name]
    for name in (
        *("job_id", "execution_id", "status", "outcome_state"),
        *("created_us", "started_us", "completed_us"),
    )
)


def mark_of(row: sa.RowMapping) -> tuple[str, RunMark]:
    """A run's job_id, and the run as a strip shows it."""
    return row["job_id"], RunMark(
        execution_id=row["execution_id"],
        state=row["outcome_state"] or outcome_of(row["status"])["state"],
        started_at=iso_of(started_us_of(row)),
        duration_ms=duration_ms_of(row),
    )


def started_us_of(row: sa.RowMapping) -> int:
    """When a run began, or was written down, where it never did."""
    return int(row["created_us"] if row["started_us"] is None else row["started_us"])


def duration_ms_of(row: sa.RowMapping) -> float | None:
    """How long a run took; None where it did not begin, or goes on."""
    began_us, ended_us = row["started_us"], row["completed_us"]
    return None if began_us is None or ended_us is None else (ended_us - began_us) / 1_000


def record_of(row: sa.RowMapping) -> ExecutionRecord:
    """An execution as the API shows it."""
    result = stored = None
    if row["status"] == "success":
        stored = row["result"] and parse_json(row["result"], long_integer=orjson.Fragment)
        result = flat_result(stored)
    record = ExecutionRecord(
        execution_id=row["execution_id"],
        job_id=row["job_id"],
        handler_id=row["handler_id"],
        method_name=row["method"],
        scheduled_at=iso_of(row["tick_us"]),
        started_at=iso_of(started_us_of(row)),
        completed_at=iso_of(row["completed_us"]),
        duration_ms=duration_ms_of(row),
        status=row["status"],
        error=row["error"],
        result=result,
        params_summary=summary_of(orjson.loads(row["params"])),
        attempt_number=row["attempt"],
        max_attempts=row["max_attempts"],
        late=row["late"],
        waiting=row["waiting"],
        instance_id=row["instance_id"],
        outcome=outcome_of(row["status"], stored, row["error"]),
        parent_id=row["parent_id"],
        item=row["item"] and orjson.loads(row["item"]),
        parts=parts_of(row),
    )
    if row["status"] in ("missed", "skipped"):
        last_us = row["last_tick_us"] or row["tick_us"]
        record["ticks"] = TickSpan(
            first=iso_of(row["tick_us"]), last=iso_of(last_us), count=row["ticks"]
        )
    return record


def parts_of(row: sa.RowMapping) -> PartCounts | None:
    """How far a partitioned run is, but for what its children say while they go on."""
    if not row["partition"]:
        return None
    items, came_to = row["parts"], orjson.loads(row["result"] or "{}")
    if items is None or row["completed_us"] is None:
        return PartCounts(items=items, ended=0, failed=0)
    well = came_to.get("ended", {}).get("success", 0)
    return PartCounts(items=items, ended=items, failed=items - well)


def counted_parts(c: sa.Connection, records: list[ExecutionRecord]) -> list[ExecutionRecord]:
    """The records, with what the children of those say that are divided and go on."""
    going = {
        one["execution_id"]: (one, one["parts"])
        for one in records
        if one["parts"] and one["parts"]["items"] is not None and one["completed_at"] is None
    }
    if not going:
        return records
    of = (executions.c.parent_id, executions.c.status)
    found = sa.select(*of, sa.func.count()).where(of[0].in_(list(going))).group_by(*of)
    for parent_id, status, count in c.execute(found):
        parts = going[parent_id][1]
        if status in FINAL:
            parts["ended"] += count
            parts["failed"] += count if status != "success" else 0
    for one, parts in going.values():
        words = f"{one['status']}: {parts['ended']:,} of {parts['items']:,} items"
        one["outcome"] = {**one["outcome"], "words": words}
    return records


def flat_result(result: Any) -> JsonObject:
    """A result as ScheduleZero records it: the method's own keys beside `success`."""
    if not isinstance(result, dict):
        return {"success": True, "result": result}
    return {**result, "success": result.get("success", True)}


def summary_of(params: Mapping[str, Any]) -> str | None:
    """The first parameters, each cut short, as ScheduleZero shows them."""
    if not params:
        return None
    first = islice(params.items(), SUMMARY_PARAMS)
    shown = ", ".join(f"{key}={shortened(str(value))}" for key, value in first)
    more = len(params) - SUMMARY_PARAMS
    return f"{shown} (+{more} more)" if more > 0 else shown


def is_complete() -> sa.ColumnElement[bool]:
    """Not a missed or skipped row to which its schedule may still add ticks."""
    growing = executions.c.status + ":" + executions.c.execution_id
    return ~sa.select(schedules.c.folded).where(schedules.c.folded == growing).exists()


def shortened(text: str) -> str:
    """The text, shortened to what a summary shows."""
    return text if len(text) <= SUMMARY_CHARS else f"{text[: SUMMARY_CHARS - 3]}..."

"""Partitioned runs: the items are listed once, each is a child execution, and the parent sums up.

The parent is claimed and called like any run, but for `list_items`. Its children, and the note
that it is divided, are one transaction under its lease, which ends there: from then on it has no
owner and no call, and whoever looks at the store takes children, and finds its end. Nothing here is
of one kind of handler. `tests/models/partitions.py` has the rules.

All of it is part of the store's transactions.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import sqlalchemy as sa

from catalogzero.protocol.outcomes import WORST_FIRST
from catalogzero.scheduler import statements
from catalogzero.scheduler.models import Execution, Lease, bounded_json, to_json
from catalogzero.scheduler.schema import IS_DIVIDED, executions
from catalogzero.scheduler.statements import IS_ACTIVE, is_open, row_count
from catalogzero.scheduler.ticks import seconds_us
from catalogzero.wire.messages import JsonObject, encode_json

MAX_ITEMS = 10_000
MAX_ITEM_BYTES = 1_000
HELD_PARTS = 200
"""The most children of one handler that a scheduler has at work or waiting for a place: the others
are free for another scheduler."""

SUMMED = (
    *("records", "skipped", "bad_records", "files_read", "left_out"),
    *("bytes_sent", "uploads"),
)
"""The counts of the children's results that the parent's result adds up."""

PARENTS = 100
BY_HAND = "cancelled by hand"
_OF_SUM = ("item", "status", "error", "result")
_child = executions.alias()


@dataclass(slots=True)
class Looked:
    """What a look at the divided runs brought: children whose turn has come, those that were passed
    over, parents that ended, why others are to end, by execution_id, and whether any goes on.
    """

    due: list[Execution] = field(default_factory=list)
    over: list[Execution] = field(default_factory=list)
    ended: list[Execution] = field(default_factory=list)
    stopped: dict[str, str] = field(default_factory=dict)
    any_open: bool = False


@dataclass(slots=True)
class PartSums:
    """What the children of a run came to; `failed` names the first that did not end well."""

    statuses: Counter[str] = field(default_factory=Counter)
    counts: dict[str, int] = field(default_factory=dict)
    words: set[str] = field(default_factory=set)
    failed: str = ""

    def add(self, row: sa.RowMapping) -> None:
        """One child's row, by the names of `_OF_SUM`."""
        status, result = row["status"], row["result"] and orjson.loads(row["result"])
        self.statuses[status] += 1
        if status != "success":
            self.failed = self.failed or f"{name_of(row['item'])}: {row['error'] or status}"
        elif isinstance(result, dict):
            self.add_counts(result)
            if result.get("status") in WORST_FIRST:
                self.words.add(result["status"])

    def add_counts(self, result: Mapping[str, Any]) -> None:
        """The counts of a result."""
        for name in SUMMED:
            if type(value := result.get(name)) is int:
                self.counts[name] = self.counts.get(name, 0) + value

    def end(self, one: Execution, stopped: str | None) -> None:
        """Give the parent its status, result and error."""
        items, well = self.statuses.total(), self.statuses["success"]
        status = next((word for word in WORST_FIRST if word in self.words), None)
        first = {} if status is None else {"status": status}
        one.result = {**first, "items": items, "ended": dict(self.statuses), **self.counts}
        one.status = "success"
        if well < items or stopped:
            one.status = "error"
            one.error = f"{items - well} of {items} items failed; the first: {self.failed}"
            if stopped:
                one.error = f"{stopped}: {well} of {items} items had ended well"


def name_of(item: str | None) -> str:
    """The name of an item, as JSON."""
    return str((orjson.loads(item) if item else {}).get("name", item))


def read_items(result: Any) -> list[JsonObject]:
    """The items of an answer to `list_items`.

    Raises:
        ValueError: It is no such list, names one twice, or has more or longer ones than are kept.
    """
    items = result.get("items") if isinstance(result, dict) else None
    if not isinstance(items, list):
        raise ValueError('the handler\'s list_items returned no {"items": [{"name": …}, …]}')
    if len(items) > MAX_ITEMS:
        raise ValueError(
            f"{len(items):,} items were listed, and a partition has at most {MAX_ITEMS:,}: divide "
            "the data_source among several schedules, or leave `partition` out"
        )
    seen: set[bytes] = set()
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise ValueError(
                f"the handler's list_items names an item without a name: {item!r:.200}"
            )
        text = encode_json(item)
        if len(text) > MAX_ITEM_BYTES:
            raise ValueError(
                f"an item's name has more than {MAX_ITEM_BYTES:,} bytes: {item['name']:.200}…: "
                "rename it, or leave `partition` out"
            )
        if text in seen:
            raise ValueError(f"the handler's list_items names an item twice: {item['name']}")
        seen.add(text)
    return items


def divide(c: sa.Connection, parent: Execution, items: Sequence[JsonObject], now_us: int) -> bool:
    """Write a child for each item; false, and nothing, where the parent's lease is another's."""
    sums = PartSums()
    sums.add_counts(parent.result)
    mine = [executions.c[name] == getattr(parent, name) for name in statements.LEASED]
    noted = (
        sa.update(executions)
        .where(*mine, IS_ACTIVE)
        .values(
            status="running",
            waiting=False,
            error=None,
            parts=len(items),
            result=to_json(sums.counts),
            owner=None,
            lease=parent.lease + 1,
            lease_until_us=None,
        )
    )
    if not row_count(c.execute(noted)):
        return False
    nobody = Lease("", 0)
    children = (
        Execution(
            execution_id=str(uuid.uuid4()),
            job_id=parent.job_id,
            handler_id=parent.handler_id,
            method=parent.method,
            params=parent.params,
            status="queued",
            # A plain handler has no other limit; for any other that of the whole ends it first.
            timeout_s=parent.timeout_s,
            max_attempts=parent.max_attempts,
            parent_id=parent.execution_id,
            item=item,
        ).row(now_us, nobody, None)
        for item in items
    )
    statements.INSERT.write(c, list(children))
    return True


_open_child = sa.select(_child.c.seq).where(
    _child.c.parent_id == executions.c.execution_id, is_open(_child.c.status)
)
DIVIDED = (
    sa.select(executions, _open_child.exists().label("has_open"))
    .where(sa.text(IS_DIVIDED))
    .order_by(executions.c.seq)
    .limit(PARENTS)
    .with_for_update(skip_locked=True, of=executions)
)
"""The runs that are divided and go on, locked where the database can: one scheduler at a time."""


def look(c: sa.Connection, now_us: int, held: Mapping[str, int], most: int = HELD_PARTS) -> Looked:
    """Look at every divided run: what of it can begin, is passed over, or has ended.

    Args:
        c: A transaction of the store.
        now_us: The database's time.
        held: How many children this scheduler has of each handler.
        most: How many it may have of one.
    """
    looked, count = Looked(), Counter(held)
    for row in c.execute(DIVIDED).mappings().all():
        stopped = row["stopped"]
        sent_us, timeout_s = row["sent_us"], row["timeout_s"]
        if stopped is None and timeout_s and sent_us and now_us > sent_us + seconds_us(timeout_s):
            stopped = f"cancelled: it took longer than timeout_s ({timeout_s:g} s)"
            mark_stopped(c, row["execution_id"], stopped)
        if stopped is not None and row["has_open"]:
            looked.stopped[row["execution_id"]] = stopped
            looked.over += _pass_over(c, row["execution_id"], stopped, now_us)
        if not row["has_open"]:
            looked.ended.append(_end(c, row, now_us))
            continue
        looked.any_open = True
        room = most - count[row["handler_id"]]
        if stopped is None and room > 0:
            due = _queued(c, row["execution_id"], room)
            count[row["handler_id"]] += len(due)
            looked.due += due
    return looked


def mark_stopped(c: sa.Connection, execution_id: str, why: str) -> bool:
    """Note that an open run is to end; false where it has ended. A first reason stays."""
    mine = (executions.c.execution_id == execution_id, is_open(executions.c.status))
    why_first = sa.func.coalesce(executions.c.stopped, why)
    return row_count(c.execute(sa.update(executions).where(*mine).values(stopped=why_first))) > 0


def stop(c: sa.Connection, execution_id: str, now_us: int) -> tuple[bool, list[Execution]]:
    """Have an open run end; false where there is none. What had not begun has ended at once."""
    one = (executions.c.execution_id == execution_id, executions.c.status == "queued")
    queued = sa.select(executions).where(*one).with_for_update()
    over = [Execution.of(row) for row in c.execute(queued).mappings()]
    _skip(c, over, BY_HAND, now_us)
    return bool(over) or mark_stopped(c, execution_id, BY_HAND), over


def _queued(c: sa.Connection, parent_id: str, most: int | None) -> list[Execution]:
    """Children that nobody has taken, in the order of the list, locked where the database can."""
    mine = (executions.c.parent_id == parent_id, executions.c.status == "queued")
    found = sa.select(executions).where(*mine).order_by(executions.c.seq).limit(most)
    rows = c.execute(found.with_for_update(skip_locked=True)).mappings()
    return [Execution.of(row) for row in rows]


def _pass_over(c: sa.Connection, parent_id: str, why: str, now_us: int) -> list[Execution]:
    """End the children that have not begun of a run that was stopped."""
    over = _queued(c, parent_id, None)
    _skip(c, over, why, now_us)
    return over


def _skip(c: sa.Connection, over: Sequence[Execution], why: str, now_us: int) -> None:
    """End runs that have not begun."""
    for one in over:
        one.status, one.error = "skipped", why
    for start in range(0, len(over), 500):
        ids = [one.execution_id for one in over[start : start + 500]]
        mine = sa.update(executions).where(executions.c.execution_id.in_(ids))
        c.execute(mine.values(status="skipped", error=why, completed_us=now_us))


def _end(c: sa.Connection, row: sa.RowMapping, now_us: int) -> Execution:
    """End a run whose last child has ended."""
    one, sums = Execution.of(row), PartSums()
    sums.add_counts(orjson.loads(row["result"]))
    children = sa.select(*(executions.c[name] for name in _OF_SUM))
    mine = children.where(executions.c.parent_id == one.execution_id).order_by(executions.c.seq)
    for child in c.execute(mine).mappings():
        sums.add(child)
    sums.end(one, row["stopped"])
    ended = one.outcome(now_us)
    names = ("status", "error", "outcome_state", "completed_us", "waiting")
    values = {name: ended[f"new_{name}"] for name in names}
    values["result"] = bounded_json(one.result)
    c.execute(
        sa.update(executions).where(executions.c.execution_id == one.execution_id).values(values)
    )
    return one

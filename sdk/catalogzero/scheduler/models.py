"""Handlers, schedules and executions as objects, and as rows of the tables."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any, ClassVar, Self

import orjson
from sqlalchemy import Connection, RowMapping

from catalogzero.errors import RetryLaterError
from catalogzero.protocol.outcomes import outcome_of
from catalogzero.scheduler import statements
from catalogzero.scheduler.schema import ACTIVE, FINAL, schedules
from catalogzero.scheduler.statements import CLAIMED, LEASED, OUTCOME, ROW, SWAPPED, Values
from catalogzero.scheduler.ticks import Firing, Schedule, Span, fault_of
from catalogzero.scheduler.triggers import make_trigger
from catalogzero.wire.calls import PendingCall
from catalogzero.wire.messages import JsonObject, encode_json

MAX_RESULT_BYTES = 256 * 1024
MAX_ERROR_CHARS = 4_000
MAX_KEPT_CHARS, MAX_KEPT_FIELDS = 200, 50
LIST_METHOD = "list_items"
LISTED_BY = {"data_source", "params"}
"""What lists the items of a partitioned run, and which of the call's params it gets."""


def list_call(params: JsonObject) -> tuple[str, JsonObject]:
    """The call that lists the items of a run with these params."""
    return LIST_METHOD, {name: params[name] for name in LISTED_BY & params.keys()}


@dataclass(slots=True)
class KnownInstance:
    """One of the processes that share the calls of a handler_id.

    `places` is how many jobs it runs at once, `load` how many executions it was called for that
    are not over; of those that were counted.
    """

    handler_id: str
    instance_id: str
    address: str
    boot_id: str
    status: str
    seen_us: int
    places: int
    load: int = 0


@dataclass(slots=True)
class KnownHandler:
    """A registered handler; `status` is what it reported last: online or offline.

    One that has `instances` is called at these; its address is that of the last that registered.
    """

    handler_id: str
    address: str
    methods: list[str]
    status: str
    seen_us: int
    instances: list[KnownInstance] = field(default_factory=list)
    instance_id: ClassVar[str] = ""

    @classmethod
    def of(cls, row: RowMapping) -> Self:
        """The handler of a row."""
        return cls(**{**row, "methods": orjson.loads(row["methods"])})

    def at(self, instance_id: str) -> KnownHandler | KnownInstance | None:
        """Where it is called: itself, where it is alone, or that instance."""
        if not instance_id:
            return self
        return next((one for one in self.instances if one.instance_id == instance_id), None)


@dataclass(slots=True)
class Execution(PendingCall):
    """One execution, as the runner works on it under its lease.

    Its `request_id` is `{execution_id}.{n}`; `sent_us` is when the stamp of n was stored.
    `waiting_since_us` is its tick, or when it was asked for, by the clock as it is now. `waiting`
    for an absent handler has the status retry. `instance_id` is the instance whose stamp it has,
    or had last; None for a handler that is alone. A run with `partition` is divided into children
    (see `partitions`), each of which has its `parent_id` and reads an `item`. `stopped` is why it
    is to end before its time.
    """

    execution_id: str
    job_id: str
    handler_id: str
    method: str
    params: JsonObject
    owner: str | None = None
    lease: int = 1
    schedule_id: str | None = None
    tick_us: int | None = None
    status: str = "running"
    late: bool = False
    misfire_grace_s: float | None = None
    timeout_s: float | None = None
    max_attempts: int = field(default=3, kw_only=True)
    created_us: int = 0
    started_us: int | None = None
    sent_us: int | None = None
    result: Any = None
    error: str | None = None
    waiting: bool = False
    instance_id: str | None = None
    partition: bool = False
    parent_id: str | None = None
    item: JsonObject | None = None
    waiting_since_us: int = field(default=0, init=False)
    stopped: str | None = field(default=None, init=False)

    @property
    def called(self) -> tuple[str, JsonObject]:
        """The method that is called, and its params; a run that is to be divided lists its items.

        It is so until then: once it is divided nobody calls for it.
        """
        if self.partition:
            return list_call(self.params)
        return self.method, self.params if self.item is None else {**self.params, "item": self.item}

    @property
    def request_id(self) -> str:
        """The id of its present call."""
        return f"{self.execution_id}.{self.n}"

    def is_final(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in FINAL

    @property
    def outcome_state(self) -> str | None:
        """What it came to (see `outcome_of`); None before its end, and of one that was skipped."""
        if not self.is_final() or self.status == "skipped":
            return None
        return outcome_of(self.status, self.result, self.error)["state"]

    def note_absence(self, reason: str | None) -> bool:
        """Take in why its handler is away, or (None) that it is there; whether that is news."""
        if self.waiting == (reason is not None):
            return False
        self.waiting = reason is not None
        self.status = "retry" if self.waiting else "running"
        self.error = f"waiting for its handler, which is away: {reason}" if reason else None
        return True

    def row(self, now_us: int, lease: Lease, span: Span | None) -> Values:
        """Its row when it is new; a `span` is the ticks that a missed or skipped one stands for."""
        active = self.status in ACTIVE
        self.created_us, self.started_us = now_us, now_us if active else None
        return {name: getattr(self, name) for name in _EXECUTION_FIELDS if name in ROW} | {
            "params": to_json(self.params),
            "item": None if self.item is None else to_json(self.item),
            "owner": lease.owner if active else None,
            "lease_until_us": lease.until_us if active else None,
            "completed_us": now_us if self.is_final() else None,
            "outcome_state": self.outcome_state,
            "last_tick_us": span.last_us if span else self.tick_us,
            "ticks": span.count if span else 1,
        }

    def outcome(self, now_us: int) -> Values:
        """The parameters of `statements.SAVE` for it."""
        row = {f"old_{name}": getattr(self, name) for name in LEASED}
        row |= {f"new_{name}": getattr(self, name) for name in OUTCOME if name != "completed_us"}
        return row | {
            "new_completed_us": now_us if self.is_final() else None,
            "new_result": None if self.result is None else bounded_json(self.result),
            "new_waiting": self.waiting and not self.is_final(),
            "new_error": self.error and self.error[:MAX_ERROR_CHARS].replace("\0", "\ufffd"),
        }

    @classmethod
    def of(cls, row: RowMapping) -> Self:
        """The execution of a row."""
        known = {name: row[name] for name in _EXECUTION_FIELDS}
        item = row["item"] and orjson.loads(row["item"])
        return cls(**known | {"params": orjson.loads(row["params"]), "item": item, "result": None})


@dataclass(frozen=True, slots=True)
class Lease:
    """Whose executions they are, and until when."""

    owner: str
    until_us: int


def schedule_row(one: Schedule) -> Values:
    """A schedule's row."""
    row = {name: getattr(one, name) for name in _SCHEDULE_FIELDS}
    return row | {"params": to_json(one.params), "trigger_config": to_json(one.trigger_config)}


def schedule_of(row: RowMapping) -> Schedule:
    """The schedule of a row; where it cannot be read, or has no trigger here, with a `fault`."""
    one = Schedule(**{**row, "params": {}, "trigger_config": {}})
    try:
        one.params = dict(orjson.loads(row["params"]))
        one.trigger_config = dict(orjson.loads(row["trigger_config"]))
        make_trigger(one.trigger_config)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one row, the others go on
        one.fault = fault_of(error)
    return one


class LostRaceError(RetryLaterError):
    """Another scheduler was faster, and nothing was written."""


@dataclass(slots=True)
class Writes:
    """What the firings of one claim write."""

    inserted: list[tuple[Execution, Span | None]]
    grown: list[Values]
    swaps: list[Values]

    def add(self, schedule: Schedule, firing: Firing, *, waiting: bool) -> None:
        """One schedule's executions, grown rows, and the swap of its next time.

        `waiting` says that an earlier run of it waits for an absent handler.
        """
        # The missed ones first: they are the older ones, and `folded` names the newest row.
        if firing.missed:
            self._fold(schedule, "missed", firing.missed, _NO_SCHEDULER)
        if firing.status == "skipped" and firing.tick_us is not None:
            why = _WAITING.format(schedule.handler_id) if waiting else _GOING_ON
            self._fold(schedule, "skipped", Span(firing.tick_us, firing.tick_us, 1), why)
        elif firing.status is not None:
            one = execution_for(schedule, firing.status, firing.tick_us)
            one.late = firing.late
            self.inserted.append((one, None))
            schedule.folded = None
            schedule.runs += 1
        schedule.decide(firing)
        old = {f"old_{name}": getattr(schedule, name) for name in CLAIMED}
        schedule.tick_us = firing.next_tick_us
        due = None if schedule.tick_us is None else schedule.due_of(schedule.tick_us)
        schedule.due_us = due
        self.swaps.append(old | {f"new_{name}": getattr(schedule, name) for name in SWAPPED})

    def write(self, c: Connection, now_us: int, lease: Lease) -> Iterator[Execution]:
        """Insert the executions, let folded rows grow, and swap each schedule's next time.

        Returns:
            The executions that are new.

        Raises:
            LostRaceError: Another scheduler fired one of the schedules.
        """
        rows = [one.row(now_us, lease, span) for one, span in self.inserted]
        for one, _ in self.inserted:
            one.owner = lease.owner
        statements.INSERT.write(c, rows)
        statements.GROW.write(c, self.grown)
        if statements.SWAP.write(c, self.swaps) != len(self.swaps):
            raise LostRaceError("a schedule was claimed by two schedulers at once: nothing written")
        over = [swap["old_schedule_id"] for swap in self.swaps if swap["new_tick_us"] is None]
        statements.REMOVE.write(c, [{"old_schedule_id": schedule_id} for schedule_id in over])
        return (one for one, _ in self.inserted)

    def _fold(self, schedule: Schedule, status: str, span: Span, why: str) -> None:
        """Ticks that do not run: into the row that is already there, or a new one."""
        kind, _, execution_id = (schedule.folded or "").partition(":")
        if kind == status:
            more = {"new_last_tick_us": span.last_us, "more": span.count, "new_error": why}
            self.grown.append({"old_execution_id": execution_id, **more})
            return
        one = execution_for(schedule, status, span.first_us)
        one.error = why
        self.inserted.append((one, span))
        schedule.folded = f"{status}:{one.execution_id}"


_NO_SCHEDULER = "no scheduler was there in time"
_GOING_ON = "an earlier run of this schedule was still going on"
_WAITING = "an earlier run of this schedule waits for the handler '{}', which is away"
_EXECUTION_FIELDS = tuple(one.name for one in fields(Execution) if one.init)
_SCHEDULE_FIELDS = tuple(column.name for column in schedules.c)
_TAKEN_OVER = (
    *("schedule_id", "job_id", "handler_id", "method", "params"),
    *("misfire_grace_s", "timeout_s", "max_attempts", "partition"),
)
"""What an execution has of its schedule."""


def execution_for(schedule: Schedule, status: str, tick_us: int | None) -> Execution:
    """A new execution of a schedule's tick."""
    same = {name: getattr(schedule, name) for name in _TAKEN_OVER}
    return Execution(execution_id=str(uuid.uuid4()), tick_us=tick_us, status=status, **same)


def to_json(value: Any) -> str:
    """JSON text."""
    return encode_json(value).decode()


def bounded_json(value: Any) -> str:
    """JSON text of a result; of one that is too long its size, beginning and short fields."""
    try:
        encoded = encode_json(value)
    except TypeError:
        return to_json({"truncated": True, "why": "nested too deeply to be kept"})
    if len(encoded) <= MAX_RESULT_BYTES:
        return encoded.decode()
    begins = encoded[:2_000].decode(errors="ignore")
    # Counts and the status stay, as what a run came to is said by them.
    kept = {}
    if isinstance(value, Mapping):
        short = (one for one in value.items() if len(str(one[1])) <= MAX_KEPT_CHARS)
        kept = dict(islice(short, MAX_KEPT_FIELDS))
    return to_json({**kept, "truncated": True, "bytes": len(encoded), "begins": begins})

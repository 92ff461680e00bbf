"""The scheduler's memory: handlers, schedules and executions in SQL.

Every public method is one transaction. Ticks are claimed, not timed: a compare-and-swap on the
schedule's next time and the insert of an execution keyed by (schedule, tick) are one transaction
with the overlap decision and the missed rows that the claim covers. An execution is leased; every
later write is conditional on (owner, lease). Times are the database's: on SQLite, which has no
clock of its own, the machine's.

Methods block; `runner` calls them in threads. Moments are microseconds since 1970 in UTC.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import compress
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from catalogzero.clock import Clock, SystemClock
from catalogzero.scheduler import partitions, schema, statements
from catalogzero.scheduler.answers import ClockStep
from catalogzero.scheduler.instances import take_place, with_instances
from catalogzero.scheduler.models import (
    Execution,
    KnownHandler,
    KnownInstance,
    Lease,
    LostRaceError,
    Writes,
    schedule_of,
    schedule_row,
    to_json,
)
from catalogzero.scheduler.schema import executions, handlers, instances, schedules
from catalogzero.scheduler.statements import MOVED, SWAPPED, CountChanges, Values, row_count
from catalogzero.scheduler.ticks import (
    Place,
    Schedule,
    fault_of,
    fire,
    from_us,
    seconds_us,
    to_us,
)
from catalogzero.sql import DamagedFileError
from catalogzero.sql.engines import Database, Schema, parse_url
from catalogzero.wire.messages import encode_json

T = TypeVar("T")

CLAIM_LIMIT = 500
ANSWER_S = 10.0
STEP_S = 2.0
SHARDS = 16
DAWN = datetime(1, 1, 2, tzinfo=UTC)
GIVEN = (
    *("handler_id", "method", "params", "trigger_config", "end_us", "overlap", "misfire_grace_s"),
    *("max_attempts", "timeout_s", "jitter_s", "max_runs", "partition"),
)
"""What a schedule has of the request that made it."""

SETS_NEXT = {"trigger_config", "end_us", "jitter_s", "paused"}
NEXT = ("tick_us", "due_us", "decided_us", "steady_since_us", "folded")
JSON_FIELDS = ("params", "trigger_config")


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a schedule that was given: `status` is created, changed, unchanged, or over
    (its one date has passed, and it is gone); `fields` are the old and new values that differ.
    """

    status: str
    fields: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


@dataclass(slots=True)
class Claimed:
    """What one look at the store brought: executions to run, and when to look again.

    `next_due_us` is the next due time of all schedules; not after `now_us` when more is due.
    `queued` says that executions wait for an earlier one of their schedule, or for children.
    `ended` are divided runs whose last child has ended, `stopped` says why others are to end, by
    execution_id. `faults` are those of schedules that stand still from now on, by job_id. `step` is
    what a look at the clock found.
    """

    now_us: int
    started: list[Execution]
    ended: list[Execution]
    stopped: dict[str, str]
    next_due_us: int | None
    queued: bool
    faults: dict[str, str]
    step: ClockStep | None


@dataclass(slots=True)
class Leases:
    """What a heartbeat found: the (execution_id, lease) held, what was taken over, and why some of
    what is held is to end, by execution_id.
    """

    held: set[tuple[str, int]]
    taken: list[Execution]
    stopped: dict[str, str]


def _with_commands(error: DamagedFileError, url: sa.URL) -> DamagedFileError:
    """The error of a damaged database file, with the commands that go on from there."""
    file = Path(str(url.database)).absolute()
    folder = file.parent / "damaged"
    return DamagedFileError(
        f"{error.message}; nothing was changed. To go on from a backup: "
        f"`catalogzero state restore FILE scheduler --scheduler-database {file} --force`. To begin "
        f"without schedules: `mkdir {folder} && mv {file}* {folder}`, then "
        "`catalogzero schedule apply -f FILE`"
    )


class Store(Database):
    """Handlers, schedules and executions of one database.

    Args:
        database: An SQLite file, or a SQLAlchemy URL: `sqlite:///file`, or `postgresql://…`.
        clock: Stands in for the database's clock, as a simulation needs; by default
            PostgreSQL's own, or the machine's for SQLite.
        answer_s: Longest wait for an answer of the database, or for its lock, in seconds.
        holds: The tables, and how those of an older release become them.

    Raises:
        ConfigError: No such kind of database, or it was written by a newer release.
        DamagedFileError: The file is damaged; the error names what to do.
        UnreachableError: The database does not answer.
    """

    def __init__(
        self,
        database: str,
        *,
        clock: Clock | None = None,
        answer_s: float = ANSWER_S,
        holds: Schema = schema.SCHEMA,
    ) -> None:
        of = {"setting": "--database", "name": "scheduler"}
        try:
            super().__init__(
                database, holds, **of, writers=1, readers=2, answer_s=answer_s, thorough=True
            )
        except DamagedFileError as error:
            raise _with_commands(error, parse_url(database, "--database")) from None
        self._clock = SystemClock() if clock is None and self.dialect == "sqlite" else clock
        self._still: dict[str, str] = {}
        self._steady = clock or SystemClock()
        self._offset_us: int | None = None
        self.shard = random.randrange(SHARDS)  # noqa: S311 - no secret

    def damage(self, error: BaseException) -> DamagedFileError | None:
        """See `Database.damage`; with the commands that go on from there."""
        found = super().damage(error)
        return _with_commands(found, self.url) if found else None

    def now_us(self, c: sa.Connection) -> int:
        """The database's clock."""
        if self._clock is not None:
            return to_us(self._clock.now())
        moment = sa.text("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
        return int(c.execute(moment).scalar_one())

    def _read_clocks(self, c: sa.Connection) -> tuple[int, int | None, int | None]:
        """The time, its distance from the monotonic clock, and how far it was stepped since.

        The last is None at start, and 0 where it was not. A slow answer says nothing.
        """
        before_s = self._steady.monotonic()
        now = self.now_us(c)
        # Between the two clocks lies the database's answer: a slow one looks like a step.
        if self._steady.monotonic() - before_s > STEP_S / 2:
            return now, self._offset_us, 0
        offset_us = now - seconds_us(before_s)
        if self._offset_us is None:
            return now, offset_us, None
        step_us = offset_us - self._offset_us
        return now, offset_us, step_us if abs(step_us) > seconds_us(STEP_S) else 0

    def all_of(self, query: sa.Select[Any], make: Callable[[sa.RowMapping], T]) -> list[T]:
        """What a query finds, an object made of each row."""
        with self.reading() as c:
            return [make(row) for row in c.execute(query).mappings()]

    # --- handlers

    def register(
        self,
        handler_id: str,
        address: str,
        methods: Sequence[str],
        *,
        replaces: KnownHandler | KnownInstance | None = None,
        anyone: bool = True,
        instance: KnownInstance | None = None,
    ) -> bool:
        """Remember where a handler is and what it does; true when it was not known.

        Args:
            handler_id: Its name.
            address: Where it can be called.
            methods: Their names.
            replaces: The one at another address whose place it takes.
            anyone: Whether it takes the place of whoever is known.
            instance: What it is among the instances of that name, which stay. Without it they go.

        Raises:
            LostRaceError: Another one registered, or `replaces` was heard of since it was read.
        """
        row = {"address": address, "methods": to_json(methods), "status": "online"}
        with self.writing() as c:
            now = self.now_us(c)
            known = instances.c.handler_id == handler_id
            if instance is None:
                c.execute(sa.delete(instances).where(known))
            elif c.execute(sa.select(instances.c.address).where(known).limit(1)).first():
                # It is one more, or in the place of the one of its own name.
                anyone = True
            key = {"handler_id": handler_id}
            old = replaces if isinstance(replaces, KnownHandler) else None
            is_new = take_place(c, handlers, key, {**row, "seen_us": now}, old, anyone=anyone)
            if instance is not None:
                key["instance_id"] = instance.instance_id
                own = {"boot_id": instance.boot_id, "places": instance.places, "seen_us": now}
                own |= {"address": address, "status": "online"}
                same = replaces if isinstance(replaces, KnownInstance) else None
                is_new = take_place(c, instances, key, own, same, anyone=False)
            return is_new

    def report(
        self, handler_id: str, status: str, address: str | None = None, instance_id: str = ""
    ) -> bool:
        """Note that a handler is online or offline; false when it is not known at the address."""
        known = handlers.c.handler_id == handler_id
        with self.writing() as c:
            seen = {"status": status, "seen_us": self.now_us(c)}
            if instance_id:
                mine = (instances.c.handler_id == handler_id) & (
                    instances.c.instance_id == instance_id
                )
                change = sa.update(instances).where(mine, instances.c.address == address)
                if not row_count(c.execute(change.values(seen))):
                    return False
                seen["status"] = "online"  # the others may be
            elif address is not None:
                known &= handlers.c.address == address
            return row_count(c.execute(sa.update(handlers).where(known).values(seen))) > 0

    def list_handlers(self) -> list[KnownHandler]:
        """Every handler that ever registered, by id; the load of instances is everybody's."""
        with self.reading() as c:
            found = c.execute(sa.select(handlers).order_by(handlers.c.handler_id)).mappings()
            return with_instances(c, [KnownHandler.of(row) for row in found], sa.true())

    def find_handler(self, handler_id: str, *, apart_from: str = "") -> KnownHandler | None:
        """One handler, if it ever registered.

        Args:
            handler_id: Its name.
            apart_from: The owner whose executions are not counted as load of its instances.
        """
        with self.reading() as c:
            mine = sa.select(handlers).where(handlers.c.handler_id == handler_id)
            found = [KnownHandler.of(row) for row in c.execute(mine).mappings()]
            others = (executions.c.handler_id == handler_id) & (executions.c.owner != apart_from)
            return next(iter(with_instances(c, found, others)), None)

    def forget_instances(self, silent_s: float) -> int:
        """Forget instances that went offline or were silent for so long; how many there were.

        One that an open execution was called at stays: only it knows how that ends.
        """
        open_ones = sa.select(executions.c.seq).where(
            statements.is_open(executions.c.status),
            executions.c.handler_id == instances.c.handler_id,
            executions.c.instance_id == instances.c.instance_id,
        )
        with self.writing() as c:
            silent = instances.c.seen_us < self.now_us(c) - seconds_us(silent_s)
            gone = sa.or_(silent, instances.c.status == "offline") & ~open_ones.exists()
            return row_count(c.execute(sa.delete(instances).where(gone)))

    def remove_handler(self, handler_id: str) -> list[str] | None:
        """Forget a handler, unless schedules name it: their job_ids. None when it is not known."""
        with self.writing() as c:
            naming = sa.select(schedules.c.job_id).where(schedules.c.handler_id == handler_id)
            named = c.execute(naming.order_by(schedules.c.job_id)).scalars().all()
            if named:
                return [*named]
            c.execute(sa.delete(instances).where(instances.c.handler_id == handler_id))
            mine = handlers.c.handler_id == handler_id
            return [] if row_count(c.execute(sa.delete(handlers).where(mine))) else None

    # --- schedules

    def add_schedule(
        self,
        new: Schedule,
        *,
        paused: bool | None = None,
        replace: bool = False,
        dry: bool = False,
    ) -> Change:
        """Store a schedule with its first tick, where none is called as it is.

        Args:
            new: Its times are set here.
            paused: Whether it rests; by default one that is there stays as it is.
            replace: Change the one that is called so. Its next time stays unless its trigger,
                its end, its jitter or its rest change; the count of its runs stays always.
            dry: Write nothing.

        Raises:
            ValueError: It would never fire.
        """
        new.paused = bool(paused)
        names = GIVEN if paused is None else (*GIVEN, "paused")
        try:
            return self._add(new, names, replace=replace, dry=dry)
        except IntegrityError:  # another scheduler took the name meanwhile
            return self._add(new, names, replace=replace, dry=dry)

    def _add(self, new: Schedule, names: Sequence[str], *, replace: bool, dry: bool) -> Change:
        """See `add_schedule`; `names` are the fields that are compared."""
        with self.writing() as c:
            now = self.now_us(c)
            one = sa.select(schedules).where(schedules.c.job_id == new.job_id).with_for_update()
            row = c.execute(one).mappings().one_or_none()
            if row is None:
                if replace and new.trigger_config["type"] == "date" and not new.next_tick(now):
                    return Change("over")
                new.created_us = now
                set_next(new, now)
                if not dry:
                    c.execute(sa.insert(schedules).values(schedule_row(new)))
                return Change("created")
            old = schedule_of(row)
            new.schedule_id = old.schedule_id
            began = old.trigger_config.get("start_time")
            if began and new.trigger_config["type"] == "interval":  # it keeps its grid
                new.trigger_config.setdefault("start_time", began)
            pairs = {name: (getattr(old, name), getattr(new, name)) for name in names}
            # As JSON: another order of keys is no change to a client.
            changes = {n: pair for n, pair in pairs.items() if differ(*pair)}
            if "max_runs" in changes and new.max_runs and new.max_runs <= old.runs:
                raise ValueError(f"'max_runs' must be more than the {old.runs} runs there were")
            if replace and changes:
                values = {name: new_value for name, (_, new_value) in changes.items()}
                if changes.keys() & SETS_NEXT or old.tick_us is None:
                    set_next(new, now)
                    values |= {name: getattr(new, name) for name in NEXT}
                values |= {n: to_json(values[n]) for n in JSON_FIELDS if n in values}
                if not dry:
                    mine = schedules.c.schedule_id == old.schedule_id
                    c.execute(sa.update(schedules).where(mine).values(values))
                    self._still.pop(old.schedule_id, None)
            return Change("changed" if changes else "unchanged", changes)

    def list_schedules(
        self, limit: int | None = None, search: str = "", after: Place | None = None
    ) -> list[Schedule]:
        """The schedules, the next one first, those that are paused last.

        One that fires between two looks comes again later.

        Args:
            limit: The most that are returned.
            search: Those that have this in their job_id, handler_id or method.
            after: The place after which to begin.
        """
        order = (schedules.c.paused, schedules.c.due_us, schedules.c.job_id)
        query = sa.select(schedules).where(mentions(search)).order_by(*order).limit(limit)
        if after is not None:
            query = query.where(sa.tuple_(*order) > sa.tuple_(*after))
        return self.all_of(query, self._schedule_of)

    def count_schedules(self, search: str = "") -> int:
        """How many schedules there are that have this in their names."""
        with self.reading() as c:
            found = sa.select(sa.func.count()).select_from(schedules).where(mentions(search))
            return int(c.execute(found).scalar_one())

    def find_schedule(self, job_id: str) -> Schedule | None:
        """One schedule."""
        return next(iter(self.find_schedules([job_id])), None)

    def find_schedules(self, job_ids: Sequence[str]) -> list[Schedule]:
        """Those of these schedules that there are, in any order."""
        mine = sa.select(schedules).where(schedules.c.job_id.in_(job_ids))
        return self.all_of(mine, self._schedule_of)

    def stands_still(self, schedule_id: str) -> bool:
        """Whether a claim found that a schedule's next time cannot be computed here."""
        return schedule_id in self._still

    def remove_schedule(self, job_id: str) -> bool:
        """Forget a schedule; its queued runs are skipped, one that goes on goes on."""
        with self.writing() as c:
            mine = schedules.c.job_id == job_id
            found = sa.select(schedules.c.schedule_id, schedules.c.handler_id).where(mine)
            row = c.execute(found.with_for_update()).one_or_none()
            if row is None:
                return False
            c.execute(sa.delete(schedules).where(mine))
            waiting = (executions.c.schedule_id == row.schedule_id, executions.c.status == "queued")
            reason = "the schedule was removed before this run began"
            given_up = {"status": "skipped", "completed_us": self.now_us(c), "error": reason}
            skipped = row_count(c.execute(sa.update(executions).where(*waiting).values(given_up)))
            counted = CountChanges()
            counted.add(row.handler_id, "skipped", more=skipped)
            counted.write(c, self.shard)
            return True

    def pause_schedule(self, job_id: str, paused: bool) -> Schedule | None:
        """Pause or resume a schedule; ticks of the pause are no ticks. None when unknown.

        Ticks that are recorded do not come again, whatever the clock did. One that stands still is
        tried again.
        """
        with self.writing() as c:
            one = sa.select(schedules).where(schedules.c.job_id == job_id).with_for_update()
            row = c.execute(one).mappings().one_or_none()
            if row is None:
                return None
            # Who pauses or resumes may have put right what its fault was.
            self._still.pop(row["schedule_id"], None)
            found = schedule_of(row)
            mine = schedules.c.schedule_id == found.schedule_id
            if found.paused and not paused:
                now = self.now_us(c)
                found.fired = recorded_ticks(c, now, [found.schedule_id])[found.schedule_id]
                # One that stands still has no next time here; it can be paused and resumed all the
                # same.
                with suppress(ValueError, OverflowError):
                    found.tick_us = found.reckon(now)
                    if found.tick_us is None:  # it ended meanwhile
                        c.execute(sa.delete(schedules).where(mine))
                        return found
                    found.due_us = found.due_of(found.tick_us)
                found.folded = None
            found.paused = paused
            values = {name: getattr(found, name) for name in ("paused", *SWAPPED)}
            c.execute(sa.update(schedules).where(mine).values(values))
            return found

    def _schedule_of(self, row: sa.RowMapping) -> Schedule:
        """The schedule of a row, with its fault if it stands still."""
        one = schedule_of(row)
        one.fault = one.fault or self._still.get(one.schedule_id)
        return one

    # --- ticks

    def claim(
        self,
        owner: str,
        lease_s: float,
        limit: int = CLAIM_LIMIT,
        parts: Mapping[str, int] | None = None,
    ) -> Claimed:
        """Fire what is due: decide, write it all down, and return what this owner is to run.

        At first, and after a step of the clock, what waits longer than by the present time is
        brought forward.

        Args:
            owner: Who claims.
            lease_s: Length of the leases, in seconds.
            limit: The most schedules that are fired.
            parts: How many children of partitioned runs the owner has, by handler_id.
        """
        try:
            return self._claim(owner, lease_s, limit, parts or {}, careful=False)
        except IntegrityError:
            # A tick is recorded already: the clock was ahead when it ran. To look for such ticks
            # at every claim would cost each of them a query.
            return self._claim(owner, lease_s, limit, parts or {}, careful=True)

    def _claim(
        self, owner: str, lease_s: float, limit: int, parts: Mapping[str, int], *, careful: bool
    ) -> Claimed:
        """See `claim`; `careful` minds ticks that were recorded while the clock was ahead."""
        step = None
        with self.writing() as c:
            now, offset_us, step_us = self._read_clocks(c)
            if step_us != 0:
                moved = self._bring_forward(c, now, lease_s)
                if step_us or moved:
                    seen_at, step_s = from_us(now).isoformat(), step_us and step_us / 1_000_000
                    step = ClockStep(seen_at=seen_at, step_s=step_s, schedules=moved)
            lease = Lease(owner, now + seconds_us(lease_s))
            started, faulty = self._fire(c, now, lease, limit, careful=careful)
            looked = partitions.look(c, now, parts)
            self._count(c, [*looked.over, *looked.ended], now)
            started += self._begin(c, looked.due, now, lease)
            # After the look: a run that ended there lets the next one of its schedule begin.
            queued = c.execute(statements.ANY_QUEUED).first() is not None
            if queued:
                started += self._start_queued(c, now, lease)
            still = {**self._still, **{one.schedule_id: str(one.fault) for one in faulty}}
            next_due_us = c.execute(statements.NEXT_DUE, {"still": [*still]}).scalar()
        # Only after the commit: a transaction that was undone has found nothing.
        self._still, self._offset_us = still, offset_us
        faults = {one.job_id: still[one.schedule_id] for one in faulty}
        queued |= looked.any_open
        found = (started, looked.ended, looked.stopped)
        return Claimed(now, *found, next_due_us, queued, faults, step)

    def run_now(self, new: Execution, lease_s: float, key: str | None, digest: str) -> str | None:
        """Store an execution that no schedule asked for; None, or the earlier one's id.

        Args:
            new: Leased by its owner from now on.
            lease_s: Length of the lease, in seconds.
            key: The request's Idempotency-Key: the earlier execution of that key is the answer.
            digest: What the request asked for: the same key must not ask for something else.

        Raises:
            ValueError: The key was used for another request.
        """
        with self.writing() as c:
            if key is not None:
                same = sa.select(executions.c.execution_id, executions.c.request_digest)
                found = c.execute(same.where(executions.c.idempotency_key == key)).first()
                if found is not None and found.request_digest != digest:
                    raise ValueError("this Idempotency-Key was used for another request")
                if found is not None:
                    return str(found.execution_id)
            now = new.created_us = self.now_us(c)
            row = new.row(now, Lease(str(new.owner), now + seconds_us(lease_s)), None)
            row |= {"idempotency_key": key, "request_digest": digest}
            c.execute(sa.insert(executions).values(row))
            return None

    def renew(self, owner: str, lease_s: float) -> Leases:
        """The heartbeat: renew every lease of this owner, and take over those that ended."""
        with self.writing() as c:
            now = self.now_us(c)
            # Renew first: a lease of our own that just ended is renewed here, and not taken over
            # from us.
            until = now + seconds_us(lease_s)
            c.execute(statements.RENEW, {"its_owner": owner, "until_us": until})
            found = c.execute(statements.HELD, {"its_owner": owner})
            rows = found.all()
            held = {(row.execution_id, row.lease) for row in rows}
            stopped = {row.execution_id: row.stopped for row in rows if row.stopped is not None}
            ended = {"now_us": now, "at_most": CLAIM_LIMIT}
            over = c.execute(statements.ENDED_LEASES, ended).mappings().all()
            taken = [Execution.of(row) for row in over]
            take_over(c, taken, Lease(owner, until))
            return Leases(held, taken, stopped)

    def divide(self, parent: Execution, items: Sequence[Values]) -> bool:
        """Divide a run into a child for each item; false when its lease is another's."""
        with self.writing() as c:
            return partitions.divide(c, parent, items, self.now_us(c))

    def stop(self, execution_id: str) -> bool:
        """Have an open run end before its time; false where there is none of this id."""
        with self.writing() as c:
            now = self.now_us(c)
            found, over = partitions.stop(c, execution_id, now)
            self._count(c, over, now)
            return found

    def release(self, owner: str) -> None:
        """End every lease of this owner, so that another scheduler can go on at once."""
        with self.writing() as c:
            mine = (executions.c.owner == owner, statements.IS_ACTIVE)
            c.execute(sa.update(executions).where(*mine).values(lease_until_us=0))

    def load(self, owner: str, ids: Iterable[str]) -> list[Execution]:
        """Executions that are this owner's by the store, by their ids."""
        mine = (executions.c.owner == owner, statements.IS_ACTIVE)
        found = sa.select(executions).where(executions.c.execution_id.in_(list(ids)), *mine)
        return self.all_of(found, Execution.of)

    def save(self, changed: Sequence[Execution]) -> list[bool]:
        """Write what became of executions; false for each that is no longer its owner's."""
        with suppress(LostRaceError):
            return self._save(changed, one_by_one=False)
        return self._save(changed, one_by_one=True)

    def _save(self, changed: Sequence[Execution], *, one_by_one: bool) -> list[bool]:
        """See `save`; only `one_by_one` it is known which rows were written, where not all were."""
        with self.writing() as c:
            now = self.now_us(c)
            rows = [one.outcome(now) for one in changed]
            # Many rows in one statement are fast, but only counted: which of them were not written
            # is found out one by one, and that is seldom.
            if one_by_one:
                written = [statements.SAVE.write(c, [row]) == 1 for row in rows]
            elif statements.SAVE.write(c, rows) == len(rows):
                written = [True] * len(rows)
            else:
                raise LostRaceError("an execution is another scheduler's now")
            self._count(c, compress(changed, written), now)
            if not one_by_one:
                return written
            ids = [one.execution_id for one in changed]
            look = sa.select(executions.c.execution_id, executions.c.owner, executions.c.lease)
            kept = c.execute(look.where(executions.c.execution_id.in_(ids)))
            found = {row.execution_id: (row.owner, row.lease) for row in kept}
            return [found.get(one.execution_id) == (one.owner, one.lease) for one in changed]

    def _bring_forward(self, c: sa.Connection, now: int, lease_s: float) -> int:
        """Let nothing wait for a clock that was ahead; how many schedules did."""
        c.execute(statements.SHORTEN, {"until_us": now + seconds_us(lease_s)})
        moved: list[Values] = []
        found = c.execute(statements.AHEAD, {"now_us": now}).mappings()
        for rows in found.partitions(CLAIM_LIMIT):
            ids = [row["schedule_id"] for row in rows]
            unrun = self._free_unrun(c, now, ids)
            recorded = recorded_ticks(c, now, ids)
            for row in rows:
                one = self._schedule_of(row)
                one.fired = recorded[one.schedule_id]
                # A row that cannot be read must not hold up the others; the claim finds its fault.
                with suppress(ValueError, LookupError, TypeError, OverflowError):
                    voided = unrun.get(one.schedule_id)
                    if one.bring_forward(now, unrun=voided is not None):
                        one.runs -= voided or 0
                        new = {f"new_{n}": v for n, v in schedule_row(one).items() if n in MOVED}
                        moved.append({"old_schedule_id": one.schedule_id, **new})
        return statements.MOVE.write(c, moved)

    def _free_unrun(self, c: sa.Connection, now: int, ids: list[str]) -> dict[str, int]:
        """Free the ticks after now that did not run; by schedule, how many waited to begin."""
        found = c.execute(statements.UNRUN, {"schedule_ids": ids, "after_us": now}).all()
        voided = [row for row in found if row.status in schema.OPEN]
        counted = CountChanges()
        for row in voided:
            counted.add(row.handler_id, "skipped", row.started_us, now)
        if voided:
            c.execute(statements.VOID, {"seqs": [row.seq for row in voided], "now_us": now})
            counted.write(c, self.shard)
        if found:
            c.execute(statements.FREE, {"seqs": [row.seq for row in found]})
        waited = Counter(row.schedule_id for row in voided)
        return {row.schedule_id: waited[row.schedule_id] for row in found}

    def _fire(
        self, c: sa.Connection, now: int, lease: Lease, limit: int, *, careful: bool
    ) -> tuple[list[Execution], list[Schedule]]:
        """Decide on every schedule that is due, and write it down, but for those at fault."""
        given = {"now_us": now, "at_most": limit, "still": [*self._still]}
        found = c.execute(statements.DUE, given).mappings().all()
        if not found:
            return [], []
        faulty: list[Schedule] = []
        ids = [row["schedule_id"] for row in found]
        going = {row[0]: row[1:] for row in c.execute(statements.GOING_ON, {"schedule_ids": ids})}
        least_us = min(row["tick_us"] for row in found)
        recorded = recorded_ticks(c, least_us - 1, ids) if careful else defaultdict(set)
        writes = Writes([], [], [])
        for row in found:
            schedule = schedule_of(row)
            going_on, queued, waiting = going.get(schedule.schedule_id, (0, 0, 0))
            schedule.fired = recorded[schedule.schedule_id]
            try:
                firing = fire(schedule, now, active=going_on - queued, queued=queued)
            except Exception as error:  # noqa: BLE001 - it stands still, and the others go on
                schedule.fault = fault_of(error)
                faulty.append(schedule)
            else:
                writes.add(schedule, firing, waiting=bool(waiting))
        self._count(c, writes.write(c, now, lease), now)
        return [one for one, _ in writes.inserted if one.status == "running"], faulty

    def _count(self, c: sa.Connection, ended: Iterable[Execution], now: int) -> None:
        """Add to the counts those of these that are final."""
        counted = CountChanges()
        for one in ended:
            if one.is_final():
                counted.add(one.handler_id, one.status, one.started_us, now)
        counted.write(c, self.shard)

    def _start_queued(self, c: sa.Connection, now: int, lease: Lease) -> list[Execution]:
        """Start queued runs whose turn has come: nothing of their schedule is going on."""
        rows = c.execute(statements.TURN, {"at_most": CLAIM_LIMIT}).mappings()
        return self._begin(c, [Execution.of(row) for row in rows], now, lease)

    def _begin(
        self, c: sa.Connection, found: list[Execution], now: int, lease: Lease
    ) -> list[Execution]:
        """Begin queued runs."""
        new = {"new_status": "running", "new_started_us": now}
        statements.BEGIN.write(c, [{"old_execution_id": one.execution_id, **new} for one in found])
        for one in found:
            one.status, one.started_us = "running", now
        take_over(c, found, lease)
        return found


def recorded_ticks(c: sa.Connection, after_us: int, ids: list[str]) -> defaultdict[str, set[int]]:
    """The ticks of some schedules after a moment that are recorded, by schedule_id."""
    found = defaultdict[str, set[int]](set)
    given = {"after_us": after_us, "schedule_ids": ids}
    for schedule_id, tick_us in c.execute(statements.RECORDED, given):
        found[schedule_id].add(tick_us)
    return found


def take_over(c: sa.Connection, taken: Sequence[Execution], lease: Lease) -> None:
    """Make executions this owner's, each with the next lease number."""
    rows = []
    for one in taken:
        old_lease, one.owner, one.lease = one.lease, lease.owner, one.lease + 1
        new = {"new_owner": one.owner, "new_lease": one.lease, "new_lease_until_us": lease.until_us}
        rows.append({"old_execution_id": one.execution_id, "old_lease": old_lease, **new})
    if statements.TAKE.write(c, rows) != len(rows):
        raise LostRaceError("an execution was taken by two schedulers at once: nothing is written")


def set_next(new: Schedule, now: int) -> None:
    """Set the first tick from now on of a schedule that is new, or in a new form.

    Raises:
        ValueError: It never fires.
    """
    if new.trigger_config["type"] == "interval":
        new.trigger_config.setdefault("start_time", from_us(now).isoformat())
    first = new.next_tick(now - 1)
    # A date that has passed is due at once: its grace decides whether it runs.
    if first is None and new.trigger_config["type"] == "date":
        first = new.next_tick(to_us(DAWN))
    if first is None:
        raise ValueError("the trigger never fires")
    new.tick_us, new.due_us, new.decided_us = first, new.due_of(first), now


def differ(old: Any, new: Any) -> bool:
    """Whether two values are not the same JSON."""
    return encode_json(old, sort_keys=True) != encode_json(new, sort_keys=True)


def mentions(search: str) -> sa.ColumnElement[bool]:
    """Whether a schedule has a text in one of its names."""
    named = (schedules.c.job_id, schedules.c.handler_id, schedules.c.method)
    found = (name.icontains(search, autoescape=True) for name in named)
    return sa.or_(*found) if search else sa.true()

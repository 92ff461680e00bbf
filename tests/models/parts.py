"""Checkpoints: what an own read has read up to one is sealed as a part. Dead letters in a chain.

Append: one source, one folder, one backend; rows are numbered, a value is a row number. A run reads
row by row through `process`, which may hold rows back; at a checkpoint the part is sealed: one
transaction, upload (after, until] and the position. Kills at any moment, folder lost, backend
restored (compared in one step, while a run goes on), answers lost, requests late, `full: true`,
superseded, a row that the backend refuses for good (poison) or once (dead), an operator's retry,
purge and `purge --skip`. What holds: no row is visible twice; what was visible stays so (no part of
a full run is seen alone); a held chain does not fill the outbox; at rest every row below the last
checkpoint is visible but those that an operator gave up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from tests.models.explore import ANY, Case, Move, changed, put


class Rules(NamedTuple):
    """The switches; the defaults are the rules C1 to C4, D3 and D4."""

    per_part: bool = True
    """C1: `process` is called for each part, its input ends there, it is drained before sealing."""
    seal_in_place: bool = True
    """C2: sealing only where the position is still where the part began."""
    chain: bool = True
    """An upload is accepted only where its `after` is the source's `until`."""
    full: Literal["one", "parts"] = "one"
    """C4: a full run is one upload, its checkpoints seal nothing | its first part is full, the
    others are chained."""
    equal: Literal["join", "seal"] = "join"
    """A value equal to the one before seals nothing, its rows go into the next part | seals."""
    tail: Literal["refuse", "seal"] = "refuse"
    """Rows behind the last checkpoint: the run fails and says so | they are sealed."""
    hold: bool = True
    """D3: behind a dead letter in the chain its source is not read on; runs say rejected."""
    skip: bool = True
    """D4: an operator may put an empty upload of the same range in a refused one's place."""
    full_passes: bool = True
    """D3: a full upload does not wait behind a dead letter."""
    ordered: bool = True
    """A source's uploads are completed one at a time, in sealing order; a dead letter holds."""


class Entry(NamedTuple):
    """An upload of rows in (after, until]; `full` is a full one's source_seq, else 0."""

    uid: int
    after: int
    until: int
    rows: tuple[int, ...]
    full: int
    dead: bool = False
    behind: bool = False
    """It was sealed behind a dead letter."""


class Reading(NamedTuple):
    """A run: the last row read, what `process` holds back, what it has given out."""

    after: int
    at: int = 0
    held: tuple[int, ...] = ()
    out: tuple[int, ...] = ()
    full: bool = False


class Backend(NamedTuple):
    """The chain's end, the visible uploads, the highest full one, what was ended."""

    until: int = 0
    uploads: tuple[tuple[int, tuple[int, ...]], ...] = ()
    highest: int = 0
    done: frozenset[int] = frozenset()
    superseded: frozenset[int] = frozenset()

    def rows(self) -> list[int]:
        """Every visible row."""
        return [row for _, rows in self.uploads for row in rows]


class State(NamedTuple):
    """Folder, run, backend and network; `given_up` and `shown` are what really happened."""

    source: int
    position: int
    reading: Reading | None
    box: tuple[Entry, ...]
    highest: int
    backend: Backend
    snapshot: Backend | None
    left: tuple[int, ...]
    uid: int
    given_up: frozenset[int]
    shown: frozenset[int]
    late: frozenset[Entry]


CRASH, LOSS, RESTORE, LOST, DEAD, FULL, LATE = range(7)
EVERY_SECOND = {2: 2, 4: 4, 6: 6}


class Model:
    """A source that grows to the row counts of `script`; `points`: after row n Checkpoint(v)."""

    def __init__(
        self,
        rules: Rules = Rules(),  # noqa: B008  # immutable
        script: tuple[int, ...] = (4,),
        points: Mapping[int, int] = EVERY_SECOND,
        faults: Mapping[int, int] | None = None,
        poison: int = 0,
        uploads: int = 6,
    ) -> None:
        self.rules, self.script, self.points = rules, script, points
        self.poison, self.uploads = poison, uploads
        self.faults = tuple((faults or {}).get(kind, 0) for kind in range(7))

    def initial(self) -> State:
        """Nothing was read yet."""
        none: frozenset[int] = frozenset()
        return State(0, 0, None, (), 0, Backend(), None, self.faults, 0, none, none, frozenset())

    def last_point(self, rows: int) -> int:
        """The value of the last checkpoint in that number of rows."""
        return max([value for row, value in self.points.items() if row <= rows] + [0])

    def end(self, state: State) -> int:
        """The last row that a run may seal."""
        rows = self.script[state.source]
        return rows if self.rules.tail == "seal" else self.last_point(rows)

    def held(self, state: State) -> bool:
        """Whether a dead letter keeps runs from reading on."""
        return self.rules.hold and any(entry.dead for entry in state.box)

    def due(self, state: State) -> bool:
        """Whether a run finds something to seal."""
        return not self.held(state) and state.position < self.end(state)

    def sealed(self, state: State, reading: Reading, until: int, rows: tuple[int, ...]) -> State:
        """One transaction: the upload and the position."""
        seq = state.highest + 1
        behind = not reading.full and any(entry.dead for entry in state.box)
        full = seq if reading.full else 0
        new = Entry(state.uid, reading.after, until, rows, full, behind=behind)
        box = (*state.box, new)
        return state._replace(position=until, highest=seq, uid=state.uid + 1, box=box)

    def complete(self, backend: Backend, entry: Entry) -> tuple[Backend, str]:
        """The backend takes an upload, in one transaction."""
        uid, after, until, rows, full = entry[:5]
        if uid in backend.done:
            return backend, "duplicate"
        if uid in backend.superseded:
            return backend, "superseded"
        if full <= backend.highest if full else self.rules.chain and after != backend.until:
            return backend._replace(superseded=backend.superseded | {uid}), "superseded"
        uploads = (*(() if full else backend.uploads), (uid, rows))
        highest = max(backend.highest, full or backend.highest)
        done = backend.done | {uid}
        return Backend(until, uploads, highest, done, backend.superseded), "created"

    def moves(self, state: State) -> Iterator[Move[State]]:
        """Source, run, operator, sender, network and faults."""
        if state.uid >= self.uploads:
            return
        if state.source + 1 < len(self.script):
            following = state._replace(source=state.source + 1)
            yield Move(f"source has {self.script[state.source + 1]} rows", True, following)
        if state.reading is None:
            yield from self.starts(state)
        else:
            yield from self.run(state, state.reading)
        yield from self.outbox(state)
        for entry in state.late:
            backend, answer = self.complete(state.backend, entry)
            following = state._replace(late=state.late - {entry}, shown=seen(state, backend))
            following = following._replace(backend=backend)
            yield Move(f"late complete {entry.uid}: {answer}", True, following)
        yield from self.disasters(state)

    def starts(self, state: State) -> Iterator[Move[State]]:
        """A run begins."""
        position = state.position
        if self.due(state):
            following = state._replace(reading=Reading(position, position))
            yield Move(f"run reads on from {position}", False, following)
        if state.left[FULL]:
            following = state._replace(reading=Reading(0, full=True))
            yield Move("run full", True, spent(following, FULL))

    def run(self, state: State, reading: Reading) -> Iterator[Move[State]]:
        """A run goes on, or is killed."""
        ended = state._replace(reading=None)
        if state.left[CRASH]:
            yield Move("killed", True, spent(ended, CRASH))
        moved = self.rules.seal_in_place and reading.after != state.position
        if not reading.full and (moved or self.held(state)):
            why = "the position moved" if moved else "rejected"
            yield Move(f"run ends: {why}", False, ended)
        elif reading.at < self.script[state.source]:
            yield self.next_row(state, reading)
        else:
            yield self.read_ends(state, reading)

    def next_row(self, state: State, reading: Reading) -> Move[State]:
        """One more row, and the checkpoint after it."""
        row = reading.at + 1
        if self.rules.per_part:
            held, now = tuple[int, ...](), (*reading.held, row)
        else:
            held, now = (row,), reading.held  # a `process` that holds one row back
        reading = reading._replace(at=row, held=held, out=reading.out + now)
        following, value = state._replace(reading=reading), self.points.get(row)
        if value is None or (reading.full and self.rules.full == "one"):
            return Move(f"row {row}", False, following)
        if value == reading.after and self.rules.equal == "join":
            return Move(f"row {row}, Checkpoint({value}) again", False, following)
        following = self.sealed(following, reading, value, reading.out)
        following = following._replace(reading=Reading(value, row, reading.held))
        return Move(f"row {row}, Checkpoint({value}): sealed as {state.uid}", False, following)

    def read_ends(self, state: State, reading: Reading) -> Move[State]:
        """The end of the read: `process` is drained."""
        rows, following = reading.out + reading.held, state._replace(reading=None)
        if reading.full and self.rules.full == "one":
            until = self.last_point(self.script[state.source])
            if self.rules.tail == "refuse":
                rows = tuple(row for row in rows if row <= until)
            label = f"read ends, full sealed as {state.uid}"
            return Move(label, False, self.sealed(following, reading, until, rows))
        if not rows:
            return Move("read ends", False, following)
        if self.rules.tail == "refuse":
            return Move("read ends: fails, rows behind the last checkpoint", False, following)
        until = 0 if reading.full else reading.after
        following = self.sealed(following, reading, until, rows)
        return Move(f"read ends: sealed as {state.uid}, until {until}", False, following)

    def outbox(self, state: State) -> Iterator[Move[State]]:
        """What operator and sender do with each upload."""
        held = False
        for index, entry in enumerate(state.box):
            if entry.dead:
                held = held or self.rules.ordered
                yield from self.operator(state, entry)
                continue
            before = state.box[:index]
            passes = entry.full and self.rules.full_passes
            if held and not (passes and all(other.dead or other.full for other in before)):
                continue
            yield from self.sender(state, entry)
            held = held or self.rules.ordered

    def operator(self, state: State, entry: Entry) -> Iterator[Move[State]]:
        """A dead letter is retried, purged, or its rows are given up."""
        box = changed(state.box, entry, entry._replace(dead=False))
        yield Move(f"operator retries {entry.uid}", False, state._replace(box=box))
        box, position = changed(state.box, entry, None), min(entry.after, state.position)
        following = state._replace(box=box, position=position)
        yield Move(f"operator purges {entry.uid}", True, following)
        if self.rules.skip and entry.rows:
            empty = Entry(state.uid, entry.after, entry.until, (), entry.full)
            following = state._replace(uid=state.uid + 1, box=changed(state.box, entry, empty))
            following = following._replace(given_up=state.given_up | set(entry.rows))
            yield Move(f"operator gives up the rows of {entry.uid}", False, following)

    def sender(self, state: State, entry: Entry) -> Iterator[Move[State]]:
        """An upload is completed."""
        poisoned = bool(self.poison) and self.poison in entry.rows
        if poisoned or state.left[DEAD]:
            box = changed(state.box, entry, entry._replace(dead=True))
            following = state._replace(box=box)
            following = following if poisoned else spent(following, DEAD)
            yield Move(f"complete {entry.uid}: 422, dead letter", not poisoned, following)
            if poisoned:
                return
        backend, answer = self.complete(state.backend, entry)
        lost = state._replace(backend=backend, shown=seen(state, backend))
        following = lost._replace(box=changed(state.box, entry, None))
        if answer == "superseded" and not entry.full:
            following = following._replace(position=backend.until)
        label = f"complete {entry.uid} ({entry.after},{entry.until}]: {answer}"
        yield Move(label, False, following)
        if state.left[LOST] and backend != state.backend:
            yield Move(f"{label}, answer lost", True, spent(lost, LOST))
        if state.left[LATE]:
            sent = entry._replace(behind=False)
            following = spent(state._replace(late=state.late | {sent}), LATE)
            yield Move(f"complete {entry.uid} is delayed", True, following)

    def disasters(self, state: State) -> Iterator[Move[State]]:
        """The folder is lost, the backend restored."""
        until = state.backend.until
        if state.left[LOSS]:
            following = spent(state._replace(position=until, reading=None, box=()), LOSS)
            yield Move(f"folder lost, the backend says {until}", True, following)
        if state.left[RESTORE] and state.snapshot is None:
            yield Move("snapshot", True, state._replace(snapshot=state.backend))
        elif state.left[RESTORE] and state.snapshot and state.snapshot != state.backend:
            at, box = state.snapshot.until, tuple[Entry, ...]()
            for entry in state.box:
                if entry.full or entry.after == at:
                    box, at = (*box, entry), entry.until
            following = state._replace(backend=state.snapshot, position=at, box=box)
            following = following._replace(shown=frozenset())
            yield Move("RESTORED, compared", True, spent(following, RESTORE))

    def check(self, state: State) -> Iterator[str]:
        """What is wrong with what is visible, or with the outbox."""
        rows = state.backend.rows()
        if len(rows) != len(set(rows)):
            yield f"twice: {rows}"
        elif state.shown - set(rows) - state.given_up:
            gone = sorted(state.shown - set(rows))
            yield f"rows {gone} were visible and are not: a part of a full is seen alone"
        elif any(entry.behind for entry in state.box):
            yield "the outbox fills behind a dead letter, and other sources stand still"
        elif self.rest(state) and state.uid < self.uploads:
            wanted = set(range(1, self.end(state) + 1)) - state.given_up
            if not wanted <= set(rows):
                yield f"rest without rows {sorted(wanted - set(rows))}"

    def rest(self, state: State) -> bool:
        """Nothing is read, to be sent or to be sealed."""
        idle = state.reading is None and not state.box and not self.due(state)
        return state.uid >= self.uploads or idle


def seen(state: State, backend: Backend) -> frozenset[int]:
    """What was visible at any time."""
    return state.shown | set(backend.rows())


def spent(state: State, kind: int) -> State:
    """One fault of this kind fewer is left."""
    return state._replace(left=put(state.left, kind, state.left[kind] - 1))


GROWS, AGAIN = (4, 6), {2: 2, 4: 2, 6: 6}
CASES = [
    Case("kill at any moment", None, Model(faults={CRASH: 2, LOST: 1, LATE: 1})),
    Case("folder lost", None, Model(script=GROWS, faults={CRASH: 1, LOSS: 1, LATE: 1})),
    Case(
        "restored backend while a run goes on",
        None,
        Model(script=GROWS, faults={RESTORE: 1, CRASH: 1, LOST: 1}, uploads=7),
    ),
    Case(
        "restored, sealed wherever the position is (the chain refuses it)",
        None,
        Model(Rules(seal_in_place=False), script=GROWS, faults={RESTORE: 1, CRASH: 1}, uploads=7),
    ),
    Case("dead letter", None, Model(script=(6,), faults={DEAD: 1, CRASH: 1}, uploads=7)),
    Case("full", None, Model(faults={FULL: 1, CRASH: 1, LATE: 1})),
    Case("full and dead letter", None, Model(faults={FULL: 1, DEAD: 1}, uploads=7)),
    Case("rows behind the last checkpoint", None, Model(script=(3, 5), faults={CRASH: 1})),
    Case("the same value again", None, Model(Rules(), GROWS, AGAIN, {CRASH: 1, LOST: 1})),
    Case("a row that is refused for good", None, Model(script=GROWS, poison=3, uploads=7)),
    Case(
        "C1 out: process holds rows over a checkpoint",
        ANY,
        Model(Rules(per_part=False), faults={CRASH: 1}),
    ),
    Case(
        "no chain, folder lost with a sealed part",
        ANY,
        Model(Rules(chain=False, ordered=False), faults={LOSS: 1}),
    ),
    Case(
        "C2 out: no chain, sealed wherever the position is, restored",
        ANY,
        Model(Rules(chain=False, seal_in_place=False), faults={RESTORE: 1}, uploads=7),
    ),
    Case("C4 out: a full in parts", ANY, Model(Rules(full="parts"), faults={FULL: 1})),
    Case("an equal value is sealed", ANY, Model(Rules(equal="seal"), GROWS, AGAIN, {CRASH: 1})),
    Case("rows behind the last checkpoint are sealed", ANY, Model(Rules(tail="seal"), (3, 4))),
    Case(
        "D3 out: reading goes on behind a dead letter",
        ANY,
        Model(
            Rules(hold=False),
            script=(6,),
            points={row: row for row in range(1, 7)},
            faults={DEAD: 1},
            uploads=7,
        ),
    ),
    Case(
        "D4 out: refused for good, nothing but retry and purge",
        ANY,
        Model(Rules(skip=False), poison=3, uploads=40),
    ),
    Case(
        "D3: a full waits behind a dead letter",
        None,
        Model(Rules(full_passes=False), faults={FULL: 1, DEAD: 1}, uploads=7),
    ),
]

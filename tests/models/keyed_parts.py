"""Merge in parts: an own read or a tap with keys, whose checkpoints seal what was read up to them.

One reading of one or two streams, each a source of its own at the backend, with a position, a
window and an outbox of its own; keys from "x" on are of the second. A run reads each stream from
its own position, inclusive, with `lookback`, and yields a Checkpoint after every few rows: for each
stream the greatest value read of it. The streams whose value rose are sealed in one transaction,
with their uploads, positions and windows; at the end of the read, what is behind. Kills between any
two steps, requests late, answers lost, dead letters, a row that is refused for good, purge, `purge
--skip`, full, the folder lost, the backend restored and compared. What holds: at rest each view is
its table, but for the keys whose newest row an operator gave up; no part of a full is seen alone; a
run that finds nothing seals nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from tests.models import keyed
from tests.models.explore import ANY, STUCK, Case, Move, changed, put
from tests.models.keyed import (
    A1,
    A2,
    APART,
    B1,
    C2,
    C3,
    LATE_ROW,
    LOG,
    ONE_TICK,
    ONE_TICK_TWICE,
    TIE,
    TOMBSTONE,
    UPDATE,
    Backend,
    Entry,
    Row,
    Sent,
    Table,
    Until,
)


class Rules(NamedTuple):
    """The switches; the defaults are the rules."""

    ends: Literal["above", "window", "differs", "any"] = "above"
    """K1: a part ends at a value above the stream's position, at another it goes on | also at the
    same value where a row of it is not known, else its rows are dropped | so at a lower one, too |
    at any value."""
    tail: Literal["window", "fail", "drop"] = "window"
    """C3: rows behind the last value that rose are sealed at the end of the read, unless the window
    holds them | fail the run | are taken for known."""
    known: Literal["rows", "newest"] = "rows"
    """K2: known is what has no row that is not in the window | what has, of each key, the window's
    row as its newest."""
    window: Literal["part", "run", "equal", "carried"] = "part"
    """K2: the window is what the last part was read from | what the run has read | the part, and
    where the value did not rise the window before | the part and the window before; of these, what
    is within lookback of until."""
    with_seal: bool = True
    """M4: the window is kept in the transaction of the seal; else in one before it."""
    sends: Literal["all", "newer", "unseen"] = "all"
    """What of a part is sent: all rows | but those that are their key's newest already, by the
    window and by what the part sends before | but those that the window holds."""
    unique: bool = True
    """G5: until is [value, source_seq], never the same twice; else the value alone."""
    forget: bool = True
    """F7: purge, superseded and compare forget the window."""
    full: Literal["one", "parts"] = "one"
    """C4: a full run is one upload of each stream | its checkpoints seal."""
    full_replaces: bool = True
    """The window of a full is what the full has read; else the one before stays."""
    seal_in_place: bool = True
    """C2: sealing only where the positions are where the parts began."""
    chain: bool = True
    """M1: accepted only where `after` is the stream's `until`."""
    inclusive: bool = True
    """M3: rows at the position are read again."""
    lookback: int = 1
    """M3: how far back of the position a run reads."""
    key: bool = True
    """M9: the view shows the newest row of each key; else every row that was sent."""
    skip: Literal["keeps", "forgets"] | None = "keeps"
    """D4: rows may be given up, the window still knows them | it is forgotten | they may not."""
    positions: Literal["each", "one"] = "each"
    """T2: each stream has its own value and position | all have the greatest."""


class Reading(NamedTuple):
    """A run: where it began, what is to be read, and of each stream what is read."""

    after: tuple[Until, ...]
    rows: Table
    values: tuple[int, ...]
    full: bool
    open: tuple[Table, ...]
    """Not sealed yet."""
    seen: tuple[Table, ...]
    """Everything that the run has read."""


class Chain(NamedTuple):
    """Of one stream: what the folder keeps, its uploads, the backend."""

    position: Until = Until()
    window: frozenset[Row] = frozenset()
    highest: int = 0
    box: tuple[Entry, ...] = ()
    backend: Backend = Backend()


class State(NamedTuple):
    """The table, the streams, the run, the network; `given_up` and `shown` really happened."""

    source: int
    chains: tuple[Chain, ...]
    reading: Reading | None
    late: frozenset[tuple[int, Sent]]
    snapshot: tuple[Backend, ...] | None
    left: tuple[int, ...]
    uid: int
    given_up: frozenset[Row] = frozenset()
    shown: frozenset[str] = frozenset()
    runs: int = 0
    """Runs in a row that sealed something, with no fault, nothing superseded between."""


CRASH, LOST, LATE, DEAD, FULL, LOSS, RESTORE = range(7)
X1, X2, Y2 = Row("x", 1, 1), Row("x", 2, 2), Row("y", 2, 1)
BACK_AGAIN: list[Table] = [*ONE_TICK, (A1,)]
"""Updated within a tick of the watermark, then back to what it was."""
BACK_AND_MORE: list[Table] = [(A1,), (Row("a", 1, 2), C2), (A1, C2)]
LOG_AND_MORE: list[Table] = [(A1, A2), (A1, A2, C3)]
TIED_MORE: list[Table] = [(A1,), (A1, C2)]
TWO_TIED: list[Table] = [(A1, B1), (Row("a", 1, 2), B1)]
TWO_STREAMS: list[Table] = [(A1, X1), (A2, X2)]
ONE_STANDS: list[Table] = [(A1, X1), (A2, X1), (A2, X1, Y2)]
UPDATE_ONE: list[Table] = [(A1, C2), (A1, C2, C3)]
FAR: list[Table] = [(C3, X1)]
ONE_TICK_EACH: list[Table] = [(A1, X1), (Row("a", 1, 2), Row("x", 1, 2))]


class Model:
    """A table that goes through `script`.

    Args:
        rules: The switches.
        script: The states of the table.
        faults: How many of each.
        every: After how many rows of a read a checkpoint comes.
        by_value: A read of two streams brings their rows by value, else one stream after the other.
        pages: What follows a checkpoint is read when it was sealed, from its value on.
        poison: A row that the backend refuses.
        purges: Whether an operator purges.
        uploads: How many at most.
    """

    def __init__(
        self,
        rules: Rules = Rules(),  # noqa: B008  # immutable
        script: list[Table] = UPDATE,
        faults: Mapping[int, int] | None = None,
        *,
        every: int = 1,
        by_value: bool = False,
        pages: bool = False,
        poison: Row | None = None,
        purges: bool = True,
        uploads: int = 9,
    ) -> None:
        self.rules, self.script, self.every, self.by_value = rules, script, every, by_value
        self.pages, self.poison, self.purges, self.uploads = pages, poison, purges, uploads
        self.streams = 1 + any(stream_of(row) for table in script for row in table)
        self.faults = tuple((faults or {}).get(kind, 0) for kind in range(7))
        self.dues: dict[object, bool] = {}
        self.keyed = keyed.Model(keyed.Rules(chain=rules.chain))

    def initial(self) -> State:
        """Nothing was read yet."""
        return State(0, (Chain(),) * self.streams, None, frozenset(), None, self.faults, 0)

    def read(self, table: Table, after: tuple[Until, ...]) -> Table:
        """What a read finds from these positions on."""
        rows = sorted(table, key=lambda row: row.value)
        if not self.by_value:
            rows.sort(key=stream_of)
        return tuple(row for row in rows if self.is_read(row, after[stream_of(row)]))

    def is_read(self, row: Row, after: Until) -> bool:
        """Whether a read from a position finds a row."""
        if after == Until():
            return True
        if self.rules.inclusive:
            return row.value >= after.value - self.rules.lookback
        return row.value > after.value

    def begins(self, state: State) -> tuple[Until, ...]:
        """Where the streams are read from."""
        own = tuple(chain.position for chain in state.chains)
        return own if self.rules.positions == "each" else (max(own),) * len(own)

    def known(self, window: frozenset[Row], rows: Table) -> bool:
        """Whether the window holds what was read again."""
        if self.rules.known == "newest":
            rows = newest(rows)
        return set(rows) <= window

    def due(self, state: State) -> bool:
        """Whether a run would end otherwise than `unchanged`: it is run, with nothing between."""
        if held(state):
            return False
        what = (state.source, *((chain.position, chain.window) for chain in state.chains))
        if what not in self.dues:
            streams, reading = list[int](), self.begun(state, full=False)
            at = state._replace(reading=reading)
            while at.reading is not None and not streams:
                step = self.next_row if at.reading.rows else self.read_ends
                _, streams, at = step(at, at.reading)
            self.dues[what] = bool(streams)
        return self.dues[what]

    def begun(self, state: State, *, full: bool) -> Reading:
        """A run that begins."""
        own = tuple(chain.position for chain in state.chains)
        begins = (Until(),) * self.streams if full else self.begins(state)
        rows, none = self.read(self.script[state.source], begins), ((),) * self.streams
        return Reading(own, rows, tuple(at.value for at in begins), full, none, none)

    def window(self, chain: Chain, rows: Table, seen: Table, value: int) -> frozenset[Row]:
        """What is known of a stream once a part is sealed."""
        before, rules = tuple(chain.window), self.rules
        if rules.window == "carried" or (rules.window == "equal" and value == chain.position.value):
            rows = (*before, *rows)
        elif rules.window == "run":
            rows = seen
        rows = newest(rows) if rules.known == "newest" else rows
        return frozenset(row for row in rows if row.value >= value - rules.lookback)

    def sealed(self, state: State, stream: int, reading: Reading, *, full: bool = False) -> State:
        """The part of a stream: its upload, position and window."""
        chain, rows, value = state.chains[stream], reading.open[stream], reading.values[stream]
        after = Until() if full else reading.after[stream]
        seq = max(chain.highest + 1, state.uid + 1)
        until = Until(value, seq if self.rules.unique else 0)
        if full:
            kept = self.window(Chain(), rows, rows, value)
            kept = kept if self.rules.full_replaces else chain.window
        else:
            kept = self.window(chain, rows, reading.seen[stream], value)
            rows = self.sent(chain.window, rows)
        entry = Entry(Sent(state.uid, after, until, rows, seq, full))
        chain = chain._replace(position=until, window=kept, highest=seq, box=(*chain.box, entry))
        return with_chain(state._replace(uid=state.uid + 1), stream, chain)

    def sent(self, window: frozenset[Row], rows: Table) -> Table:
        """What of a part is sent."""
        if self.rules.sends == "unseen":
            return tuple(row for row in rows if row not in window)
        if self.rules.sends == "all":
            return rows
        last, out = {row.key: row for row in window}, list[Row]()
        for row in rows:
            if last.get(row.key) != row:
                out.append(row)
            last[row.key] = row
        return tuple(out)

    def moves(self, state: State) -> Iterator[Move[State]]:
        """Every step; a fault begins the count of runs again."""
        for move in self.steps(state):
            yield move._replace(state=move.state._replace(runs=0)) if move.fault else move

    def steps(self, state: State) -> Iterator[Move[State]]:
        """Table, run, operator, sender, network and faults."""
        if state.uid >= self.uploads:
            return
        if state.source + 1 < len(self.script):
            following = state._replace(source=state.source + 1)
            yield Move(f"table: {self.script[state.source + 1]}", True, following)
        if state.reading is None:
            yield from self.starts(state)
        else:
            yield from self.run(state, state.reading)
        for stream in range(self.streams):
            yield from self.outbox(state, stream)
        for stream, sent in state.late:
            backend, answer = self.keyed.complete(state.chains[stream].backend, sent)
            following = state._replace(late=state.late - {(stream, sent)})
            following = self.answered(following, stream, backend)
            yield Move(f"late complete {sent.uid}: {answer}", True, following)
        yield from self.disasters(state)

    def starts(self, state: State) -> Iterator[Move[State]]:
        """A run begins."""
        if self.due(state):
            reading = self.begun(state, full=False)
            yield Move(f"run reads {reading.rows}", False, state._replace(reading=reading))
        if state.left[FULL]:
            reading = self.begun(state, full=True)
            following = spent(state._replace(reading=reading), FULL)
            yield Move(f"run full reads {reading.rows}", True, following)

    def run(self, state: State, reading: Reading) -> Iterator[Move[State]]:
        """A run goes on, or is killed."""
        ended = state._replace(reading=None)
        if state.left[CRASH]:
            yield Move("killed", True, spent(ended, CRASH))
        moved = any(
            chain.position != at for chain, at in zip(state.chains, reading.after, strict=True)
        )
        if not reading.full and ((moved and self.rules.seal_in_place) or held(state)):
            yield Move(f"run ends: {'the position moved' if moved else 'rejected'}", False, ended)
            return
        if reading.rows:
            label, streams, following = self.next_row(state, reading)
        else:
            label, streams, following = self.read_ends(state, reading)
        yield Move(label, False, following)
        if not self.rules.with_seal and streams and state.left[CRASH]:
            for stream in streams:
                chain = ended.chains[stream]._replace(window=following.chains[stream].window)
                ended = with_chain(ended, stream, chain)
            yield Move(f"{label}: the windows are kept, killed", True, spent(ended, CRASH))

    def next_row(self, state: State, reading: Reading) -> tuple[str, list[int], State]:
        """One more row, and the checkpoint after it; with the streams that were sealed."""
        row, *more = reading.rows
        stream = stream_of(row)
        values = put(reading.values, stream, max(reading.values[stream], row.value))
        if self.rules.positions == "one":
            values = (max(values),) * self.streams
        reading = reading._replace(
            rows=tuple(more),
            values=values,
            open=put(reading.open, stream, (*reading.open[stream], row)),
            seen=put(reading.seen, stream, (*reading.seen[stream], row)),
        )
        label, streams = f"row {row}", list[int]()
        if sum(map(len, reading.seen)) % self.every == 0:
            at = {stream: row.value} if self.rules.ends in ("differs", "any") else {}
            label += f", Checkpoint{tuple(at.get(k, values[k]) for k in range(self.streams))}"
            for stream in range(self.streams):
                state, reading, done = self.checkpoint(
                    state, reading, stream, at.get(stream, values[stream])
                )
                streams += [stream] if done else []
            label += f", sealed: {streams}" if streams else ""
            if self.pages and not reading.full:
                again = Until(max(values), 1)
                found = self.read(self.script[state.source], (again,) * self.streams)
                seen = {one for rows in reading.seen for one in rows}
                reading = reading._replace(rows=tuple(one for one in found if one not in seen))
        return label, streams, state._replace(reading=reading)

    def checkpoint(
        self, state: State, reading: Reading, stream: int, value: int
    ) -> tuple[State, Reading, bool]:
        """What a checkpoint does to one stream; whether it was sealed."""
        if reading.full and self.rules.full == "one":
            return state, reading, False
        chain, rows, rules = state.chains[stream], reading.open[stream], self.rules
        at = 0 if reading.full else chain.position.value
        seals = value > at or rules.ends == "any" or (rules.ends == "differs" and value != at)
        if not seals and rules.ends in ("window", "differs") and value == at and rows:
            seals = not self.known(chain.window, rows)
            if not seals:
                return state, reading._replace(open=put(reading.open, stream, ())), False
        if not seals:
            return state, reading, False
        state = self.sealed(
            state,
            stream,
            reading._replace(values=put(reading.values, stream, value)),
            full=reading.full,
        )
        reading = reading._replace(
            after=put(reading.after, stream, state.chains[stream].position),
            open=put(reading.open, stream, ()),
            full=False if rules.full == "parts" and self.streams == 1 else reading.full,
        )
        return state, reading, True

    def read_ends(self, state: State, reading: Reading) -> tuple[str, list[int], State]:
        """The end of the read; with the streams that were sealed."""
        streams = list[int]()
        for stream in range(self.streams):
            rows, chain = reading.open[stream], state.chains[stream]
            known = self.rules.tail != "window" or self.known(chain.window, rows)
            new = rows and (reading.values[stream] > chain.position.value or not known)
            if reading.full or new:
                state = self.sealed(state, stream, reading, full=reading.full)
                streams.append(stream)
        following = state._replace(reading=None, runs=state.runs + 1)
        return f"read ends, sealed: {streams}", streams, following

    def outbox(self, state: State, stream: int) -> Iterator[Move[State]]:
        """What operator and sender do with each upload of a stream."""
        waits = False
        for entry in state.chains[stream].box:
            if entry.dead:
                waits = True
                yield from self.operator(state, stream, entry)
            elif not waits or entry.sent.full:
                yield from self.sender(state, stream, entry)
                waits = self.rules.chain

    def operator(self, state: State, stream: int, entry: Entry) -> Iterator[Move[State]]:
        """A dead letter is retried, purged, or its rows are given up."""
        chain, sent = state.chains[stream], entry.sent
        if self.poison not in sent.rows:
            again = chain._replace(box=changed(chain.box, entry, entry._replace(dead=False)))
            yield Move(f"operator retries {sent.uid}", False, with_chain(state, stream, again))
        if self.purges:
            purged = chain._replace(
                box=changed(chain.box, entry, None),
                position=min(chain.position, sent.after),
                window=frozenset() if self.rules.forget else chain.window,
            )
            yield Move(f"operator purges {sent.uid}", True, with_chain(state, stream, purged))
        if self.rules.skip and not sent.full:
            empty = Entry(sent._replace(uid=state.uid, rows=()))
            skipped = chain._replace(box=changed(chain.box, entry, empty))
            if self.rules.skip == "forgets":
                skipped = skipped._replace(window=frozenset())
            given_up = state.given_up | set(sent.rows)
            following = state._replace(uid=state.uid + 1, given_up=given_up)
            following = with_chain(following, stream, skipped)
            yield Move(f"operator gives up the rows of {sent.uid}", False, following)

    def sender(self, state: State, stream: int, entry: Entry) -> Iterator[Move[State]]:
        """An upload is completed."""
        chain, sent = state.chains[stream], entry.sent
        poisoned = self.poison in sent.rows
        if poisoned or state.left[DEAD]:
            dead = chain._replace(box=changed(chain.box, entry, entry._replace(dead=True)))
            following = with_chain(state, stream, dead)
            following = following if poisoned else spent(following, DEAD)
            yield Move(f"complete {sent.uid}: 422, dead letter", not poisoned, following)
            if poisoned:
                return
        backend, answer = self.keyed.complete(chain.backend, sent)
        new = chain._replace(box=changed(chain.box, entry, None))
        if answer == "superseded":
            new = new._replace(highest=max(new.highest, backend.highest))
            state = state._replace(runs=0)
            if not sent.full:
                window = frozenset[Row]() if self.rules.forget else chain.window
                new = new._replace(position=backend.position, window=window)
        lost = self.answered(state, stream, backend)
        following = self.answered(with_chain(state, stream, new), stream, backend)
        label = f"stream {stream}: complete {sent.uid}: {answer}"
        yield Move(label, False, following)
        if state.left[LOST] and backend != chain.backend:
            yield Move(f"{label}, answer lost", True, spent(lost, LOST))
        if state.left[LATE]:
            following = spent(state._replace(late=state.late | {(stream, sent)}), LATE)
            yield Move(f"complete {sent.uid} is delayed", True, following)

    def answered(self, state: State, stream: int, backend: Backend) -> State:
        """The state with one backend changed."""
        state = with_chain(state, stream, state.chains[stream]._replace(backend=backend))
        return state._replace(shown=state.shown | {row.key for row in self.view(state)})

    def disasters(self, state: State) -> Iterator[Move[State]]:
        """The folder is lost; the backend is restored, and compared in one step."""
        if state.left[LOSS]:
            chains = tuple(
                Chain(at.backend.position, highest=at.backend.highest, backend=at.backend)
                for at in state.chains
            )
            following = spent(state._replace(chains=chains, reading=None), LOSS)
            label = f"folder lost; a new one hears {[chain.position for chain in chains]}"
            yield Move(label, True, following)
        backends = tuple(chain.backend for chain in state.chains)
        if state.left[RESTORE] and state.snapshot is None:
            yield Move("snapshot", True, state._replace(snapshot=backends))
        elif state.left[RESTORE] and state.snapshot and state.snapshot != backends:
            pairs = zip(state.chains, state.snapshot, strict=True)
            chains = tuple(self.compared(chain, backend) for chain, backend in pairs)
            following = state._replace(chains=chains, shown=frozenset())
            yield Move("RESTORED, compared", True, spent(following, RESTORE))

    def compared(self, chain: Chain, backend: Backend) -> Chain:
        """F7: a stream after a restore."""
        at, box = backend.position, tuple[Entry, ...]()
        for entry in chain.box:
            if entry.sent.full or entry.sent.after == at:
                box, at = (*box, entry), entry.sent.until
        keep = at == chain.position or not self.rules.forget
        window = chain.window if keep else frozenset[Row]()
        return Chain(at, window, chain.highest, box, backend)

    def view(self, state: State) -> list[Row]:
        """What the backend shows of both streams."""
        if not self.rules.key:
            uploads = [upload for chain in state.chains for upload in chain.backend.uploads]
            return sorted(row for upload in uploads for row in upload.rows)
        found = [self.keyed.newest(chain.backend) for chain in state.chains]
        return sorted(row for best in found for row, _ in best.values() if not row.deleted)

    def rest(self, state: State) -> bool:
        """Nothing is read or to be sent, and a run would say unchanged."""
        idle = state.reading is None and not any(chain.box for chain in state.chains)
        return state.uid >= self.uploads or (idle and not self.due(state))

    def check(self, state: State) -> Iterator[str]:
        """At rest the view is the table; no part of a full is seen alone."""
        view, table = self.view(state), list(newest(self.script[state.source]))
        lasting = {row.key for row in table if not row.deleted} - {r.key for r in state.given_up}
        gone = (state.shown & lasting) - {row.key for row in view}
        box = [entry.sent.rows for chain in state.chains for entry in chain.box]
        again = not self.purges and self.poison in state.given_up
        if again and any(self.poison in rows for rows in box):
            yield "a row that was given up is sent again"
        elif state.runs > RUNS:
            yield "every run seals again what the one before has sealed"
        elif gone:
            yield f"{sorted(gone)} were visible and are not: a part of a full is seen alone"
        elif self.rest(state) and state.uid < self.uploads:
            spared = {row.key for row in table if row in state.given_up}
            view = [row for row in view if row.key not in spared]
            wanted = sorted(row for row in table if not row.deleted and row.key not in spared)
            if view != wanted:
                yield f"rest shows {view}, the table is {wanted}"


def stream_of(row: Row) -> int:
    """The stream of a row."""
    return int(row.key >= "x")


def newest(rows: Table) -> Table:
    """The last row of each key."""
    return tuple({row.key: row for row in rows}.values())


def held(state: State) -> bool:
    """Whether a dead letter keeps the source from being read on."""
    return any(entry.dead for chain in state.chains for entry in chain.box)


def with_chain(state: State, stream: int, chain: Chain) -> State:
    """The state with one stream replaced."""
    return state._replace(chains=put(state.chains, stream, chain))


def spent(state: State, kind: int) -> State:
    """One fault of this kind fewer is left."""
    return state._replace(left=put(state.left, kind, state.left[kind] - 1))


RUNS = 3
MANY = {CRASH: 1, LOST: 1, LATE: 1, DEAD: 1}
RARE = {CRASH: 1, DEAD: 1}
NEWEST = Rules(known="newest", window="carried")
"""Another way: the window is, of each key, the newest row that was sealed."""
CASES = [
    Case("update, faults", None, Model(faults=MANY)),
    Case("a late row within lookback", None, Model(script=LATE_ROW, faults={CRASH: 1, LOST: 1})),
    Case("a row tied at the position", None, Model(script=TIE, faults=RARE)),
    Case("updates within a tick", None, Model(script=ONE_TICK_TWICE, faults={CRASH: 2, LATE: 1})),
    Case("updated within a tick, and back", None, Model(script=BACK_AGAIN, faults=RARE)),
    Case("updated, and back, and more", None, Model(script=BACK_AND_MORE, faults={CRASH: 1})),
    Case("pages", None, Model(script=BACK_AGAIN, faults=RARE, pages=True)),
    Case("checkpoints after two rows", None, Model(script=TWO_TIED, faults=RARE, every=2)),
    Case("a tombstone", None, Model(script=TOMBSTONE, faults={CRASH: 1, LOST: 1})),
    Case("a log", None, Model(script=LOG, faults={CRASH: 1, LATE: 1})),
    Case("a log, and more", None, Model(script=LOG_AND_MORE, faults={CRASH: 1})),
    Case("full", None, Model(script=ONE_TICK, faults={FULL: 1, CRASH: 1, LATE: 1})),
    Case("full and dead letter", None, Model(script=TIE, faults={FULL: 1, DEAD: 1}, uploads=7)),
    Case("folder lost", None, Model(script=LATE_ROW, faults={LOSS: 1, LATE: 1})),
    Case("restored backend", None, Model(script=TIE, faults={RESTORE: 1, CRASH: 1, LOST: 1})),
    Case("refused for good", None, Model(script=TIED_MORE, poison=A1, uploads=7)),
    Case("two streams, folder lost", None, Model(script=ONE_STANDS, faults={CRASH: 1, LOSS: 1})),
    Case(
        "two streams, their rows by value",
        None,
        Model(script=TWO_STREAMS, faults=RARE, by_value=True, every=2),
    ),
    Case("two streams, restored", None, Model(script=TWO_STREAMS, faults={RESTORE: 1, CRASH: 1})),
    Case("two streams, within a tick", None, Model(script=ONE_TICK_EACH, faults={LATE: 1})),
    Case(
        "K1 out: a part ends at the position's value, too",
        ANY,
        Model(Rules(ends="window", window="equal"), LOG, {CRASH: 1}),
    ),
    Case(
        "K1 out: that, known by the newest",
        ANY,
        Model(NEWEST._replace(ends="window"), LOG, {CRASH: 1}),
    ),
    Case("K1 out: a part ends at a lower value, too", ANY, Model(Rules(ends="differs"), LATE_ROW)),
    Case("K1 out: a part ends at any value", ANY, Model(Rules(ends="any"), TIE)),
    Case("C3 out: rows behind the last value fail the run", ANY, Model(Rules(tail="fail"), TIE)),
    Case("C3 out: rows behind the last value are dropped", ANY, Model(Rules(tail="drop"), TIE)),
    Case(
        "K2 out: known is a row of the part, or, at the same value, of the one before",
        ANY,
        Model(Rules(window="equal"), BACK_AGAIN),
    ),
    Case(
        "K2 out: known is a row of any part within lookback",
        ANY,
        Model(Rules(window="carried"), BACK_AND_MORE),
    ),
    Case(
        "K2 out: known is a row that the run has read, of one that reads a row twice",
        ANY,
        Model(Rules(window="run"), BACK_AGAIN, pages=True),
    ),
    Case("known is a row that the run has read", None, Model(Rules(window="run"), BACK_AND_MORE)),
    Case(
        "known by the newest of each key",
        None,
        Model(NEWEST, BACK_AND_MORE, RARE, pages=True, every=2),
    ),
    Case(
        "M4 out: the window is kept before the seal",
        ANY,
        Model(Rules(with_seal=False), ONE_TICK, {CRASH: 1}),
    ),
    Case(
        "a limit: a row that was given up is sent again beside the next one",
        ANY,
        Model(script=TIED_MORE, poison=A1, purges=False),
    ),
    Case(
        "what is its key's newest already is not sent: refused for good",
        None,
        Model(NEWEST._replace(sends="newer"), TIED_MORE, poison=A1, purges=False),
    ),
    Case(
        "what is its key's newest already is not sent: a log, and more",
        None,
        Model(NEWEST._replace(sends="newer"), LOG_AND_MORE, {CRASH: 1}),
    ),
    Case(
        "what the window holds is not sent: a log, and more",
        ANY,
        Model(NEWEST._replace(sends="unseen"), LOG_AND_MORE),
    ),
    Case(
        "G5 out: until is the value alone, restored",
        ANY,
        Model(Rules(unique=False), ONE_TICK, {RESTORE: 1}),
    ),
    Case(
        "F7 out: the window is not forgotten: purge",
        ANY,
        Model(Rules(forget=False), ONE_TICK, {DEAD: 1}),
    ),
    Case(
        "F7 out: the window is not forgotten: restore",
        ANY,
        Model(Rules(forget=False), ONE_TICK, {RESTORE: 1}),
    ),
    Case("C4 out: a full in parts", ANY, Model(Rules(full="parts"), UPDATE_ONE, {FULL: 1})),
    Case(
        "F7 out: a full leaves the window",
        ANY,
        Model(Rules(full_replaces=False), BACK_AGAIN, {FULL: 1}),
    ),
    Case(
        "sealed wherever the position is (the chain refuses it)",
        None,
        Model(Rules(seal_in_place=False), ONE_TICK, {RESTORE: 1, CRASH: 1}),
    ),
    Case(
        "C2 out: that, no chain",
        ANY,
        Model(Rules(seal_in_place=False, chain=False), APART, {RESTORE: 1}),
    ),
    Case("M1 out: no chain, folder lost", ANY, Model(Rules(chain=False), APART, {LOSS: 1})),
    Case("M3 out: exclusive reads", ANY, Model(Rules(inclusive=False), TIE)),
    Case("M3 out: no lookback", ANY, Model(Rules(lookback=0), LATE_ROW)),
    Case("M9 out: no key, folder lost", ANY, Model(Rules(key=False), TIE, {LOSS: 1})),
    Case(
        "D4 out: refused for good, nothing but retry and purge",
        STUCK,
        Model(Rules(skip=None), poison=A1, uploads=30),
    ),
    Case(
        "D4 out: giving up forgets the window",
        ANY,
        Model(Rules(skip="forgets"), TIE, poison=A1, purges=False),
    ),
    Case("T2 out: one value for all streams", ANY, Model(Rules(positions="one"), FAR, {CRASH: 1})),
]

"""Several streams of one own read with checkpoints, without a key: a pass for each position.

Rows are numbered, each belongs to a stream; a value is a row number. A pass reads on from the
position of some streams; at a checkpoint each of these has a part sealed, of 0 rows too, in one
transaction; rows of the others are dropped. Where a read begins says where its checkpoints come, so
that those of two reads need not be at the same rows. Each stream is a source of its own at the
backend. Kills between any two steps; the folder lost when one stream's upload was completed and
another's was not; the backend restored and compared; dead letters of one stream, a row refused for
good, purge, `purge --skip`, full; answers lost, requests late. What holds: no row twice; what was
visible stays so; at rest every row is visible that an operator has not given up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from tests.models import parts
from tests.models.explore import ANY, STUCK, Case, Move, changed, put
from tests.models.parts import Backend, Entry


class Rules(NamedTuple):
    """The switches; the defaults are the rules."""

    reads: Literal["passes", "lowest", "highest"] = "passes"
    """T1: a pass for each distinct position | one from the lowest, a part is dropped for a stream
    that is at its end or above | one from the highest."""
    drops: bool = True
    """T1: rows of streams that are not of the pass are dropped; else sealed at their position."""
    empty: bool = True
    """T1: a stream without rows has its part sealed, too; else its position stays."""
    together: bool = True
    """T1: a checkpoint's parts are sealed in one transaction; else one after the other."""
    place: Literal["each", "first"] = "each"
    """T1: each stream keeps its own position | the item keeps one, by its first stream's seal."""
    in_place: bool = True
    """C2: sealing only where the positions are where the part began."""
    begun: bool = True
    """A part's `after` is where it began; else the position that the seal finds."""
    chain: bool = True
    """An upload is accepted only where its `after` is the stream's `until`."""
    hold: Literal["item", "stream"] | None = "item"
    """D3: behind a dead letter no stream of its item is read on | its stream is not | all are."""
    skip: bool = True
    """D4: rows may be given up."""
    full: Literal["all", "parts"] = "all"
    """C4: a full run is one upload of each stream | its checkpoints seal."""


class Pass(NamedTuple):
    """One pass: its streams, where it began, the next row, what was read and not sealed."""

    streams: tuple[int, ...]
    began: int
    after: tuple[int, ...]
    at: int
    out: tuple[int, ...] = ()
    full: bool = False


class Chain(NamedTuple):
    """Of one stream: position and uploads of the folder, the backend."""

    position: int = 0
    box: tuple[Entry, ...] = ()
    backend: Backend = Backend()


class State(NamedTuple):
    """The source, the streams, the run, the network; `given_up` and `shown` really happened."""

    source: int
    chains: tuple[Chain, ...]
    reading: Pass | None
    late: frozenset[tuple[int, Entry]]
    snapshot: tuple[Backend, ...] | None
    left: tuple[int, ...]
    uid: int
    given_up: frozenset[int] = frozenset()
    shown: frozenset[int] = frozenset()
    idle: int = 0
    """Passes in a row that sealed nothing, with no fault between."""


CRASH, LOST, LATE, DEAD, FULL, LOSS, RESTORE = range(7)
STREAMS = 2
FILLS = "the outbox fills behind a dead letter, and other sources stand still"


class Model:
    """A read that grows through `script`: each letter names the stream of its row, U or O.

    Args:
        rules: The switches.
        script: The states of the source.
        faults: How many of each.
        every: After how many rows of a pass a checkpoint comes; one comes at the end, too.
        poison: A row that the backend refuses.
        uploads: How many at most.
    """

    def __init__(
        self,
        rules: Rules = Rules(),  # noqa: B008  # immutable
        script: tuple[str, ...] = ("UOU",),
        faults: Mapping[int, int] | None = None,
        *,
        every: int = 2,
        poison: int = 0,
        uploads: int = 16,
    ) -> None:
        self.rules, self.script, self.every = rules, script, every
        self.poison, self.uploads = poison, uploads
        self.faults = tuple((faults or {}).get(kind, 0) for kind in range(7))
        self.parts = parts.Model(parts.Rules(chain=rules.chain))

    def initial(self) -> State:
        """Nothing was read yet."""
        return State(0, (Chain(),) * STREAMS, None, frozenset(), None, self.faults, 0)

    def stream_of(self, row: int) -> int:
        """The stream of a row."""
        return "UO".index(self.script[-1][row - 1])

    def end(self, state: State) -> int:
        """The last row."""
        return len(self.script[state.source])

    def passes(self, state: State) -> list[tuple[int, tuple[int, ...]]]:
        """The passes that are to be made: where each begins, and of which streams it is."""
        hold, at = self.rules.hold, [chain.position for chain in state.chains]
        dead = [any(entry.dead for entry in chain.box) for chain in state.chains]
        if hold == "item" and any(dead):
            return []
        free = [k for k in range(STREAMS) if not (hold == "stream" and dead[k])]
        if not free:
            return []
        if self.rules.reads == "lowest":
            found = [(min(at[k] for k in free), tuple(free))]
        elif self.rules.reads == "highest" or self.rules.place == "first":
            found = [(max(at[k] for k in free), tuple(free))]
        else:
            found = [(here, tuple(k for k in free if at[k] == here)) for here in sorted(set(at))]
        return [(here, streams) for here, streams in found if streams and here < self.end(state)]

    def moves(self, state: State) -> Iterator[Move[State]]:
        """Every step; a fault begins the count of passes again."""
        for move in self.steps(state):
            yield move._replace(state=move.state._replace(idle=0)) if move.fault else move

    def steps(self, state: State) -> Iterator[Move[State]]:
        """Source, run, operator, sender, network and faults."""
        if state.uid >= self.uploads:
            return
        if state.source + 1 < len(self.script):
            following = state._replace(source=state.source + 1)
            yield Move(f"source: {self.script[state.source + 1]}", True, following)
        if state.reading is None:
            yield from self.starts(state)
        else:
            yield from self.run(state, state.reading)
        for stream in range(STREAMS):
            yield from self.outbox(state, stream)
        for stream, entry in state.late:
            backend, answer = self.parts.complete(state.chains[stream].backend, entry)
            following = answered(
                state._replace(late=state.late - {(stream, entry)}), stream, backend
            )
            yield Move(f"late complete {entry.uid}: {answer}", True, following)
        yield from self.disasters(state)

    def starts(self, state: State) -> Iterator[Move[State]]:
        """A pass begins: those of one run, in any order."""
        after = tuple(chain.position for chain in state.chains)
        for here, streams in self.passes(state):
            following = state._replace(reading=Pass(streams, here, after, here))
            yield Move(f"pass of {named(streams)} from {here}", False, following)
        if state.left[FULL]:
            everything = Pass(tuple(range(STREAMS)), 0, (0,) * STREAMS, 0, full=True)
            yield Move("run full", True, spent(state._replace(reading=everything), FULL))

    def run(self, state: State, reading: Pass) -> Iterator[Move[State]]:
        """A pass goes on, or is killed."""
        ended = state._replace(reading=None)
        if state.left[CRASH]:
            yield Move("killed", True, spent(ended, CRASH))
        moved = any(state.chains[k].position != reading.after[k] for k in reading.streams)
        waiting = {"item": range(STREAMS), "stream": reading.streams, None: ()}[self.rules.hold]
        held = any(entry.dead for k in waiting for entry in state.chains[k].box)
        if not reading.full and ((moved and self.rules.in_place) or held):
            yield Move(f"pass ends: {'a position moved' if moved else 'rejected'}", False, ended)
        elif reading.at < self.end(state):
            yield from self.next_row(state, reading)
        elif reading.full:
            following = state
            for stream in range(STREAMS):
                rows = tuple(row for row in reading.out if self.stream_of(row) == stream)
                following = self.sealed(following, stream, 0, reading.at, rows, full=True)
            yield Move("full: sealed", False, following._replace(reading=None))
        else:
            idle = state.idle + (
                reading.began == min(state.chains[k].position for k in reading.streams)
            )
            yield Move("pass ends", False, ended._replace(idle=idle))

    def next_row(self, state: State, reading: Pass) -> Iterator[Move[State]]:
        """One more row, and the checkpoint after it."""
        row = reading.at + 1
        reading = reading._replace(at=row, out=(*reading.out, row))
        following = state._replace(reading=reading)
        count = row - reading.began
        last = row == self.end(state)
        if (count % self.every and not last) or (reading.full and self.rules.full == "all"):
            yield Move(f"row {row}", False, following)
            return
        streams = list(reading.streams if self.rules.drops else range(STREAMS))
        done = list[int]()
        for stream in streams:
            rows = tuple(one for one in reading.out if self.stream_of(one) == stream)
            own = following.chains[stream].position
            if self.rules.reads == "lowest" and row <= own and not reading.full:
                continue
            if rows or self.rules.empty:
                after = (
                    reading.after[stream] if self.rules.begun and stream in reading.streams else own
                )
                following = self.sealed(following, stream, after, row, rows, full=reading.full)
                done.append(stream)
            if not self.rules.together and state.left[CRASH]:
                label = f"row {row}, Checkpoint({row}): sealed {named(done)}, killed"
                yield Move(label, True, spent(following._replace(reading=None), CRASH))
        positions = tuple(chain.position for chain in following.chains)
        reading = reading._replace(after=positions, out=(), full=False)
        label = f"row {row}, Checkpoint({row}): sealed {named(done)}"
        yield Move(label, False, following._replace(reading=reading))

    def sealed(
        self,
        state: State,
        stream: int,
        after: int,
        until: int,
        rows: tuple[int, ...],
        *,
        full: bool,
    ) -> State:
        """One stream's part: its upload and position."""
        seq = state.uid + 1
        chain = state.chains[stream]
        behind = not full and any(entry.dead for entry in chain.box)
        entry = Entry(state.uid, after, until, rows, seq if full else 0, behind=behind)
        chain = chain._replace(position=until, box=(*chain.box, entry))
        return with_chain(state._replace(uid=state.uid + 1, idle=0), stream, chain)

    def outbox(self, state: State, stream: int) -> Iterator[Move[State]]:
        """What operator and sender do with each upload of a stream."""
        waits = False
        for entry in state.chains[stream].box:
            if entry.dead:
                waits = True
                yield from self.operator(state, stream, entry)
            elif not waits or entry.full:
                yield from self.sender(state, stream, entry)
                waits = self.rules.chain

    def operator(self, state: State, stream: int, entry: Entry) -> Iterator[Move[State]]:
        """A dead letter is retried, purged, or its rows are given up."""
        chain = state.chains[stream]
        if self.poison not in entry.rows:
            again = chain._replace(box=changed(chain.box, entry, entry._replace(dead=False)))
            yield Move(f"operator retries {entry.uid}", False, with_chain(state, stream, again))
        box, position = changed(chain.box, entry, None), min(chain.position, entry.after)
        purged = with_chain(state, stream, chain._replace(box=box, position=position))
        yield Move(f"operator purges {entry.uid}", True, purged)
        if self.rules.skip and not entry.full:
            empty = Entry(state.uid, entry.after, entry.until, (), 0)
            following = state._replace(uid=state.uid + 1)
            following = following._replace(given_up=state.given_up | set(entry.rows))
            skipped = chain._replace(box=changed(chain.box, entry, empty))
            following = with_chain(following, stream, skipped)
            yield Move(f"operator gives up the rows of {entry.uid}", False, following)

    def sender(self, state: State, stream: int, entry: Entry) -> Iterator[Move[State]]:
        """An upload is completed."""
        chain, poisoned = state.chains[stream], self.poison in entry.rows
        if poisoned or state.left[DEAD]:
            dead = chain._replace(box=changed(chain.box, entry, entry._replace(dead=True)))
            following = with_chain(state, stream, dead)
            following = following if poisoned else spent(following, DEAD)
            yield Move(f"complete {entry.uid}: 422, dead letter", not poisoned, following)
            if poisoned:
                return
        backend, answer = self.parts.complete(chain.backend, entry)
        new = chain._replace(box=changed(chain.box, entry, None))
        if answer == "superseded" and not entry.full:
            new = new._replace(position=backend.until)
        label = f"{named([stream])}: complete {entry.uid} ({entry.after},{entry.until}]: {answer}"
        yield Move(label, False, answered(with_chain(state, stream, new), stream, backend))
        if state.left[LOST] and backend != chain.backend:
            lost = spent(answered(state, stream, backend), LOST)
            yield Move(f"{label}, answer lost", True, lost)
        if state.left[LATE]:
            following = spent(state._replace(late=state.late | {(stream, entry)}), LATE)
            yield Move(f"complete {entry.uid} is delayed", True, following)

    def disasters(self, state: State) -> Iterator[Move[State]]:
        """The folder is lost; the backend is restored, and compared in one step."""
        if state.left[LOSS]:
            chains = tuple(Chain(at.backend.until, (), at.backend) for at in state.chains)
            following = spent(state._replace(chains=chains, reading=None), LOSS)
            label = f"folder lost; a new one hears {[chain.position for chain in chains]}"
            yield Move(label, True, following)
        backends = tuple(chain.backend for chain in state.chains)
        if state.left[RESTORE] and state.snapshot is None:
            yield Move("snapshot", True, state._replace(snapshot=backends))
        elif state.left[RESTORE] and state.snapshot and state.snapshot != backends:
            pairs = zip(state.chains, state.snapshot, strict=True)
            chains = tuple(compared(chain, backend) for chain, backend in pairs)
            following = state._replace(chains=chains, shown=frozenset())
            yield Move("RESTORED, compared", True, spent(following, RESTORE))

    def rest(self, state: State) -> bool:
        """Nothing is read or to be sent, and no pass is to be made."""
        idle = state.reading is None and not any(chain.box for chain in state.chains)
        return state.uid >= self.uploads or (idle and not self.passes(state))

    def check(self, state: State) -> Iterator[str]:
        """No row twice, none that was visible gone, and none missing at rest."""
        rows = sorted(row for chain in state.chains for row in chain.backend.rows())
        if len(rows) != len(set(rows)):
            yield f"twice: {rows}"
        elif state.shown - set(rows):
            yield f"rows {sorted(state.shown - set(rows))} were visible and are not"
        elif any(entry.behind for chain in state.chains for entry in chain.box):
            yield FILLS
        elif state.idle > STREAMS:
            yield "every run reads again what it has read, and seals nothing"
        elif self.rest(state) and state.uid < self.uploads:
            wanted = set(range(1, self.end(state) + 1)) - state.given_up
            if not wanted <= set(rows):
                yield f"rest without rows {sorted(wanted - set(rows))}"


def named(streams: tuple[int, ...] | list[int]) -> str:
    """The letters of streams."""
    return "".join("UO"[stream] for stream in streams)


def compared(chain: Chain, backend: Backend) -> Chain:
    """F7: a stream after a restore."""
    at, box = backend.until, tuple[Entry, ...]()
    for entry in chain.box:
        if entry.full or entry.after == at:
            box, at = (*box, entry), entry.until
    return Chain(at, box, backend)


def answered(state: State, stream: int, backend: Backend) -> State:
    """The state with one backend changed."""
    state = with_chain(state, stream, state.chains[stream]._replace(backend=backend))
    rows = {row for chain in state.chains for row in chain.backend.rows()}
    return state._replace(shown=state.shown | rows)


def with_chain(state: State, stream: int, chain: Chain) -> State:
    """The state with one stream replaced."""
    return state._replace(chains=put(state.chains, stream, chain))


def spent(state: State, kind: int) -> State:
    """One fault of this kind fewer is left."""
    return state._replace(left=put(state.left, kind, state.left[kind] - 1))


GROWS, ONE_MORE = ("UOU", "UOUOU"), ("UOU", "UOUO")
CASES = [
    Case("kill at any moment", None, Model(script=GROWS, faults={CRASH: 2})),
    Case("kill, answer lost, late request", None, Model(faults={CRASH: 1, LOST: 1, LATE: 1})),
    Case("folder lost", None, Model(script=GROWS, faults={LOSS: 1, CRASH: 1})),
    Case("folder lost, late request", None, Model(faults={LOSS: 1, LATE: 1})),
    Case("dead letter", None, Model(script=ONE_MORE, faults={DEAD: 1})),
    Case("a row that is refused for good", None, Model(poison=2, uploads=8)),
    Case("restored backend", None, Model(faults={RESTORE: 1, CRASH: 1})),
    Case("full", None, Model(faults={FULL: 1, CRASH: 1, LATE: 1})),
    Case("a stream without rows", None, Model(script=("UU", "UUU"), faults={LOSS: 1, CRASH: 1})),
    Case(
        "T1 out: one pass from the lowest, parts at or below a stream's position are dropped",
        ANY,
        Model(Rules(reads="lowest"), GROWS, {LOSS: 1}),
    ),
    Case("T1 out: one pass from the highest", ANY, Model(Rules(reads="highest"), faults={LOSS: 1})),
    Case(
        "T1 out: rows of other streams are sealed", ANY, Model(Rules(drops=False), GROWS, {LOSS: 1})
    ),
    Case("T1 out: no upload of 0 rows", ANY, Model(Rules(empty=False), ("UU", "UUO"))),
    Case(
        "T1 out: one position for the item, sealed one after the other",
        ANY,
        Model(Rules(together=False, place="first"), GROWS, {CRASH: 1}),
    ),
    Case(
        "a position for each stream, sealed one after the other (a pass more)",
        None,
        Model(Rules(together=False), GROWS, {CRASH: 1}),
    ),
    Case(
        "sealed wherever the position is (the chain refuses it)",
        None,
        Model(Rules(in_place=False), faults={RESTORE: 1}),
    ),
    Case(
        "C2 out: sealed on the position that is found",
        ANY,
        Model(Rules(in_place=False, begun=False), GROWS, {RESTORE: 1}),
    ),
    Case(
        "C2 out: no chain, sealed wherever the position is",
        ANY,
        Model(Rules(in_place=False, chain=False), GROWS, {RESTORE: 1}),
    ),
    Case("no chain, folder lost", ANY, Model(Rules(chain=False), GROWS, {LOSS: 1})),
    Case(
        "D3: behind a dead letter its stream alone is not read on",
        None,
        Model(Rules(hold="stream"), ONE_MORE, {DEAD: 1}),
    ),
    Case(
        "D3 out: all streams are read on behind a dead letter",
        FILLS,
        Model(Rules(hold=None), GROWS, {DEAD: 1}),
    ),
    Case(
        "D4 out: refused for good, nothing but retry and purge",
        STUCK,
        Model(Rules(skip=False), ("UO",), poison=2, uploads=30),
    ),
    Case("C4 out: a full in parts", ANY, Model(Rules(full="parts"), faults={FULL: 1})),
]

"""Several streams from one own read (append): one cursor, or a position for each stream.

Streams U and O; row n of the read belongs to one of them; a run reads to the end. It seals one
upload for each stream that has rows, all in one transaction with the read's position. Each stream
is a source of its own at the backend (a chain of after and until). The folder may be lost when one
stream's upload was completed and the other's was not; a dead letter of one stream, and its purge,
hold back or set back that stream alone. What holds: no row twice; at rest every row is visible.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from tests.models.explore import ANY, Case, Move, changed, put


class Rules(NamedTuple):
    """The switches; the defaults are the rule T1."""

    since: Literal["each", "min", "max", "one"] = "each"
    """T1: read from each stream's own position, keep only rows above it | from the lowest, all
    rows are sent | from the highest | one upload carries all streams, in one chain."""
    chain: bool = True
    """An upload is accepted only where its `after` is the stream's `until`."""
    align: bool = False
    """A stream without rows in a part gets an empty upload, so that all positions stay equal."""


class Entry(NamedTuple):
    """An upload of the rows (after, until] of one stream."""

    uid: int
    stream: int
    after: int
    until: int
    rows: tuple[int, ...]
    dead: bool = False


class Chain(NamedTuple):
    """What the backend has of one stream."""

    until: int = 0
    rows: tuple[int, ...] = ()
    done: frozenset[int] = frozenset()


class State(NamedTuple):
    """Folder and backend; positions and chains by stream."""

    source: int
    positions: tuple[int, ...]
    box: tuple[Entry, ...]
    chains: tuple[Chain, ...]
    left: tuple[int, ...]
    uid: int


LOSS, DEAD, _, LOST = range(4)


class Model:
    """A read that grows through `script`; each letter names the stream of its row."""

    def __init__(
        self,
        rules: Rules = Rules(),  # noqa: B008  # immutable
        faults: tuple[int, ...] = (1, 0, 0, 0),
    ) -> None:
        self.rules, self.script, self.faults, self.uploads = rules, ("UO", "UOU"), faults, 14
        self.streams = 1 if rules.since == "one" else 2

    def initial(self) -> State:
        """Nothing was read yet."""
        return State(0, (0,) * self.streams, (), (Chain(),) * self.streams, self.faults, 0)

    def rows(self, state: State, stream: int, after: int) -> tuple[int, ...]:
        """The numbers of a stream's rows above a position."""
        letters = enumerate(self.script[state.source], 1)
        own = "UO" if self.streams == 1 else "UO"[stream]
        return tuple(row for row, letter in letters if row > after and letter in own)

    def due(self, state: State) -> bool:
        """Whether a run finds rows."""
        end = len(self.script[state.source])
        if self.rules.since == "min":
            return min(state.positions) < end
        if self.rules.since == "max":
            return max(state.positions) < end
        return any(self.rows(state, k, state.positions[k]) for k in range(self.streams))

    def moves(self, state: State) -> Iterator[Move[State]]:
        """Source, run, operator, sender and the loss of the folder."""
        if state.uid >= self.uploads:
            return
        if state.source + 1 < len(self.script):
            following = state._replace(source=state.source + 1)
            yield Move(f"source: {self.script[state.source + 1]}", True, following)
        if self.due(state):
            yield Move(f"run from {state.positions} sealed", False, self.sealed(state))
        held: set[int] = set()
        for entry in state.box:
            if entry.dead:
                held.add(entry.stream)
                yield from self.operator(state, entry)
            elif entry.stream not in held:
                held.add(entry.stream)
                yield from self.sender(state, entry)
        if state.left[LOSS]:
            known = tuple(chain.until for chain in state.chains)
            following = spent(state._replace(box=(), positions=known), LOSS)
            yield Move(f"folder lost, the backend says {known}", True, following)

    def sealed(self, state: State) -> State:
        """A run has read to the end, and sealed what it found."""
        box, positions, uid = state.box, list(state.positions), state.uid
        end, lowest = len(self.script[state.source]), min(state.positions)
        begin = {"min": lowest, "max": max(positions)}.get(self.rules.since)
        for stream in range(self.streams):
            own = state.positions[stream]
            rows = self.rows(state, stream, own if begin is None else begin)
            if rows or self.rules.align:
                after = lowest if self.rules.since == "min" else own
                box, uid = (*box, Entry(uid, stream, after, end, rows)), uid + 1
            if rows or begin is not None or self.rules.align:
                positions[stream] = end
        return state._replace(box=box, positions=tuple(positions), uid=uid)

    def operator(self, state: State, entry: Entry) -> Iterator[Move[State]]:
        """A dead letter is retried, or purged."""
        following = state._replace(box=changed(state.box, entry, entry._replace(dead=False)))
        yield Move(f"operator retries {entry.uid}", False, following)
        back = min(state.positions[entry.stream], entry.after)
        following = state._replace(box=changed(state.box, entry, None))
        following = following._replace(positions=put(state.positions, entry.stream, back))
        yield Move(f"operator purges {entry.uid}", True, following)

    def sender(self, state: State, entry: Entry) -> Iterator[Move[State]]:
        """An upload is completed."""
        chain = state.chains[entry.stream]
        following = state._replace(box=changed(state.box, entry, None))
        chains = state.chains
        if entry.uid in chain.done:
            answer = "duplicate"
        elif self.rules.chain and entry.after != chain.until:
            answer = "superseded"
            positions = put(state.positions, entry.stream, chain.until)
            following = following._replace(positions=positions)
        else:
            answer = "created"
            new = Chain(entry.until, chain.rows + entry.rows, chain.done | {entry.uid})
            chains = put(chains, entry.stream, new)
            following = following._replace(chains=chains)
        span = f"stream {'UO'[entry.stream]}, ({entry.after},{entry.until}]"
        label = f"complete {entry.uid} ({span}): {answer}"
        yield Move(label, False, following)
        if state.left[LOST] and chains != state.chains:
            yield Move(f"{label}, answer lost", True, spent(state._replace(chains=chains), LOST))
        if state.left[DEAD]:
            box = changed(state.box, entry, entry._replace(dead=True))
            following = spent(state._replace(box=box), DEAD)
            yield Move(f"complete {entry.uid}: 422, dead letter", True, following)

    def check(self, state: State) -> Iterator[str]:
        """No row twice, and none missing at rest."""
        rows = sorted(row for chain in state.chains for row in chain.rows)
        wanted = range(1, len(self.script[state.source]) + 1)
        if len(rows) != len(set(rows)):
            yield f"twice: {rows}"
        elif not state.box and not self.due(state) and rows != list(wanted):
            yield f"rest without rows {sorted(set(wanted) - set(rows))}"

    def rest(self, state: State) -> bool:
        """Nothing is to be sent or sealed."""
        return state.uid >= self.uploads or (not state.box and not self.due(state))


def spent(state: State, kind: int) -> State:
    """One fault of this kind fewer is left."""
    return state._replace(left=put(state.left, kind, state.left[kind] - 1))


FAULTS = (1, 1, 0, 1)
CASES = [
    Case("a position for each stream", None, Model(faults=FAULTS)),
    Case("one upload for all streams", None, Model(Rules(since="one"), FAULTS)),
    Case(
        "one cursor, from the lowest (once they differ, one stream is superseded in every run)",
        None,
        Model(Rules(since="min")),
    ),
    Case("T1 out: one cursor, from the lowest, no chain", ANY, Model(Rules("min", chain=False))),
    Case("T1 out: one cursor, from the highest", ANY, Model(Rules(since="max"))),
    Case("no chain", ANY, Model(Rules(chain=False), FAULTS)),
    Case("empty uploads keep the positions equal", None, Model(Rules(align=True), FAULTS)),
]

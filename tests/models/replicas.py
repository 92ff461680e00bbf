"""One source, several replicas of one handler, one backend, in replace mode.

A request is atomic, or answered with the answer lost (delays are the business of uploads.py). A run
at a replica reads the source's content at one moment and may seal it at any later one (a stall in
between: SIGSTOP, a slow disk, a full queue). What holds with nothing read, and nothing to be sent,
where some replica's run would skip: the visible content is the source's, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from tests.models.explore import ANY, Case, Move, put


class Rules(NamedTuple):
    """The switches; F10 is `SHARED`: one store of marks and outbox, sealed by compare-and-swap."""

    marks: Literal["own", "shared"] = "own"
    """Each state folder has its marks | one store has them for all replicas."""
    outbox: Literal["own", "shared"] = "own"
    """Sealed bytes lie with their replica | in the common store, and anybody sends them."""
    superseded: Literal["reseal", "reread"] = "reseal"
    """Superseded while the mark is its own: sealed above | the mark is cleared, read again."""
    swap: bool = False
    """Sealing only while the mark is the one that was seen before reading."""
    base: bool = False
    """`complete` carries the highest known before reading; accepted only where still so."""
    same_id: bool = True
    """All replicas have one installation_id."""
    takeover: Literal["never", "gone"] = "never"
    """Shared marks: one sealed by a replica declared gone, not yet complete, counts as changed."""
    ask: bool = False
    """`unchanged` only where the backend's highest of the source is the mark's source_seq."""


SHARED = Rules(marks="shared", outbox="shared", swap=True)
REREAD = Rules(superseded="reread")
MARKS = Rules(marks="shared", swap=True)


class Mark(NamedTuple):
    """What was sealed last, by which replica; whether it is known complete."""

    content: str
    uid: int
    replica: int
    complete: bool
    seq: int


class Entry(NamedTuple):
    """An upload in an outbox; `base` is the highest as known before reading."""

    uid: int
    content: str
    seq: int
    replica: int
    base: int


class Reading(NamedTuple):
    """What a run has read, with the mark and the highest that it saw before."""

    content: str
    mark: Mark | None
    base: int


class State(NamedTuple):
    """Stores (one, or one for each replica), replicas, and what the backend shows by source."""

    source: int
    marks: tuple[Mark | None, ...]
    highest: tuple[int, ...]
    readings: tuple[Reading | None, ...]
    boxes: tuple[tuple[Entry, ...], ...]
    visible: tuple[tuple[int, tuple[int, str]], ...]
    backend_highest: tuple[int, ...]
    done: frozenset[int]
    uid: int
    clock: int
    left: tuple[int, ...]
    gone: frozenset[int]


LOSS, CRASH, GONE, LOST = range(4)
UPLOADS = 5


class Model:
    """A source that goes through `script`; `skew`: how far each replica's clock is ahead."""

    def __init__(
        self,
        rules: Rules = Rules(),  # noqa: B008  # immutable
        script: tuple[str, ...] = ("v1", "v2"),
        skew: tuple[int, ...] = (0, 0),
        faults: tuple[int, ...] = (0, 1, 0, 1),
    ) -> None:
        self.rules, self.script, self.skew, self.faults = rules, script, skew, faults
        self.replicas = range(len(skew))

    def initial(self) -> State:
        """Nothing was read yet."""
        count = len(self.skew)
        stores = 1 if self.rules.marks == "shared" else count
        boxes = 1 if self.rules.outbox == "shared" else count
        sources = 1 if self.rules.same_id else count
        empty: tuple[tuple[Entry, ...], ...] = ((),) * boxes
        nobody: frozenset[int] = frozenset()
        return State(
            source=0,
            marks=(None,) * stores,
            highest=(0,) * stores,
            readings=(None,) * count,
            boxes=empty,
            visible=(),
            backend_highest=(0,) * sources,
            done=nobody,
            uid=0,
            clock=0,
            left=self.faults,
            gone=nobody,
        )

    def store_of(self, replica: int) -> int:
        """Where its marks are."""
        return 0 if self.rules.marks == "shared" else replica

    def box_of(self, replica: int) -> int:
        """Where its outbox is."""
        return 0 if self.rules.outbox == "shared" else replica

    def source_of(self, replica: int) -> int:
        """Which source it is at the backend."""
        return 0 if self.rules.same_id else replica

    def due(self, state: State, replica: int) -> bool:
        """Whether its run would not say unchanged."""
        mark = state.marks[self.store_of(replica)]
        if mark is None or mark.content != self.script[state.source]:
            return True
        if self.rules.ask:
            return state.backend_highest[self.source_of(replica)] != mark.seq
        left_behind = mark.replica in state.gone and mark.replica != replica
        takes_over = self.rules.marks == "shared" and self.rules.takeover == "gone"
        return takes_over and not mark.complete and left_behind

    def sealed(self, state: State, replica: int, content: str, base: int) -> State:
        """One transaction: the upload and the mark."""
        store, box = self.store_of(replica), self.box_of(replica)
        known = state.backend_highest[self.source_of(replica)] + 1 if self.rules.ask else 0
        own = state.highest[store] + 1
        seq = max(own, known, state.clock + 1 + self.skew[replica])
        entry = Entry(state.uid, content, seq, replica, base)
        return state._replace(
            uid=state.uid + 1,
            clock=state.clock + 1,
            highest=put(state.highest, store, seq),
            marks=put(state.marks, store, Mark(content, state.uid, replica, False, seq)),
            boxes=put(state.boxes, box, (*state.boxes[box], entry)),
        )

    def moves(self, state: State) -> Iterator[Move[State]]:
        """Every step that needs no more uploads than are looked at."""
        return (move for move in self.all_moves(state) if move.state.uid <= UPLOADS)

    def all_moves(self, state: State) -> Iterator[Move[State]]:
        """Source, replicas and senders."""
        if state.source + 1 < len(self.script):
            following = state._replace(source=state.source + 1)
            yield Move(f"source becomes {self.script[state.source + 1]}", True, following)
        for replica in self.replicas:
            yield from self.runs(state, replica)
            if replica not in state.gone:
                yield from self.goes(state, replica)
        for box in range(len(state.boxes)):
            if state.boxes[box]:
                yield from self.sender(state, box)

    def runs(self, state: State, replica: int) -> Iterator[Move[State]]:
        """A run reads, then seals."""
        mark, reading = state.marks[self.store_of(replica)], state.readings[replica]
        if reading is None:
            if self.due(state, replica):
                content = self.script[state.source]
                base = state.backend_highest[self.source_of(replica)]
                readings = put(state.readings, replica, Reading(content, mark, base))
                yield Move(f"r{replica} reads {content}", False, state._replace(readings=readings))
            return
        ended = state._replace(readings=put(state.readings, replica, None))
        seen = reading.mark.uid if reading.mark else None
        if self.rules.swap and seen != (mark.uid if mark else None):
            yield Move(f"r{replica} seal refused: the mark moved", False, ended)
        else:
            following = self.sealed(ended, replica, reading.content, reading.base)
            yield Move(f"r{replica} seals {reading.content}", False, following)
        if state.left[CRASH]:
            label = f"r{replica} killed before sealing {reading.content}"
            yield Move(label, True, spent(ended, CRASH))

    def goes(self, state: State, replica: int) -> Iterator[Move[State]]:
        """A host is lost for good, or declared gone."""
        gone = state._replace(gone=state.gone | {replica})
        if state.left[LOSS]:
            lost = gone._replace(readings=put(state.readings, replica, None))
            if self.rules.outbox == "own":
                lost = lost._replace(boxes=put(state.boxes, replica, ()))
            if self.rules.marks == "own":
                lost = lost._replace(marks=put(state.marks, replica, None))
                lost = lost._replace(highest=put(state.highest, replica, 0))
            yield Move(f"r{replica}'s host is lost for good", True, spent(lost, LOSS))
        if state.left[GONE]:
            label = f"r{replica} is declared gone (it only was cut off)"
            yield Move(label, True, spent(gone, GONE))

    def sender(self, state: State, box: int) -> Iterator[Move[State]]:
        """The first upload of an outbox is completed."""
        entry, *rest = state.boxes[box]
        uid, content, seq, replica, base = entry
        source, store = self.source_of(replica), self.store_of(replica)
        highest, visible = state.backend_highest[source], dict(state.visible)
        lost, by_id = state, uid in state.done
        if by_id:
            answer = "duplicate"
        elif source in visible and visible[source][1] == content:
            answer = "duplicate"
            raised = put(state.backend_highest, source, max(highest, seq))
            lost = state._replace(backend_highest=raised)
        elif (self.rules.base and base != highest) or seq <= highest:
            answer = "superseded"
        else:
            answer = "created"
            visible[source] = uid, content
            lost = state._replace(
                visible=tuple(sorted(visible.items())),
                backend_highest=put(state.backend_highest, source, seq),
                done=state.done | {uid},
            )
        if state.left[LOST] and lost != state:
            label = f"complete {uid} {content} seq {seq}: {answer}, answer lost"
            yield Move(label, True, spent(lost, LOST))
        following = lost._replace(boxes=put(state.boxes, box, tuple(rest)))
        mark = state.marks[store]
        if mark and mark.uid == uid:
            if answer != "superseded":
                known = mark.seq if by_id else max(mark.seq, following.backend_highest[source])
                confirmed = mark._replace(complete=True, seq=known)
                following = following._replace(marks=put(state.marks, store, confirmed))
            elif self.rules.superseded == "reread":
                following = following._replace(marks=put(state.marks, store, None))
            else:
                above = max(state.highest[store], highest)
                following = following._replace(highest=put(state.highest, store, above))
                following = self.sealed(following, replica, content, highest)
        yield Move(f"complete {uid} of r{replica}: {content} seq {seq}: {answer}", False, following)

    def quiet(self, state: State) -> bool:
        """Nothing is read or to be sent."""
        return not any(state.readings) and not any(state.boxes)

    def shown(self, state: State) -> list[str]:
        """The visible contents, of all sources."""
        return sorted(content for _, (_, content) in state.visible)

    def check(self, state: State) -> Iterator[str]:
        """Where a replica would skip, the source's content is visible, once."""
        living = [replica for replica in self.replicas if replica not in state.gone]
        if not self.quiet(state) or all(self.due(state, replica) for replica in living):
            return
        shown, content = self.shown(state), self.script[state.source]
        if len(shown) > 1:
            yield f"TWICE visible: {shown}"
        elif shown != [content]:
            yield f"rest shows {shown}, the source is {content}: a replica would skip"

    def rest(self, state: State) -> bool:
        """The source's content is visible; or more uploads are needed than are looked at."""
        right = self.shown(state) == [self.script[state.source]] and not list(self.check(state))
        if self.quiet(state) and right:
            return True
        return any(move.state.uid > UPLOADS for move in self.all_moves(state))


def spent(state: State, kind: int) -> State:
    """One fault of this kind fewer is left."""
    return state._replace(left=put(state.left, kind, state.left[kind] - 1))


BACK, BEHIND = ("v1", "v2", "v1"), (0, -3)
ONE_LOST, CUT_OFF, EVERYTHING = (1, 1, 0, 1), (0, 1, 1, 1), (1, 1, 1, 1)
ASKED = REREAD._replace(ask=True)
BASED = ASKED._replace(base=True)
TAKES_OVER = MARKS._replace(takeover="gone")
FAR = 300_000


def as_far(name: str, model: Model) -> Case:
    """A case that has too many states: nothing is broken as far as that number."""
    return Case(name, None, model, slow=True, limit=FAR, bounded=True)


CASES = [
    Case("own marks, one replica (control)", None, Model(skew=(0,))),
    Case("own marks, two replicas, each its own id", ANY, Model(Rules(same_id=False))),
    Case("F10 out: own marks, two replicas, one id", ANY, Model()),
    Case("F10 out: own marks, v1 v2 v1", ANY, Model(script=BACK)),
    Case("own marks, superseded: read again", ANY, Model(REREAD)),
    as_far("own marks, reread, asked before `unchanged`", Model(ASKED)),
    as_far("own marks, reread, asked, with base", Model(BASED)),
    as_far("the same, v1 v2 v1, skewed clock", Model(BASED, BACK, BEHIND)),
    as_far("the same, a host lost for good", Model(BASED, faults=ONE_LOST)),
    Case("shared marks, own outboxes, no swap", None, Model(Rules(marks="shared")), slow=True),
    Case("shared marks, swap", None, Model(MARKS)),
    Case("shared marks, swap, v1 v2 v1, skew", None, Model(MARKS, BACK, BEHIND)),
    Case("F10 out: the same, a host lost with its bytes", ANY, Model(MARKS, faults=ONE_LOST)),
    Case("shared marks, takeover when declared gone", None, Model(TAKES_OVER, faults=ONE_LOST)),
    Case("the same, declared gone wrongly", None, Model(TAKES_OVER, faults=CUT_OFF)),
    as_far("the same, v1 v2 v1, skew", Model(TAKES_OVER, BACK, BEHIND, EVERYTHING)),
    Case("shared marks and outbox, no swap", None, Model(SHARED._replace(swap=False))),
    Case("F10: shared marks and outbox, swap", None, Model(SHARED, BACK, BEHIND, EVERYTHING)),
]

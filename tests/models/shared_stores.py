"""Several instances of one processor on one store, whose epoch is the store's; replace and append.

The store has the mark of one source, the outbox, the epoch, and who lives by leases. An instance
reads the source at one moment and seals at any later one; a `complete` leaves with the epoch that
was read for it, and arrives at any later moment. An instance is killed, or so frozen that its lease
lapses while it lives; the store is put back to an earlier copy, with the leases of then.

Taking an epoch and comparing with what the backend answers is one step (the answers that are lost
there are the business of folders.py), and so is an operator's adopting. A database that is away
stops everybody, and is no step of its own: every step may come as late as it likes.

What holds at rest, where every instance would skip: the backend shows the source's content, no row
of it twice. And nobody is paused without a store that was put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from tests.models.explore import ANY, Case, Move, put

UPLOADS = 4
Kind = Literal["kill", "freeze", "back", "lost"]
KINDS: tuple[Kind, ...] = ("kill", "freeze", "back", "lost")


class Rules(NamedTuple):
    """The switches; the defaults are F10."""

    stored_epoch: bool = True
    """Each `complete` carries the store's epoch as it is then | the one known since the start."""
    compares: bool = True
    """Who starts while no other lives takes the next epoch, and compares | takes it, no more."""
    swap: bool = True
    """Sealing only while the mark is the one that was seen before reading."""
    still_held: bool = True
    """`installation-moved` counts only if the store still holds the epoch that was sent."""
    adopts: bool = True
    """After the store was put back an operator adopts it | whoever lives goes on."""
    joins: bool = True
    """Who starts beside living ones takes no epoch."""


F10 = Rules()


class Entry(NamedTuple):
    """A sealed upload: `read` and `until` are versions or positions of the source.

    In replace `until` is the content. In append it holds the rows after `read`, and says that it
    goes on from `after`.
    """

    uid: int
    read: int
    after: int
    until: int
    seq: int
    base: int


class Store(NamedTuple):
    """What the instances share; `mark` is what was sealed last, as (until, seq, uid)."""

    mark: tuple[int, int, int] | None = None
    high: int = 0
    box: tuple[Entry, ...] = ()
    epoch: int = 0
    leases: frozenset[int] = frozenset()
    paused: bool = False
    adopt: bool = False


class Instance(NamedTuple):
    """One process; `reading` is (until, the mark that it saw), `sending` (uid, epoch)."""

    on: bool = False
    epoch: int = 0
    reading: tuple[int, tuple[int, int, int] | None] | None = None
    sending: tuple[Entry, int] | None = None


class State(NamedTuple):
    """The source as a version or a number of rows, and what everybody knows."""

    source: int
    store: Store
    copy: Store | None
    instances: tuple[Instance, ...]
    backend_epoch: int
    shown: int
    rows: tuple[int, ...]
    seq: int
    done: frozenset[int]
    uid: int
    left: tuple[int, ...]
    was_put_back: bool


class Model:
    """A source that goes through `script` (replace), or grows row by row (append)."""

    def __init__(
        self,
        rules: Rules = F10,
        mode: Literal["replace", "append"] = "replace",
        script: tuple[int, ...] = (1, 2, 1),
        faults: tuple[int, int, int, int] = (1, 1, 1, 1),
    ) -> None:
        self.rules, self.mode, self.faults = rules, mode, faults
        self.script = script if mode == "replace" else (1, 2)

    def initial(self) -> State:
        """Nothing runs, and nothing was read."""
        none: frozenset[int] = frozenset()
        two = (Instance(), Instance())
        return State(0, Store(), None, two, 0, 0, (), 0, none, 0, self.faults, False)

    def content(self, state: State) -> int:
        """What the source holds now."""
        return self.script[state.source]

    def due(self, state: State) -> bool:
        """Whether a run would not skip."""
        mark = state.store.mark
        return mark is None or mark[0] != self.content(state)

    def moves(self, state: State) -> Iterator[Move[State]]:
        """Every step that needs no more uploads than are looked at."""
        return (move for move in self.all_moves(state) if move.state.uid <= UPLOADS)

    def all_moves(self, state: State) -> Iterator[Move[State]]:
        """The source, the store, the operator, and each instance."""
        store = state.store
        if state.source + 1 < len(self.script):
            label = f"the source becomes {self.script[state.source + 1]}"
            yield Move(label, True, state._replace(source=state.source + 1))
        if state.copy is None and state.left[2]:
            yield Move("the store is copied", True, state._replace(copy=store))
        if state.copy is not None and state.left[2]:
            back = state.copy._replace(adopt=self.rules.adopts)
            put_back = spent(state, "back")._replace(store=back, copy=None, was_put_back=True)
            yield Move("the store is put back", True, put_back)
        if store.paused or store.adopt:
            adopted = self.taken(state)
            adopted = adopted._replace(store=adopted.store._replace(paused=False, adopt=False))
            yield Move("the operator adopts", False, adopted)
        for number, one in enumerate(state.instances):
            yield from self.lives(state, number, one)
            if one.on and not (store.paused or store.adopt):
                yield from self.runs(state, number, one)
                yield from self.sends(state, number, one)

    def lives(self, state: State, number: int, one: Instance) -> Iterator[Move[State]]:
        """It starts, is killed, and its lease lapses."""
        store = state.store
        has_lease = number in store.leases
        lapsed = state._replace(store=store._replace(leases=store.leases - {number}))
        if not one.on:
            others = store.leases - {number}
            first = not others and not store.adopt
            started = self.taken(state) if first or not self.rules.joins else state
            known = started.store
            own = known._replace(leases=known.leases | {number})
            running = Instance(True, known.epoch)
            after = started._replace(store=own, instances=put(state.instances, number, running))
            what = "takes the next epoch" if first else "joins"
            yield Move(f"i{number} starts, and {what}", False, after)
            if has_lease:
                yield Move(f"the lease of i{number}, which ended, lapses", False, lapsed)
            return
        if state.left[0]:
            killed = spent(state, "kill")
            off = put(state.instances, number, Instance())
            yield Move(f"i{number} is killed", True, killed._replace(instances=off))
        if has_lease and state.left[1]:
            label = f"i{number} is frozen past its lease"
            yield Move(label, True, spent(lapsed, "freeze"))
        if not has_lease:
            again = store._replace(leases=store.leases | {number})
            yield Move(f"i{number} renews its lease", False, state._replace(store=again))

    def taken(self, state: State) -> State:
        """The next epoch is the store's; what is here is compared with what the backend has."""
        epoch = max(state.store.epoch, state.backend_epoch) + 1
        store = state.store._replace(epoch=epoch)
        if self.rules.compares:
            store = self.compared(state, store)
        return state._replace(store=store, backend_epoch=epoch)

    def compared(self, state: State, store: Store) -> Store:
        """The mark and the outbox after a look at what the backend reports."""
        kept: list[Entry] = []
        if self.mode == "append":
            at = state.shown
            for entry in store.box:
                if entry.after == at or entry.uid in state.done:
                    kept.append(entry)
                    at = max(at, entry.until)
            return store._replace(mark=(at, state.seq, -1), box=tuple(kept))
        at = state.seq
        for entry in store.box:
            if entry.base == at or entry.seq == state.seq:
                kept.append(entry)
                at = entry.seq
        mark = store.mark
        if mark and mark[1] != state.seq and mark[2] not in {one.uid for one in kept}:
            mark = None
        return store._replace(mark=mark, box=tuple(kept), high=max(store.high, state.seq))

    def runs(self, state: State, number: int, one: Instance) -> Iterator[Move[State]]:
        """It reads what is due, and seals it."""
        store, mark = state.store, state.store.mark
        if one.reading is None:
            if self.due(state):
                reading = one._replace(reading=(self.content(state), mark))
                after = state._replace(instances=put(state.instances, number, reading))
                yield Move(f"i{number} reads {self.content(state)}", False, after)
            return
        until, seen = one.reading
        ended = state._replace(instances=put(state.instances, number, one._replace(reading=None)))
        if self.rules.swap and seen != mark:
            yield Move(f"i{number} seals nothing: the mark moved", False, ended)
            return
        seq, base = store.high + 1, mark[1] if mark else 0
        read, after_row = (seen[0] if seen else 0), (mark[0] if mark else 0)
        if self.mode == "append" and until <= after_row:
            yield Move(f"i{number} finds nothing behind the position", False, ended)
            return
        entry = Entry(state.uid, read, after_row, until, seq, base)
        sealed = store._replace(mark=(until, seq, state.uid), high=seq, box=(*store.box, entry))
        label = f"i{number} seals {until} as upload {state.uid}"
        yield Move(label, False, ended._replace(store=sealed, uid=state.uid + 1))

    def sends(self, state: State, number: int, one: Instance) -> Iterator[Move[State]]:
        """A `complete` of the first upload leaves, and arrives."""
        store = state.store
        if one.sending is None:
            if store.box:
                epoch = store.epoch if self.rules.stored_epoch else one.epoch
                going = one._replace(sending=(store.box[0], epoch))
                after = state._replace(instances=put(state.instances, number, going))
                yield Move(
                    f"i{number} sends upload {store.box[0].uid}, epoch {epoch}", False, after
                )
            return
        entry, epoch = one.sending
        state = state._replace(instances=put(state.instances, number, one._replace(sending=None)))
        if epoch < state.backend_epoch:
            counts = not self.rules.still_held or store.epoch == epoch
            moved = state._replace(store=store._replace(paused=store.paused or counts))
            yield Move(f"upload {entry.uid}: the installation moved", False, moved)
            return
        arrived, answer = self.arrived(state, entry)
        if state.left[3] and arrived != state:
            yield Move(f"upload {entry.uid}: {answer}, answer lost", True, spent(arrived, "lost"))
        # Whoever sent it, its end is written only if it still lies there.
        if entry in store.box:
            rest = tuple(other for other in store.box if other != entry)
            ended = store._replace(box=rest)
            if answer == "refused" and self.mode == "append":
                ended = ended._replace(mark=(arrived.shown, arrived.seq, -1), box=())
            elif answer == "refused" and store.mark and store.mark[2] == entry.uid:
                ended = ended._replace(mark=None, high=max(store.high, arrived.seq))
            arrived = arrived._replace(store=ended)
        yield Move(f"upload {entry.uid}: {answer}", False, arrived)

    def arrived(self, state: State, entry: Entry) -> tuple[State, str]:
        """What the backend makes of a `complete`."""
        if entry.uid in state.done:
            return state, "duplicate"
        if self.mode == "append" and entry.after != state.shown:
            return state, "refused"
        if self.mode == "replace" and entry.seq <= state.seq:
            return state, "refused"
        rows = (*state.rows, *range(entry.read, entry.until)) if self.mode == "append" else ()
        taken = state._replace(
            shown=entry.until, rows=rows, seq=entry.seq, done=state.done | {entry.uid}
        )
        return taken, "created"

    def check(self, state: State) -> Iterator[str]:
        """See the module."""
        if len(set(state.rows)) < len(state.rows):
            yield f"rows twice: {state.rows}"
        if state.store.paused and not state.was_put_back:
            yield "paused, and no store was put back"
        if self.quiet(state) and not self.due(state) and state.shown != self.content(state):
            yield f"every run skips {self.content(state)}, and {state.shown} is shown"

    def quiet(self, state: State) -> bool:
        """Somebody runs, and nothing is read, waits or needs an operator."""
        store = state.store
        is_at_work = any(one.reading or one.sending for one in state.instances)
        is_on = any(one.on for one in state.instances)
        return is_on and not (is_at_work or store.box or store.paused or store.adopt)

    def rest(self, state: State) -> bool:
        """The source is shown; or more uploads are needed than are looked at."""
        if self.quiet(state) and state.shown == self.content(state):
            return True
        return any(move.state.uid > UPLOADS for move in self.all_moves(state))


def spent(state: State, kind: Kind) -> State:
    """One fault of this kind fewer is left."""
    number = KINDS.index(kind)
    return state._replace(left=put(state.left, number, state.left[number] - 1))


STAYS, PUT_BACK = (1, 1, 0, 1), (0, 0, 1, 0)
KILLED_TOO = (1, 0, 1, 0)
FAR = 2_000_000


def out(mode: Literal["replace", "append"] = "replace", **rules: bool) -> Model:
    """A rule is taken out, where the store stays."""
    return Model(F10._replace(**rules), mode, faults=STAYS)


CASES = [
    Case("F10, replace, the store stays", None, Model(faults=STAYS)),
    Case("F10, append, the store stays", None, Model(mode="append", faults=STAYS)),
    Case("F10, replace, put back", None, Model(faults=PUT_BACK)),
    Case("F10, append, put back", None, Model(mode="append", faults=PUT_BACK)),
    Case("F10, replace, put back, a kill", None, Model(faults=KILLED_TOO), slow=True, limit=FAR),
    Case("F10, append, put back, a kill", None, Model(F10, "append", faults=KILLED_TOO), slow=True),
    Case("swap out, append", ANY, out("append", swap=False)),
    Case("still_held out", ANY, out(still_held=False)),
    Case("adopts out", ANY, Model(F10._replace(adopts=False), faults=PUT_BACK)),
    Case("compares out", ANY, Model(F10._replace(compares=False), faults=PUT_BACK)),
    Case("another way: each start takes an epoch", None, out(joins=False), slow=True),
    Case("another way: the epoch of one's start", None, out(stored_epoch=False), slow=True),
]

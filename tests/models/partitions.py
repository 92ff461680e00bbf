"""A partitioned run: one listing, a child for each item, two schedulers on one store.

The parent is claimed under a lease; whoever has it asks for the list, and writes the children. Then
anybody takes children, and anybody finds the end. Each scheduler may be killed between any two
steps, or be frozen past its leases; an operator may stop the run. What a child does once it was
taken is the business of schedules.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.models.explore import STUCK, Case, Move, put

ITEMS, SCHEDULERS = range(2), range(2)
NOBODY = -1
FAULTS = KILL, FREEZE, STOP = range(3)
DOUBLED = "P1: an item has two children"
EARLY = "P2: the parent ended while a child was open"
BEGAN = "P3: a child began after its run was stopped"


class Rules(NamedTuple):
    """The switches; `BUILT` is what the scheduler does."""

    one_write: bool = True
    """The children, and the note that the parent is divided, are one transaction."""
    leased: bool = True
    """They are written only while the parent's lease is the writer's."""
    released: bool = True
    """A divided parent has no lease: nobody takes it over, and lists again."""
    unique: bool = True
    """The store refuses a second child of an item."""
    looked_for: bool = True
    """The end is found in the store by anybody; else whoever ended the last child writes it."""
    counted: bool = True
    """The end is written in the transaction that saw no open child."""
    stop_seen: bool = True
    """A child is taken in a transaction that saw that the run is not stopped."""


BUILT = Rules()


class Mind(NamedTuple):
    """What a scheduler is about to write: `lists`, `listed`, `inserted` or `ends`."""

    step: str = ""
    lease: int = 0


class Child(NamedTuple):
    """A child's row: `queued`, `held` by a scheduler, or `over`."""

    item: int
    status: str = "queued"
    owner: int = NOBODY


class World(NamedTuple):
    """The store, and what each scheduler has in mind."""

    owner: int = NOBODY
    lease: int = 0
    divided: bool = False
    stopped: bool = False
    ended: bool = False
    children: tuple[Child, ...] = ()
    minds: tuple[Mind, ...] = (Mind(), Mind())
    frozen: tuple[bool, ...] = (False, False)
    left: tuple[int, ...] = (1, 1, 1)


class Model:
    """One run of two items under one set of rules."""

    def __init__(self, rules: Rules, faults: tuple[int, ...] = (1, 1, 1)) -> None:
        self.rules, self.faults = rules, faults

    def initial(self) -> World:
        """The parent waits to be claimed."""
        return World(left=self.faults)

    def moves(self, w: World) -> Iterator[Move[World]]:
        """Every step of each scheduler that is awake, and every fault."""
        for s in SCHEDULERS:
            if w.frozen[s]:
                yield Move(f"s{s} wakes", False, w._replace(frozen=put(w.frozen, s, False)))
                continue
            yield from self.divides(w, s)
            yield from self.takes(w, s)
            yield from self.ends(w, s)
            yield from faults(w, s)
        if w.left[STOP] and not w.ended and not w.stopped:
            yield Move("the run is stopped", True, spent(w._replace(stopped=True), STOP))

    def divides(self, w: World, s: int) -> Iterator[Move[World]]:
        """Claim the parent, ask for the list, write the children."""
        mind = w.minds[s]
        is_free = w.owner == NOBODY or w.frozen[w.owner]
        can_claim = not w.divided or (w.owner != NOBODY and not self.rules.released)
        if not w.ended and is_free and can_claim and not mind.step:
            # Above those that somebody still has in mind: no other number makes a difference.
            v = w._replace(owner=s, lease=1 + max(mind.lease for mind in w.minds))
            yield Move(f"s{s} claims the parent", False, thinks(v, s, "lists", v.lease))
        holds = (w.owner, w.lease) == (s, mind.lease) and not w.ended
        if mind.step == "lists":
            yield Move(f"s{s} gets the list", False, thinks(w, s, "listed", mind.lease))
        elif mind.step == "listed":
            gone = w._replace(owner=NOBODY) if holds else w
            if self.rules.leased and not holds:
                yield Move(f"s{s} writes nothing: its lease is over", False, thinks(w, s))
            elif self.rules.unique and w.children:
                yield Move(f"s{s} is refused: there are children", False, thinks(gone, s))
            else:
                v = w._replace(children=tuple(sorted((*w.children, *map(Child, ITEMS)))))
                step = "" if self.rules.one_write else "inserted"
                v = self.noted(v) if self.rules.one_write else v
                yield Move(f"s{s} writes the children", False, thinks(v, s, step, mind.lease))
        elif mind.step == "inserted":
            yield Move(f"s{s} notes that it is divided", False, thinks(self.noted(w), s))

    def noted(self, w: World) -> World:
        """The parent is divided."""
        return w._replace(divided=True, owner=NOBODY if self.rules.released else w.owner)

    def takes(self, w: World, s: int) -> Iterator[Move[World]]:
        """Take a child, or one whose scheduler is gone; end it; pass over those of a stop."""
        for n, child in enumerate(w.children):
            orphan = child.status == "held" and (
                child.owner == NOBODY or (child.owner != s and w.frozen[child.owner])
            )
            if child.status == "queued" and w.divided and w.stopped:
                v = with_child(w, n, child._replace(status="over"))
                yield Move(f"s{s} passes over {child.item}", False, v)
            if child.status == "queued" and w.divided and not (w.stopped and self.rules.stop_seen):
                v = with_child(w, n, child._replace(status="held", owner=s))
                broken = (BEGAN,) if w.stopped else ()
                yield Move(f"s{s} takes {child.item}", False, v, broken)
            elif orphan:
                v = with_child(w, n, child._replace(owner=s))
                yield Move(f"s{s} takes {child.item} over", False, v)
            elif child.status == "held" and child.owner == s:
                v = with_child(w, n, child._replace(status="over", owner=NOBODY))
                if not self.rules.looked_for and is_over(v):
                    v = thinks(v, s, "ends")
                yield Move(f"s{s} ends {child.item}", False, v)

    def ends(self, w: World, s: int) -> Iterator[Move[World]]:
        """The end of the parent is found, and written."""
        over = is_over(w) or not self.rules.counted
        found = over if self.rules.looked_for else w.minds[s].step == "ends"
        if w.divided and not w.ended and found:
            broken = () if is_over(w) else (EARLY,)
            v = thinks(w._replace(ended=True, owner=NOBODY), s)
            yield Move(f"s{s} ends the parent", False, v, broken)

    def check(self, w: World) -> Iterator[str]:
        """No item twice."""
        items = [child.item for child in w.children]
        if len(items) != len(set(items)):
            yield DOUBLED

    def rest(self, w: World) -> bool:
        """The parent ended, and every child."""
        return w.ended and is_over(w)


def is_over(w: World) -> bool:
    """Whether no child is open."""
    return all(child.status == "over" for child in w.children)


def thinks(w: World, s: int, step: str = "", lease: int = 0) -> World:
    """A scheduler is about to write something, or nothing."""
    return w._replace(minds=put(w.minds, s, Mind(step, lease if step else 0)))


def with_child(w: World, n: int, child: Child) -> World:
    """Another state of one child."""
    return w._replace(children=tuple(sorted(put(w.children, n, child))))


def spent(w: World, fault: int) -> World:
    """One fault of this kind fewer is left."""
    return w._replace(left=put(w.left, fault, w.left[fault] - 1))


def faults(w: World, s: int) -> Iterator[Move[World]]:
    """A scheduler is killed, and starts again with nothing in mind; or it is frozen."""
    if w.left[KILL]:
        children = [c._replace(owner=NOBODY) if c.owner == s else c for c in w.children]
        v = w._replace(children=tuple(sorted(children)))
        v = v._replace(owner=NOBODY if w.owner == s else w.owner)
        yield Move(f"s{s} is killed", True, spent(thinks(v, s), KILL))
    if w.left[FREEZE]:
        yield Move(f"s{s} freezes", True, spent(w._replace(frozen=put(w.frozen, s, True)), FREEZE))


def out(*names: str) -> Rules:
    """What is built, without some rules."""
    return BUILT._replace(**dict.fromkeys(names, False))


CASES = [
    Case("built", None, Model(BUILT)),
    Case("built, more faults", None, Model(BUILT, (2, 2, 1)), slow=True),
    Case("one_write out", STUCK, Model(out("one_write"))),
    Case("one_write and unique out", DOUBLED, Model(out("one_write", "unique"))),
    Case("leased and unique out", DOUBLED, Model(out("leased", "unique"))),
    Case("released and unique out", DOUBLED, Model(out("released", "unique"))),
    Case("unique alone out", None, Model(out("unique"))),
    Case("looked_for out", STUCK, Model(out("looked_for"), (1, 0, 0))),
    Case("counted out", EARLY, Model(out("counted"))),
    Case("stop_seen out", BEGAN, Model(out("stop_seen"))),
]

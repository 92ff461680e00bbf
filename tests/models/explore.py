"""Breadth-first search over every interleaving of a small model.

A model says where it begins, which moves each state has, what is wrong with a state, and where it
rests. Every state is checked as it is found, so that the steps to what is wrong are a shortest
way. Then, backward from rest over moves that are no faults: from every state a rest is reached.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

State = TypeVar("State")
Item = TypeVar("Item")

ANY = "any"
"""Stands for whatever a case breaks first."""
STUCK = "from here no rest is reached without a fault"


class Move(NamedTuple, Generic[State]):
    """One atomic step: what happens, whether it is a fault, what follows, which rules it breaks."""

    label: str
    fault: bool
    state: State
    broken: Sequence[str] = ()


class Model(Protocol[State]):
    """What is explored. States are hashable, and equal where nothing distinguishes them."""

    def initial(self) -> State:
        """Where it begins."""

    def moves(self, state: State, /) -> Iterable[Move[State]]:
        """Every step that is possible in a state."""

    def check(self, state: State, /) -> Iterable[str]:
        """What is wrong with a state."""

    def rest(self, state: State, /) -> bool:
        """Whether nothing needs to happen any more."""


class Case(NamedTuple):
    """One model under one set of rules, and what is expected of it."""

    name: str
    breaks: str | None
    """None: it holds. Else what is broken, or `ANY`."""
    model: Model  # type: ignore[type-arg]  # each model has a state of its own
    known: tuple[str, ...] = ()
    """What a case that holds may meet: the stated limits of the design."""
    slow: bool = False
    limit: int = 400_000
    """States at most."""
    bounded: bool = False
    """A case that holds is looked at no further than to its limit; else it must be whole."""


class Found(NamedTuple):
    """What one exploration found."""

    states: int
    whole: bool
    """Whether every state was visited."""
    broken: dict[str, list[str]]
    """What is broken, with the shortest steps to it."""


def explore(case: Case, *, stop: bool) -> Found:
    """Visit every state of a case.

    Args:
        case: What to explore.
        stop: End as soon as what the case is expected to break is broken.
    """
    model = case.model
    start = model.initial()
    numbers, parents, states = {start: 0}, [(0, "")], [start]
    before: dict[int, list[int]] = {}
    broken: dict[str, tuple[int, str]] = {}
    queue, capped, stopped = deque([start]), False, False

    while queue and not stopped:
        state = queue.popleft()
        number = numbers[state]
        for label, fault, following, faults in model.moves(state):
            found = list(faults)
            next_number = numbers.get(following)
            if next_number is None:
                if len(numbers) >= case.limit:
                    capped = True
                    continue
                next_number = numbers[following] = len(numbers)
                parents.append((number, label))
                states.append(following)
                queue.append(following)
                found += model.check(following)
            for name in found:
                broken.setdefault(name, (number, label))
            if not fault:
                before.setdefault(next_number, []).append(number)
        stopped = stop and bool(broken if case.breaks == ANY else case.breaks in broken)

    traces = {name: [*_way(parents, number), label] for name, (number, label) in broken.items()}
    if not capped and not stopped and (not stop or case.breaks in (None, ANY, STUCK)):
        stuck = _first_stuck(before, [model.rest(state) for state in states])
        if stuck is not None:
            traces[STUCK] = list(_way(parents, stuck))
    return Found(len(numbers), not capped and not stopped, traces)


def put(items: tuple[Item, ...], index: int, value: Item) -> tuple[Item, ...]:
    """The tuple with one item replaced."""
    return (*items[:index], value, *items[index + 1 :])


def changed(items: tuple[Item, ...], item: Item, new: Item | None) -> tuple[Item, ...]:
    """The tuple with another in an item's place, or, with None, without it."""
    found = (new if other == item else other for other in items)
    return tuple(other for other in found if other is not None)


def as_expected(case: Case, found: Found) -> bool:
    """Whether an exploration ended as its case says."""
    if case.breaks is None:
        return (found.whole or case.bounded) and found.broken.keys() <= set(case.known)
    return bool(found.broken) if case.breaks == ANY else case.breaks in found.broken


def _way(parents: list[tuple[int, str]], number: int) -> Iterator[str]:
    """The labels from the first state to this one."""
    labels = []
    while number:
        number, label = parents[number]
        labels.append(label)
    return reversed(labels)


def _first_stuck(before: dict[int, list[int]], good: list[bool]) -> int | None:
    """The first state from which no way without faults leads to a good one."""
    waiting = [number for number, at_rest in enumerate(good) if at_rest]
    while waiting:
        for number in before.get(waiting.pop(), ()):
            if not good[number]:
                good[number] = True
                waiting.append(number)
    return good.index(False) if False in good else None

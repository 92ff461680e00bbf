"""A backend that is put back from a snapshot, and nobody gives the command: its clients show it.

One folder with many sources, each sealed once, so that no later upload of a source hides that an
earlier one is gone. The generation comes back with the snapshot. Answers may be lost or late, but
not over a restore: they die with the process that is stopped for it; requests may be late over it.
Rows may be erased on purpose. Two requests that come late over one restore can give an upload the
very number that it had: that is not seen, and not among the cases.

What holds at rest (nothing to send, the client has reported what it holds for
acknowledged, and knows the backend's generation): every upload that the client believes to be
there is there, or was erased. And a generation is made by a restore alone, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.models.explore import ANY, Case, Move, put


class Rules(NamedTuple):
    """The switches; the defaults are the rules G8 to G13."""

    reported: bool = True
    """G8: health carries the greatest acknowledged (number, upload_id); a backend whose last number
    is lower, or is of another upload, makes a new generation."""
    other: bool = True
    """G8: also the same number of another upload."""
    complete: bool = True
    """G9: `complete` carries it too, and it is looked at before the upload is taken."""
    looked_up: bool = True
    """G10: below the last number, the upload is looked for."""
    repeated: bool = True
    """G11: a duplicate takes a number, too: its answer acknowledges the upload."""
    present: bool = True
    """G12: what is reported counts only of a folder that knows the present generation."""
    taken: bool = True
    """G13: the compare takes the backend's last for the folder's own."""
    kept: bool = True
    """G2: erasing rows keeps the last number."""


class Last(NamedTuple):
    """The greatest number, and the upload that it was given to."""

    number: int = 0
    uid: int = -1


class Backend(NamedTuple):
    """The backend: `ended` stays when rows are `erased`."""

    generation: int = 0
    ended: frozenset[int] = frozenset()
    erased: frozenset[int] = frozenset()
    last: Last = Last()


class Request(NamedTuple):
    """A `complete` under way."""

    uid: int
    last: Last
    known: int


class Answer(NamedTuple):
    """Its answer under way; without a number where none was given."""

    uid: int
    generation: int
    number: int


class State(NamedTuple):
    """Folder, backend, network; `made` generations so far, `restores` so far.

    The folder `holds` from when it hears of another generation until it has compared.
    """

    sealed: int
    box: frozenset[int]
    done: frozenset[int]
    last: Last
    known: int
    holds: bool
    backend: Backend
    snapshot: Backend | None
    late: frozenset[Request | Answer]
    made: int
    restores: int
    left: tuple[int, ...]


SNAPSHOT, RESTORE, LOST, LATE, ERASE, START = range(6)
LATER, LOSING, TWICE = (1, 1, 0, 1, 0, 0), (1, 1, 1, 0, 0, 1), (1, 2, 0, 0, 0, 0)
ALL = (1, 2, 1, 1, 0, 1)
ERASED, DELAYED = (1, 1, 0, 0, 1, 1), (1, 1, 0, 2, 0, 0)


class Model:
    """A folder that seals a number of uploads, each of another source."""

    def __init__(
        self,
        rules: Rules = Rules(),  # noqa: B008  # immutable
        faults: tuple[int, ...] = LATER,
        uploads: int = 2,
    ) -> None:
        self.rules, self.faults, self.uploads = rules, faults, uploads

    def initial(self) -> State:
        """Nothing was sealed yet."""
        nobody: frozenset[int] = frozenset()
        return State(
            sealed=0,
            box=nobody,
            done=nobody,
            last=Last(),
            known=0,
            holds=False,
            backend=Backend(),
            snapshot=None,
            late=frozenset(),
            made=0,
            restores=0,
            left=self.faults,
        )

    def heard(self, state: State, reported: Last, known: int) -> State:
        """The backend receives what a folder of that generation holds for acknowledged."""
        rules, last = self.rules, state.backend.last
        if rules.present and known != state.backend.generation:
            return state
        is_other = reported.number == last.number and reported.uid != last.uid
        below = 0 < reported.number < last.number
        gone = below and reported.uid not in state.backend.ended
        behind = reported.number > last.number
        if not (behind or (rules.other and is_other) or (rules.looked_up and gone)):
            return state
        new = state.backend._replace(generation=state.made + 1)
        return state._replace(backend=new, made=state.made + 1)

    def complete(self, state: State, request: Request) -> tuple[State, Answer]:
        """The backend takes a `complete`, in one transaction."""
        if self.rules.complete:
            state = self.heard(state, request.last, request.known)
        backend, number = state.backend, 0
        if self.rules.repeated or request.uid not in backend.ended:
            number = backend.last.number + 1
            backend = backend._replace(last=Last(number, request.uid))
        backend = backend._replace(ended=backend.ended | {request.uid})
        return state._replace(backend=backend), Answer(request.uid, backend.generation, number)

    def answered(self, state: State, answer: Answer) -> State:
        """The folder takes an answer; one of another generation counts as no answer (G4)."""
        if answer.generation != state.known:
            return state._replace(holds=True)
        if answer.uid not in state.box:
            return state
        last = max(state.last, Last(answer.number, answer.uid)) if answer.number else state.last
        return state._replace(
            box=state.box - {answer.uid}, done=state.done | {answer.uid}, last=last
        )

    def compared(self, state: State) -> State:
        """A start: what is believed is compared with what is there (F7)."""
        backend = state.backend
        missing = state.done - backend.ended
        return state._replace(
            box=state.box | missing,
            done=state.done - missing,
            last=backend.last if self.rules.taken else state.last,
            known=backend.generation,
            holds=False,
        )

    def moves(self, state: State) -> Iterator[Move[State]]:
        """Seal, send, report, start, and the faults."""
        if state.sealed < self.uploads:
            following = state._replace(sealed=state.sealed + 1, box=state.box | {state.sealed})
            yield Move(f"seal {state.sealed}", True, following)
        for uid in state.box if not state.holds else ():
            request = Request(uid, state.last, state.known)
            taken, answer = self.complete(state, request)
            label = f"complete {uid}, reported {tuple(state.last)}: {tuple(answer)}"
            yield Move(label, False, self.answered(taken, answer))
            if state.left[LOST]:
                yield Move(f"{label}, answer lost", True, spent(taken, LOST))
            if state.left[LATE]:
                late = spent(taken._replace(late=state.late | {answer}), LATE)
                yield Move(f"{label}, answer late", True, late)
                late = spent(state._replace(late=state.late | {request}), LATE)
                yield Move(f"complete {uid} is delayed", True, late)
        for message in state.late:
            following = state._replace(late=state.late - {message})
            if isinstance(message, Answer):
                yield Move(f"late {tuple(message)}", True, self.answered(following, message))
            else:
                taken, _ = self.complete(following, message)
                yield Move(f"late complete {message.uid}", True, taken)
        if self.rules.reported:
            yield Move(
                f"health, reported {tuple(state.last)}",
                False,
                self.heard(state, state.last, state.known),
            )
        due = state.holds or state.known != state.backend.generation
        if due or state.left[START]:
            fault = not due
            following = self.compared(state)
            yield Move("start, compare", fault, spent(following, START) if fault else following)
        yield from self.disasters(state)

    def disasters(self, state: State) -> Iterator[Move[State]]:
        """Snapshot, restore, erase."""
        backend, snapshot = state.backend, state.snapshot
        if state.left[SNAPSHOT] and snapshot is None:
            yield Move("snapshot", True, spent(state._replace(snapshot=backend), SNAPSHOT))
        if state.left[RESTORE] and snapshot is not None and snapshot != backend:
            late = frozenset(one for one in state.late if isinstance(one, Request))
            following = state._replace(backend=snapshot, restores=state.restores + 1, late=late)
            yield Move("RESTORED, and nobody says so", True, spent(following, RESTORE))
        if state.left[ERASE] and backend.ended - backend.erased:
            new = backend._replace(erased=backend.ended)
            new = new if self.rules.kept else new._replace(last=Last())
            yield Move("rows are erased", True, spent(state._replace(backend=new), ERASE))

    def rest(self, state: State) -> bool:
        """Nothing is to be sent, reported or compared."""
        if state.box or state.holds or state.known != state.backend.generation:
            return False
        return not self.rules.reported or self.heard(state, state.last, state.known) == state

    def check(self, state: State) -> Iterator[str]:
        """At rest nothing is missing; and no generation without a restore of its own."""
        if state.made > state.restores:
            yield f"{state.made} generations after {state.restores} restores"
        elif self.rest(state) and state.done - state.backend.ended:
            yield f"believed to be there, and is not: {sorted(state.done - state.backend.ended)}"


def spent(state: State, kind: int) -> State:
    """One fault of this kind fewer is left."""
    return state._replace(left=put(state.left, kind, state.left[kind] - 1))


UNSEEN = Rules(looked_up=False)
CASES = [
    Case("nobody gives the command: clients report", None, Model()),
    Case("restored twice, answers lost and late", None, Model(faults=ALL)),
    Case("three uploads, nothing late", None, Model(faults=LOSING, uploads=3)),
    Case("restored twice", None, Model(faults=TWICE, uploads=3)),
    Case("rows erased, then restored", None, Model(faults=ERASED)),
    Case("G8 out: nobody reports", ANY, Model(Rules(reported=False, complete=False))),
    Case("G8 out: only a lower number counts", ANY, Model(Rules(other=False))),
    Case("G9 out: only health reports", ANY, Model(Rules(complete=False), LOSING, 3)),
    Case("G10 out: below the last number nothing is looked for", ANY, Model(UNSEEN, DELAYED, 3)),
    Case("G11 out: a duplicate has no number", ANY, Model(Rules(repeated=False), LOSING)),
    Case("G12 out: whatever generation is known", ANY, Model(Rules(present=False))),
    Case("G13 out: the compare leaves the folder's number", ANY, Model(Rules(taken=False))),
    Case("G2 out: erasing forgets the number", ANY, Model(Rules(kept=False), ERASED)),
]

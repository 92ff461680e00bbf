"""Dead letters in replace mode: later contents of the same source, and what a run says meanwhile.

One source, one folder, one backend; some contents are refused for good until the backend is
repaired. What holds: a run that says `unchanged` is right (what is visible is the source's
content, or something under way will make it so); one that says `rejected` has a dead letter of
that content to show; no retry brings old content back over newer; one source's dead letters do
not grow without end; where the source is gone, the newest content that was sealed is visible, or
a dead letter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from tests.models.explore import ANY, Case, Move, changed, put


class Rules(NamedTuple):
    """The switches; the defaults are the rules D1 and D2."""

    status: Literal["mark", "any", "none"] = "mark"
    """D1: a run says rejected where the mark's upload is a dead letter | any upload is | never."""
    overtaken: Literal["answered", "completed", "sealed", "none"] = "answered"
    """D2: a dead letter ends once a later-sealed upload of the source is answered (created,
    duplicate, or a dead letter too) | created or duplicate | sealed | never."""
    purge: Literal["own", "never", "always"] = "own"
    """D1: a purge clears the mark where it is still that upload's | never | always."""
    retry: Literal["same", "above"] = "same"
    """D1: a retry keeps the upload's source_seq | takes one above the highest."""
    again: Literal["new", "skip"] = "new"
    """The source has a dead letter's content again: sealed as any other | not sealed, rejected."""


class Entry(NamedTuple):
    """An upload in the outbox; `dead` is a dead letter."""

    uid: int
    content: str
    seq: int
    dead: bool = False


class Backend(NamedTuple):
    """What the backend shows, the highest source_seq, and the uploads that it has ended."""

    visible: str | None
    highest: int
    done: frozenset[int]
    superseded: frozenset[int]


class State(NamedTuple):
    """Folder and backend; `newest` is the content sealed last that nobody gave up."""

    source: int
    mark: tuple[str, int] | None
    highest: int
    box: tuple[Entry, ...]
    backend: Backend
    uid: int
    left: tuple[int, ...]
    newest: str | None
    repaired: bool


RETRY, PURGE, LOST, REPAIR, _ = range(5)


class Model:
    """One source whose content goes through `script`, with at most `faults` of each kind."""

    def __init__(
        self,
        rules: Rules = Rules(),  # noqa: B008  # immutable
        script: tuple[str, ...] = ("v1", "v2", "v1"),
        refused: tuple[str, ...] = ("v2",),
        faults: tuple[int, ...] = (2, 1, 1, 1, 0),
        most: int = 2,
    ) -> None:
        self.rules, self.script, self.refused = rules, script, refused
        self.faults, self.most, self.uploads = faults, most, 6

    def initial(self) -> State:
        """Nothing was sent yet."""
        backend = Backend(None, 0, frozenset(), frozenset())
        return State(0, None, 0, (), backend, 0, self.faults, None, False)

    def says(self, state: State) -> str | None:
        """What a run would say; `due`: it would seal."""
        content = self.script[state.source]
        if content == "GONE":
            return None
        dead = [entry for entry in state.box if entry.dead]
        if self.rules.again == "skip" and any(entry.content == content for entry in dead):
            return "rejected"
        if state.mark is None or state.mark[0] != content:
            return "due"
        if self.rules.status == "mark" and any(entry.uid == state.mark[1] for entry in dead):
            return "rejected"
        return "rejected" if self.rules.status == "any" and dead else "unchanged"

    def moves(self, state: State) -> Iterator[Move[State]]:
        """Source, run, operator and sender, one step each."""
        if state.uid >= self.uploads:
            return
        if state.source + 1 < len(self.script):
            following = state._replace(source=state.source + 1)
            yield Move(f"source: {self.script[state.source + 1]}", True, following)
        if self.says(state) == "due":
            content, box = self.script[state.source], state.box
            if self.rules.overtaken == "sealed":
                box = tuple(entry for entry in box if not entry.dead)
            following = state._replace(
                mark=(content, state.uid),
                highest=state.highest + 1,
                uid=state.uid + 1,
                newest=content,
                box=(*box, Entry(state.uid, content, state.highest + 1)),
            )
            yield Move(f"run seals {content} as {state.uid}", False, following)
        if state.left[REPAIR] and not state.repaired:
            yield Move("backend repaired", True, spent(state._replace(repaired=True), REPAIR))
        for entry in state.box:
            yield from self.operator(state, entry) if entry.dead else self.sender(state, entry)

    def operator(self, state: State, entry: Entry) -> Iterator[Move[State]]:
        """A dead letter is retried, or purged."""
        own = state.mark is not None and state.mark[1] == entry.uid
        if state.left[RETRY]:
            if self.rules.retry == "same":
                again = entry._replace(dead=False)
                following = state
            else:
                again = Entry(state.uid, entry.content, state.highest + 1)
                mark = (entry.content, state.uid) if own else state.mark
                following = state._replace(uid=again.uid + 1, highest=again.seq, mark=mark)
            box = changed(state.box, entry, again)
            following = spent(following._replace(box=box), RETRY)
            yield Move(f"operator retries {entry.uid}", False, following)
        if state.left[PURGE]:
            clear = self.rules.purge == "always" or (self.rules.purge == "own" and own)
            newest = None if state.newest == entry.content else state.newest
            following = state._replace(mark=None if clear else state.mark, newest=newest)
            following = following._replace(box=changed(state.box, entry, None))
            yield Move(f"operator purges {entry.uid}", True, spent(following, PURGE))

    def sender(self, state: State, entry: Entry) -> Iterator[Move[State]]:
        """A sealed upload is completed."""
        backend, uid = state.backend, entry.uid
        new = uid not in backend.done and uid not in backend.superseded
        if entry.content in self.refused and not state.repaired and new:
            dead = entry._replace(dead=True)
            box = changed(state.box, entry, dead)
            if self.rules.overtaken == "answered":
                newest = max(other.seq for other in box if other.dead)
                box = tuple(other for other in box if not other.dead or other.seq == newest)
            following = state._replace(box=box)
            yield Move(f"{uid} ({entry.content}): 422, dead letter", False, following)
            return
        backend, answer = complete(backend, entry)
        following = state._replace(box=changed(state.box, entry, None), backend=backend)
        if answer != "superseded" and self.rules.overtaken in ("completed", "answered"):
            box = tuple(x for x in following.box if not x.dead or x.seq > entry.seq)
            following = following._replace(box=box)
        if answer == "superseded" and state.mark and state.mark[1] == uid:
            following = following._replace(mark=None)
        label = f"complete {uid} ({entry.content}, seq {entry.seq}): {answer}"
        yield Move(label, False, following)
        if state.left[LOST] and backend != state.backend:
            lost = spent(state._replace(backend=backend), LOST)
            yield Move(f"{label}, answer lost", True, lost)

    def check(self, state: State) -> Iterator[str]:
        """What is wrong where nothing is under way."""
        content, dead = self.script[state.source], [entry for entry in state.box if entry.dead]
        visible, newest = state.backend.visible, state.newest
        if state.uid >= self.uploads:
            return
        if len(dead) > self.most:
            yield f"dead letters of one source pile up: {[entry.content for entry in dead]}"
        elif any(not entry.dead for entry in state.box):
            return
        elif content == "GONE":
            dead_newest = any(entry.content == newest for entry in dead)
            if newest is not None and visible != newest and not dead_newest:
                yield f"gone: visible {visible}, newest {newest}, no dead letter"
        elif self.says(state) == "unchanged" and visible != content:
            yield f"a run says unchanged, visible is {visible}, the source is {content}"
        elif self.says(state) == "rejected" and all(entry.content != content for entry in dead):
            yield "rejected without a dead letter of it"

    def rest(self, state: State) -> bool:
        """Nothing is to be sent or sealed."""
        idle = all(entry.dead for entry in state.box) and self.says(state) != "due"
        return state.uid >= self.uploads or idle


def complete(backend: Backend, entry: Entry) -> tuple[Backend, str]:
    """The backend takes an upload, in one transaction."""
    visible, highest, done, superseded = backend
    if entry.uid in done:
        return backend, "duplicate"
    if entry.uid in superseded:
        return backend, "superseded"
    if visible == entry.content:
        return backend._replace(highest=max(highest, entry.seq)), "duplicate"
    if entry.seq <= highest:
        return backend._replace(superseded=superseded | {entry.uid}), "superseded"
    return Backend(entry.content, entry.seq, done | {entry.uid}, superseded), "created"


def spent(state: State, kind: int) -> State:
    """One fault of this kind fewer is left."""
    return state._replace(left=put(state.left, kind, state.left[kind] - 1))


GONE = ("v1", "v2", "GONE")
FOUR = ("v1", "v2", "v3", "v4")
BOTH = ("v1", "v2")
NONE = (0, 0, 0, 0, 0)
CASES = [
    Case("v1 v2 v1, v2 refused", None, Model()),
    Case("v1 refused", None, Model(refused=("v1",))),
    Case("both refused", None, Model(refused=BOTH, most=3)),
    Case("the source goes", None, Model(script=GONE)),
    Case(
        "the source goes, the newest and an older one refused",
        None,
        Model(script=GONE, refused=BOTH),
    ),
    Case(
        "two refused, then good ones: they end",
        None,
        Model(script=FOUR, refused=BOTH, faults=(0, 0, 1, 0, 0)),
    ),
    Case("D1 out: rejected is never said", ANY, Model(Rules(status="none"))),
    Case(
        "D1 out: any dead letter of the source",
        ANY,
        Model(Rules(status="any", overtaken="none")),
    ),
    Case(
        "a dead letter ends as a later one is sealed; that is refused and purged",
        None,
        Model(Rules(overtaken="sealed"), script=GONE, refused=BOTH),
    ),
    Case(
        "D2 out: a dead letter ends only as a later one is completed: they pile up",
        ANY,
        Model(Rules(overtaken="completed"), script=FOUR, refused=FOUR, faults=NONE),
    ),
    Case("as a later one is answered", None, Model(script=FOUR, refused=FOUR, faults=NONE)),
    Case("overtaken ones stay", None, Model(Rules(overtaken="none"), most=3)),
    Case(
        "D2 out: overtaken ones stay: they pile up",
        ANY,
        Model(
            Rules(overtaken="none"),
            script=("v1", "v2", "v1", "v2", "v3"),
            refused=BOTH,
            faults=NONE,
            most=3,
        ),
    ),
    Case("D1 out: purge never clears the mark", ANY, Model(Rules(purge="never"))),
    Case("purge always clears the mark", None, Model(Rules(purge="always"))),
    Case(
        "D1 out: retry takes a new source_seq",
        ANY,
        Model(Rules(retry="above", overtaken="none"), script=("v1", "v2", "v3")),
    ),
    Case(
        "content of a dead letter again: not sealed (stays so after the backend is repaired)",
        None,
        Model(Rules(again="skip", overtaken="none")),
    ),
]

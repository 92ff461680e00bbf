"""A backend that is restored from an older snapshot, and the client that heals it by itself.

One source, one folder, one backend; replace, append, and full in append. A snapshot may be taken at
any moment, and the backend be put back to it at any later one, twice; a restore gives it a new
generation. The client learns of it only from answers. Uploads may be under way, answers lost or
late (also over a restore); the source may go on, or be deleted; retention may drop its rows. In
append, content is a range (after, until]; `full` reads all again. What holds at rest (the client
has heard the present generation, has nothing to send, and a run would say unchanged): replace:
visible is the source; append: every row once, and none that a full upload replaced. What retention
dropped stays dropped, and so does what an operator removed, but for content that is sealed later:
what was acknowledged before, in append what is up to the watermark. Where the source is gone: its
newest content is visible, or it is reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from tests.models.explore import ANY, Case, Move, put


class Rules(NamedTuple):
    """The switches; the defaults are the rules G1 to G6."""

    compare: bool = True
    """G3, F7: a new generation makes the client compare its marks with what the backend says."""
    detect: Literal["command", "witness"] = "command"
    """G1: the generation comes with the restore (`backend restored`) | the backend takes a new one
    when a client's newest acknowledged upload is not there under its number."""
    one_answer: bool = True
    """G3: generation and list come in one answer, and are kept in one transaction."""
    answers_carry: bool = True
    """G4: an answer to `complete` counts only if it is of the generation that the folder keeps."""
    requests_carry: bool = True
    """`complete` carries the folder's generation; under another the backend does nothing."""
    keep_highest: bool = True
    """G2: retention drops rows, and keeps the source's highest source_seq and watermark."""
    removed: Literal["generation", "always", "never"] = "generation"
    """G2: a removed source is reported as removed, so that compare leaves its mark and owes no
    full: in the generation of its removal | for ever | never."""
    compared: Literal["full", "until"] = "full"
    """G5: in append the newest full's source_seq is compared too | only the watermark."""
    unequal: bool = True
    """F7: a mark is cleared where the backend's highest is another | only where it is lower."""
    flag: bool = True
    """G6: a source whose mark was cleared stays named in health until it is sealed again."""
    in_outbox: bool = True
    """F7: a mark whose upload lies in the outbox is left alone."""
    rewind: bool = True
    """F7: in append, what is sealed and does not build on the backend's watermark is ended."""


class Span(NamedTuple):
    """A range of rows in append; `full` has replaced what was before."""

    after: int
    until: int
    full: bool = False


Content = str | Span


class Mark(NamedTuple):
    """Replace: what was sealed last."""

    content: Content
    uid: int
    seq: int


class Entry(NamedTuple):
    """An upload in the outbox."""

    uid: int
    content: Content
    seq: int


class Request(NamedTuple):
    """A `complete` under way."""

    entry: Entry
    generation: int


class Answer(NamedTuple):
    """An answer to `complete`; `number` is the upload's in the backend's order."""

    uid: int
    text: str
    generation: int
    highest: int
    until: int
    number: int


class Backend(NamedTuple):
    """The backend; `done` holds (upload, its number); `dropped` is what retention dropped."""

    generation: int = 0
    visible: tuple[tuple[int, Content], ...] = ()
    highest: int = 0
    until: int = 0
    full_seq: int = 0
    done: frozenset[tuple[int, int]] = frozenset()
    superseded: frozenset[int] = frozenset()
    dropped: Content | None = None
    again: bool = False
    """What was dropped is visible again."""
    number: int = 0
    removed: int | None = None
    """The generation in which an operator removed the source, until it has content again."""
    purged: bool = False
    """It was removed once."""


class State(NamedTuple):
    """Folder, backend and network.

    `generation` is kept, `seen` was heard, `listed` was compared; `full`: source_seq of the newest
    full upload sealed; `owed`: a full is to be sent; `newest`: sealed last; `missing`: named in
    health; `last`: number and id of the newest acknowledged upload.
    """

    source: int
    mark: Mark | None
    position: int
    highest: int
    generation: int
    seen: int
    listed: int
    reading: Content | None
    box: tuple[Entry, ...]
    full: int
    backend: Backend
    snapshot: Backend | None
    late: frozenset[Request | Answer]
    left: tuple[int, ...]
    uid: int
    clock: int
    missing: bool
    owed: bool
    newest: Content | None
    last: tuple[int, int]
    erased: tuple[int, int, frozenset[Content]] | None = None
    """Of a removal: the number of the first upload that is sealed after it, and what no such upload
    may show: rows up to the watermark, contents."""


SNAPSHOT, RESTORE, LOST, LATE, RETAIN, FULL, CRASH, REMOVE = range(8)
USUAL = (1, 1, 1, 1, 0, 0, 0, 0)


class Model:
    """A source that goes through the contents, or (append) the row counts, of `script`."""

    def __init__(
        self,
        rules: Rules = Rules(),  # noqa: B008  # immutable
        script: tuple[str, ...] | tuple[int, ...] = ("v1", "v2"),
        faults: tuple[int, ...] = USUAL,
        uploads: int = 5,
    ) -> None:
        self.rules, self.faults, self.uploads = rules, faults, uploads
        self.script: tuple[str | int, ...] = script
        self.append = isinstance(script[0], int)

    def initial(self) -> State:
        """Nothing was read yet."""
        return State(
            source=0,
            mark=None,
            position=0,
            highest=0,
            generation=0,
            seen=0,
            listed=-1,
            reading=None,
            box=(),
            full=0,
            backend=Backend(),
            snapshot=None,
            late=frozenset(),
            left=self.faults,
            uid=0,
            clock=0,
            missing=False,
            owed=False,
            newest=None,
            last=(0, -1),
        )

    def due(self, state: State) -> Content | None:
        """What a run would send; None when unchanged."""
        content = self.script[state.source]
        if content == "GONE":
            return None
        if isinstance(content, str):
            return content if state.mark is None or state.mark.content != content else None
        if state.owed:
            return Span(0, content, True)
        return Span(state.position, content) if state.position < content else None

    def complete(self, backend: Backend, request: Request) -> tuple[Backend, str]:
        """The backend takes an upload, in one transaction."""
        uid, content, seq = request.entry
        visible, highest, ended = backend.visible, backend.highest, backend.superseded | {uid}
        if self.rules.requests_carry and request.generation != backend.generation:
            return backend, "generation"
        if uid in dict(backend.done):
            return backend, "duplicate"
        if uid in backend.superseded:
            return backend, "superseded"
        number = backend.number + 1
        created = backend._replace(done=backend.done | {(uid, number)}, number=number)
        if isinstance(content, str):
            if visible and visible[0][1] == content:
                return backend._replace(highest=max(highest, seq)), "duplicate"
            if seq <= highest:
                return backend._replace(superseded=ended), "superseded"
            again = backend.dropped == content
            created = created._replace(visible=((uid, content),), highest=seq)
            return created._replace(dropped=None, again=again, removed=None), "created"
        if seq <= highest if content.full else content.after != backend.until:
            return backend._replace(superseded=ended), "superseded"
        created = created._replace(
            visible=(*(() if content.full else visible), (uid, content)),
            highest=max(highest, seq),
            until=content.until,
            full_seq=seq if content.full else backend.full_seq,
            dropped=None,
            again=False,
            removed=None,
        )
        return created, "created"

    def answered(self, state: State, answer: Answer) -> State:
        """The client takes an answer to `complete`."""
        entry = next((entry for entry in state.box if entry.uid == answer.uid), None)
        other = self.rules.answers_carry and answer.generation != state.generation
        if entry is None or answer.text == "generation" or other:
            return state
        box = tuple(each for each in state.box if each != entry)
        state = state._replace(box=box)
        mark = state.mark if state.mark and state.mark.uid == entry.uid else None
        higher = max(state.highest, answer.highest)
        if answer.text in ("created", "duplicate"):
            if answer.number > state.last[0]:
                state = state._replace(last=(answer.number, entry.uid))
            by_another = answer.highest not in [each.seq for each in box]
            above = mark is not None and answer.highest > mark.seq
            if mark and above and by_another and answer.text == "duplicate":
                state = state._replace(mark=mark._replace(seq=answer.highest))
            return state
        if isinstance(entry.content, str):
            if mark is None:
                return state
            return state._replace(mark=None, highest=higher, missing=self.rules.flag)
        if entry.content.full:
            return state._replace(highest=higher, owed=True)
        return state._replace(position=answer.until, highest=higher)

    def compared(self, state: State, backend: Backend) -> State:
        """F7, G3, G5: what the backend says of the source against the folder's own."""
        highest = max(state.highest, backend.highest)
        state = state._replace(generation=backend.generation, seen=backend.generation)
        state = state._replace(last=(0, -1), highest=highest)
        told = {"generation": backend.removed == backend.generation, "never": False}
        removed = told.get(self.rules.removed, backend.removed is not None)
        if not self.append:
            mark = state.mark
            waits = mark and mark.uid in [entry.uid for entry in state.box]
            if mark is None or removed or (self.rules.in_outbox and waits):
                return state
            unequal = mark.seq != backend.highest
            if unequal if self.rules.unequal else backend.highest < mark.seq:
                return state._replace(mark=None, missing=self.rules.flag)
            return state
        full_waits = any(is_full(entry) for entry in state.box)
        behind = self.rules.compared == "full" and state.full > backend.full_seq
        if behind and not full_waits and not removed:
            return state._replace(owed=True, box=())
        at, box = backend.until, tuple[Entry, ...]()
        for entry in state.box:
            span = entry.content
            if not isinstance(span, Span):
                continue
            if span.full or span.after == at or not self.rules.rewind:
                box, at = (*box, entry), span.until
        position = at if self.rules.rewind else min(backend.until, state.position)
        return state._replace(box=box, position=position)

    def moves(self, state: State) -> Iterator[Move[State]]:
        """Source, run, sender, network, generation and faults."""
        if state.uid >= self.uploads:
            return
        if state.source + 1 < len(self.script):
            following = state._replace(source=state.source + 1)
            yield Move(f"source: {self.script[state.source + 1]}", True, following)
        yield from self.run(state)
        yield from self.sender(state)
        for message in state.late:
            following = state._replace(late=state.late - {message})
            if isinstance(message, Answer):
                label = f"late answer {message.text} of generation {message.generation}"
                yield Move(label, True, self.answered(following, message))
            else:
                backend, text = self.complete(state.backend, message)
                following = following._replace(backend=backend)
                yield Move(f"late complete {message.entry.uid}: {text}", True, following)
        yield from self.generations(state)
        yield from self.disasters(state)

    def run(self, state: State) -> Iterator[Move[State]]:
        """A run reads, then seals."""
        due, content, reading = self.due(state), self.script[state.source], state.reading
        if reading is None and due is not None:
            yield Move(f"run reads {due}", False, state._replace(reading=due))
        elif reading is None:
            if state.left[FULL] and isinstance(content, int):
                following = state._replace(reading=Span(0, content, True), erased=None)
                yield Move("run full: true", True, spent(following, FULL))
        elif isinstance(reading, Span) and not reading.full and reading.after != state.position:
            yield Move("seal refused: the watermark moved", False, state._replace(reading=None))
        else:
            seq = max(state.highest + 1, state.clock + 1)
            following = state._replace(
                reading=None,
                highest=seq,
                missing=False,
                newest=reading,
                uid=state.uid + 1,
                clock=state.clock + 1,
                box=(*state.box, Entry(state.uid, reading, seq)),
            )
            if isinstance(reading, str):
                following = following._replace(mark=Mark(reading, state.uid, seq))
            else:
                following = following._replace(position=reading.until)
            if isinstance(reading, Span) and reading.full:
                following = following._replace(full=seq)
            keeps_owed = not (isinstance(reading, Span) and reading.full) and state.owed
            following = following._replace(owed=keeps_owed)
            yield Move(f"seal {state.uid} {reading} seq {seq}", False, following)

    def sender(self, state: State) -> Iterator[Move[State]]:
        """The first upload of the outbox is completed."""
        for entry in state.box[:1]:
            request = Request(entry, state.generation)
            new, text = self.complete(state.backend, request)
            lost = state._replace(backend=new)
            number = dict(new.done).get(entry.uid, 0)
            answer = Answer(entry.uid, text, new.generation, new.highest, new.until, number)
            label = f"complete {entry.uid} seq {entry.seq}: {text}"
            yield Move(label, False, self.answered(lost, answer))
            if state.left[LOST] and new != state.backend:
                yield Move(f"{label}, answer lost", True, spent(lost, LOST))
            if state.left[LATE]:
                late = spent(lost._replace(late=state.late | {answer}), LATE)
                yield Move(f"{label}, answer late", True, late)
                late = spent(state._replace(late=state.late | {request}), LATE)
                yield Move(f"complete {entry.uid} is delayed", True, late)

    def generations(self, state: State) -> Iterator[Move[State]]:
        """A generation is heard in any answer; then the list is asked, and compared."""
        backend, rules = state.backend, self.rules
        same = state.generation == backend.generation
        if rules.detect == "witness" and same and not acknowledged_there(state):
            number, uid = state.last
            label = f"health: upload {uid} is not there as number {number}: new generation"
            new = backend._replace(generation=backend.generation + 1)
            yield Move(label, False, state._replace(backend=new))
        if rules.compare and not same and rules.one_answer:
            heard = f"generation {backend.generation}, highest {backend.highest}"
            label = f"PUT installations: {heard}, watermark {backend.until}"
            yield Move(label, False, self.compared(state, backend))
        elif rules.compare and not same and backend.generation != state.seen:
            noted = state._replace(seen=backend.generation, generation=backend.generation)
            yield Move(f"health: generation {backend.generation}, noted", False, noted)
        heard_of = state.seen and state.seen == backend.generation
        if not rules.one_answer and heard_of and state.listed != backend.generation:
            listed = self.compared(state, backend)._replace(listed=backend.generation)
            yield Move(f"list asked: highest {backend.highest}", False, listed)
            if state.left[CRASH]:
                crashed = spent(state._replace(listed=backend.generation, reading=None), CRASH)
                yield Move("crash before the list", True, crashed)

    def disasters(self, state: State) -> Iterator[Move[State]]:
        """Snapshots, restores, retention."""
        backend, snapshot = state.backend, state.snapshot
        if state.left[SNAPSHOT] and backend.generation == 0 and snapshot is None:
            yield Move("snapshot", True, spent(state._replace(snapshot=backend), SNAPSHOT))
        changed = snapshot != backend or backend.dropped is not None or backend.again
        if state.left[RESTORE] and snapshot is not None and changed:
            generation = backend.generation + (self.rules.detect == "command")
            following = state._replace(backend=snapshot._replace(generation=generation))
            erased = state.erased if snapshot.purged else None
            following = following._replace(erased=erased)
            yield Move("RESTORED", True, spent(following, RESTORE))
        if state.left[REMOVE] and backend.visible:
            contents = {content for _, content in backend.visible}
            if state.mark and state.mark.uid not in [entry.uid for entry in state.box]:
                contents.add(state.mark.content)
            first = state.uid + (state.reading is not None)
            new = backend._replace(visible=(), removed=backend.generation, purged=True)
            removal = (first, backend.until, frozenset(contents))
            # a full that was begun, or owed, before is new content, which may come
            begun = [*state.box, *([Entry(0, state.reading, 0)] if state.reading else [])]
            full_waits = state.owed or any(is_full(entry) for entry in begun)
            following = state._replace(backend=new, erased=None if full_waits else removal)
            yield Move("an operator removes the source", True, spent(following, REMOVE))
        if state.left[RETAIN] and backend.visible:
            new = backend._replace(visible=(), dropped=backend.visible[0][1], again=False)
            if not self.rules.keep_highest:
                new = new._replace(highest=0, until=0, full_seq=0)
            following = spent(state._replace(backend=new), RETAIN)
            yield Move("retention drops the source's rows", True, following)

    def rest(self, state: State) -> bool:
        """Nothing is to be read, sent, heard or asked."""
        if state.uid >= self.uploads:
            return True
        if state.reading is not None or state.box or self.due(state) is not None:
            return False
        known = self.rules.detect == "command" or acknowledged_there(state)
        if self.rules.compare and not (state.generation == state.backend.generation and known):
            return False
        listed = not state.seen or state.listed == state.backend.generation
        return self.rules.one_answer or listed

    def check(self, state: State) -> Iterator[str]:
        """Append: no row twice. At rest: what is visible is the source."""
        content, backend = self.script[state.source], state.backend
        spans = [span for _, span in backend.visible if isinstance(span, Span)]
        rows = [row for span in spans for row in range(span.after + 1, span.until + 1)]
        if len(rows) != len(set(rows)):
            yield f"rows twice: {rows}"
        elif backend.again:
            yield "what retention dropped is visible again"
        elif self.came_back(state):
            yield "what was removed is visible again"
        elif (
            not self.rest(state)
            or state.uid >= self.uploads
            or backend.dropped == content
            or self.was_before(state, content)
        ):
            return
        elif isinstance(content, int):
            least = state.erased[1] if state.erased and min(rows, default=2) > 1 else 0
            if sorted(rows) != list(range(least + 1, content + 1)):
                yield f"rest shows rows {rows} of {content}"
            elif state.full and backend.full_seq < state.full and state.erased is None:
                yield "the full upload's effect is lost: older rows are visible again"
        else:
            shown = [visible for _, visible in backend.visible]
            unnamed = not state.missing and state.newest is not None and shown != [state.newest]
            if content == "GONE" and unnamed:
                yield f"rest shows {shown}, newest was {state.newest}, the source is gone, unnamed"
            elif content != "GONE" and shown != [content]:
                yield f"rest shows {shown}, the source is {content}"

    def was_before(self, state: State, content: Content | int) -> bool:
        """Whether the source is what it was when it was removed, or sealed then."""
        if state.erased is None:
            return False
        first, _, contents = state.erased
        return content in contents or bool(state.mark and state.mark.uid < first)

    def came_back(self, state: State) -> bool:
        """Whether an upload that was sealed after the removal shows what was removed."""
        if state.erased is None:
            return False
        first, until, contents = state.erased
        return any(
            uid >= first
            and (content.after < until if isinstance(content, Span) else content in contents)
            for uid, content in state.backend.visible
        )


def is_full(entry: Entry) -> bool:
    """Whether an upload is a full one, in append."""
    return isinstance(entry.content, Span) and entry.content.full


def acknowledged_there(state: State) -> bool:
    """Whether the newest acknowledged upload is at the backend under its number."""
    number, uid = state.last
    return not number or (uid, number) in state.backend.done


def spent(state: State, kind: int) -> State:
    """One fault of this kind fewer is left."""
    return state._replace(left=put(state.left, kind, state.left[kind] - 1))


TWICE, KEPT, FULLS = (1, 2, 1, 1, 0, 0, 0, 0), (1, 1, 0, 0, 1, 0, 0, 0), (1, 1, 1, 1, 0, 1, 0, 0)
REMOVES, FULL_REMOVES = (1, 1, 1, 1, 0, 0, 0, 1), (1, 1, 0, 0, 0, 1, 0, 1)
NOBODY = Rules(compare=False, requests_carry=False, answers_carry=False)
SILENT = Rules(requests_carry=False, answers_carry=False)
ANSWERS = Rules(requests_carry=False)
WITNESS = Rules(detect="witness")
BACK, GONE = ("v1", "v2", "v1"), ("v1", "v2", "GONE")
CASES = [
    Case("G1 out: replace, nobody reports a generation", ANY, Model(NOBODY)),
    Case("G1 out: append (the chain heals only when more rows come)", ANY, Model(NOBODY, (1, 2))),
    Case("replace: generation, compare", None, Model()),
    Case("restored twice", None, Model(faults=TWICE)),
    Case("restored twice, v1 v2 v1", None, Model(script=BACK, faults=TWICE)),
    Case("source gone: named", None, Model(script=GONE, faults=TWICE)),
    Case("G6 out: source gone, a cleared mark is not named", ANY, Model(Rules(flag=False), GONE)),
    Case("retention keeps the highest", None, Model(script=("v1",), faults=KEPT)),
    Case("append: generation, compare", None, Model(script=(1, 2, 3), faults=TWICE)),
    Case("append, full", None, Model(script=(1, 2), faults=FULLS)),
    Case("replace, only answers carry the generation", None, Model(ANSWERS, BACK)),
    Case("G4 out: replace, neither requests nor answers", ANY, Model(SILENT)),
    Case("G4 out: replace, only requests carry it", ANY, Model(Rules(answers_carry=False))),
    Case("G4 out: append, neither requests nor answers", ANY, Model(SILENT, (1, 2, 3))),
    Case("append, only answers carry it", None, Model(ANSWERS, (1, 2, 3))),
    Case("append and full, only answers carry it", None, Model(ANSWERS, (1, 2), FULLS)),
    Case(
        "G5 out: append and full, only the watermark is compared",
        ANY,
        Model(Rules(compared="until"), (1, 2), FULLS),
    ),
    Case("no command, clients are the witness", None, Model(WITNESS, BACK, uploads=4)),
    Case("no command, append", None, Model(WITNESS, (1, 2), uploads=4)),
    Case(
        "G1 out: no command, restored twice between two health reports, a late request",
        ANY,
        Model(WITNESS, faults=TWICE, uploads=4),
    ),
    Case(
        "G3 out: generation noted, list asked later, crash between",
        ANY,
        Model(Rules(one_answer=False), faults=(1, 1, 0, 0, 0, 0, 1, 0)),
    ),
    Case("compared by `lower` only", None, Model(Rules(unequal=False), BACK)),
    Case("marks in the outbox are cleared too", None, Model(Rules(in_outbox=False))),
    Case("append, the outbox is not rewound", None, Model(Rules(rewind=False), (1, 2, 3))),
    Case("removed", None, Model(faults=REMOVES)),
    Case("removed, and the source goes on", None, Model(script=("v1", "v2", "v3"), faults=REMOVES)),
    Case(
        "G2 out: a removed source is reported as any other: what was removed is sent again",
        ANY,
        Model(Rules(removed="never"), faults=REMOVES),
    ),
    Case(
        "G2 out: reported as removed after a restore, too: what came after the removal is lost",
        ANY,
        Model(Rules(removed="always"), ("v1", "v2", "v3"), REMOVES),
    ),
    Case("append, removed", None, Model(script=(1, 2, 3), faults=REMOVES)),
    Case("append and full, removed", None, Model(script=(1, 2), faults=FULL_REMOVES)),
    Case(
        "G2 out: append and full, a removed source's full is owed",
        ANY,
        Model(Rules(removed="never"), (1, 2), FULL_REMOVES),
    ),
    Case(
        "G2 out: retention forgets the highest",
        ANY,
        Model(Rules(keep_highest=False), ("v1",), KEPT),
    ),
]

"""The upload protocol: messages and transactions of one installation, one source, one folder.

client   run starts -> chunks PUT while producing -> seal (one transaction: sealed, mark or
         watermark, source_seq) -> remaining chunks -> complete -> its answer ends the upload. Crash
         unsealed: the attempt is abandoned. Crash sealed: nothing changes (durable). Loss of the
         folder: outbox, marks and known source_seq are gone, installation_id is kept. Dead letter
         (a final 4xx), an operator's retry and purge.
network  every request may be lost, or delivered with its answer lost, or delayed and delivered any
         number of times at any later moment, also after the folder is lost; answers too. Lost
         requests, 429, 5xx and backend crashes between transactions change no durable state.
backend  PUT and complete are one transaction each; expiry of chunks, one by one.

TEXT is the protocol's first version as an engineer would read it, NOW a revised one (duplicate only
while the key is visible, and its source_seq rises; a new folder asks before it numbers), BUILT is
NOW with what the reference says today. The variants take each sentence out of BUILT again, to show
that it is needed, and try other readings and other ways (RELOAD). An operator may always retry or
purge a dead letter; a retry counts as a way to rest.

I1 a visible upload has all its chunks, and only its own. I2 (replace) at rest the source's content,
once. I3 (append) never a row twice; at rest none missing. I4 a sealed upload ends only by an
answer, purge, loss. I5 a rest is always reached. I6 a request for a finished upload changes
nothing. I7 the newest `full: true` upload does not end without effect. At rest: the client is idle;
messages may still be under way. Not modelled: time, 401 and 403 pauses, the simple form, two hosts
under one id (folders.py), a backend restored from a backup that is not empty (restored.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from tests.models.explore import ANY, Case, Move, changed, put


class Rules(NamedTuple):
    """The switches; the defaults are TEXT."""

    seen: Literal["last", "set"] = "last"
    """The mark is the source's last sealed content | any content ever sealed here."""
    key_check: bool = True
    """Replace: a completed upload_key answers duplicate ..."""
    key_visible: bool = False
    """... only where that key's upload is the visible one ..."""
    key_advance: bool = False
    """... and the source's highest source_seq rises to the one in the request."""
    tie: Literal["superseded", "replace"] = "superseded"
    """An equal source_seq under another upload_id."""
    bump: bool = False
    """Superseded while the mark is still its own: sealed again above the answered highest."""
    clock: bool = False
    """source_seq is at least the clock."""
    asks: bool = False
    """PUT installations is answered before anything is sealed."""
    chain: bool = False
    """Append: complete carries after and until; accepted only where `after` is the watermark."""
    full_hides: bool = False
    """Append: a full upload hides all with a lower source_seq, come or to come."""
    fresh_full: bool = False
    """Append: the first upload of a source without a watermark here is sent as full."""
    ordered: bool = False
    """Append: a source's completes go in sealing order; a dead letter holds the later ones."""
    seal_in_place: bool = False
    """Append: sealing fails where the watermark is no longer where the range starts."""
    expiry_recheck: bool = True
    """Expiry deletes each chunk only if its upload is still not complete."""
    missing_first: bool = False
    """Complete looks for missing chunks before it looks whether the upload is finished."""
    restart_same_id: bool = False
    """A file that changed while it was read restarts under the same upload_id."""
    drop: bool = False
    """(sanity) The client gives up a sealed upload by age."""
    forget: bool = False
    """(sanity) The backend forgets which upload_ids are finished."""
    purge: Literal["back", "range"] = "back"
    """Append: a purge sets the watermark back to the range's start | that range is read again."""


TEXT = Rules()
NOW = TEXT._replace(key_visible=True, key_advance=True, asks=True)
BUILT = NOW._replace(bump=True, clock=True, chain=True, full_hides=True, ordered=True)
RELOAD = BUILT._replace(chain=False, fresh_full=True, ordered=False, purge="range")
RELOAD = RELOAD._replace(seal_in_place=True)  # without a watermark at the backend

Span = tuple[int, int]
Content = str | Span
OPEN, COMPLETE, SUPERSEDED = range(3)
NO_CHUNKS: tuple[Content | None, Content | None] = (None, None)


class Attempt(NamedTuple):
    """An upload that a run is producing."""

    uid: int
    content: Content
    full: bool
    acked: frozenset[int]


class Entry(NamedTuple):
    """A sealed upload in the outbox."""

    uid: int
    content: Content
    seq: int
    full: bool
    acked: frozenset[int]
    dead: bool = False


class Put(NamedTuple):
    """A chunk under way."""

    uid: int
    chunk: int
    content: Content


class Complete(NamedTuple):
    """A complete under way."""

    uid: int
    content: Content
    seq: int
    full: bool


class Answer(NamedTuple):
    """What the backend answers; `highest` and `until` where superseded."""

    text: Literal["200", "201", "410", "409", "created", "duplicate", "missing", "superseded"]
    missing: tuple[int, ...] = ()
    highest: int = 0
    until: int = 0


class Late(NamedTuple):
    """An answer under way, with what it answers."""

    request: Complete
    answer: Answer
    is_answer: Literal[True] = True


Request = Put | Complete
Message = Put | Complete | Late


class Said(NamedTuple):
    """What a complete said of an upload that the backend made visible."""

    content: Content
    seq: int
    full: bool


class State(NamedTuple):
    """Folder, network and backend.

    Client: `marks` are contents ever sealed (of `seen="set"`), `mark` the last one, `position` the
    watermark, `known` the highest asked for, `last` the newest full upload sealed (append), `holes`
    purged ranges to read again, `owed`: the backend was restored, no full since. Backend: chunk
    contents by upload in `store`, then each upload's status, what is visible, the highest
    source_seq, the watermark, the keys ever completed; `expiring` is (upload, chunk) under way.
    """

    source: int
    mark: tuple[Content, int] | None
    marks: frozenset[Content]
    position: int
    highest: int
    known: int | None
    attempt: Attempt | None
    box: tuple[Entry, ...]
    store: tuple[tuple[Content | None, ...], ...]
    status: tuple[int, ...]
    visible: frozenset[int]
    backend_highest: int
    until: int
    keys: frozenset[Content]
    said: tuple[Said | None, ...]
    late: frozenset[Message]
    left: tuple[int, ...]
    clock: int
    expiring: tuple[int, int] | None
    last: int | None
    holes: frozenset[Span]
    owed: bool


LOSS, CRASH, FULL, EXPIRE, DEAD, DELAY, RESTORE = range(7)


class Scenario(NamedTuple):
    """Successive contents (or row counts) of a source, faults, chunks of a content where not 1."""

    script: tuple[str, ...] | tuple[int, ...]
    faults: Mapping[int, int]
    chunks: Mapping[Content, int] = {}


class Model:
    """A scenario under some rules; with `no_answer`, PUT installations is answered 404."""

    def __init__(self, rules: Rules, scenario: Scenario, *, no_answer: bool = False) -> None:
        self.rules, self.chunks, self.no_answer = rules, scenario.chunks, no_answer
        self.script: tuple[str | int, ...] = scenario.script
        self.append = isinstance(self.script[0], int)
        self.faults = tuple(scenario.faults.get(kind, int(kind == DELAY)) for kind in range(7))

    def initial(self) -> State:
        """Nothing was read yet."""
        none: frozenset[int] = frozenset()
        return State(
            source=0,
            mark=None,
            marks=frozenset(),
            position=0,
            highest=0,
            known=None,
            attempt=None,
            box=(),
            store=(),
            status=(),
            visible=none,
            backend_highest=0,
            until=0,
            keys=frozenset(),
            said=(),
            late=frozenset(),
            left=self.faults,
            clock=0,
            expiring=None,
            last=None,
            holes=frozenset(),
            owed=False,
        )

    def count(self, content: Content) -> int:
        """How many chunks a content has."""
        return self.chunks.get(content, 1)

    # the backend: each is one transaction

    def takes(self, state: State, request: Request) -> tuple[State, Answer]:
        """The backend takes a request."""
        return self.put(state, request) if isinstance(request, Put) else self.judge(state, request)

    def put(self, state: State, request: Put) -> tuple[State, Answer]:
        """A chunk is stored."""
        uid, chunk, content = request
        if state.status[uid] and not self.rules.forget:
            return state, Answer("410")
        stored = state.store[uid][chunk]
        if stored is not None:
            return state, Answer("200" if stored == content else "409")
        store = put(state.store, uid, put(state.store[uid], chunk, content))
        return state._replace(store=store), Answer("201")

    def judge(self, state: State, request: Complete) -> tuple[State, Answer]:
        """An upload is completed."""
        uid, content, seq, full = request
        rules, chunks = self.rules, range(self.count(content))
        missing = tuple(chunk for chunk in chunks if state.store[uid][chunk] is None)
        superseded = Answer("superseded", (), state.backend_highest, state.until)
        if rules.missing_first and missing:
            return state, Answer("missing", missing)
        if state.status[uid] == COMPLETE and not rules.forget:
            return state, Answer("duplicate")
        if state.status[uid] == SUPERSEDED and not rules.forget:
            return state, superseded
        checks_key = rules.key_check if not self.append else not rules.chain
        if checks_key and not full and content in state.keys:
            shown = any(content == said.content for said in shown_of(state))
            if shown or not rules.key_visible:
                higher = max(state.backend_highest, seq)
                raised = state._replace(backend_highest=higher) if rules.key_advance else state
                return raised, Answer("duplicate")
        if self.is_late(state, request):
            status = put(state.status, uid, SUPERSEDED)
            return state._replace(status=status), superseded
        if missing:
            return state, Answer("missing", missing)
        hides = full and rules.full_hides and self.append
        older: frozenset[int] = frozenset()
        if not self.append:
            older = state.visible
        elif hides:  # older rows leave in the same transaction
            older = frozenset(u for u in state.visible if said_of(state, u).seq < seq)
        store = tuple(NO_CHUNKS if u in older else row for u, row in enumerate(state.store))
        following = state._replace(
            store=store,
            visible=(state.visible | {uid}) - older,
            status=put(state.status, uid, COMPLETE),
            said=put(state.said, uid, Said(content, seq, full)),
            keys=state.keys | {content},
            until=0 if isinstance(content, str) else content[1],
            backend_highest=max(state.backend_highest, seq),
        )
        return following, Answer("created")

    def is_late(self, state: State, request: Complete) -> bool:
        """Whether something newer is there, or the chain is not at the request's start."""
        _, content, seq, full = request
        if isinstance(content, str):
            equal = seq == state.backend_highest and self.rules.tie == "superseded"
            return seq < state.backend_highest or equal
        if self.rules.chain:
            if full and self.rules.full_hides:
                return seq <= state.backend_highest
            return content[0] != state.until
        if not self.rules.full_hides:
            return seq <= 0
        ended = zip(state.said, state.status, strict=True)
        fulls = [said.seq for said, status in ended if said and said.full and status == COMPLETE]
        return seq <= max(fulls, default=0)

    # the client

    def next_seq(self, state: State, above: int) -> int:
        """A source_seq above this one."""
        return max(above + 1, state.clock + 1 if self.rules.clock else 0)

    def answered(self, state: State, request: Request, answer: Answer) -> State:
        """The client takes an answer."""
        attempt, text = state.attempt, answer.text
        if attempt and attempt.uid == request.uid:
            if isinstance(request, Put) and text in ("200", "201"):
                acked = attempt.acked | {request.chunk}
                return state._replace(attempt=attempt._replace(acked=acked))
            return state._replace(attempt=None) if text == "409" else state
        waiting = (e for e in state.box if e.uid == request.uid and not e.dead)
        entry = next(waiting, None)
        if entry is None:
            return state
        if isinstance(request, Put):
            if text in ("200", "201"):
                new = entry._replace(acked=entry.acked | {request.chunk})
            elif text == "410":
                new = entry._replace(acked=frozenset(range(self.count(entry.content))))
            else:
                new = entry._replace(dead=True)
            return state._replace(box=changed(state.box, entry, new))
        if text == "missing":
            new = entry._replace(acked=entry.acked - set(answer.missing))
            return state._replace(box=changed(state.box, entry, new))
        ended = state._replace(box=changed(state.box, entry, None))
        if text in ("created", "duplicate"):
            return ended
        if self.append and not entry.full:  # the next run reads on from there
            return ended._replace(position=answer.until) if self.rules.chain else ended
        own = state.last == entry.uid if self.append else state.mark == (entry.content, entry.uid)
        return self.sealed_again(state, entry, answer) if self.rules.bump and own else ended

    def sealed_again(self, state: State, entry: Entry, answer: Answer) -> State:
        """The same bytes under a new upload_id, above the answered highest."""
        seq = self.next_seq(state, max(state.highest, answer.highest))
        following, uid = opened(state)
        again = Entry(uid, entry.content, seq, entry.full, frozenset())
        return following._replace(
            box=changed(state.box, entry, again),
            highest=max(state.highest, seq),
            mark=state.mark if self.append else (entry.content, uid),
            clock=state.clock + 1,
            last=uid if self.append else None,
        )

    def due(self, state: State) -> Content | None:
        """What a run would send; None when unchanged."""
        content = self.script[state.source]
        if isinstance(content, int):
            if state.holes:
                return min(state.holes)
            return (state.position, content) if state.position < content else None
        if self.rules.seen == "set":
            return content if content not in state.marks else None
        return content if state.mark is None or state.mark[0] != content else None

    def rest(self, state: State) -> bool:
        """The client is idle."""
        idle = state.attempt is None and not state.box and self.due(state) is None
        return idle and not state.owed

    # moves

    def moves(self, state: State) -> Iterator[Move[State]]:
        """Every step, with the rules that it breaks."""
        for move, request in self.steps(state):
            yield move._replace(broken=tuple(self.broken_by(state, move, request)))

    def broken_by(self, state: State, move: Move[State], request: Request | None) -> Iterator[str]:
        """The invariants that a step breaks."""
        label, following, known = move.label, move.state, len(state.store)
        if request and state.status[request.uid]:
            before = state.visible, state.backend_highest, state.until, state.store, state.status
            store, status = following.store[:known], following.status[:known]
            backend = following.backend_highest, following.until
            if before != (following.visible, *backend, store, status):
                yield "I6"
        left = {entry.uid for entry in state.box} - {entry.uid for entry in following.box}
        if left and not any(word in label for word in ("complete", "answer", "purges", "lost")):
            yield "I4"
        if "lost" in label or "purges" in label:
            return
        for entry in state.box:
            ended = entry.uid in left and following.status[entry.uid] == SUPERSEDED
            own = state.mark == (entry.content, entry.uid)
            own = state.last == entry.uid if self.append else own
            if entry.full and ended and own and not any(e.full for e in following.box):
                yield "I7"

    Step = tuple[Move[State], Request | None]

    def steps(self, state: State) -> Iterator[Step]:
        """Every step, with the request that was delivered in it."""
        if state.source + 1 < len(self.script):
            label = f"source becomes {self.script[state.source + 1]}"
            yield Move(label, True, state._replace(source=state.source + 1)), None
        if state.known is None and self.no_answer:
            yield Move("PUT installations: 404, ignored", False, state._replace(known=0)), None
        elif state.known is None:
            following = state._replace(known=state.backend_highest)
            if self.rules.chain and self.append and state.position == 0:
                following = following._replace(position=state.until)
            label = f"PUT installations: highest {state.backend_highest}"
            yield Move(label, False, following), None
        if state.attempt is None:
            yield from self.starts(state)
        else:
            yield from self.run(state, state.attempt)
        yield from self.outbox(state)
        yield from self.network(state)
        yield from self.disasters(state)

    def starts(self, state: State) -> Iterator[Step]:
        """A run begins to read."""
        due, now = self.due(state), self.script[state.source]
        if due is not None:
            following, uid = opened(state)
            full = self.rules.fresh_full and self.append and state.position == 0
            following = following._replace(attempt=Attempt(uid, due, full, frozenset()))
            label = f"run reads {due} as upload {uid}{', full' if full else ''}"
            yield Move(label, False, following), None
        if state.left[FULL] or state.owed:
            everything = (0, now) if isinstance(now, int) else now
            following, uid = opened(state if state.owed else spent(state, FULL))
            attempt = Attempt(uid, everything, True, frozenset())
            following = following._replace(attempt=attempt, owed=False)
            label = f"run full:true reads {everything} as upload {uid}"
            yield Move(label, not state.owed, following), None

    def run(self, state: State, attempt: Attempt) -> Iterator[Step]:
        """A run starts again, or seals, or crashes, or sends a chunk."""
        uid, content, full, acked = attempt
        now, moved = self.script[state.source], False
        if not isinstance(content, str):
            begin = 0 if full else state.position
            moved = self.rules.seal_in_place and content[0] != begin and content not in state.holes
        if isinstance(now, str) and now != content:
            following, new = (state, uid) if self.rules.restart_same_id else opened(state)
            again = Attempt(new, now, full, frozenset())
            label = f"source changed while read: attempt starts again as upload {new}"
            yield Move(label, False, following._replace(attempt=again)), None
        elif moved:
            label = f"seal of upload {uid} refused: the watermark moved"
            yield Move(label, False, state._replace(attempt=None)), None
        elif not self.rules.asks or state.known is not None:
            yield Move(f"seal upload {uid}", False, self.sealed(state, attempt)), None
        if state.left[CRASH]:
            following = spent(state._replace(attempt=None), CRASH)
            yield Move(f"crash: upload {uid} dies unsealed", True, following), None
        if 0 not in acked and self.count(content) > 1:
            yield from self.send(state, Put(uid, 0, content))

    def sealed(self, state: State, attempt: Attempt) -> State:
        """One transaction: the upload, its source_seq, the mark or the watermark."""
        uid, content, full, acked = attempt
        seq = self.next_seq(state, max(state.highest, state.known or 0))
        entry = Entry(uid, content, seq, full, acked)
        following = state._replace(attempt=None, highest=seq, clock=state.clock + 1)
        following = following._replace(box=(*state.box, entry))
        if isinstance(content, str):
            if self.rules.seen == "set":
                return following._replace(marks=state.marks | {content})
            return following._replace(mark=(content, uid))
        hole = content in state.holes
        return following._replace(
            position=max(state.position, content[1]) if hole else content[1],
            last=uid if full else state.last,
            holes=frozenset() if full else state.holes - {content},
        )

    def outbox(self, state: State) -> Iterator[Step]:
        """What operator and sender do with each upload."""
        held = False
        for entry in state.box:
            if entry.dead:
                held = held or (self.append and self.rules.ordered)
                again = changed(state.box, entry, entry._replace(dead=False))
                label = f"operator retries upload {entry.uid}"
                yield Move(label, False, state._replace(box=again)), None
                label = f"operator purges upload {entry.uid}"
                yield Move(label, True, self.purged(state, entry)), None
                continue
            if self.rules.drop:
                following = state._replace(box=changed(state.box, entry, None))
                yield Move(f"upload {entry.uid} dropped by age", True, following), None
            chunks = range(self.count(entry.content))
            unsent = [chunk for chunk in chunks if chunk not in entry.acked]
            if unsent:
                yield from self.send(state, Put(entry.uid, unsent[0], entry.content))
            elif not held:
                yield from self.send(state, Complete(*entry[:4]))
            held = held or (self.append and self.rules.ordered)

    def purged(self, state: State, entry: Entry) -> State:
        """An operator gives a dead letter up."""
        uid, content, full = entry.uid, entry.content, entry.full
        following = state._replace(box=changed(state.box, entry, None))
        if isinstance(content, str):
            if self.rules.seen == "set":
                return following._replace(marks=state.marks - {content})
            return following._replace(mark=None) if state.mark == (content, uid) else following
        if self.rules.purge == "range" and not full:
            return following._replace(holes=state.holes | {content})
        return following._replace(position=min(content[0], state.position))

    def network(self, state: State) -> Iterator[Step]:
        """What was delayed is delivered (and stays, to come again), or vanishes."""
        for message in state.late:
            following = state._replace(late=state.late - {message})
            yield Move(f"late {say(message)} vanishes", True, following), None
            if isinstance(message, Late):
                following = self.answered(state, message.request, message.answer)
                label = f"late answer {message.answer.text} reaches the client"
                yield Move(label, True, following), None
            else:
                following, answer = self.takes(state, message)
                label = f"late {say(message)} arrives: {answer.text}"
                yield Move(label, True, following), message

    def disasters(self, state: State) -> Iterator[Step]:
        """The folder is lost, the backend restored; chunks expire."""
        if state.left[LOSS]:
            lost = state._replace(
                mark=None,
                marks=frozenset(),
                position=0,
                highest=0,
                known=None,
                attempt=None,
                box=(),
                last=None,
                holes=frozenset(),
            )
            yield Move("state folder lost", True, spent(lost, LOSS)), None
        if state.left[RESTORE] and state.visible:
            empty = state._replace(
                store=tuple(NO_CHUNKS for _ in state.store),
                status=tuple(OPEN for _ in state.status),
                visible=frozenset(),
                backend_highest=0,
                until=0,
                keys=frozenset(),
                said=tuple(None for _ in state.said),
                expiring=None,
                owed=True,
            )
            label = "backend restored from an empty backup"
            yield Move(label, True, spent(empty, RESTORE)), None
        if state.expiring is not None:
            uid, chunk = state.expiring
            following = state._replace(expiring=(uid, chunk + 1) if chunk == 0 else None)
            if not self.rules.expiry_recheck or state.status[uid] != COMPLETE:
                store = put(state.store, uid, put(state.store[uid], chunk, None))
                following = following._replace(store=store)
            yield Move(f"expiry reaches chunk {chunk} of upload {uid}", False, following), None
        elif state.left[EXPIRE]:
            for uid, row in enumerate(state.store):
                if state.status[uid] != COMPLETE and row != NO_CHUNKS:
                    following = spent(state._replace(expiring=(uid, 0)), EXPIRE)
                    yield Move(f"7 days: expiry picks upload {uid}", True, following), None

    def send(self, state: State, request: Request) -> Iterator[Step]:
        """A request is delivered; or its answer is lost or late, or it is late or refused."""
        lost, answer = self.takes(state, request)
        label = f"{say(request)}: {answer.text}"
        yield Move(label, False, self.answered(lost, request, answer)), request
        if lost != state:
            yield Move(f"{label}, answer lost", True, lost), request
        if state.left[DELAY] and not state.late:
            following = spent(state._replace(late=frozenset({request})), DELAY)
            yield Move(f"{say(request)} is delayed", True, following), None
            if isinstance(request, Complete):
                late = lost._replace(late=frozenset({Late(request, answer)}))
                yield Move(f"{label}, answer delayed", True, spent(late, DELAY)), request
        if state.left[DEAD]:
            for entry in state.box:
                if entry.uid == request.uid:
                    box = changed(state.box, entry, entry._replace(dead=True))
                    following = spent(state._replace(box=box), DEAD)
                    yield Move(f"{say(request)}: 422, dead letter", True, following), None

    # what holds

    def check(self, state: State) -> Iterator[str]:
        """I1; I2 or I3."""
        for uid in state.visible:
            content, row = said_of(state, uid).content, state.store[uid]
            count = self.count(content)
            if any(chunk != content for chunk in row[:count]) or any(row[count:]):
                yield "I1"
        contents = [said.content for said in shown_of(state)]
        now = self.script[state.source]
        if isinstance(now, str):
            if len(contents) > 1 or (self.rest(state) and contents != [now]):
                yield "I2"
            return
        spans = [content for content in contents if not isinstance(content, str)]
        rows = sorted(row for after, until in spans for row in range(after + 1, until + 1))
        twice = len(rows) != len(set(rows))
        if twice or (self.rest(state) and rows != list(range(1, now + 1))):
            yield "I3"


def said_of(state: State, uid: int) -> Said:
    """What was said of a visible upload."""
    said = state.said[uid]
    assert said is not None
    return said


def shown_of(state: State) -> list[Said]:
    """What was said of the visible uploads."""
    return [said_of(state, uid) for uid in state.visible]


def opened(state: State) -> tuple[State, int]:
    """The state with one more upload_id."""
    uid = len(state.store)
    store, status = (*state.store, NO_CHUNKS), (*state.status, OPEN)
    return state._replace(store=store, status=status, said=(*state.said, None)), uid


def say(message: Message) -> str:
    """A message's name in a trace."""
    if isinstance(message, Late):
        return "answer"
    if isinstance(message, Put):
        return f"PUT {message.uid}/{message.chunk}"
    return f"complete {message.uid} (source_seq {message.seq})"


def spent(state: State, kind: int) -> State:
    """One fault of this kind fewer is left."""
    return state._replace(left=put(state.left, kind, state.left[kind] - 1))


ONE, TWO, BACK = ("v1",), ("v1", "v2"), ("v1", "v2", "v1")
SCENARIOS = {
    "replace: v1 v2 v1": Scenario(BACK, {CRASH: 1}),
    "replace: expiry, 2 chunks": Scenario(TWO, {CRASH: 1, EXPIRE: 1}, {"v1": 2}),
    "replace: full": Scenario(TWO, {FULL: 1}),
    "replace: dead letter": Scenario(BACK, {DEAD: 1, DELAY: 0}),
    "replace: state loss": Scenario(TWO, {LOSS: 1}),
    "replace: state loss, v1 v2 v1": Scenario(BACK, {LOSS: 1}),
    "replace: loss, expiry, 2 chunks": Scenario(TWO, {LOSS: 1, EXPIRE: 1, DELAY: 0}, {"v1": 2}),
    "replace: restored backend": Scenario(TWO, {FULL: 1, RESTORE: 1, DELAY: 0}),
    "append: 3 ranges": Scenario((1, 2, 3), {CRASH: 1}),
    "append: expiry, 2 chunks": Scenario((1, 2), {EXPIRE: 1}, {(0, 1): 2}),
    "append: full": Scenario((1, 2), {FULL: 1}),
    "append: dead letter": Scenario((1, 2), {DEAD: 1}),
    "append: dead letter, 3 ranges": Scenario((1, 2, 3), {DEAD: 1, DELAY: 0}),
    "append: state loss": Scenario((1, 2), {LOSS: 1}),
    "append: loss, full": Scenario((1, 2), {LOSS: 1, FULL: 1}),
    "append: loss, dead letter": Scenario((1, 2), {LOSS: 1, DEAD: 1, DELAY: 0}),
    "append: restored backend": Scenario((1, 2), {FULL: 1, RESTORE: 1, DELAY: 0}),
}
APPEND = [name for name in SCENARIOS if name.startswith("append") and name != "append: loss, full"]
V121, LOST, LOST_BACK = "replace: v1 v2 v1", "replace: state loss", "replace: state loss, v1 v2 v1"
TAIL, FULLS, DEAD_TAIL = "append: state loss", "append: full", "append: dead letter"
EXPIRY = "replace: expiry, 2 chunks"
BREAKS = [
    ("any completed key answers duplicate", BUILT._replace(key_visible=False), V121),
    ("source_seq does not rise on duplicate", BUILT._replace(key_advance=False), V121),
    ("mark = any content ever sealed", BUILT._replace(seen="set", bump=False), V121),
    ("neither clock nor resealing", BUILT._replace(clock=False, bump=False), LOST),
    ("resealing only (clock stepped back)", BUILT._replace(clock=False), LOST_BACK),
    ("TEXT, PUT installations before any sealing", TEXT._replace(asks=True), LOST),
    ("TEXT, equal source_seq replaces", TEXT._replace(tie="replace"), LOST),
    ("append without chain", BUILT._replace(chain=False), TAIL),
    ("a full one hides nothing", BUILT._replace(full_hides=False, bump=False), FULLS),
    ("append, completes in any order", BUILT._replace(ordered=False), FULLS),
    ("TEXT, sealing checks the watermark", TEXT._replace(seal_in_place=True), DEAD_TAIL),
    ("expiry looks once, then deletes", BUILT._replace(expiry_recheck=False), EXPIRY),
    ("complete looks for missing chunks first", BUILT._replace(missing_first=True), V121),
    ("restart under the same upload_id", BUILT._replace(restart_same_id=True), EXPIRY),
    ("RELOAD, clock stepped back", RELOAD._replace(clock=False), TAIL),
    ("sanity: sealed uploads dropped by age", BUILT._replace(drop=True), TAIL),
    (
        "sanity: finished upload_ids forgotten",
        BUILT._replace(bump=False, forget=True),
        "replace: full",
    ),
]
NO_KEYS = BUILT._replace(key_check=False)
HOLDS = [
    *(
        ("no key check in replace at all", NO_KEYS, s)
        for s in (V121, "replace: full", LOST, LOST_BACK)
    ),
    *(("numbers without asking", BUILT._replace(asks=False), s) for s in (LOST, LOST_BACK, TAIL)),
    *(("clock only", BUILT._replace(bump=False), s) for s in (LOST, LOST_BACK)),
    ("resealing only (clock stepped back)", BUILT._replace(clock=False), LOST),
    ("append, clock stepped back", BUILT._replace(clock=False), TAIL),
    ("TEXT, only a purged range is read again", TEXT._replace(purge="range"), DEAD_TAIL),
    *(("RELOAD (no chain: a fresh folder sends full)", RELOAD, scenario) for scenario in APPEND),
]
NOW_BREAKS = {LOST, LOST_BACK, FULLS, DEAD_TAIL, TAIL}
NOW_BREAKS |= {"append: dead letter, 3 ranges", "append: loss, full", "append: loss, dead letter"}
NOW_BREAKS |= {"append: restored backend"}
TEXT_BREAKS = NOW_BREAKS | {V121, "replace: dead letter", "replace: loss, expiry, 2 chunks"}
"""What the earlier versions do not stand."""
SLOW = {EXPIRY, LOST_BACK, "replace: restored backend", "append: loss, full"}
"""Scenarios with more than 15,000 states."""


def case(what: str, rules: Rules, name: str, breaks: str | None) -> Case:
    """A scenario under some rules; one that breaks is found soon, and not slow."""
    slow = breaks is None and (rules != BUILT or name in SLOW)
    slow = slow or (rules == TEXT and name == "append: restored backend")
    return Case(f"{what}, {name}", breaks, Model(rules, SCENARIOS[name]), slow=slow)


def silent(name: str) -> Model:
    """A scenario in which PUT installations answers nothing of use."""
    return Model(BUILT, SCENARIOS[name], no_answer=True)


NO_ANSWER = "PUT installations answers 404"
CASES = [
    *(case("BUILT", BUILT, name, None) for name in SCENARIOS),
    *(case(what, rules, name, ANY) for what, rules, name in BREAKS),
    *(case(what, rules, name, None) for what, rules, name in HOLDS),
    *(
        Case(f"{NO_ANSWER}, {name}", None, silent(name), slow=True)
        for name in (LOST, LOST_BACK, TAIL)
    ),
    *(case("TEXT", TEXT, name, ANY if name in TEXT_BREAKS else None) for name in SCENARIOS),
    *(case("NOW", NOW, name, ANY if name in NOW_BREAKS else None) for name in SCENARIOS),
]

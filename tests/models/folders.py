"""Two state folders under one installation_id: an old host, a copied folder, a source that is gone.

Replace mode, one source, two hosts A and B, one backend. B starts at any moment, with an empty
folder (reinstalled elsewhere) or with a copy of A's (VM clone, image). Nothing stops A: whatever it
does later is "the old host comes back" (sealing and sending are separate moves, so that being
offline is an interleaving). The source is shared (a network folder, a database), or each host has
its own disk, A's standing still since B started. The backend may be restored from its first day,
the source be deleted at the end (GONE), requests be lost with their answer or come late; a start
may come again, or for the first time when its host has stopped waiting for it. What holds: with
nothing produced or to be sent, and some host that is not paused and would skip, what is visible is
the source's content; where it is gone, the newest content that was sealed anywhere, or a dead
letter or a paused outbox shows it. No host pauses unless another one has started since its own
last start, and a lone host whose backend was not restored sends all that it sealed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from tests.models.explore import ANY, Case, Move, changed, put


class Rules(NamedTuple):
    """The switches; `FENCE` has the rules F1 to F9, F11 to F14, G7; the defaults are weaker."""

    late: Literal["reseal", "reread"] = "reseal"
    """F8: superseded while the mark is its own: sealed above | the source is read again."""
    gone: Literal["reseal", "drop", "dead"] = "reseal"
    """F8: reread, but the source is gone: sealed above | dropped | a dead letter `superseded`."""
    keep: bool = True
    """F8: the sealed bytes stay, unsent, until a run has sealed the source again or it is gone."""
    own_dup: Literal["keep", "raise"] = "keep"
    """F9: a duplicate by the own upload_id leaves the mark's source_seq | raises it."""
    ask: bool = False
    """`unchanged` only where the backend's highest of the source is the mark's source_seq."""
    base: bool = False
    """`complete` carries the highest as known when the source was read; accepted where equal."""
    fence: bool = False
    """F1, F2, F6: an installation has an epoch; an older one is answered `moved`, and pauses."""
    higher: bool = True
    """F1: an epoch above the stored one (a restored backend) is accepted."""
    take: bool = True
    """A new generation takes the next epoch, as a start does | only compares."""
    clocked: bool = True
    """F1: the next epoch is at least the clock, so that none is given twice over a restore."""
    nonce: bool = True
    """F5: a start whose answer was lost is known again by its nonce."""
    keep_nonce: bool = True
    """F5: `installation adopt` gives up no nonce whose start was not answered."""
    bump: bool = True
    """F5: every start takes the next epoch | only an empty folder does."""
    offline: bool = True
    """F5: a folder that has not reached the backend since its start reads and seals."""
    start: Literal["compare", "plain"] = "compare"
    """F7: a start compares the marks with the backend's highest | does not."""
    adopt: Literal["compare", "plain"] = "compare"
    """F7: `installation adopt` compares marks and sealed uploads | does not."""
    last: bool = True
    """F11: a start says the nonce of the last answered one; where the backend's newest start was
    that one, come again on its way, nobody else took the folder's place."""
    remember: bool = True
    """F12: the nonce of an earlier start than the newest is refused: an old request come late."""
    again: bool = True
    """F13: a `complete` that is answered `moved` makes the folder start once more | it pauses."""
    chained: bool = True
    """F14: after a compare the next upload builds on the last one that stays | on what is
    reported."""
    addressed: bool = True
    """G7: a start says the generation that it is for; for another one it takes no epoch."""


REREAD = Rules(late="reread", gone="dead")
FENCE = REREAD._replace(fence=True)
ASKED = REREAD._replace(ask=True)

Condition = Literal["absent", "running", "paused", "copied"]
"""`copied` has not yet reached the backend since its start."""
Kind = Literal["sealed", "dead", "kept"]
"""`kept`: superseded, its bytes wait for the source to be sealed again."""


class Mark(NamedTuple):
    """What was sealed last: the content's index, the upload, its source_seq."""

    content: int
    uid: int
    seq: int


class Entry(NamedTuple):
    """An upload in an outbox; `base` is the source_seq that it was sealed on."""

    uid: int
    content: int
    seq: int
    base: int
    kind: Kind = "sealed"


class Sent(NamedTuple):
    """What `complete` carries."""

    uid: int
    content: int
    seq: int
    base: int
    epoch: int


class Start(NamedTuple):
    """What `PUT installations` carries, and whose it is."""

    who: int
    epoch: int
    nonce: int
    last: int
    generation: int


class Host(NamedTuple):
    """A host's folder, with what it has read: (content, base).

    `nonce`: that of a start without an answer; `last`: that of the last answered start.
    """

    condition: Condition
    mark: Mark | None
    highest: int
    reading: tuple[int, int] | None
    box: tuple[Entry, ...]
    epoch: int
    base: int
    nonce: int = 0
    generation: int = 0
    last: int = 0


class State(NamedTuple):
    """Both hosts, the backend and the network.

    `disk`: A's own content where the source is not shared; `taken`: the nonces of starts, the
    newest first; `newest`: the newest content sealed anywhere (-2: an operator decided); `clock`:
    the epochs'; `nonces`: how many were drawn; `starter`: whose start was the last, not counting
    one that came again.
    """

    source: int
    disk: int | None
    hosts: tuple[Host, ...]
    visible: tuple[int, int] | None
    highest: int
    done: frozenset[int]
    superseded: frozenset[int]
    epoch: int
    late: frozenset[Sent | Start]
    left: tuple[int, ...]
    uid: int
    time: int
    newest: int
    taken: tuple[int, ...]
    generation: int
    clock: int
    nonces: int
    starter: int


LATE, LOST, ADOPT, RESTART, RESTORE, AGAIN = range(6)
"""The faults; AGAIN is a start that comes twice, or late."""
PAUSED = "paused, and no other folder has started since"
PUT_OFF = "put off, and there is no other folder"


class Model:
    """A source that goes through `script`; `skew`: how far each host's clock is ahead.

    `first`: A has not started yet; `alone`: there is no B.
    """

    def __init__(
        self,
        rules: Rules = FENCE,
        script: tuple[str, ...] = ("v1", "v2"),
        faults: tuple[int, ...] = (1, 1, 0, 0),
        *,
        skew: tuple[int, int] = (0, 0),
        second: Literal["fresh", "copy"] = "fresh",
        shared: bool = True,
        uploads: int = 5,
        first: bool = False,
        alone: bool = False,
    ) -> None:
        self.rules, self.script, self.skew, self.second = rules, script, skew, second
        self.shared, self.uploads = shared, uploads
        self.first, self.alone = first, alone
        self.faults = faults + (0,) * (6 - len(faults))

    def initial(self) -> State:
        """A runs, or is about to start, with an empty folder; B is not there."""
        began = 0 if self.first else 1
        condition: Condition = "copied" if self.first else "running"
        host = Host(condition, None, 0, None, (), began, 0, last=began)
        hosts = host, Host("absent", None, 0, None, (), 0, 0)
        return State(
            source=0,
            disk=None,
            hosts=hosts,
            visible=None,
            highest=0,
            done=frozenset(),
            superseded=frozenset(),
            epoch=began,
            late=frozenset(),
            left=self.faults,
            uid=0,
            time=0,
            newest=-1,
            taken=(1,) * began,
            generation=0,
            clock=1,
            nonces=began,
            starter=0,
        )

    # what a host sees

    def current(self, state: State, who: int) -> int | None:
        """The content that a host reads; None where the source is gone."""
        content = state.source if state.disk is None or who == 1 else state.disk
        return None if self.script[content] == "GONE" else content

    def works(self, host: Host) -> bool:
        """Whether it reads and seals."""
        return host.condition == "running" or (host.condition == "copied" and self.rules.offline)

    def due(self, state: State, who: int) -> bool:
        """Whether a run of this host would not say unchanged."""
        host, content = state.hosts[who], self.current(state, who)
        if not self.works(host) or content is None:
            return False
        if host.mark is None or self.script[host.mark.content] != self.script[content]:
            return True
        return self.rules.ask and state.highest != host.mark.seq and not host.box

    # what a host, and the backend, do in one transaction

    def sealed(self, state: State, who: int, content: int, base: int) -> State:
        """A host seals a content."""
        host = state.hosts[who]
        seq = max(host.highest + 1, base + 1, state.time + 1 + self.skew[who])
        box = tuple(entry for entry in host.box if entry.kind != "kept")
        host = host._replace(
            reading=None,
            highest=seq,
            mark=Mark(content, state.uid, seq),
            box=(*box, Entry(state.uid, content, seq, base)),
            base=seq,
        )
        newest = max(state.newest, content)
        following = state._replace(uid=state.uid + 1, time=state.time + 1, newest=newest)
        return with_host(following, who, host)

    def complete(self, state: State, sent: Sent) -> tuple[State, str]:
        """The backend takes an upload."""
        if self.rules.fence and sent.epoch < state.epoch:
            return state, "moved"
        if self.rules.fence and sent.epoch > state.epoch and self.rules.higher:
            state = state._replace(epoch=sent.epoch)  # a restored backend
        if sent.uid in state.done:
            return state, "duplicate"
        if sent.uid in state.superseded:
            return state, "superseded"
        if state.visible and self.script[state.visible[0]] == self.script[sent.content]:
            return state._replace(highest=max(state.highest, sent.seq)), "duplicate"
        if sent.seq <= state.highest or (self.rules.base and sent.base != state.highest):
            return state._replace(superseded=state.superseded | {sent.uid}), "superseded"
        visible = sent.content, sent.uid
        done = state.done | {sent.uid}
        return state._replace(visible=visible, highest=sent.seq, done=done), "created"

    def answered(self, state: State, who: int, entry: Entry, answer: str) -> State:
        """A host takes the answer to `complete`."""
        host, mark = state.hosts[who], state.hosts[who].mark
        if host.generation != state.generation and answer != "moved":
            return state
        if answer == "moved":
            condition: Condition = "copied" if self.rules.again else "paused"
            return with_host(state, who, host._replace(condition=condition))
        rest = tuple(other for other in host.box if other.uid != entry.uid)
        own = mark is not None and mark.uid == entry.uid
        if answer in ("created", "duplicate"):
            by_key = entry.uid not in state.done or self.rules.own_dup == "raise"
            if mark and own and answer == "duplicate" and by_key:
                host = host._replace(mark=mark._replace(seq=max(mark.seq, state.highest)))
            return with_host(state, who, host._replace(box=rest))
        host = host._replace(box=rest, base=state.highest)
        if not own:
            return with_host(state, who, host)
        gone = self.current(state, who) is None
        if self.rules.late == "reseal" or (gone and self.rules.gone == "reseal"):
            return self.sealed(with_host(state, who, host), who, entry.content, state.highest)
        if self.rules.keep and self.rules.gone == "dead":
            host = host._replace(box=(*rest, entry._replace(kind="kept")))
        return with_host(state, who, host._replace(mark=None))

    def compared(self, state: State, host: Host) -> Host:
        """F7: marks and sealed uploads against the highest that the backend says."""
        mark, known, box = host.mark, state.highest, tuple[Entry, ...]()
        right = mark is not None and mark.seq == known
        for entry in host.box:
            own = mark is not None and mark.uid == entry.uid
            if entry.kind != "sealed":
                box = (*box, entry)
            elif known in (entry.base, entry.seq):  # builds on what is there, or is it
                box, known, right = (*box, entry), entry.seq, right or own
            elif self.rules.keep and own:
                box = (*box, entry._replace(kind="kept"))
        reading = (
            host.reading if host.reading and host.reading[1] in (state.highest, known) else None
        )
        base = known if self.rules.chained else state.highest
        mark = mark if right else None
        return host._replace(mark=mark, box=box, base=base, reading=reading)

    def next_epoch(self, state: State, presented: int = 0) -> int:
        """F1: above the stored and the presented one, and at least the clock."""
        clock = state.clock if self.rules.clocked else 0
        return max(state.epoch, presented, clock) + 1

    def take(self, state: State, start: Start, *, takes: bool = True) -> State | None:
        """The backend answers a start; None where it is refused."""
        rules, newest = self.rules, state.taken[:1]
        if rules.addressed and start.generation != state.generation:
            return None
        if rules.fence and not (start.nonce in newest or start.last in newest):
            if rules.remember and start.nonce in state.taken:
                return None
            if 0 < start.epoch < state.epoch or (start.epoch > state.epoch and not rules.higher):
                return None
        epoch = max(state.epoch, start.epoch)
        epoch = self.next_epoch(state, start.epoch) if takes else epoch
        taken = (start.nonce, *state.taken) if start.nonce else ()
        following = state._replace(epoch=epoch, clock=max(state.clock, epoch), taken=taken)
        awaited = state.hosts[start.who].nonce == start.nonce
        return following._replace(starter=start.who) if awaited else following

    # moves

    def moves(self, state: State) -> Iterator[Move[State]]:
        """Source, both hosts, operator, network and a restored backend."""
        if state.uid >= self.uploads:
            return
        if state.source + 1 < len(self.script):
            following = state._replace(source=state.source + 1)
            yield Move(f"source: {self.script[state.source + 1]}", True, following)
        for who, host in enumerate(state.hosts):
            if host.condition == "absent":
                if not self.alone:
                    yield self.b_appears(state)
                continue
            yield from self.starts(state, who)
            if host.condition in ("paused", "copied") and state.left[ADOPT]:
                yield self.adopts(state, who)
            if self.works(host):
                if host.reading is not None or self.due(state, who):
                    yield self.runs(state, who)
                if host.condition == "running":
                    yield from self.outbox(state, who)
        if state.left[RESTORE] and state.visible:
            first = self.initial()
            following = first._replace(
                source=state.source,
                disk=state.disk,
                hosts=state.hosts,
                late=state.late,
                left=state.left,
                uid=state.uid,
                time=state.time,
                newest=state.newest,
                generation=state.generation + 1,
                clock=state.clock,
                nonces=state.nonces,
                starter=state.starter,
            )
            yield Move("backend RESTORED from its first day", True, spent(following, RESTORE))
        for late in state.late:
            without = state._replace(late=state.late - {late})
            if isinstance(late, Start):
                yield self.late_start(without, late)
                continue
            following, answer = self.complete(state, late)
            yield Move(f"late complete {late.uid} arrives: {answer}", True, following)
            yield Move(f"late complete {late.uid} vanishes", True, without)

    def late_start(self, state: State, start: Start) -> Move[State]:
        """A start arrives whose answer nobody hears."""
        taken = self.take(state, start)
        label = f"{'AB'[start.who]}'s start {start.nonce} arrives late: "
        if taken is None:
            return Move(f"{label}refused", True, state)
        return Move(f"{label}epoch {taken.epoch}", True, taken)

    def b_appears(self, state: State) -> Move[State]:
        """The second host, with an empty folder or with a copy of A's."""
        state = state._replace(disk=None if self.shared else state.source)
        if self.second == "copy":
            copy = state.hosts[0]._replace(condition="copied", reading=None)
            return Move("A's folder is copied to B", True, with_host(state, 1, copy))
        nonce = state.nonces + 1 if self.rules.nonce else 0
        start = Start(1, 0, nonce, 0, state.generation)
        fresh = Host("running", None, 0, None, (), 0, state.highest, nonce, state.generation, nonce)
        taken = self.take(with_host(state, 1, fresh)._replace(nonces=nonce), start) or state
        fresh = fresh._replace(epoch=taken.epoch, nonce=0)
        return Move("B starts with an empty folder", True, with_host(taken, 1, fresh))

    def starts(self, state: State, who: int) -> Iterator[Move[State]]:
        """A start: at first, after a restart, on `moved`, or as a new generation is heard."""
        host, rules, name = state.hosts[who], self.rules, "AB"[who]
        due = host.condition == "copied"
        heard = host.condition == "running" and host.generation != state.generation
        restarted = host.condition == "running" and bool(state.left[RESTART])
        if not (due or heard or restarted):
            return
        fault = not due and not heard
        if fault:
            state, host = spent(state, RESTART), host._replace(reading=None)
        nonce = (host.nonce or state.nonces + 1) if rules.nonce else 0
        last = host.last if rules.last else 0
        start = Start(who, host.epoch, nonce, last, state.generation)
        asked = host._replace(condition="copied", nonce=nonce)
        state = with_host(state, who, asked)._replace(nonces=max(state.nonces, nonce))
        if state.left[AGAIN]:
            late = spent(state._replace(late=state.late | {start}), AGAIN)
            yield Move(f"{name} starts: is delayed", True, late)
        label = f"{name} {'hears the new generation' if heard else 'starts'}: "
        taken = self.take(state, start, takes=rules.bump and (rules.take or not heard))
        if taken is None:
            paused = asked._replace(condition="paused", reading=None)
            yield Move(f"{label}moved, paused", fault, with_host(state, who, paused))
            return
        if state.left[LOST] and rules.fence:
            lost = spent(with_host(taken, who, asked._replace(reading=None)), LOST)
            yield Move(f"{name} starts: epoch {taken.epoch}, answer lost, killed", True, lost)
        new = asked._replace(condition="running", epoch=taken.epoch, nonce=0, last=nonce)
        new = new._replace(generation=state.generation)
        if rules.fence and (rules.start if host.epoch else rules.adopt) == "compare":
            new = self.compared(taken, new)
        answered = with_host(taken, who, new)
        yield Move(f"{label}epoch {taken.epoch}", fault, answered)
        if state.left[AGAIN]:
            again = spent(answered._replace(late=state.late | {start}), AGAIN)
            yield Move(f"{label}epoch {taken.epoch}, and it comes again", True, again)

    def adopts(self, state: State, who: int) -> Move[State]:
        """F6: an operator lets a folder be the installation: it starts as an empty one."""
        host = state.hosts[who]
        nonce = host.nonce if host.condition == "copied" and self.rules.keep_nonce else 0
        host = host._replace(condition="copied", epoch=0, nonce=nonce)
        label = f"operator: {'AB'[who]} adopts the installation"
        return Move(label, True, spent(with_host(state, who, host), ADOPT))

    def runs(self, state: State, who: int) -> Move[State]:
        """A run reads, or seals what it has read."""
        host, content, name = state.hosts[who], self.current(state, who), "AB"[who]
        if host.reading is not None:
            following = self.sealed(state, who, *host.reading)
            return Move(f"{name} seals {self.script[host.reading[0]]}", False, following)
        asks = self.rules.ask or (self.rules.base and not host.box)
        reading = content or 0, state.highest if asks else host.base
        following = with_host(state, who, host._replace(reading=reading))
        return Move(f"{name} reads {self.script[reading[0]]}", False, following)

    def outbox(self, state: State, who: int) -> Iterator[Move[State]]:
        """The first sealed upload is sent; an operator decides on dead letters before it."""
        host, name = state.hosts[who], "AB"[who]
        for entry in host.box:
            if entry.kind == "kept":
                if self.current(state, who) is None:
                    dead = changed(host.box, entry, entry._replace(kind="dead"))
                    following = with_host(state, who, host._replace(box=dead))
                    label = f"{name}: the source is gone, upload {entry.uid} is a dead letter"
                    yield Move(label, False, following)
            elif entry.kind == "dead":
                without = host._replace(box=changed(host.box, entry, None))
                purged = with_host(state, who, without)._replace(newest=-2)
                above = self.sealed(purged, who, entry.content, state.highest)._replace(newest=-2)
                label = f"operator retries upload {entry.uid} at {name}: sealed above"
                yield Move(label, False, above)
                yield Move(f"operator purges upload {entry.uid} at {name}", False, purged)
            else:
                yield from self.sender(state, who, entry)
                return

    def sender(self, state: State, who: int, entry: Entry) -> Iterator[Move[State]]:
        """An upload is completed."""
        sent = Sent(*entry[:4], state.hosts[who].epoch)
        following, answer = self.complete(state, sent)
        content = f"{self.script[entry.content]}, seq {entry.seq}"
        label = f"{'AB'[who]} completes {entry.uid} ({content})"
        yield Move(f"{label}: {answer}", False, self.answered(following, who, entry, answer))
        if following != state and state.left[LOST]:
            yield Move(f"{label}: {answer}, answer lost", True, spent(following, LOST))
        if state.left[LATE] and sent not in state.late:
            following = spent(state._replace(late=state.late | {sent}), LATE)
            yield Move(f"{label}: is delayed", True, following)

    # what holds

    def quiet(self, state: State) -> bool:
        """Some host runs, and none reads or has something to send."""
        live = [host for host in state.hosts if host.condition in ("running", "copied")]
        idle = all(host.reading is None and not host.box for host in live)
        return idle and bool(live) and all(host.condition == "running" for host in live)

    def check(self, state: State) -> Iterator[str]:
        """With the fence, the folder that holds the epoch counts; else any that would skip."""
        lone = state.hosts[1].condition == "absent"
        if state.hosts[state.starter].condition == "paused":
            yield PAUSED
            return
        kinds = {entry.kind for entry in state.hosts[0].box}
        if self.rules.fence and lone and not state.generation and kinds - {"sealed"}:
            yield PUT_OFF
            return
        counted = [
            who
            for who, host in enumerate(state.hosts)
            if host.condition == "running"
            and (not self.rules.fence or lone or host.epoch == state.epoch)
            and host.generation == state.generation
        ]
        skips = any(not self.due(state, who) for who in counted)
        if state.uid >= self.uploads or not self.quiet(state) or not skips:
            return
        told = any(host.condition == "paused" and host.box for host in state.hosts)
        shown = state.visible and self.script[state.visible[0]]
        content = self.script[state.source]
        if content != "GONE":
            if shown != content:
                yield f"rest shows {shown}, the source is {content}, and a run says unchanged"
        elif state.newest >= 0 and not told and shown != self.script[state.newest]:
            newest = self.script[state.newest]
            yield f"rest shows {shown}, the newest content (source gone) was {newest}"

    def rest(self, state: State) -> bool:
        """Nothing is due, or nobody runs; a new generation is to be heard first."""
        live = [host for host in state.hosts if host.condition in ("running", "copied")]
        if state.uid >= self.uploads:
            return True
        if any(host.generation != state.generation for host in live):
            return False
        due = any(self.due(state, who) for who in (0, 1))
        return not live or (self.quiet(state) and not due)


def with_host(state: State, who: int, host: Host) -> State:
    """The state with one host replaced."""
    return state._replace(hosts=put(state.hosts, who, host))


def spent(state: State, kind: int) -> State:
    """One fault of this kind fewer is left."""
    return state._replace(left=put(state.left, kind, state.left[kind] - 1))


BACK, GONE = ("v1", "v2", "v1"), ("v1", "v2", "GONE")
LOST_ONE, RESTORED = (0, 1, 0, 0), (0, 0, 0, 0, 1)
LATE_RESTORED, RESTARTED = (1, 0, 0, 0, 1), (0, 0, 0, 1, 1)
ADOPTED = (0, 1, 1, 0)
TWICE, TWICE_RESTORED = (0, 0, 0, 1, 0, 1), (0, 0, 0, 1, 1, 1)
CASES = [
    Case("weaker: superseded is sealed above", ANY, Model(Rules())),
    Case("weaker: superseded is read again, without more", ANY, Model(Rules("reread"))),
    Case("weaker: the same, B's clock behind", ANY, Model(Rules("reread"), skew=(0, -3))),
    Case(
        "reread, the backend is asked before `unchanged`",
        None,
        Model(ASKED, uploads=4),
        slow=True,
    ),
    Case(
        "F9 out: a duplicate by the own upload_id raises the mark's source_seq",
        ANY,
        Model(ASKED._replace(own_dup="raise"), uploads=4),
    ),
    Case("asked, v1 v2 v1", None, Model(ASKED, BACK, LOST_ONE, uploads=4), slow=True),
    Case(
        "F8 out: asked, source gone, the same bytes above",
        ANY,
        Model(ASKED._replace(gone="reseal"), GONE, uploads=4),
    ),
    Case(
        "F8 out: asked, source gone, dropped",
        ANY,
        Model(ASKED._replace(gone="drop"), GONE, uploads=4),
    ),
    Case("asked, no fence, source gone, dead letter", ANY, Model(ASKED, GONE, uploads=4)),
    Case("asked, no fence, A reads its old disk", ANY, Model(ASKED, shared=False, uploads=4)),
    Case("reread, `complete` carries its base", None, Model(REREAD._replace(base=True), uploads=4)),
    Case(
        "base, not asked, v1 v2 v1",
        ANY,
        Model(REREAD._replace(base=True), BACK, LOST_ONE, uploads=4),
    ),
    Case(
        "base and asked, v1 v2 v1",
        None,
        Model(ASKED._replace(base=True), BACK, LOST_ONE, uploads=4),
        slow=True,
    ),
    Case(
        "base and asked, source gone",
        None,
        Model(ASKED._replace(base=True), GONE, uploads=4),
        slow=True,
    ),
    Case("no fence, copied folder, reread", ANY, Model(Rules("reread"), second="copy")),
    Case("FENCE: epoch, reread, gone is a dead letter", None, Model()),
    Case("v1 v2 v1, B's clock behind", None, Model(script=BACK, skew=(0, -3))),
    Case("A's clock behind", None, Model(skew=(-3, 0))),
    Case("source gone", None, Model(script=GONE, skew=(0, -3))),
    Case("A reads its own old disk", None, Model(shared=False)),
    Case("copied folder, v1 v2", None, Model(second="copy")),
    Case("copied folder", None, Model(script=BACK, second="copy"), slow=True),
    Case(
        "F7 out: copied folder, a start does not compare",
        ANY,
        Model(FENCE._replace(start="plain"), BACK, second="copy"),
    ),
    Case(
        "F5 out: copied folder, starts do not take the next epoch",
        ANY,
        Model(FENCE._replace(bump=False), second="copy"),
    ),
    Case("restarts of either", None, Model(faults=(1, 0, 0, 1))),
    Case("restarts, the answer to a start is lost", None, Model(faults=(0, 1, 0, 2))),
    Case("the same, copied folder", None, Model(faults=(0, 1, 0, 1), second="copy"), slow=True),
    Case(
        "F5 out: the answer to a start is lost, no nonce",
        ANY,
        Model(FENCE._replace(nonce=False), faults=(0, 1, 0, 2)),
    ),
    Case("adopt", None, Model(faults=(1, 0, 1, 0))),
    Case("adopt, v1 v2 v1", None, Model(script=BACK, faults=ADOPTED), slow=True),
    Case("adopt, source gone", None, Model(script=GONE, faults=ADOPTED)),
    Case(
        "F8 out: adopt, source gone, bytes not kept",
        ANY,
        Model(FENCE._replace(keep=False), GONE, ADOPTED),
    ),
    Case("adopt of a copy", None, Model(faults=ADOPTED, second="copy")),
    Case(
        "F7 out: adopt without comparing",
        ANY,
        Model(FENCE._replace(adopt="plain"), BACK, (0, 0, 1, 1)),
    ),
    Case("backend restored", None, Model(faults=LATE_RESTORED)),
    Case("backend restored, v1 v2 v1", None, Model(script=BACK, faults=RESTORED), slow=True),
    Case("backend restored, copied folder", None, Model(faults=RESTORED, second="copy")),
    Case(
        "F1 out: backend restored, a higher epoch is refused",
        ANY,
        Model(FENCE._replace(higher=False), faults=RESTARTED),
    ),
    Case("backend restored, restarts", None, Model(faults=RESTARTED)),
    Case(
        "F1 out: backend restored, epochs are only counted",
        ANY,
        Model(FENCE._replace(clocked=False), faults=LATE_RESTORED),
    ),
    Case(
        "F5 out: backend restored, a new generation takes no epoch",
        ANY,
        Model(FENCE._replace(take=False), faults=LATE_RESTORED),
    ),
    Case(
        "fence, reseal instead of reread",
        None,
        Model(FENCE._replace(late="reseal"), BACK),
        slow=True,
    ),
    Case("a start twice or late", None, Model(faults=TWICE, first=True)),
    Case(
        "a start twice or late, a lone folder, v1 v2 v1, requests lost and late",
        None,
        Model(script=BACK, faults=(1, 1, 0, 1, 0, 1), first=True, alone=True),
    ),
    Case(
        "a start twice or late, copied folder",
        None,
        Model(faults=(0, 0, 0, 0, 0, 1), second="copy", first=True),
    ),
    Case(
        "a start twice or late, copied folder, the answer to a start is lost",
        None,
        Model(faults=(0, 1, 0, 0, 0, 1), second="copy", first=True),
        slow=True,
    ),
    Case(
        "a start twice or late, adopt",
        None,
        Model(faults=(0, 0, 1, 0, 0, 1), uploads=4, first=True),
    ),
    Case(
        "two starts twice or late, a lone folder, backend restored",
        None,
        Model(faults=(0, 0, 0, 2, 1, 2), first=True, alone=True),
    ),
    Case(
        "a start twice or late, backend restored",
        None,
        Model(faults=(0, 0, 0, 0, 1, 1), first=True),
        slow=True,
    ),
    Case(
        "F5 out: adopt gives up a nonce without an answer",
        PAUSED,
        Model(
            FENCE._replace(keep_nonce=False),
            faults=(0, 0, 1, 0, 0, 1),
            uploads=4,
            first=True,
            alone=True,
        ),
    ),
    Case(
        "F11 out: a start says no nonce of the last one",
        PAUSED,
        Model(FENCE._replace(last=False), faults=TWICE, first=True, alone=True),
    ),
    Case(
        "F12 out: a lone folder, the nonces of earlier starts are forgotten",
        PAUSED,
        Model(FENCE._replace(remember=False), faults=TWICE, first=True, alone=True),
    ),
    Case(
        "F12 out: the same, two folders",
        PAUSED,
        Model(FENCE._replace(remember=False), faults=TWICE, first=True),
    ),
    Case(
        "F13 out: a `complete` that is answered `moved` pauses",
        PAUSED,
        Model(FENCE._replace(again=False), faults=TWICE, first=True, alone=True),
    ),
    Case(
        "F14 out: after a compare the next upload builds on what was reported",
        PUT_OFF,
        Model(FENCE._replace(chained=False), faults=(0, 0, 0, 2), first=True, alone=True),
    ),
    Case(
        "G7 out: a lone folder, a start of before the restore takes an epoch after it",
        PAUSED,
        Model(FENCE._replace(addressed=False), faults=TWICE_RESTORED, first=True, alone=True),
    ),
]

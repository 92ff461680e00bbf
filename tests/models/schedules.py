"""Scheduler and handler, with a network that loses, delays, repeats and reorders.

Two schedulers share one store; one handler, on one host or on two under one id; one schedule with
one or two ticks. Every interleaving within stated bounds of faults is visited.

Atomic: one store transaction; one `get_run` (its answer may be acted on arbitrarily late); the
handling of one message. Not atomic: deciding to send, and sending (a freeze lies between). A freeze
is a lease that ends under a live owner: the other takes over, and the old owner goes on later as if
nothing had happened. Time is abstract: "window" says that the dedupe window has passed since the
handler was last asked about a run (its finished runs are forgotten, its runs in progress are not,
and calls decided on before are too late for their `start_by`).

TEXT reads the design kindly: boot_id is stored before the first send; a tick, its overlap decision
and its missed rows are one transaction; only retry_safe methods are repeated after a failed run;
`busy` makes n grow and is no attempt; a takeover that finds the run in progress sends the same id,
to be answered at its end; the memory is looked at before `busy` is said. READINGS are the unkind
ones that break something. BUILT is TEXT with the repairs of `Rules`; SHORT has the same, and no
`get_run` at a takeover: the handler alone judges.

Two hosts register in any order, and calls go to the one that is registered. A registration asks
the known host and is written later, by any scheduler. A host that is cut off runs on, is not heard,
and comes back; one that is gone does not. What a host still runs that did not answer when it was
replaced, nobody can know: that is a stated limit, and no fault (`replaced`).

As `instances` the two hosts share the calls: each run is stamped at one of them, and called there
alone. Once its instance has been silent for a while, a retry-safe run goes elsewhere as its next
attempt, and what its instance still does of it is no fault; any other waits for a day, which is
over only where the instance is gone.

Not modelled: trigger arithmetic, a lone handler that never comes back, run_now, cancel, a
schedule's own timeout_s, handlers without request ids, a store that loses a transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from tests.models.explore import ANY, STUCK, Case, Move, put

Status = Literal["running", "queued", "retry", "success", "error", "missed", "skipped", "lost"]
FINAL = frozenset({"success", "error", "missed", "skipped", "lost"})
OVERLAP: dict[str, Status] = {"skip": "skipped", "queue": "queued", "parallel": "running"}
UNKNOWN, RUNNING, OK, ERR, REFUSED = range(5)
KNOWN = ("unknown", "running", "finished ok", "failed", "refused")
MAX_ATTEMPTS = 2
S, H = "AB", "handler"


class Rules(NamedTuple):
    """Repairs and readings; the defaults are what is built."""

    guarded: bool = True  # calls carry start_by; the handler refuses another boot, or too late
    proven: bool = True  # "unknown" counts only within the window since the row's last ask
    ask_first: bool = False  # every repetition asks get_run first, not only a takeover
    refusal_kept: bool = True  # busy, draining, wake_failed are remembered: that id never begins
    boot_stored: bool = True  # boot_id is asked and stored before the first send
    memory_first: bool = True  # the handler looks in its memory before it says busy or draining
    guard_first: bool = True  # and at start_by before it says busy or draining
    wait_is_not_end: bool = True  # `timeout` of the caller's wait is no end of the run
    retry_safe_only: bool = True  # a failed run is repeated only for retry_safe methods
    lost_grows_n: bool = (
        True  # a lost run of a retry_safe method is sent as n+1, up to max_attempts
    )
    fresh_attempt: bool = (
        True  # when n grows, the stamp goes: each attempt asks before its first send
    )
    one_missed_txn: bool = True  # the missed row is written in the claim's own transaction
    resend: bool = (
        False  # shorter: no get_run; the same call with its stored start_by, `expired` ends it
    )
    send_once: bool = False  # another way, without start_by: a sent call is never sent again
    check_lease: bool = True  # mutant if False: writes are not conditional on the lease
    compare_and_swap: bool = (
        True  # mutant if False (and no unique key): a claim from a stale read goes through
    )
    asked: bool = True  # a registration from another host is refused while the known one answers
    unheard: bool = True  # and written only if nobody was heard under that id since it was asked
    reported: bool = True  # a host that was replaced hears of it at its next report, and registers
    keeps_trying: bool = True  # a host that was refused registers again
    at_one: bool = True  # a call goes to the instance that its stamp is of
    moves_safe_only: bool = True  # only a retry-safe run leaves an instance that is silent
    moves_bounded: bool = True  # and only while an attempt is left
    waits_a_day: bool = True  # one that stays is lost only after much longer than a cut lasts


BUILT = Rules()
TEXT = BUILT._replace(guarded=False, proven=False, refusal_kept=False, lost_grows_n=False)
TEXT = TEXT._replace(fresh_attempt=False)
SHORT = BUILT._replace(resend=True, proven=False)
ONCE = TEXT._replace(send_once=True, ask_first=True)

CRASH = "crash"  # a scheduler loses its memory (and restarts at once)
RESTART = "restart"  # the handler loses its memory and its runs, and has a new boot_id
FREEZE = "freeze"  # a lease ends under a live owner
DROP = "drop"  # a message is lost
DUP = "dup"  # a call is repeated by the network
BUSY = "busy"  # the handler answers busy (draining, wake_failed alike)
WINDOW = "window"  # the dedupe window passes
SLOW = "slow"  # the scheduler gives up waiting for an answer that would come
WAIT = "wait"  # the handler answers `timeout` while the run goes on
CUT = "cut"  # one of two hosts is cut off: it runs on, and is not heard until it is back
GONE = "gone"  # one of two hosts is killed, and never started again
KINDS = frozenset({CRASH, RESTART, FREEZE, DROP, DUP, BUSY, WINDOW, SLOW, WAIT})


class Row(NamedTuple):
    """One execution in the store; boot and era are the handler's stamp at the last ask."""

    status: Status
    n: int = 1
    owner: int = 0
    lease: int = 1
    boot: int = -1
    era: int = 0
    tries: int = 1  # runs that may have begun
    host: int = -1  # the instance that was asked


Step = Literal["ask", "known", "send", "wait"]


class Task(NamedTuple):
    """What one scheduler has in mind for one execution."""

    step: Step
    lease: int
    n: int
    boot: int = -1
    era: int = 0
    known: int = 0
    host: int = -1


Call = tuple[int, int, int, int, int, int]  # scheduler, tick, n, boot, era, host
Reply = tuple[int, int, int, str]  # scheduler, tick, n, what
Memory = tuple[int, int, int, int, int]  # tick, n, state, bit mask of waiting schedulers, host
Written = tuple["World", list[str]]  # what follows from a write, and the invariants it breaks


class Host(NamedTuple):
    """One of the handler's hosts: what it is, and what it takes itself for."""

    boot: int = 0
    state: Literal["up", "cut", "gone"] = "up"
    registered: bool = True  # as it believes
    taking: bool = False  # its registration found the known host silent, and is still to be written
    gave_up: bool = False
    replaced: bool = False  # ghost: it did not answer when another took its place


class World(NamedTuple):
    """One state. `starts` and `done` are ghosts: what really happened at the handler."""

    due: int
    late: int
    nxt: int
    rows: tuple[Row | None, ...]
    tasks: tuple[tuple[Task | None, ...], ...]
    owed: int  # a missed row still to be written (reading of two transactions only)
    calls: tuple[Call, ...]
    replies: tuple[Reply, ...]
    hosts: tuple[Host, ...]
    at: int  # the host that is registered
    memory: tuple[Memory, ...]  # sorted
    era: tuple[int, ...]
    left: int  # faults still to come
    starts: tuple[int, ...]
    done: tuple[int, ...]


class Setup(NamedTuple):
    """One exploration."""

    rules: Rules
    safe: bool = False
    ticks: int = 1
    faults: int = 3  # at most this number in one behaviour, of any kinds in any mix
    kinds: frozenset[str] = KINDS
    misfire: bool = False
    overlap: str = "skip"
    hosts: int = 1
    instances: bool = False  # the hosts share the calls


def recall(w: World, x: int, n: int, h: int) -> tuple[int, int]:
    """What a host knows of run n of tick x: (state, waiting schedulers)."""
    for tick, m, state, waiters, host in w.memory:
        if (tick, m, host) == (x, n, h):
            return state, waiters
    return UNKNOWN, 0


def remember(w: World, x: int, n: int, h: int, state: int, waiters: int = 0) -> World:
    """The state in which a host knows this of run n of tick x."""
    rest = [item for item in w.memory if (*item[:2], item[4]) != (x, n, h)]
    return w._replace(memory=tuple(sorted((*rest, (x, n, state, waiters, h)))))


def with_host(w: World, h: int, host: Host) -> World:
    """The state with one host replaced."""
    return w._replace(hosts=put(w.hosts, h, host))


def known_runs(w: World) -> Iterator[Memory]:
    """What hosts know that did not fall silent before they were replaced."""
    return (item for item in w.memory if not w.hosts[item[4]].replaced)


def row_of(w: World, x: int) -> Row:
    """The row of a tick that was claimed."""
    row = w.rows[x]
    assert row is not None
    return row


def task_of(w: World, s: int, x: int) -> Task:
    """What a scheduler that is at work on a tick has in mind."""
    task = w.tasks[s][x]
    assert task is not None
    return task


def callee(w: World, g: Setup, one: Row | Task) -> int:
    """The host that is called for a run."""
    return one.host if g.instances else w.at


def may(w: World, g: Setup, fault: str) -> bool:
    """Whether a fault of this kind may happen now."""
    return w.left > 0 and fault in g.kinds


def spend(w: World) -> int:
    """The faults left after one more."""
    return w.left - 1


def first(g: Setup) -> World:
    """The initial state."""
    t = g.ticks
    none = (None,) * t
    hosts = tuple(Host(h, registered=not h) for h in range(g.hosts))
    zeros = (0,) * t
    return World(
        0, 0, 0, none, (none, none), 0, (), (), hosts, 0, (), zeros, g.faults, zeros, zeros
    )


def with_task(w: World, s: int, x: int, task: Task | None) -> World:
    """The state with one task replaced."""
    return w._replace(tasks=put(w.tasks, s, put(w.tasks[s], x, task)))


def with_row(w: World, x: int, row: Row) -> Written:
    """The state with one row replaced, and the invariants that this write breaks."""
    old, broken = row_of(w, x), []
    if old.status in FINAL and row.status != old.status:
        broken.append("J4")
    if row.status == "success" and not w.done[x]:
        broken.append("J5")
    known = [item for item in known_runs(w) if item[0] == x and item[2] != REFUSED]
    if old.host >= 0:  # of instances the one that is called: an earlier attempt was left to another
        known = [item for item in known if item[1] == old.n]
    if row.status == "lost" and known:
        is_called = any(item[4] in (w.at, old.host) for item in known)
        broken.append("J5" if is_called else "J9")
    if row.status == "lost" and old.status != "lost":
        broken.append("L1" if w.done[x] else "L2" if not w.starts[x] else "L3")
    return w._replace(rows=put(w.rows, x, row)), broken


def holds(w: World, g: Setup, s: int, x: int) -> bool:
    """Whether a write of scheduler s for tick x passes the lease condition."""
    row, task = row_of(w, x), task_of(w, s, x)
    return not g.rules.check_lease or (row.owner == s and row.lease == task.lease)


# --- the scheduler ---------------------------------------------------------------------


def claims(w: World, g: Setup) -> Iterator[Move[World]]:
    """A tick fires: compare-and-swap on the next time, and the insert of its rows."""
    r = g.rules
    for s in (0, 1):
        if s and not w.nxt:
            continue  # the two are alike: the first claim is A's
        for d in range(w.nxt, w.due):  # d < due - 1: a clock behind the other's
            rows, owed = list(w.rows), 0
            row: Row | None
            for k in range(w.nxt, d):
                rows[k] = Row("missed", owner=s)
            busy = any(other and other.status not in FINAL for other in rows)
            if d >= w.late:
                row = Row(OVERLAP[g.overlap] if busy else "running", owner=s)
            elif r.one_missed_txn:
                row = Row("missed", owner=s)
            else:
                row, owed = None, d + 1
            rows[d] = row
            v = w._replace(nxt=d + 1, rows=tuple(rows), owed=owed)
            if row and row.status == "running":
                v = with_task(v, s, d, Task("ask" if r.boot_stored else "send", 1, 1))
            status = row.status if row else "(row to come)"
            yield Move(f"{S[s]} claims tick {d + 1}: {status}", False, v)
        if not r.compare_and_swap and w.nxt:
            x = w.nxt - 1
            v = with_task(
                w._replace(rows=put(w.rows, x, Row("running", owner=s))), s, x, Task("send", 1, 1)
            )
            yield Move(f"{S[s]} claims tick {x + 1} again", False, v, ("J1",))
    if w.owed:
        v = w._replace(owed=0, rows=put(w.rows, w.owed - 1, Row("missed")))
        yield Move("the missed row is written", False, v)
        if may(w, g, CRASH):
            yield Move("its scheduler crashes first", True, w._replace(owed=0, left=spend(w)))


def takeovers(w: World, g: Setup) -> Iterator[Move[World]]:
    """The lease of a dead owner ends, or (a fault) that of a frozen one."""
    for x, row in enumerate(w.rows):
        if not row or row.status in FINAL:
            continue
        if row.status == "queued":
            if all(other and other.status in FINAL for other in w.rows[:x]):
                for s in (0, 1):
                    v, _ = with_row(w, x, row._replace(status="running", owner=s))
                    yield Move(
                        f"{S[s]} starts the queued tick {x + 1}",
                        False,
                        with_task(v, s, x, Task("ask", 1, 1)),
                    )
            continue
        mind = w.tasks[row.owner][x]
        alive = mind is not None and mind.lease == row.lease
        for s in (0, 1):
            if w.tasks[s][x] is not None or (alive and not may(w, g, FREEZE)):
                continue
            v = w._replace(left=spend(w)) if alive else w
            v, _ = with_row(v, x, row._replace(owner=s, lease=row.lease + 1))
            straight = g.rules.resend and row.boot >= 0
            v = with_task(
                v,
                s,
                x,
                Task(
                    "send" if straight else "ask",
                    row.lease + 1,
                    row.n,
                    row.boot,
                    row.era,
                    host=row.host,
                ),
            )
            why = f"{S[row.owner]} freezes past its lease; " if alive else ""
            yield Move(f"{why}{S[s]} takes over", alive, v)


def crashes(w: World, g: Setup) -> Iterator[Move[World]]:
    """A scheduler loses its memory; what it sent stays under way."""
    if may(w, g, CRASH):
        for s in (0, 1):
            if any(w.tasks[s]):
                none = (None,) * g.ticks
                yield Move(
                    f"{S[s]} crashes", True, w._replace(tasks=put(w.tasks, s, none), left=spend(w))
                )


def end(w: World, s: int, x: int, status: Status) -> Written:
    """A final status is written, and the task is over."""
    v, broken = with_row(w, x, row_of(w, x)._replace(status=status))
    return with_task(v, s, x, None), broken


def ended_badly(w: World, g: Setup, s: int, x: int) -> Written:
    """The run failed: again with the next n, or `error`."""
    row = row_of(w, x)
    if row.tries >= MAX_ATTEMPTS or (g.rules.retry_safe_only and not g.safe):
        return end(w, s, x, "error")
    return again(w, g, s, x, row.n + 1, row.tries + 1)


def again(w: World, g: Setup, s: int, x: int, n: int, tries: int, unbegun: bool = False) -> Written:
    """The call is to be sent once more, as attempt n."""
    row, task = row_of(w, x), task_of(w, s, x)
    new, kept = n > row.n, unbegun and g.rules.refusal_kept
    fresh = (new and g.rules.fresh_attempt) or (unbegun and g.rules.send_once) or kept
    status = "retry" if tries > row.tries else row.status
    row = row._replace(n=n, tries=tries, status=status)
    if fresh:
        row = row._replace(boot=-1, era=0, host=-1)
    v, broken = with_row(w, x, row)
    step: Step = "ask" if g.rules.ask_first or fresh else "send"
    return with_task(
        v, s, x, task._replace(step=step, n=n, boot=row.boot, era=row.era, host=row.host, known=0)
    ), broken


def steps(w: World, g: Setup) -> Iterator[Move[World]]:
    """What the tasks do by themselves."""
    for s in (0, 1):
        for x, task in enumerate(w.tasks[s]):
            if task is None:
                continue
            if task.step == "ask":
                yield from asks(w, g, s, x, task)
            elif task.step == "known":
                yield act(w, g, s, x, task)
            elif task.step == "send":
                call = (s, x, task.n, task.boot, task.era, callee(w, g, task))
                calls = w.calls if w.calls.count(call) > 1 else tuple(sorted((*w.calls, call)))
                v = with_task(w._replace(calls=calls), s, x, task._replace(step="wait", known=0))
                yield Move(f"{S[s]} sends .{task.n} (tick {x + 1})", False, v)
            else:
                yield from tires(w, g, s, x, task)


def asks(w: World, g: Setup, s: int, x: int, task: Task) -> Iterator[Move[World]]:
    """A host answers a ping and a `get_run`; of instances the one that was stamped, or any."""
    choice: Sequence[int] = (callee(w, g, task),)
    if g.instances and (task.host < 0 or not g.rules.at_one):
        choice = range(g.hosts)
    for h in choice:
        host = w.hosts[h]
        if host.state == "up":  # else it waits for an answer
            found = recall(w, x, task.n, h)[0]
            said = task._replace(step="known", known=found, boot=host.boot, era=w.era[x])
            said = said._replace(host=h if g.instances else -1)
            label = f"{S[s]} asks get_run .{task.n}: {KNOWN[found]}, boot {host.boot + 1}"
            yield Move(label, False, with_task(w, s, x, said))
        elif task.host >= 0 and holds(w, g, s, x):
            yield from leaves(w, g, s, x)


def leaves(w: World, g: Setup, s: int, x: int) -> Iterator[Move[World]]:
    """The instance of a run has been silent for a while: it goes elsewhere, or it is lost."""
    row = row_of(w, x)
    state = w.hosts[row.host].state
    others = any(host.state == "up" for h, host in enumerate(w.hosts) if h != row.host)
    is_left = row.tries < MAX_ATTEMPTS or not g.rules.moves_bounded
    if others and is_left and (g.safe or not g.rules.moves_safe_only):
        v, broken = again(w, g, s, x, row.n + 1, row.tries + 1)
        yield Move(f"{S[s]} takes .{row.n + 1} elsewhere", False, v, broken)
    if state == "gone" or not g.rules.waits_a_day:
        v, broken = end(w, s, x, "lost")
        yield Move(f"{S[s]} records lost: host {row.host + 1} was silent", False, v, broken)


def act(w: World, g: Setup, s: int, x: int, task: Task) -> Move[World]:
    """The transaction after the handler's answer."""
    name, row = S[s], row_of(w, x)
    if not holds(w, g, s, x):
        return Move(f"{name} finds its lease gone", False, with_task(w, s, x, None))
    if task.known == OK:
        return Move(f"{name} records success", False, *end(w, s, x, "success"))
    if task.known == ERR:
        return Move(f"{name} records the failed run", False, *ended_badly(w, g, s, x))
    if task.known == REFUSED:
        return Move(
            f"{name} takes the next n",
            False,
            *again(w, g, s, x, row.n + 1, row.tries, unbegun=True),
        )
    if task.known == RUNNING and g.rules.send_once:
        return Move(f"{name} waits", False, with_task(w, s, x, task._replace(step="ask", known=0)))
    never_sent = row.boot < 0
    stale = g.rules.send_once or task.boot != row.boot or (g.rules.proven and task.era != row.era)
    if task.known == UNKNOWN and stale and not never_sent:
        if not g.safe or (g.rules.lost_grows_n and row.tries >= MAX_ATTEMPTS):
            return Move(f"{name} records lost", False, *end(w, s, x, "lost"))
        if g.rules.lost_grows_n:
            row = row._replace(n=row.n + 1, tries=row.tries + 1, status="retry")
            task = task._replace(n=row.n)
    v, broken = with_row(w, x, row._replace(boot=task.boot, era=task.era, host=task.host))
    return Move(
        f"{name} decides to send .{task.n}",
        False,
        with_task(v, s, x, task._replace(step="send", known=0)),
        broken,
    )


def tires(w: World, g: Setup, s: int, x: int, task: Task) -> Iterator[Move[World]]:
    """No reply came: nothing is under way any more, or (a fault) it is only slow."""
    # Of a host that was replaced, or is silent, nothing is waited for.
    h = callee(w, g, task)
    under_way = w.hosts[h].state == "up" and (
        any(c[:3] == (s, x, task.n) and c[5] == h for c in w.calls)
        or any(c[:3] == (s, x, task.n) for c in w.replies)
        or recall(w, x, task.n, h) in ((RUNNING, 1 << s), (RUNNING, 3))
    )
    if under_way and not may(w, g, SLOW):
        return
    v = w._replace(left=spend(w)) if under_way else w
    if holds(v, g, s, x):
        v, broken = again(v, g, s, x, task.n, row_of(w, x).tries)
        yield Move(f"{S[s]} has no reply", under_way, v, broken)
        if g.instances and w.hosts[h].state != "up":
            yield from leaves(w, g, s, x)
    else:
        yield Move(f"{S[s]} has no reply, and no lease", under_way, with_task(v, s, x, None))


def hears(w: World, g: Setup) -> Iterator[Move[World]]:
    """A reply arrives and is recorded, in one transaction."""
    for reply in w.replies:
        s, x, n, what = reply
        v = w._replace(replies=tuple(c for c in w.replies if c != reply))
        task = v.tasks[s][x]
        label = f"{S[s]} hears {what} for .{n}"
        if task is None or task.step != "wait" or task.n != n:
            yield Move(f"{label}, too late", False, v)
        elif not holds(v, g, s, x):
            yield Move(f"{label}, without lease", False, with_task(v, s, x, None))
        elif what == "ok":
            yield Move(label, False, *end(v, s, x, "success"))
        elif what == "failed" or (what == "timeout" and not g.rules.wait_is_not_end):
            yield Move(label, False, *ended_badly(v, g, s, x))
        elif g.rules.resend and what == "expired":
            tries = row_of(w, x).tries
            over = not g.safe or tries >= MAX_ATTEMPTS
            yield Move(
                label,
                False,
                *(end(v, s, x, "lost") if over else again(v, g, s, x, n + 1, tries + 1)),
            )
        elif g.rules.resend and what == "timeout":
            yield Move(label, False, *again(v, g, s, x, n, row_of(w, x).tries))
        elif what in ("expired", "timeout"):
            yield Move(label, False, with_task(v, s, x, task._replace(step="ask")))
        else:
            yield Move(label, False, *again(v, g, s, x, n + 1, row_of(w, x).tries, unbegun=True))


# --- the handler and the network -------------------------------------------------------


def answer(w: World, s: int, x: int, n: int, what: str) -> World:
    """The state with one more reply under way."""
    return w._replace(replies=tuple(sorted({*w.replies, (s, x, n, what)})))


def arrives(w: World, g: Setup) -> Iterator[Move[World]]:
    """The handler takes a call."""
    r = g.rules
    for call in sorted(set(w.calls)):
        s, x, n, boot, era, h = call
        host = w.hosts[h]
        if host.state != "up":
            continue
        rest = list(w.calls)
        rest.remove(call)
        v = w._replace(calls=tuple(rest))
        state, waiters = recall(w, x, n, h)
        label = f"{name_of(w, h)} gets {S[s]}'s .{n} (tick {x + 1})"
        expired = r.guarded and state == UNKNOWN and (boot != host.boot or era != w.era[x])
        open_to_busy = not (expired and r.guard_first) and (state == UNKNOWN or not r.memory_first)
        if may(w, g, BUSY) and open_to_busy:
            refused = remember(v, x, n, h, REFUSED) if r.refusal_kept and state == UNKNOWN else v
            yield Move(
                f"{label}: busy", True, answer(refused._replace(left=spend(w)), s, x, n, "busy")
            )
        if state == RUNNING:
            v = remember(v, x, n, h, RUNNING, waiters | 1 << s)
            yield Move(f"{label}: in progress", False, v)
        elif state == REFUSED:
            yield Move(f"{label}: busy, as before", False, answer(v, s, x, n, "busy"))
        elif state in (OK, ERR):
            yield Move(
                f"{label}: known", False, answer(v, s, x, n, "ok" if state == OK else "failed")
            )
        elif expired:
            yield Move(f"{label}: expired", False, answer(v, s, x, n, "expired"))
        else:
            v = remember(v, x, n, h, RUNNING, 1 << s)
            v = v._replace(starts=put(w.starts, x, min(MAX_ATTEMPTS + 1, w.starts[x] + 1)))
            yield Move(f"{label}: START", False, v, start_broken(w, g, s, x, h))


def name_of(w: World, h: int) -> str:
    """A host, as labels have it."""
    return H if len(w.hosts) == 1 else f"host {h + 1}"


def start_broken(w: World, g: Setup, s: int, x: int, h: int) -> list[str]:
    """The invariants that this start breaks."""
    broken, row = [], row_of(w, x)
    if w.starts[x] and not g.safe:
        broken.append("J2")
        if row.owner != s:
            broken.append("J4")
    if w.starts[x] >= MAX_ATTEMPTS:
        broken.append("J8")
    if w.hosts[h].replaced or (g.instances and g.safe):
        return broken  # a call that came late to it, or an attempt beside one that nobody hears of
    if row.status in FINAL:
        broken.append("J6")
    running = [item for item in known_runs(w) if item[2] == RUNNING]
    if any(item[0] == x and item[4] != h for item in running):
        broken.append("J9")
    elif g.overlap != "parallel" and running:
        broken.append("J7")
    return broken


def runs(w: World, g: Setup) -> Iterator[Move[World]]:
    """Runs end; waits end; the window passes; the handler restarts."""
    for x, n, state, waiters, h in w.memory:
        if state != RUNNING:
            continue
        for end_state, what in ((OK, "ok"), (ERR, "failed")):
            v = remember(w, x, n, h, end_state)
            if what == "ok":
                v = v._replace(done=put(w.done, x, 1))
            for s in (0, 1):
                if waiters >> s & 1 and w.hosts[h].state == "up":
                    v = answer(v, s, x, n, what)
            yield Move(f"run .{n} (tick {x + 1}) ends {what}", False, v)
        for s in (0, 1):
            if may(w, g, WAIT) and w.hosts[h].state == "up" and waiters >> s & 1:
                v = remember(w, x, n, h, RUNNING, waiters & ~(1 << s))._replace(left=spend(w))
                yield Move(
                    f"{H} answers timeout, the run goes on", True, answer(v, s, x, n, "timeout")
                )
    if may(w, g, WINDOW):
        for x in range(g.ticks):
            if w.rows[x]:
                memory = tuple(item for item in w.memory if item[0] != x or item[2] == RUNNING)
                v = w._replace(memory=memory, era=put(w.era, x, w.era[x] + 1), left=spend(w))
                yield Move(f"the dedupe window passes (tick {x + 1})", True, v)
    for h, host in enumerate(w.hosts):
        if may(w, g, RESTART) and w.nxt and host.state != "gone":
            boot = max(other.boot for other in w.hosts) + 1
            # What begins on it before it is heard again is under way to a host that was silent.
            late = host.replaced and any(other.taking for other in w.hosts)
            new = Host(boot, host.state, registered=len(w.hosts) == 1, replaced=late)
            v = with_host(forgotten(w, h), h, new)._replace(left=spend(w))
            yield Move(f"{name_of(w, h)} crashes and restarts (boot {boot + 1})", True, v)


def forgotten(w: World, h: int) -> World:
    """The state in which a host knows of no run."""
    return w._replace(memory=tuple(item for item in w.memory if item[4] != h))


def registers(w: World, g: Setup) -> Iterator[Move[World]]:
    """A host registers, or reports that it is there: of two, each under the one id."""
    for h, host in enumerate(w.hosts if g.hosts > 1 and not g.instances else ()):
        if host.state != "up":
            continue
        if host.registered:
            if w.at != h and g.rules.reported:
                v = with_host(w, h, host._replace(registered=False))
                yield Move(f"host {h + 1} reports: it is not the one that is registered", False, v)
        elif w.at == h:
            v = with_host(w, h, host._replace(replaced=False))
            yield Move(f"host {h + 1} registers again", False, taken(v, g, h))
        elif host.taking:
            yield Move(f"host {h + 1} takes the place of host {w.at + 1}", False, taken(w, g, h))
        elif not g.rules.asked:
            yield Move(f"host {h + 1} registers", False, taken(w, g, h))
        elif host.gave_up:
            continue
        elif w.hosts[w.at].state != "up":
            v = with_host(w, h, host._replace(taking=True))
            v = with_host(v, w.at, w.hosts[w.at]._replace(replaced=True))
            yield Move(f"host {h + 1} registers, and host {w.at + 1} is silent", False, v)
        elif not g.rules.keeps_trying:
            v = with_host(w, h, host._replace(gave_up=True))
            yield Move(f"host {h + 1} is refused", False, v)


def taken(w: World, g: Setup, h: int) -> World:
    """The state in which a registration is written."""
    hosts = [host._replace(taking=host.taking and not g.rules.unheard) for host in w.hosts]
    hosts[h] = hosts[h]._replace(registered=True, taking=False)
    return w._replace(hosts=tuple(hosts), at=h)


def cuts(w: World, g: Setup) -> Iterator[Move[World]]:
    """A host is cut off, comes back, or is gone."""
    for h, host in enumerate(w.hosts):
        if host.state == "cut":
            yield Move(f"host {h + 1} is back", False, with_host(w, h, host._replace(state="up")))
        if host.state == "up" and may(w, g, CUT):
            v = with_host(w, h, host._replace(state="cut"))._replace(left=spend(w))
            yield Move(f"host {h + 1} is cut off", True, v)
        if may(w, g, GONE) and all(other.state != "gone" for other in w.hosts):
            calls = tuple(call for call in w.calls if call[5] != h)
            v = with_host(forgotten(w, h), h, Host(host.boot, "gone"))
            yield Move(f"host {h + 1} is gone", True, v._replace(calls=calls, left=spend(w)))


def network(w: World, g: Setup) -> Iterator[Move[World]]:
    """Messages are lost or repeated; delay and reordering need no step."""
    for call in sorted(set(w.calls)):
        name = f"{S[call[0]]}'s .{call[2]} (tick {call[1] + 1})"
        if may(w, g, DROP):
            rest = list(w.calls)
            rest.remove(call)
            yield Move(f"call {name} is lost", True, w._replace(calls=tuple(rest), left=spend(w)))
        if may(w, g, DUP) and w.calls.count(call) < 2:
            yield Move(
                f"call {name} is repeated",
                True,
                w._replace(calls=tuple(sorted((*w.calls, call))), left=spend(w)),
            )
    if may(w, g, DROP):
        for reply in w.replies:
            v = w._replace(replies=tuple(c for c in w.replies if c != reply), left=spend(w))
            yield Move(f"reply {reply[3]} for .{reply[2]} to {S[reply[0]]} is lost", True, v)


def clock(w: World, g: Setup) -> Iterator[Move[World]]:
    """A tick becomes due; its grace passes."""
    if w.due < g.ticks:
        yield Move(f"tick {w.due + 1} is due", False, w._replace(due=w.due + 1))
    if g.misfire and w.late < w.due and w.nxt <= w.late:
        yield Move(f"the grace of tick {w.late + 1} is over", False, w._replace(late=w.late + 1))


ACTIONS: tuple[Callable[[World, Setup], Iterator[Move[World]]], ...] = (
    clock,
    claims,
    takeovers,
    crashes,
    steps,
    hears,
    arrives,
    runs,
    registers,
    cuts,
    network,
)


def settled(w: World, g: Setup) -> bool:
    """Every tick has a row, and every row is final."""
    return w.nxt == g.ticks and not w.owed and all(row and row.status in FINAL for row in w.rows)


# --- the cases -------------------------------------------------------------------------

RULES = {
    "J1": "a tick is inserted at most once",
    "J2": "not retry-safe: at most one start a tick",
    STUCK: "J3: every execution becomes final once faults stop",
    "J4": "a frozen scheduler overwrites no final status, starts no second run",
    "J5": "success had a finished run; lost only when the handler cannot know",
    "J6": "no start for an execution that is final",
    "J7": "overlap skip: never two runs at once",
    "J8": "at most max_attempts starts a tick",
    "J9": "no start beside a host that answers and runs it, no lost while that one knows the run",
}
LIMITS = {
    "L1": "lost, though a run finished ok",
    "L2": "lost, though no run began",
    "L3": "lost, and a run began and did not finish well",
}
"""What no rule can help: stated limits, no faults."""


class Model:
    """One exploration, for the explorer."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def initial(self) -> World:
        """Before the first tick."""
        return first(self.setup)

    def moves(self, world: World) -> Iterator[Move[World]]:
        """Every step, with the rules that it breaks."""
        for action in ACTIONS:
            yield from action(world, self.setup)

    def check(self, world: World) -> tuple[str, ...]:
        """Nothing: the rules are about steps."""
        return ()

    def rest(self, world: World) -> bool:
        """Every tick has a row, and every row is final."""
        return settled(world, self.setup)


def only(*kinds: str) -> frozenset[str]:
    """A set of fault kinds."""
    return frozenset(kinds)


TEXT_RUNS = [  # (the story, invariant, rules, kinds, faults, ticks)
    ("a lost reply, then the same id again", "J2", TEXT, only(RESTART), 1, 1),
    ("a late second copy meets a restarted handler", "J6", TEXT, only(RESTART, SLOW), 2, 1),
    ("lost is recorded while the run is going on", "J5", TEXT, only(RESTART, FREEZE), 2, 1),
    (
        "a frozen scheduler wakes after a takeover and a restart",
        "J4",
        TEXT,
        only(RESTART, FREEZE),
        2,
        1,
    ),
    ("a frozen scheduler wakes after the window", "J4", TEXT, only(WINDOW, FREEZE), 2, 1),
    (
        "a takeover finds a finished run forgotten",
        "J2",
        TEXT._replace(guarded=True),
        only(WINDOW, CRASH),
        2,
        1,
    ),
    ("busy makes n grow; a copy of the old id comes late", "J2", TEXT, only(BUSY, DUP), 2, 1),
    ("two runs at once", "J7", TEXT, only(BUSY, FREEZE), 2, 1),
    ("a run that kills its handler is sent for ever", "J8", TEXT, only(RESTART), 2, 1),
    ("a late copy runs beside the next tick's run", "J7", TEXT, only(RESTART, SLOW, CRASH), 3, 2),
]
READINGS = [
    (
        "boot_id not stored before the first send",
        "J2",
        TEXT._replace(boot_stored=False),
        only(CRASH, RESTART),
        2,
        1,
    ),
    (
        "busy is said before the memory is looked at",
        "J2",
        TEXT._replace(memory_first=False),
        only(SLOW, BUSY),
        2,
        1,
    ),
    (
        "`timeout` of the wait taken as the end",
        "J7",
        BUILT._replace(wait_is_not_end=False),
        only(WAIT),
        1,
        2,
    ),
    ("max_attempts for every method", "J2", BUILT._replace(retry_safe_only=False), only(), 0, 1),
]
LEFT_OUT = [
    ("guarded", "J2", 2, 1),
    ("guarded", "J6", 2, 1),
    ("proven", "J2", 2, 1),
    ("refusal_kept", "J2", 2, 1),
    ("memory_first", "J2", 2, 1),
    ("guard_first", "J2", 3, 1),
    ("wait_is_not_end", "J7", 1, 2),
    ("retry_safe_only", "J2", 0, 1),
    ("lost_grows_n", "J6", 3, 1),
    ("lost_grows_n", "J8", 2, 1),
    ("fresh_attempt", "J5", 3, 1),
    ("one_missed_txn", STUCK, 1, 1),
    ("check_lease", "J4", 2, 1),
    ("compare_and_swap", "J1", 0, 1),
]
SHORT_LEFT_OUT = [
    ("guarded", "J2", 2),
    ("refusal_kept", "J2", 2),
    ("memory_first", "J2", 2),
    ("guard_first", "J2", 3),
    ("retry_safe_only", "J2", 0),
]
HOST_FAULTS = only(CUT, GONE, RESTART, FREEZE)
HOSTS = [  # (the rule that is taken out, what breaks, whether retry-safe, faults)
    ("asked", "J5", False, 0),
    ("asked", "J9", True, 0),
    ("unheard", "J9", False, 2),
    ("reported", STUCK, False, 2),
    ("keeps_trying", STUCK, False, 1),
]
INSTANCES = [  # (the rule that is taken out, what breaks, whether retry-safe, faults)
    ("at_one", "J5", False, 2),
    ("moves_safe_only", "J2", False, 1),
    ("moves_bounded", "J8", True, 2),
    ("waits_a_day", "J5", False, 1),
]
WHOLE = [
    ("text, for comparison", Setup(TEXT, faults=2)),
    ("text, for comparison", Setup(TEXT, safe=True, faults=2)),
    (
        "another way: sent once, no start_by, a network that repeats nothing",
        Setup(ONCE, faults=3, kinds=KINDS - {DUP}),
    ),
    ("built", Setup(BUILT, faults=4)),
    ("built", Setup(BUILT, safe=True, faults=3)),
    ("built, two ticks, skip", Setup(BUILT, ticks=2, faults=2)),
    ("built, two ticks, skip", Setup(BUILT, safe=True, ticks=2, faults=2)),
    ("built, two ticks, queue", Setup(BUILT, ticks=2, faults=2, overlap="queue")),
    ("built, two ticks, parallel", Setup(BUILT, ticks=2, faults=1, overlap="parallel")),
    ("built, missed ticks", Setup(BUILT, ticks=2, faults=2, misfire=True)),
    ("short", Setup(SHORT, faults=4)),
    ("short", Setup(SHORT, safe=True, faults=3)),
    ("short, two ticks, skip", Setup(SHORT, ticks=2, faults=2)),
    ("short, two ticks, queue", Setup(SHORT, safe=True, ticks=2, faults=2, overlap="queue")),
    ("short, missed ticks", Setup(SHORT, ticks=2, faults=2, misfire=True)),
]


def whole(title: str, setup: Setup, *, slow: bool = True) -> Case:
    """A case whose every state is visited."""
    kind = "retry-safe" if setup.safe else "not retry-safe"
    name = f"{title} [{kind}, ticks {setup.ticks}, faults {setup.faults}]"
    breaks = ANY if setup.rules in (TEXT, ONCE) else None
    return Case(name, breaks, Model(setup), tuple(LIMITS), slow, LIMIT)


LIMIT = 6_000_000
CASES = [
    *(
        Case(title, name, Model(Setup(rules, name == "J8", ticks, faults, kinds)), limit=LIMIT)
        for title, name, rules, kinds, faults, ticks in TEXT_RUNS + READINGS
    ),
    *(
        Case(
            f"{rule} out",
            name,
            Model(
                Setup(
                    BUILT._replace(**{rule: False}),
                    rule in ("lost_grows_n", "fresh_attempt"),
                    ticks,
                    faults,
                    misfire=rule == "one_missed_txn",
                )
            ),
            limit=LIMIT,
        )
        for rule, name, faults, ticks in LEFT_OUT
    ),
    *(
        Case(
            f"short, {rule} out",
            name,
            Model(Setup(SHORT._replace(**{rule: False}), faults=faults)),
            limit=LIMIT,
        )
        for rule, name, faults in SHORT_LEFT_OUT
    ),
    *(
        Case(
            f"two hosts, {rule} out, {'retry-safe' if safe else 'not retry-safe'}",
            name,
            Model(
                Setup(SHORT._replace(**{rule: False}), safe, 1, faults, HOST_FAULTS, hosts=2),
            ),
            tuple(LIMITS),
            limit=LIMIT,
        )
        for rule, name, safe, faults in HOSTS
    ),
    *(
        whole(f"{title}, two hosts", Setup(rules, safe, 1, 2, HOST_FAULTS, hosts=2), slow=slow)
        for title, rules, slow in (("short", SHORT, False), ("built", BUILT, True))
        for safe in (False, True)
    ),
    *(
        Case(
            f"two instances, {rule} out, {'retry-safe' if safe else 'not retry-safe'}",
            name,
            Model(
                Setup(
                    BUILT._replace(**{rule: False}),
                    safe,
                    1,
                    faults,
                    HOST_FAULTS,
                    hosts=2,
                    instances=True,
                ),
            ),
            tuple(LIMITS),
            limit=LIMIT,
        )
        for rule, name, safe, faults in INSTANCES
    ),
    *(
        whole(
            f"{title}, two instances",
            Setup(rules, safe, 1, 2, HOST_FAULTS, hosts=2, instances=True),
            slow=slow,
        )
        for title, rules, slow in (("short", SHORT, False), ("built", BUILT, True))
        for safe in (False, True)
    ),
    whole("built, fewer faults", Setup(BUILT, faults=2), slow=False),
    whole("built, fewer faults", Setup(BUILT, safe=True, faults=2), slow=False),
    whole("short, fewer faults", Setup(SHORT, faults=2), slow=False),
    *(whole(title, setup) for title, setup in WHOLE),
]

"""Merge: rows of a table under a key, read by a watermark; the backend shows the newest of each.

One source; a second folder in some cases (an old one that was put back). The table goes through
the states of a script; a row is (key, watermark value, version, deleted?). A run reads rows with
a value of at least position - lookback, in the order of the values; sealing keeps the new position
and what the window held: what a run that finds nothing else calls unchanged. `complete` carries
after and until as in append; the view shows the newest row of each key, and nothing where that is
a tombstone. Requests may be lost or late, their answers lost; dead letters, purge, full, loss of
the folder, a restored backend, retention, compaction of hidden rows. What holds: at rest the view
is the table; after retention, it holds nothing that is not in the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from tests.models.explore import ANY, Case, Move, changed, put


class Rules(NamedTuple):
    """The switches; the defaults are the rules M1 to M5 and M7."""

    chain: bool = True
    """M1: accepted only where `after` is the source's `until`; one at a time, in sealing order."""
    unique: bool = True
    """G5: `until` is never the same twice: [value, source_seq]; else the value alone."""
    key_check: bool = False
    """M3 broken: a visible upload of the same upload_key (after and until) answers duplicate."""
    order: Literal["seq", "arrival", "version"] = "seq"
    """M2: newest by source_seq, then row order | by arrival | by version, then source_seq."""
    lookback: int = 1
    """M3: how far back of the position a run reads."""
    inclusive: bool = True
    """M3: rows at the border are read again."""
    forget: bool = True
    """F7: superseded, purge, compare: what the window held is forgotten too."""
    sorted: bool = True
    """M3: rows within an upload are in the order of their values."""
    drop: Literal["oldest", "any"] = "oldest"
    """M7: retention drops the oldest uploads first | any upload."""
    lag: bool = False
    """A run may read a replica of the source that is one state behind."""
    full_waits: bool = False
    """A full waits behind a dead letter of its source."""
    clock: bool = True
    """source_seq is at least the clock (off: the clock stepped back)."""
    raise_seq: bool = True
    """M5: source_seq is above the highest that the backend says."""


class Row(NamedTuple):
    """A row of the table."""

    key: str
    value: int
    version: int
    deleted: bool = False


class Until(NamedTuple):
    """A watermark: opaque to the backend."""

    value: int = 0
    seq: int = 0


class Sent(NamedTuple):
    """What `complete` carries."""

    uid: int
    after: Until
    until: Until
    rows: tuple[Row, ...]
    seq: int
    full: bool


class Entry(NamedTuple):
    """An upload in the outbox."""

    sent: Sent
    dead: bool = False


class Reading(NamedTuple):
    """What a run has read and not yet sealed."""

    after: Until
    rows: tuple[Row, ...]
    full: bool


class Folder(NamedTuple):
    """A state folder; `window` is what the last sealed read held."""

    position: Until = Until()
    window: frozenset[Row] = frozenset()
    highest: int = 0
    reading: Reading | None = None
    box: tuple[Entry, ...] = ()


class Visible(NamedTuple):
    """A visible upload."""

    uid: int
    seq: int
    rows: tuple[Row, ...]
    arrival: int
    key: tuple[Until, Until]


class Backend(NamedTuple):
    """The backend; `dropped`: retention was at work."""

    position: Until = Until()
    highest: int = 0
    uploads: tuple[Visible, ...] = ()
    done: frozenset[int] = frozenset()
    superseded: frozenset[int] = frozenset()
    arrivals: int = 0
    dropped: bool = False


class State(NamedTuple):
    """Two folders (B is an old one that was put back), the backend, the network."""

    source: int
    folders: tuple[Folder, ...]
    backend: Backend
    late: frozenset[Sent]
    snapshot: Backend | None
    left: tuple[int, ...]
    uid: int
    clock: int


LOST, LATE, DEAD, FULL, LOSS, RESTORE, RETAIN, COMPACT = range(8)
Table = tuple[Row, ...]
A1 = Row("a", 1, 1)
A2 = Row("a", 2, 2)
B1 = Row("b", 1, 1)
C2 = Row("c", 2, 1)
C3 = Row("c", 3, 1)
GONE2 = Row("a", 2, 2, True)

UPDATE: list[Table] = [(A1,), (A2,)]
LATE_ROW: list[Table] = [(A1, C2), (A1, C2, B1)]
TIE: list[Table] = [(A1,), (A1, B1)]
ONE_TICK: list[Table] = [(A1,), (Row("a", 1, 2),)]
ONE_TICK_TWICE: list[Table] = [*ONE_TICK, (Row("a", 1, 3),)]
TOMBSTONE: list[Table] = [(A1,), (GONE2,), (GONE2, Row("b", 3, 1))]
HARD_DELETE: list[Table] = [(A1, B1), (B1,)]
APART: list[Table] = [(A1,), (A1, C3), (A1, C3, Row("b", 5, 1))]
LOG: list[Table] = [(A1, A2), (A1, A2, Row("a", 3, 3, True))]
CLOCK_BACK: list[Table] = [(Row("a", 2, 1),), (Row("a", 1, 2),)]


class Model:
    """A table that goes through `script`; with `old`, a second folder whose clock has `skew`."""

    def __init__(
        self,
        rules: Rules = Rules(),  # noqa: B008  # immutable
        script: list[Table] = UPDATE,
        faults: Mapping[int, int] | None = None,
        *,
        old: bool = False,
        skew: int = 0,
    ) -> None:
        self.rules, self.script, self.old, self.skew, self.uploads = rules, script, old, skew, 5
        self.faults = tuple((faults or {}).get(kind, 0) for kind in range(8))

    def initial(self) -> State:
        """Nothing was read yet."""
        folders = (Folder(),) * (1 + self.old)
        return State(0, folders, Backend(), frozenset(), None, self.faults, 0, 0)

    def read(self, table: Table, after: Until) -> Table:
        """What a read from a position finds."""
        low = after.value - self.rules.lookback
        inclusive, first = self.rules.inclusive, after == Until()
        found = [
            row
            for row in table
            if first or (row.value >= low if inclusive else row.value > after.value)
        ]
        found.sort(key=lambda row: row.value, reverse=not self.rules.sorted)
        return tuple(found)

    def due(self, folder: Folder, table: Table) -> Table | None:
        """What a run would seal; None when unchanged."""
        rows = self.read(table, folder.position)
        changed_rows = set(rows) - folder.window if self.rules.inclusive else rows
        return rows if changed_rows else None

    def sealed(self, state: State, index: int, reading: Reading) -> State:
        """One transaction: the upload, the position, what the window held."""
        folder = state.folders[index]
        after, rows, full = reading
        now = state.clock + 1 + (self.skew if index else 0) if self.rules.clock else 0
        seq = max(folder.highest + 1, now)
        value = max([row.value for row in rows] + [0 if full else after.value])
        until = Until(value, seq if self.rules.unique else 0)
        entry = Entry(Sent(state.uid, after, until, rows, seq, full))
        folder = Folder(until, frozenset(rows), seq, None, (*folder.box, entry))
        following = state._replace(uid=state.uid + 1, clock=state.clock + 1)
        return with_folder(following, index, folder)

    def complete(self, backend: Backend, sent: Sent) -> tuple[Backend, str]:
        """The backend takes an upload, in one transaction."""
        uid, after, until, rows, seq, full = sent
        if uid in backend.done:
            return backend, "duplicate"
        if uid in backend.superseded:
            return backend, "superseded"
        same = any((after, until) == upload.key for upload in backend.uploads)
        if self.rules.key_check and not full and same:
            return backend, "duplicate"
        chained = self.rules.chain and after != backend.position
        if seq <= backend.highest if full else chained:
            return backend._replace(superseded=backend.superseded | {uid}), "superseded"
        kept = tuple(upload for upload in backend.uploads if not full or upload.seq > seq)
        new = Visible(uid, seq, rows, backend.arrivals, (after, until))
        position = until if self.rules.chain or full else max(backend.position, until)
        following = backend._replace(
            position=position,
            highest=max(backend.highest, seq),
            uploads=(*kept, new),
            done=backend.done | {uid},
            arrivals=backend.arrivals + 1,
        )
        return following, "created"

    def newest(self, backend: Backend) -> dict[str, tuple[Row, int]]:
        """The newest row of each key, with its upload."""
        best: dict[str, tuple[tuple[int, ...], Row, int]] = {}
        for upload in backend.uploads:
            for number, row in enumerate(upload.rows):
                rank = {
                    "seq": (upload.seq, number),
                    "arrival": (upload.arrival, number),
                    "version": (row.value, upload.seq, number),
                }[self.rules.order]
                if row.key not in best or rank > best[row.key][0]:
                    best[row.key] = (rank, row, upload.uid)
        return {key: (row, uid) for key, (_, row, uid) in best.items()}

    def moves(self, state: State) -> Iterator[Move[State]]:
        """Table, runs, operator, sender, network and faults."""
        if state.uid >= self.uploads:
            return
        if state.source + 1 < len(self.script):
            following = state._replace(source=state.source + 1)
            yield Move(f"table: {self.script[state.source + 1]}", True, following)
        for index in range(len(state.folders)):
            yield from self.run(state, index)
            yield from self.outbox(state, index)
        for sent in state.late:
            backend, answer = self.complete(state.backend, sent)
            following = state._replace(backend=backend, late=state.late - {sent})
            yield Move(f"late complete {sent.uid}: {answer}", True, following)
        yield from self.disasters(state)
        yield from self.housekeeping(state)

    def run(self, state: State, index: int) -> Iterator[Move[State]]:
        """A run reads, then seals."""
        folder, who = state.folders[index], "AB"[index]
        table, reading = self.script[state.source], folder.reading
        if reading is None:
            tables = [(table, "")]
            if self.rules.lag and state.source:
                tables.append((self.script[state.source - 1], " from a replica behind"))
            for found, where in tables:
                rows = self.due(folder, found)
                if rows is not None:
                    new = folder._replace(reading=Reading(folder.position, rows, False))
                    label = f"{who} reads {rows}{where}"
                    yield Move(label, bool(where), with_folder(state, index, new))
            if state.left[FULL]:
                everything = Reading(Until(), self.read(table, Until()), True)
                following = with_folder(state, index, folder._replace(reading=everything))
                yield Move(f"{who} reads all, full", True, spent(following, FULL))
        elif not reading.full and reading.after != folder.position:
            following = with_folder(state, index, folder._replace(reading=None))
            yield Move(f"{who}: seal refused, the position moved", False, following)
        else:
            following = self.sealed(state, index, reading)
            yield Move(f"{who} seals it as {state.uid}", False, following)

    def outbox(self, state: State, index: int) -> Iterator[Move[State]]:
        """What operator and sender do with each upload of a folder."""
        folder, chain, held = state.folders[index], self.rules.chain, False
        for entry in folder.box:
            if entry.dead:
                held = True
                yield from self.operator(state, index, entry)
            elif not (held and chain) or (entry.sent.full and not self.rules.full_waits):
                yield from self.sender(state, index, entry)
                held = held or chain

    def operator(self, state: State, index: int, entry: Entry) -> Iterator[Move[State]]:
        """A dead letter is retried, or purged."""
        folder, uid = state.folders[index], entry.sent.uid
        again = folder._replace(box=changed(folder.box, entry, entry._replace(dead=False)))
        yield Move(f"operator retries {uid}", False, with_folder(state, index, again))
        purged = folder._replace(
            box=changed(folder.box, entry, None),
            position=min(folder.position, entry.sent.after),
            window=frozenset() if self.rules.forget else folder.window,
        )
        yield Move(f"operator purges {uid}", True, with_folder(state, index, purged))

    def sender(self, state: State, index: int, entry: Entry) -> Iterator[Move[State]]:
        """An upload is completed."""
        folder, sent = state.folders[index], entry.sent
        backend, answer = self.complete(state.backend, sent)
        new = folder._replace(box=changed(folder.box, entry, None))
        if answer == "superseded" and sent.full:
            new = new._replace(highest=max(new.highest, backend.highest))
        elif answer == "superseded":
            new = new._replace(
                position=backend.position,
                highest=max(new.highest, backend.highest if self.rules.raise_seq else 0),
                window=frozenset() if self.rules.forget else folder.window,
            )
        lost = state._replace(backend=backend)
        label = f"{'AB'[index]} completes {sent.uid}: {answer}"
        yield Move(label, False, with_folder(lost, index, new))
        if state.left[LOST] and backend != state.backend:
            yield Move(f"{label}, answer lost", True, spent(lost, LOST))
        if state.left[LATE]:
            following = spent(state._replace(late=state.late | {sent}), LATE)
            yield Move(f"complete {sent.uid} is delayed", True, following)
        if state.left[DEAD]:
            dead = folder._replace(box=changed(folder.box, entry, entry._replace(dead=True)))
            following = spent(with_folder(state, index, dead), DEAD)
            yield Move(f"complete {sent.uid}: 422, dead letter", True, following)

    def disasters(self, state: State) -> Iterator[Move[State]]:
        """A's folder is lost; the backend is restored, and compared in one step."""
        backend, snapshot, first = state.backend, state.snapshot, state.folders[0]
        if state.left[LOSS]:
            known = backend.highest if self.rules.raise_seq else 0
            following = with_folder(state, 0, Folder(backend.position, highest=known))
            label = f"folder lost; a new one hears {backend.position}, {backend.highest}"
            yield Move(label, True, spent(following, LOSS))
        if state.left[RESTORE] and snapshot is None:
            yield Move("snapshot", True, state._replace(snapshot=backend))
        elif state.left[RESTORE] and snapshot and snapshot != backend:
            at, box = snapshot.position, tuple[Entry, ...]()
            for entry in first.box:
                if entry.sent.full or entry.sent.after == at:
                    box, at = (*box, entry), entry.sent.until
            keep = at == first.position or not self.rules.forget
            window = first.window if keep else frozenset[Row]()
            folder = Folder(at, window, first.highest, None, box)
            following = with_folder(state._replace(backend=snapshot), 0, folder)
            yield Move("RESTORED, compared", True, spent(following, RESTORE))

    def housekeeping(self, state: State) -> Iterator[Move[State]]:
        """Retention drops uploads; compaction drops what the view does not show."""
        backend = state.backend
        if state.left[RETAIN]:
            some = backend.uploads[:1] if self.rules.drop == "oldest" else backend.uploads
            for upload in some:
                kept = changed(backend.uploads, upload, None)
                following = state._replace(backend=backend._replace(uploads=kept, dropped=True))
                yield Move(f"retention drops upload {upload.uid}", True, spent(following, RETAIN))
        if state.left[COMPACT]:
            best = self.newest(backend)
            uploads = tuple(
                upload._replace(
                    rows=tuple(
                        row
                        for row in upload.rows
                        if best[row.key] == (row, upload.uid) and not row.deleted
                    )
                )
                for upload in backend.uploads
            )
            if uploads != backend.uploads:
                following = state._replace(backend=backend._replace(uploads=uploads))
                label = "compaction: hidden rows and tombstones go"
                yield Move(label, True, spent(following, COMPACT))

    def rest(self, state: State) -> bool:
        """Nothing is read or to be sent, and A's run would say unchanged."""
        if state.uid >= self.uploads:
            return True
        idle = all(folder.reading is None and not folder.box for folder in state.folders)
        return idle and self.due(state.folders[0], self.script[state.source]) is None

    def check(self, state: State) -> Iterator[str]:
        """At rest the view is the table."""
        if not self.rest(state) or state.uid >= self.uploads:
            return
        newest = {row.key: row for row in self.script[state.source]}
        table = sorted(row for row in newest.values() if not row.deleted)
        view = sorted(row for row, _ in self.newest(state.backend).values() if not row.deleted)
        wrong = [row for row in view if row not in table]
        if state.backend.dropped and wrong:
            yield f"the view shows {wrong}, which is not in the table"
        elif not state.backend.dropped and view != table:
            yield f"rest shows {view}, the table is {table}"


def with_folder(state: State, index: int, folder: Folder) -> State:
    """The state with one folder replaced."""
    return state._replace(folders=put(state.folders, index, folder))


def spent(state: State, kind: int) -> State:
    """One fault of this kind fewer is left."""
    return state._replace(left=put(state.left, kind, state.left[kind] - 1))


MANY = {LOST: 1, LATE: 1, DEAD: 1}
OLD = "an old folder (no fence)"
CASES = [
    Case("update, faults", None, Model(faults=MANY)),
    Case("a late row within lookback", None, Model(script=LATE_ROW, faults=MANY)),
    Case("a row tied at the watermark", None, Model(script=TIE, faults=MANY)),
    Case("updates within a tick", None, Model(script=ONE_TICK_TWICE, faults={LOST: 1, LATE: 1})),
    Case("soft delete (tombstone)", None, Model(script=TOMBSTONE, faults={LOST: 1, DEAD: 1})),
    Case("a log: several rows of a key in one upload", None, Model(script=LOG, faults=MANY)),
    Case("full", None, Model(script=TOMBSTONE, faults={FULL: 1, LATE: 1, DEAD: 1})),
    Case("folder lost", None, Model(script=LATE_ROW, faults={LOSS: 1, LATE: 1, DEAD: 1})),
    Case("restored backend", None, Model(script=TOMBSTONE, faults={RESTORE: 1, LOST: 1})),
    Case("compaction", None, Model(script=TOMBSTONE, faults={COMPACT: 1, LATE: 1, LOSS: 1})),
    Case("retention, oldest first", None, Model(script=TOMBSTONE, faults={RETAIN: 1, LATE: 1})),
    Case(f"{OLD}, its clock ahead", None, Model(Rules(), ONE_TICK, {LATE: 1}, old=True, skew=5)),
    Case("M3 out: exclusive reads (as append)", ANY, Model(Rules(inclusive=False), TIE)),
    Case("M3 out: no lookback", ANY, Model(Rules(lookback=0), LATE_ROW)),
    Case(
        "M3 out: upload_key is the range of values, and is checked first",
        ANY,
        Model(Rules(unique=False, key_check=True), ONE_TICK_TWICE),
    ),
    Case(
        f"G5 out: until is the value alone, {OLD}, its clock ahead",
        ANY,
        Model(Rules(unique=False), ONE_TICK, old=True, skew=5),
    ),
    Case(
        "until is the value alone, late request, compaction",
        None,
        Model(Rules(unique=False), ONE_TICK_TWICE, {LATE: 1, COMPACT: 1}),
    ),
    Case(
        f"M2 out: newest by arrival, until is the value alone, {OLD}",
        ANY,
        Model(Rules(unique=False, order="arrival"), ONE_TICK, old=True),
    ),
    Case(
        "newest by arrival, chained",
        None,
        Model(Rules(order="arrival"), TOMBSTONE, {LATE: 1, DEAD: 1}),
    ),
    Case(
        "M1 out: folder lost with a sealed upload", ANY, Model(Rules(chain=False), APART, {LOSS: 1})
    ),
    Case(
        "chain, the clock stepped back",
        None,
        Model(Rules(clock=False), TOMBSTONE, {LOSS: 1, LATE: 1}),
    ),
    Case(
        "M5 out: the clock stepped back, the backend's highest ignored",
        ANY,
        Model(Rules(clock=False, raise_seq=False), ONE_TICK, {LOSS: 1}),
    ),
    Case(
        "M1 out: compaction, then a late older upload",
        ANY,
        Model(Rules(chain=False), TOMBSTONE, {LATE: 1, COMPACT: 1}),
    ),
    Case(
        "F7 out: the window is not forgotten: purge",
        ANY,
        Model(Rules(forget=False), UPDATE, {DEAD: 1}),
    ),
    Case(
        "F7 out: the window is not forgotten: restore",
        ANY,
        Model(Rules(forget=False), ONE_TICK, {RESTORE: 1}),
    ),
    Case("M3 out: rows of an upload in any order", ANY, Model(Rules(sorted=False), LOG)),
    Case(
        "M7 out: retention drops any upload", ANY, Model(Rules(drop="any"), TOMBSTONE, {RETAIN: 1})
    ),
    Case("M6: hard deletes are not seen", ANY, Model(script=HARD_DELETE)),
    Case(
        "reads from a replica behind, within lookback (right once it has caught up)",
        None,
        Model(Rules(lag=True), ONE_TICK),
    ),
    Case(
        "reads from a replica behind, newest by version",
        None,
        Model(Rules(lag=True, order="version"), ONE_TICK),
    ),
    Case(
        "M2 out: newest by version, the source's clock steps back",
        ANY,
        Model(Rules(order="version"), CLOCK_BACK),
    ),
    Case("newest by source_seq, the source's clock steps back", None, Model(script=CLOCK_BACK)),
    Case(
        "a full waits behind a dead letter",
        None,
        Model(Rules(full_waits=True), TOMBSTONE, {FULL: 1, DEAD: 1}),
    ),
]

"""What is known of each handler now, and every change of it.

A pure structure: it is given answers and the time, and keeps one row a handler, or one for each of
its instances, a trail of recent figures for sparklines, and the last events. Rows carry a growing
version, so that a reader can ask for what changed since it last looked.

Layer: catalog entry, imports nothing of catalogzero.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from conductorzero.fleet import TIMEOUT, Answer, JsonObject, load_of, number, part, short
from conductorzero.peers import Peer
from conductorzero.troubles import KINDS, Cause, Trouble, grouped, troubles_of

TRAIL_LENGTH = 60
EVENTS_KEPT = 200
RUNS_SHOWN = 20
LABELS_SHOWN = 8
STATES = ("active", "idle", "sleeping", "draining", "unreachable", "unknown")
MB = 1024**2


class Figure(NamedTuple):
    """A figure of `get_metrics` as a metric: its name, help, and scale to the base unit."""

    metric: str
    help: str
    scale: float = 1.0


FIGURES = {
    "cpu_percent": Figure("cpu_ratio", "Use of processors, 1 is one core.", 0.01),
    "memory_mb": Figure("memory_bytes", "Resident memory of the process.", MB),
    "worker_memory_mb": Figure("worker_memory_bytes", "Resident memory of its worker process.", MB),
    "num_threads": Figure("threads", "Threads of the process."),
    "connections": Figure("connections", "Open network connections."),
    "uptime_seconds": Figure("uptime_seconds", "Time since its start."),
    "in_flight": Figure("runs_in_flight", "Runs in progress."),
    "queued": Figure("runs_queued", "Runs that wait for a place."),
    "runs_total": Figure("runs_total", "Runs since its start."),
    "failures_total": Figure("run_failures_total", "Failed runs since its start."),
    "idle_s": Figure("idle_seconds", "Time since its last job."),
    "wakes_total": Figure("wakes_total", "Times it woke from sleep."),
}
NAMES = ("entry", "version", "sdk_version")
OUTBOX = {
    "uploads": Figure("outbox_uploads", "Uploads that wait to be sent."),
    "records": Figure("outbox_rows", "Rows that wait to be sent."),
    "bytes": Figure("outbox_bytes", "Bytes that wait to be sent."),
    "oldest_age_s": Figure("outbox_oldest_age_seconds", "Age of the oldest upload."),
    "dead": Figure("outbox_dead_letters", "Uploads refused for good."),
    "missing": Figure("outbox_missing_sources", "Sources that a damaged outbox lost."),
    "uploaded_records_total": Figure("uploaded_rows_total", "Rows that the backend has."),
    "uploaded_total": Figure("uploads_total", "Uploads that the backend has."),
    "disk_free_bytes": Figure("outbox_disk_free_bytes", "Bytes left where the outbox lies."),
}
OUTBOX_TEXTS = (
    *("paused", "paused_code", "paused_since", "next_try_at", "fault", "fault_since"),
    *("last_upload_at", "oldest_at"),
)
RUN_TEXTS = ("run_id", "method", "ended_at", "code", "type")
OF_ITS_OWN = {"no_answer", "run_failed", "dead_letters"}
"""Causes that begin with another event: of a state, of a failure, of each dead letter."""
COUNTS = ("in_flight", "queued", "runs_total", "failures_total")
AT_WORK = ("active", "idle", "sleeping")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that changed; of an instance the `handler_id` is `handler_id/instance_id`.

    `kind` is joined, left, state, restarted or failure; `trouble` where something went wrong, and
    `over` where it is well again.
    """

    seq: int
    at: datetime
    handler_id: str
    kind: str
    text: str
    state: str

    @property
    def routine(self) -> bool:
        """Whether it is the coming and going of work, and no news of the fleet."""
        states = self.text.split(" → ")
        return self.kind == "state" and all(state in AT_WORK for state in states)

    def as_json(self) -> JsonObject:
        """The event as the API shows it."""
        return {**asdict(self), "at": self.at.isoformat()}


@dataclass(slots=True)
class Row:
    """One handler as last seen; `metrics` is its latest answer to `get_metrics`.

    `trouble` is what is wrong with its address beside silence: an invalid one, another's name;
    `troubles` are all that the rule of `troubles_of` finds; `runs` are the states of its last runs,
    oldest first, asked for where `runs_total` changed.
    """

    peer: Peer
    since: datetime
    state: str = "unknown"
    response_time_ms: float | None = None
    last_seen_at: datetime | None = None
    boot_id: str | None = None
    trouble: str | None = None
    troubles: list[Trouble] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    metrics: JsonObject = field(default_factory=dict)
    version: int = 0
    runs_version: int = 0
    runs_asked: tuple[float | None, float | None] | None = None
    causes: dict[Cause, str] = field(default_factory=dict)
    latency_trail: deque[float | None] = field(default_factory=lambda: deque(maxlen=TRAIL_LENGTH))
    memory_trail: deque[float | None] = field(default_factory=lambda: deque(maxlen=TRAIL_LENGTH))

    @property
    def alive(self) -> bool:
        """Whether it answered the last time it was asked."""
        return self.state not in ("unreachable", "unknown")

    @property
    def load(self) -> int | None:
        """Runs that go on or wait there; None for one that does not answer."""
        return int(load_of(self.metrics)) if self.alive else None

    def as_json(self, *, trails: bool = False, seen: int = -1) -> JsonObject:
        """The row as the API shows it.

        Args:
            trails: With the recent figures of its sparklines.
            seen: A version that the reader has; the last runs are left out where it has them.
        """
        labels = part(self.metrics, "labels")
        body: JsonObject = {
            **asdict(self.peer),
            "key": self.peer.key,
            "host": self.peer.host,
            "load": self.load,
            "state": self.state,
            "since": self.since.isoformat(),
            "last_seen_at": self.last_seen_at.isoformat() if self.last_seen_at else None,
            "response_time_ms": self.response_time_ms,
            "trouble": self.trouble,
            "troubles": [one.as_json() for one in self.troubles],
            "last_error": short(self.metrics.get("last_error")),
            "outbox": self.outbox(),
            "health": short(part(self.metrics, "health").get("status")),
            "labels": {str(key)[:40]: short(labels[key]) for key in list(labels)[:LABELS_SHOWN]},
            "last_successful_run": run_shown(part(self.metrics, "last_successful_run")),
            "last_failed_run": run_shown(part(self.metrics, "last_failed_run")),
            **{name: number(self.metrics.get(name)) for name in FIGURES},
            **{name: short(self.metrics.get(name)) for name in NAMES},
        }
        if self.runs_version > seen:
            body["runs"] = self.runs
        if trails:
            body["latency_trail"] = list(self.latency_trail)
            body["memory_trail"] = list(self.memory_trail)
        return body

    def outbox(self) -> JsonObject | None:
        """What it said of its outbox, texts where there are any; None for a handler without one."""
        outbox = self.metrics.get("outbox")
        if not isinstance(outbox, dict):
            return None
        figures = {name: number(outbox.get(name)) for name in OUTBOX}
        return {
            **figures,
            **{name: short(outbox[name]) for name in OUTBOX_TEXTS if outbox.get(name)},
        }

    @property
    def blocked(self) -> bool:
        """Whether something keeps its rows from arriving."""
        return any(one.blocks for one in self.troubles)


class Board:
    """The rows of all peers, their events, and a version that grows with every change.

    `rows` are by `Peer.key`; `instances` are those of each handler that has such.
    """

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.instances: dict[str, list[Row]] = {}
        self._routine: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._news: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self.version = 0
        self.members_version = 0
        self.last_seq = 0

    def set_peers(self, peers: Iterable[Peer], at: datetime) -> list[Event]:
        """Take the list of peers; returns the events of those that joined or left."""
        wanted = {peer.key: peer for peer in peers}
        is_same = {key: row.peer for key, row in self.rows.items()} == wanted
        for key, row in self.rows.items():
            if key in wanted and wanted[key].place == row.peer.place:
                row.peer = wanted[key]  # restarted behind a NATS server, or with other places
        if is_same:
            return []
        events = []
        for key in [key for key in self.rows if key not in wanted]:
            row = self.rows.pop(key)
            events.append(self._event(row, at, "left", "no longer in the registry"))
        for key, peer in wanted.items():
            old = self.rows.get(key)
            if old is None or old.peer != peer:
                row = self.rows[key] = Row(peer, since=at)
                self._touch(row)
                events.append(self._event(row, at, "joined", f"found at {peer.address}"))
        self.instances = {}
        for row in self.rows.values():
            if row.peer.instance_id:
                self.instances.setdefault(row.peer.handler_id, []).append(row)
        for handler_id in self.instances:
            self._judge_silence(handler_id)
        self.version += 1
        self.members_version = self.version
        return events

    def saw_ping(self, answer: Answer, at: datetime) -> list[Event]:
        """Take a handler's answer to `ping`, or its silence."""
        row = self.rows.get(answer.handler_id)
        if row is None:
            return []
        row.response_time_ms = answer.response_time_ms
        row.latency_trail.append(answer.response_time_ms)
        self._touch(row)
        row.trouble = trouble_of(row, answer)
        if not answer.replied:
            # A gap in both lines: silence brings no figures.
            row.memory_trail.append(None)
            events = self._move(row, "unreachable", at)
            return events + self._judge(row, at)
        row.last_seen_at = at
        events = []
        boot_id = answer.result.get("boot_id") if isinstance(answer.result, dict) else None
        if boot_id is not None:
            if row.boot_id not in (None, boot_id):
                events.append(self._event(row, at, "restarted", "restarted"))
            row.boot_id = boot_id or row.boot_id
        if not row.alive:
            events += self._move(row, "active", at)
        return events + self._judge(row, at)

    def saw_metrics(self, answer: Answer, at: datetime) -> list[Event]:
        """Take a handler's answer to `get_metrics`; silence is left to the ping to judge."""
        row = self.rows.get(answer.handler_id)
        if row is None or not isinstance(answer.result, dict):
            return []
        before, row.metrics = row.metrics, answer.result
        row.last_seen_at = at
        row.memory_trail.append(number(row.metrics.get("memory_mb")))
        self._touch(row)
        status = row.metrics.get("status")  # one that reports none is active: it answered
        state = status if status in ("idle", "sleeping", "draining") else "active"
        events = self._move(row, state, at)
        failed, was = row.metrics.get("failures_total"), before.get("failures_total")
        # Fewer than before are a restart: it counts from its start.
        if isinstance(failed, int) and isinstance(was, int) and failed > was:
            text = short(row.metrics.get("last_error")) or "a run failed"
            events.append(self._event(row, at, "failure", text))
        dead, had = (number(part(one, "outbox").get("dead")) for one in (row.metrics, before))
        if (dead or 0) > (had or 0):
            events.append(self._event(row, at, "trouble", "dead letter"))
        return events + self._judge(row, at)

    def saw_runs(self, answer: Answer) -> None:
        """Take a handler's answer to `list_runs`."""
        row = self.rows.get(answer.handler_id)
        runs = answer.result.get("runs") if isinstance(answer.result, dict) else None
        if row is None or not isinstance(runs, list):
            return
        newest = [state_of(run) for run in runs[:RUNS_SHOWN] if isinstance(run, dict)]
        row.runs = newest[::-1]
        self._touch(row)
        row.runs_version = row.version

    def runs_wanted(self, most: int) -> list[str]:
        """Whose last runs to ask for, as some ended or arrived since; at most that many."""
        wanted: list[str] = []
        for handler_id, row in self.rows.items():
            total = number(row.metrics.get("runs_total"))
            asked = (total, number(part(row.metrics, "outbox").get("uploaded_total")))
            if row.alive and total is not None and asked != row.runs_asked and len(wanted) < most:
                row.runs_asked = asked
                wanted.append(handler_id)
        return wanted

    def changed_since(self, version: int) -> list[Row]:
        """The rows that changed after this version."""
        return [row for row in self.rows.values() if row.version > version]

    def events_after(self, seq: int, most: int | None = None) -> list[Event]:
        """The events that came after this one, oldest first.

        With `most`, that many of the routine, and of the news, which they must not crowd out.
        """
        found = []
        for kept in (self._routine, self._news):
            after = [event for event in kept if event.seq > seq]
            found += after if most is None else after[-most:]
        return sorted(found, key=lambda event: event.seq)

    def summary(self) -> JsonObject:
        """The fleet in a few figures."""
        rows = self.rows.values()
        states = Counter(row.state for row in rows)
        handlers = {row.peer.handler_id for row in rows}
        away = [key for key, row in self.rows.items() if "instance_away" in causes_of(row)]
        is_all = all(causes_of(row) <= {"instance_away"} for row in rows)
        alive = [row for row in rows if row.alive]
        senders = senders_of(rows)
        outboxes = [row.metrics["outbox"] for row in senders]

        totals = {
            name: sum(number(row.metrics.get(name)) or 0 for row in alive)
            for name in ("memory_mb", "worker_memory_mb", "cpu_percent", *COUNTS)
        }
        waiting = {
            name: int(sum(number(one.get(name)) or 0 for one in outboxes))
            for name in ("uploads", "records", "dead")
        }
        body = {
            "total": len(self.rows),
            "alive": len(alive),
            "handlers": len(handlers),
            "silent": len({row.peer.handler_id for row in rows if "no_answer" in causes_of(row)}),
            "away": len(away),
            "states": {state: states[state] for state in STATES},
            "memory_mb": round(totals["memory_mb"] + totals["worker_memory_mb"], 1),
            "cpu_percent": round(totals["cpu_percent"], 1),
            **{name: int(totals[name]) for name in COUNTS},
            "in_trouble": len({row.peer.handler_id for row in rows if row.troubles}),
            "senders": len(senders),
            "not_delivering": sum(row.blocked for row in senders),
            "waiting": waiting,
            "oldest_at": min(
                filter(None, (short(one.get("oldest_at")) for one in outboxes)), default=None
            ),
            "last_upload_at": max(
                filter(None, (short(one.get("last_upload_at")) for one in outboxes)), default=None
            ),
        }
        return {"headline": headline(body, away if is_all else []), **body}

    def as_one(self) -> JsonObject:
        """The figures of all together, as one handler's `get_metrics` would have them."""
        summary = self.summary()
        return {**summary, "outbox": summary["waiting"]}

    def troubles(self) -> list[JsonObject]:
        """What is wrong with the fleet, by cause and reason, worst first."""
        named: dict[str, Row] = {}
        for key, row in self.rows.items():
            # Where no instance answers it is the handler, since the last of them fell silent.
            name = row.peer.handler_id if "no_answer" in causes_of(row) else key
            if name not in named or named[name].since < row.since:
                named[name] = row
        rows = named.items()
        return grouped((name, row.troubles, part(row.metrics, "outbox")) for name, row in rows)

    def _judge(self, row: Row, at: datetime) -> list[Event]:
        """Find a row's troubles; one that began or ended is an event."""
        found = self._troubles_of(row)
        if row.state == "unreachable":
            # What was wrong with it before is not over.
            row.troubles = found
            return []
        before, row.causes = row.causes, {}
        events = []
        for one in found:
            row.causes[one.cause] = before.get(one.cause) or at.isoformat()
            if one.cause not in before and one.cause not in OF_ITS_OWN:
                events.append(self._event(row, at, "trouble", f"{one.words}: {one.why}"))
        row.troubles = [replace(one, since=one.since or row.causes[one.cause]) for one in found]
        events += [
            self._event(row, at, "over", KINDS[cause].over)
            for cause in before.keys() - row.causes.keys()
        ]
        return events

    def _troubles_of(self, row: Row) -> list[Trouble]:
        """What is wrong with a row; the silence of an instance is less while others answer."""
        handler_id, since = row.peer.handler_id, row.since.isoformat()
        others = [one for one in self.instances.get(handler_id, ()) if one.state != "unreachable"]
        found = troubles_of(
            handler_id, row.state, since, row.trouble, row.metrics, is_one_of=bool(others)
        )
        return [*found]

    def _judge_silence(self, handler_id: str) -> None:
        """Find what the silence of a handler's instances means now that it has changed."""
        for row in self.instances.get(handler_id, ()):
            if row.state == "unreachable" and row.troubles != (found := self._troubles_of(row)):
                row.troubles = found
                self._touch(row)

    def _move(self, row: Row, state: str, at: datetime) -> list[Event]:
        """Set a row's state; a change is an event."""
        if row.state == state:
            return []
        before, row.state, row.since = row.state, state, at
        self._judge_silence(row.peer.handler_id)
        return [self._event(row, at, "state", f"{before} → {state}")]

    def _event(self, row: Row, at: datetime, kind: str, text: str) -> Event:
        """Keep one event."""
        self.last_seq += 1
        event = Event(self.last_seq, at, row.peer.key, kind, text, row.state)
        (self._routine if event.routine else self._news).append(event)
        return event

    def _touch(self, row: Row) -> None:
        """Mark a row as changed."""
        self.version += 1
        row.version = self.version


def senders_of(rows: Iterable[Row]) -> list[Row]:
    """One row of each handler that has an outbox: all its instances say the same one's figures.

    Of several it is one that is awake, whose figures are of now; one that is blocked before others.
    """
    found = dict[str, Row]()
    for row in rows:
        best = found.get(row.peer.handler_id)
        if isinstance(row.metrics.get("outbox"), dict) and (not best or rank(row) > rank(best)):
            found[row.peer.handler_id] = row
    return [*found.values()]


def rank(row: Row) -> tuple[bool, bool, bool]:
    """How well a row's figures stand for those of all instances."""
    return row.alive, row.state != "sleeping", row.blocked


def causes_of(row: Row) -> set[Cause]:
    """The causes of a row's troubles."""
    return {one.cause for one in row.troubles}


def headline(summary: JsonObject, away: list[str]) -> str:
    """The answer to whether all is well, in one sentence with the figure that matters.

    Args:
        summary: What it is of; a handler with instances counts as one.
        away: The instances that are silent while others answer, where nothing else is wrong.
    """
    total, dead = summary["handlers"], summary["silent"]
    senders, blocked, troubled = (summary[k] for k in ("senders", "not_delivering", "in_trouble"))
    of_all = f"of {total:,} {'handler' if total == 1 else 'handlers'}"
    if not total:
        return "No handlers are known yet"
    if summary["states"]["unknown"] == summary["total"]:
        return f"Asking {total:,} {'handler' if total == 1 else 'handlers'}…"
    if blocked and senders == 1:
        return "Rows of the one handler that sends any do not arrive"
    if blocked:
        return f"Rows from {blocked:,} of {senders:,} handlers do not arrive"
    if dead:
        return f"{dead:,} {of_all} {'does' if dead == 1 else 'do'} not answer"
    if away:
        who = away[0] if len(away) == 1 else f"{len(away):,} instances"
        return f"{who} {'is' if len(away) == 1 else 'are'} away; other instances take the calls"
    if troubled:
        return f"{troubled:,} {of_all} {'needs' if troubled == 1 else 'need'} you"
    if unknown := summary["states"]["unknown"]:
        return f"{summary['total'] - unknown:,} of {summary['total']:,} answer so far"
    if senders:
        return f"Rows from all {senders:,} handlers arrive" if senders > 1 else "All rows arrive"
    return "The one handler answers" if total == 1 else f"All {total:,} handlers answer"


def run_shown(run: JsonObject) -> JsonObject | None:
    """A run in `get_metrics` as the API shows it; None where there is none."""
    return {name: short(run[name]) for name in RUN_TEXTS if run.get(name)} or None


def state_of(run: JsonObject) -> str:
    """The state of a run: what its handler says that it came to, else by its status."""
    state = part(run, "outcome").get("state")
    by_status = {"success": "done", "error": "failed", "cancelled": "failed", "lost": "missed"}
    return state if isinstance(state, str) else by_status.get(str(run.get("status")), "running")


def trouble_of(row: Row, answer: Answer) -> str | None:
    """What is wrong with a handler beside silence."""
    if not answer.replied:
        return None if answer.error == TIMEOUT else short(answer.error)
    pong = answer.result if isinstance(answer.result, dict) else {}
    name = pong.get("handler")
    if "boot_id" not in pong or not isinstance(name, str) or name == row.peer.handler_id:
        return None
    return f"answers as {short(name)}"

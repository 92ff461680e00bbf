"""What is wrong with a handler: the one rule, for stream, API, pages, Prometheus and events.

A trouble has four parts: what, since when, why in the machine's own words, and the fix with its
command. Troubles of one cause and one reason, of however many handlers, are one `TroubleGroup`.

Layer: catalog entry, imports nothing of catalogzero.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from conductorzero.fleet import TEXT_CHARS, JsonObject, number, part, short

Cause = Literal[
    "no_answer",
    "other_peer",
    "paused",
    "dead_letters",
    "run_failed",
    "missing_sources",
    "fault",
    "old_backlog",
    "unwell",
    "instance_away",
    "disk_nearly_full",
]
Tone = Literal["gone", "fail", "wait", "warn"]
"""How a page draws it: silent, to be acted on, safe here but not there yet, soon a trouble."""

OLD_BACKLOG_S = 3_600
DISK_LOW_BYTES = 1 << 30
HANDLERS_NAMED = 5
UNSENT = ("the oldest upload waits", "the last health report was not delivered")
"""What follows where nothing can be sent."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What all troubles of one cause have in common; `{n}` stands for a number, `{id}` a handler.

    `reasons` are how the handler's own judgement begins to say the same, `over` is what is said
    when it ended; `blocks`: no rows arrive meanwhile.
    """

    tone: Tone
    words: str
    title: str
    fix: str
    command: str
    blocks: bool = True
    reasons: tuple[str, ...] = ()
    over: str = "well again"


KINDS: Mapping[Cause, Kind] = {
    "no_answer": Kind(
        "gone", "no answer", "no answer to a ping", "look on its machine:", "catalogzero status"
    ),
    "other_peer": Kind(
        "gone",
        "another answers",
        "another handler answers at its address",
        "correct its address in the list of handlers; what runs there shows",
        "catalogzero status",
    ),
    "paused": Kind(
        "fail",
        "paused",
        "sending is paused, no row leaves",
        "do what the reason says; what is still missing shows",
        "catalogzero check {id}",
        reasons=("sending is paused", *UNSENT),
        over="sending goes on",
    ),
    "dead_letters": Kind(
        "fail",
        "{n} dead letters",
        "uploads were refused for good",
        "read the backend's answer, then `outbox retry` or `outbox purge`:",
        "catalogzero outbox list {id}",
        reasons=("{n} uploads were refused",),
        over="no dead letter is left",
    ),
    "run_failed": Kind(
        "fail",
        "failed",
        "the last run failed",
        "correct what the error names, then run it again; what is missing shows",
        "catalogzero check {id}",
        reasons=("the last run failed",),
        over="a run succeeded",
    ),
    "missing_sources": Kind(
        "fail",
        "{n} sources missing",
        "a damaged outbox lost sources; the backend lacks them until they are read again",
        "run the job again for the sources that it names:",
        "catalogzero outbox list {id}",
        reasons=("not at the backend until", "the outbox was damaged"),
    ),
    "fault": Kind(
        "wait",
        "cannot send",
        "the last try to send failed",
        "it tries again by itself; what stands between it and the backend shows",
        "catalogzero check {id}",
        reasons=("the backend does not take", *UNSENT),
        over="the backend takes uploads",
    ),
    "old_backlog": Kind(
        "wait",
        "old backlog",
        "rows have waited for more than an hour",
        "see what holds them up:",
        "catalogzero check {id}",
        reasons=("the oldest upload waits",),
        over="the backlog is sent",
    ),
    "unwell": Kind(
        "fail", "unwell", "not well, by its own report", "see why:", "catalogzero check {id}"
    ),
    "instance_away": Kind(
        "warn",
        "away",
        "no answer to a ping; other instances take the calls",
        "look on its machine:",
        "catalogzero status",
        blocks=False,
    ),
    "disk_nearly_full": Kind(
        "warn",
        "disk nearly full",
        "less than 1 GiB is left where its outbox lies",
        "make room, or move `state_dir`; what lies there shows",
        "catalogzero outbox list {id}",
        blocks=False,
        reasons=("the disk of the outbox",),
    ),
}
"""Every cause, worst first."""
CAUSES: tuple[Cause, ...] = tuple(KINDS)
KEY_FIX = (
    "put a valid key into the file or variable of `api_key`; whether the backend takes it shows"
)
ADOPT_FIX = (
    "decide which folder sends: `catalogzero installation adopt` takes over here, `catalogzero"
    " installation new` makes it one of its own; how it stands shows"
)


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that is wrong with one handler; `count` is how many, where they are counted."""

    cause: Cause
    tone: Tone
    words: str
    title: str
    why: str
    since: str | None
    fix: str
    command: str
    next_try_at: str | None = None
    run_id: str | None = None
    count: int = 1

    @property
    def blocks(self) -> bool:
        """Whether the handler's rows do not arrive meanwhile."""
        return KINDS[self.cause].blocks

    def as_json(self) -> JsonObject:
        """The trouble as the API shows it."""
        return asdict(self)


def trouble(
    cause: Cause, handler_id: str, why: str, since: str | None, *, count: int = 1, **more: Any
) -> Trouble:
    """A trouble of this cause."""
    kind = KINDS[cause]
    return Trouble(
        cause=cause,
        tone=kind.tone,
        words=counted(kind.words, count),
        title=kind.title,
        why=why,
        since=since,
        fix=more.pop("fix", kind.fix),
        command=kind.command.format(id=handler_id),
        count=count,
        **more,
    )


def counted(words: str, count: int) -> str:
    """Words with their number: `{n} dead letters` becomes `1 dead letter`."""
    words = words.format(n=f"{count:,}")
    return words.replace("letters", "letter").replace("sources", "source") if count == 1 else words


def troubles_of(
    handler_id: str,
    state: str,
    since: str,
    peer_trouble: str | None,
    metrics: JsonObject,
    *,
    is_one_of: bool = False,
) -> Iterator[Trouble]:
    """What is wrong with a handler, worst first.

    Args:
        handler_id: Its id.
        state: As on the board: of one that is unreachable nothing else is known.
        since: When that state began.
        peer_trouble: What is wrong with its address, beside silence.
        metrics: Its last answer to `get_metrics`.
        is_one_of: Whether other instances of the handler answer.
    """
    if state == "unreachable":
        cause: Cause = "instance_away" if is_one_of else "no_answer"
        yield trouble(cause, handler_id, peer_trouble or "no reply came in time", since)
        return
    if peer_trouble:
        yield trouble("other_peer", handler_id, peer_trouble, None)
    outbox = part(metrics, "outbox")
    found = [*sending_troubles(handler_id, outbox)]
    failed, succeeded = part(metrics, "last_failed_run"), part(metrics, "last_successful_run")
    ended_at = short(failed.get("ended_at"))
    if failed and (ended_at or "") >= (short(succeeded.get("ended_at")) or ""):
        code = ": ".join(filter(None, [short(failed.get("code")), short(failed.get("type"))]))
        why = short(metrics.get("last_error")) or code
        run_id = short(failed.get("run_id"))
        found.append(trouble("run_failed", handler_id, why, ended_at, run_id=run_id))
    found.sort(key=lambda one: CAUSES.index(one.cause))
    yield from found
    yield from unexplained(handler_id, part(metrics, "health"), found)


def sending_troubles(handler_id: str, outbox: JsonObject) -> Iterator[Trouble]:
    """What keeps a handler's rows from the backend."""
    next_try_at = short(outbox.get("next_try_at"))
    age_s, free_bytes = number(outbox.get("oldest_age_s")), number(outbox.get("disk_free_bytes"))
    if reason := short(outbox.get("paused")):
        code = short(outbox.get("paused_code")) or reason
        more: JsonObject = {}
        if "install" in code:
            more = {"fix": ADOPT_FIX}
        elif "401" in code or "403" in code:
            more = {"fix": KEY_FIX}
        at = short(outbox.get("paused_since"))
        yield trouble("paused", handler_id, reason, at, next_try_at=next_try_at, **more)
    elif fault := short(outbox.get("fault")):
        at = short(outbox.get("fault_since"))
        yield trouble("fault", handler_id, fault, at, next_try_at=next_try_at)
    elif age_s is not None and age_s > OLD_BACKLOG_S:
        why = f"the oldest of {int(number(outbox.get('uploads')) or 0):,} uploads is not sent"
        yield trouble("old_backlog", handler_id, why, short(outbox.get("oldest_at")))
    if dead := int(number(outbox.get("dead")) or 0):
        yield trouble("dead_letters", handler_id, "the backend refused them", None, count=dead)
    if missing := int(number(outbox.get("missing")) or 0):
        why = "the outbox was damaged"
        yield trouble("missing_sources", handler_id, why, None, count=missing)
    if free_bytes is not None and free_bytes < DISK_LOW_BYTES:
        why = f"{free_bytes / 1024**2:,.0f} MB are free"
        yield trouble("disk_nearly_full", handler_id, why, None)


def unexplained(handler_id: str, health: JsonObject, found: list[Trouble]) -> Iterator[Trouble]:
    """What a handler's own judgement says beyond the troubles that were found."""
    if health.get("status") not in ("degraded", "failing"):
        return
    known = tuple(text.format(n=one.count) for one in found for text in KINDS[one.cause].reasons)
    reasons = health.get("reasons")
    texts = [str(one) for one in reasons] if isinstance(reasons, list) else []
    if left := [text for text in texts if not text.startswith(known)]:
        yield trouble("unwell", handler_id, "; ".join(left)[:TEXT_CHARS], None)


@dataclass(slots=True)
class TroubleGroup:
    """Troubles of one cause and one reason; `uploads` and `rows` wait there meanwhile."""

    first: Trouble
    handler_ids: list[str]
    count: int = 0
    uploads: int = 0
    rows: int = 0

    def add(self, one: Trouble, handler_id: str, outbox: JsonObject) -> None:
        """Take in another handler's trouble."""
        self.handler_ids.append(handler_id)
        self.count += one.count
        self.uploads += int(number(outbox.get("uploads")) or 0)
        self.rows += int(number(outbox.get("records")) or 0)
        if one.since and (not self.first.since or one.since < self.first.since):
            self.first = one

    def as_json(self) -> JsonObject:
        """The group as the API shows it: the trouble that began first, and whom it is."""
        words = counted(KINDS[self.first.cause].words, self.count)
        return {
            **self.first.as_json(),
            "words": words,
            "count": self.count,
            "handlers": len(self.handler_ids),
            "handler_ids": self.handler_ids[:HANDLERS_NAMED],
            "uploads": self.uploads,
            "rows": self.rows,
        }


def grouped(all_of: Iterable[tuple[str, list[Trouble], JsonObject]]) -> list[JsonObject]:
    """The troubles of many handlers by cause and reason, worst and oldest first.

    Args:
        all_of: Each handler's id, troubles and outbox.
    """
    groups: dict[tuple[str, str], TroubleGroup] = {}
    for handler_id, troubles, outbox in all_of:
        for one in troubles:
            key = one.cause, re.sub(r"\d+", "#", one.why)
            groups.setdefault(key, TroubleGroup(one, [])).add(one, handler_id, outbox)
    shown = sorted(
        groups.values(),
        key=lambda group: (CAUSES.index(group.first.cause), group.first.since or "9"),
    )
    return [group.as_json() for group in shown]

"""Deciding: what the answer to a request means for an upload, as the client sees it.

Owns the table of answers, which docs/reference/delivery-guarantee.md prints, and the one pure
function that walks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, NamedTuple

from catalogzero.config.settings import shown_url
from catalogzero.protocol.bodies import GENERATION, MAX_SEQ, Completed, Superseded, fitting
from catalogzero.protocol.problems import TYPE_PREFIX, Kind
from catalogzero.wire.messages import JsonObject

MAX_RETRY_AFTER_S = 3_600.0
MAX_PLAIN_BYTES = 1_024
MAX_SAID_CHARS = 300
MAX_RESENT = 5
"""Times that a body is sent again which did not arrive as it left."""


class RequestKind(StrEnum):
    """The kinds of request."""

    CHUNK = "chunk"
    COMPLETE = "complete"
    SIMPLE = "simple"
    HEALTH = "health"
    INSTALLATION = "installation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a request: an answer, or a fault (then `status` is None).

    `body` is the answer's JSON, None where it is not JSON; `text` is the start of the answer as it
    came, `size` its bytes.
    A fault beside a status is that of the answer's content, which then counts for nothing.
    `blocked` is a fault on this side, such as a key file that cannot be read: nothing was sent.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    size: int = 0
    text: str = ""
    fault: str = ""
    blocked: bool = False

    @property
    def problem(self) -> str:
        """The problem document's detail, title or `type`, else the first line that came.

        For people on this machine: it may hold anything, and is never sent.
        """
        if self.location:
            return f"to {self.location}"
        named = self.members
        said = named.get("detail") or named.get("title") or named.get("type")
        lines = str(said or self.fault or self.text).strip().splitlines()
        return lines[0][:MAX_SAID_CHARS] if lines else ""

    @property
    def location(self) -> str:
        """Where a redirect points to, secrets masked; empty where it is no redirect."""
        redirects = self.status is not None and self.status // 100 == 3
        return shown_url(header(self.headers, "location"))[:MAX_SAID_CHARS] if redirects else ""

    @property
    def fix(self) -> str:
        """What ends it, where the answer stops what is sent; empty where nobody here can."""
        if self.status is None:
            return ""
        if self.status // 100 == 2:
            return "" if self.is_plain else _FIX_OF_A_PAGE
        return FIXES.get(self.status, _FIX_OF_A_REDIRECT if self.status // 100 == 3 else "")

    @property
    def type(self) -> str:
        """The problem document's `type`; empty where it has none."""
        return str(self.members.get("type") or "")

    @property
    def code(self) -> str:
        """The status, or the kind of fault: what may be reported to a vendor, without any text."""
        if self.status is not None:
            return f"http_{self.status}"
        return "blocked_by_setting" if self.blocked else self.fault.partition(":")[0]

    @property
    def is_plain(self) -> bool:
        """Whether a 2xx is one that a backend gives: empty, JSON, or a short line of plain text.

        A sign-in page, or any other page on the way, is not an answer.
        """
        if self.fault:
            return False
        text = self.text.strip()
        if self.body is not None or text in {"", "null"}:
            return True
        kind = header(self.headers, "content-type").partition(";")[0].strip().lower()
        short = len(self.text.encode("utf-8", "replace")) <= MAX_PLAIN_BYTES
        return kind == "text/plain" and short and not text.startswith("<")

    @property
    def generation(self) -> str:
        """The backend's generation, empty where it names none."""
        return header(self.headers, GENERATION.lower())

    @property
    def members(self) -> JsonObject:
        """The members of the answer's JSON object; empty where it is not one."""
        return self.body if isinstance(self.body, dict) else {}


_FIX_OF_A_PAGE = (
    "a page came instead of an answer: sign in to this network, or let this machine reach the "
    "backend past what is on the way"
)
_FIX_OF_A_REDIRECT = "redirects are never followed: write the address that answers as `endpoint`"
FIXES = {
    401: "see `api_key_file`, or ask the vendor for another key",
    403: "see `api_key_file`, and whether a proxy on the way forbids it; else ask the vendor",
    404: "nothing takes uploads at this path: see the path of `endpoint`",
    405: "what answers takes no such request: see the path of `endpoint`, and whether a proxy on "
    "the way lets PUT through",
    407: "the proxy wants a user and password: set `proxy` to http://USER:PASSWORD@host:port",
    413: "raise the largest body of the proxy on the way (nginx: client_max_body_size), then "
    "`catalogzero outbox retry`; or lower `chunk_bytes`, `outbox purge`, and run again",
    429: "the backend limits what one tenant sends: it goes on by itself; ask its operator for a "
    "larger share",
}
"""What to do about a status that stops uploads."""


class Verdict(StrEnum):
    """What an outcome means for the upload, or for the whole outbox."""

    STORED = "stored"
    DONE = "done"
    SUPERSEDED = "superseded"
    SEND_MISSING = "send_missing"
    COMPLETE_NOW = "complete_now"
    RETRY = "retry"
    PAUSE = "pause"
    OTHER_FORM = "other_form"
    OTHER_CODING = "other_coding"
    DEAD = "dead"
    MOVED = "moved"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, its reason as a sentence, and the wait that the backend asked for, in seconds."""

    verdict: Verdict
    reason: str = ""
    retry_after_s: float | None = None


class Rule(NamedTuple):
    """A row of the table of answers: what it takes to fit, and what the answer then means.

    Attributes:
        requests: Kinds of request, or `any`.
        answers: Statuses as `404` or `5xx`, `none` for no answer at all, or `any`.
        verdict: What the answer means; `DOES` says what the sender does.
        given: A name in `CONDITIONS` that must hold too; empty where nothing must.
        why: What the reason says beside the answer.
    """

    requests: str
    answers: str
    verdict: Verdict
    given: str = ""
    why: str = ""


_NO_ANSWER = "no answer of an upload backend (not JSON, no short text)"
_OTHER_GENERATION = "the first time at once, for the generation that the answer names"

RULES = (
    Rule("chunk, complete, simple", "none", Verdict.PAUSE, "nothing could be sent"),
    Rule("any", "none", Verdict.RETRY),
    Rule("chunk, complete, simple, installation", "409", Verdict.MOVED, "`installation-moved`"),
    Rule("installation", "409", Verdict.RETRY, "`generation-changed`", _OTHER_GENERATION),
    Rule("installation", "404, 405, 501", Verdict.IGNORE),
    Rule("chunk", "404, 405, 501", Verdict.OTHER_FORM, "`auto`, and no chunk was taken yet"),
    Rule("complete", "2xx", Verdict.SUPERSEDED, "`superseded`"),
    Rule("complete", "200, 201", Verdict.DONE, "a `job_id`"),
    Rule("complete", "2xx", Verdict.PAUSE, why="no answer of an upload backend (no job_id)"),
    Rule("chunk", "2xx", Verdict.STORED),
    Rule("any", "2xx", Verdict.DONE, "JSON, nothing, or short plain text"),
    Rule("simple", "2xx", Verdict.PAUSE, why=_NO_ANSWER),
    Rule("any", "2xx", Verdict.RETRY, why=_NO_ANSWER),
    Rule("any", "408, 425, 429, 5xx", Verdict.RETRY),
    Rule("health, installation", "any", Verdict.IGNORE),
    Rule("any", "401, 403, 404, 405, 407, 1xx, 3xx", Verdict.PAUSE),
    Rule("complete", "409", Verdict.SEND_MISSING, "`missing`"),
    Rule("chunk", "410", Verdict.COMPLETE_NOW),
    Rule("chunk", "415", Verdict.OTHER_CODING, "it was packed"),
    Rule("chunk", "400", Verdict.OTHER_CODING, "zstd, and no problem `type` of the protocol"),
    Rule("any", "400", Verdict.RETRY, "`digest-mismatch`, up to five times"),
    Rule("any", "any", Verdict.DEAD),
)
"""The first that fits counts."""

DOES = {
    Verdict.STORED: "counts the chunk as stored",
    Verdict.DONE: "is done with it",
    Verdict.SUPERSEDED: "ends the upload; while the source's mark is still its own, the source is "
    "read again, and the bytes are kept until then",
    Verdict.SEND_MISSING: "sends what is missing",
    Verdict.COMPLETE_NOW: "posts `complete`, and believes its answer",
    Verdict.RETRY: "tries again for ever, with jittered exponential backoff; `Retry-After` is "
    "honoured, at most one hour",
    Verdict.PAUSE: "pauses the whole outbox, says so in health, tries again every five minutes, or "
    "when the key file changes",
    Verdict.OTHER_FORM: "sends the simple form from then on",
    Verdict.OTHER_CODING: "sends it as gzip, then plain",
    Verdict.DEAD: "keeps the upload as a dead letter, with the answer, until `catalogzero outbox "
    "retry` or `purge`",
    Verdict.MOVED: "starts once more; where that is answered so too, pauses the whole outbox and "
    "the runs, until `catalogzero installation adopt` or `new`",
    Verdict.IGNORE: "does without it; uploads go on",
}


class _Sent(NamedTuple):
    """What the conditions look at."""

    outcome: Outcome
    probing: bool
    coding: str
    resent: int


CONDITIONS: dict[str, Callable[[_Sent], bool]] = {
    "": lambda sent: True,
    "nothing could be sent": lambda sent: sent.outcome.blocked,
    "`auto`, and no chunk was taken yet": lambda sent: sent.probing,
    "`superseded`": lambda sent: fitting(Superseded, sent.outcome.members) is not None,
    "a `job_id`": lambda sent: (
        fitting(Completed, sent.outcome.members) is not None
        and not sent.outcome.members.get("superseded")
    ),
    "`missing`": lambda sent: are_chunk_numbers(sent.outcome.members.get("missing")),
    "`installation-moved`": lambda sent: sent.outcome.type == Kind.INSTALLATION_MOVED.uri,
    "`generation-changed`": lambda sent: sent.outcome.type == Kind.GENERATION_CHANGED.uri,
    "JSON, nothing, or short plain text": lambda sent: sent.outcome.is_plain,
    "it was packed": lambda sent: sent.coding != "identity",
    "zstd, and no problem `type` of the protocol": lambda sent: (
        sent.coding == "zstd" and not sent.outcome.type.startswith(TYPE_PREFIX)
    ),
    "`digest-mismatch`, up to five times": lambda sent: (
        sent.outcome.type == Kind.DIGEST_MISMATCH.uri and sent.resent < MAX_RESENT
    ),
}


def decide(
    asked: RequestKind,
    outcome: Outcome,
    now: datetime,
    *,
    probing: bool = False,
    coding: str = "zstd",
    resent: int = 0,
    rules: Sequence[Rule] = RULES,
) -> Decision:
    """What an outcome means, by the first of the rules that fits.

    `probing` is true while `upload_form: auto` does not know the backend's form; `coding` is the
    content coding of the body that was sent; `resent` counts how often this body was sent again
    because its digest did not match.
    """
    status, sent = outcome.status, _Sent(outcome, probing, coding, resent)
    names = {"none"} if status is None else {str(status), f"{min(status // 100, 5)}xx"}
    rule = next(
        rule
        for rule in rules
        if is_among(rule.requests, {asked.value})
        and is_among(rule.answers, names)
        and CONDITIONS[rule.given](sent)
    )
    answer = outcome.fault or "cut off" if status is None else f"{status} {outcome.problem}".strip()
    stops = rule.verdict in (Verdict.PAUSE, Verdict.DEAD)
    added = [rule.why, outcome.fix if stops else ""]
    reason = ": ".join(filter(None, [answer, "; ".join(filter(None, added))]))
    # A backend that is paused for is tried at this side's own pace, whatever it asks for.
    waits = rule.verdict is Verdict.RETRY and status is not None
    return Decision(rule.verdict, reason, retry_after_s(outcome.headers, now) if waits else None)


def is_among(listed: str, names: set[str]) -> bool:
    """Whether a cell of the table lists one of these."""
    return listed == "any" or not names.isdisjoint(listed.split(", "))


def are_chunk_numbers(value: Any) -> bool:
    """Whether a member of an answer is a list of numbers that chunks may have."""
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item <= MAX_SEQ for item in value
    )


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds to wait by `Retry-After` (seconds or a date, RFC 9110 10.2.3); at most one hour."""
    value = header(headers, "retry-after").strip()
    if not value:
        return None
    # More digits than a float holds are a long time too.
    if value.isascii() and value.isdigit():
        return min(float(value[:12]), MAX_RETRY_AFTER_S)
    date = http_date(value)
    if date is None:
        return None
    return min(max((date - now).total_seconds(), 0.0), MAX_RETRY_AFTER_S)


def http_date(text: str) -> datetime | None:
    """The time that a header names; None where it names none."""
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date


def header(headers: Mapping[str, str], name: str) -> str:
    """A header's value; empty where it is absent."""
    return {key.lower(): text for key, text in headers.items()}.get(name, "")

"""Deciding: what the answer to a request means for an upload, as the client sees it.

Owns one pure function, `decide`; the table of docs/reference/delivery-guarantee.md is its rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

MAX_RETRY_AFTER_S = 3_600.0


class Asked(StrEnum):
    """The kinds of request."""

    CHUNK = "chunk"
    COMPLETE = "complete"
    SIMPLE = "simple"
    HEALTH = "health"
    INSTALLATION = "installation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a request: an answer, or a fault (then `status` is None).

    `blocked` is a fault on this side, such as a key file that cannot be read: nothing was sent.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    fault: str = ""
    blocked: bool = False

    @property
    def problem(self) -> str:
        """The problem document's `type`, title or detail, or the fault: for people."""
        if not isinstance(self.body, dict):
            return self.fault
        return str(self.body.get("detail") or self.body.get("title") or self.body.get("type") or "")


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
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, its reason as a sentence, and the wait that the backend asked for, in seconds."""

    verdict: Verdict
    reason: str = ""
    retry_after_s: float | None = None


_PAUSING = frozenset({401, 403, 404, 405, 407})
_RETRIED = frozenset({408, 425, 429})
_NO_SUCH_FORM = frozenset({404, 405, 501})


def decide(
    asked: Asked, outcome: Outcome, now: datetime, *, probing: bool = False, coding: str = "zstd"
) -> Decision:
    """What an outcome means (design of the delivery guarantee: docs/reference).

    `probing` is true while `upload_form: auto` does not know the backend's form; `coding` is the
    content coding of the body that was sent.
    """
    status = outcome.status
    if status is None:
        pauses = outcome.blocked and asked not in {Asked.HEALTH, Asked.INSTALLATION}
        return Decision(Verdict.PAUSE if pauses else Verdict.RETRY, outcome.fault or "cut off")
    reason = f"{status} {outcome.problem}".strip()
    if asked is Asked.INSTALLATION and status in {404, 405}:
        return Decision(Verdict.IGNORE, reason)
    if probing and asked is Asked.CHUNK and status in _NO_SUCH_FORM:
        return Decision(Verdict.OTHER_FORM, reason)
    if 200 <= status < 300:
        return _accepted(asked, outcome, reason)
    if status in _RETRIED or status >= 500:
        return Decision(Verdict.RETRY, reason, retry_after_s(outcome.headers, now))
    if asked in {Asked.HEALTH, Asked.INSTALLATION}:
        return Decision(Verdict.IGNORE, reason)
    if status in _PAUSING or status < 400:
        return Decision(Verdict.PAUSE, reason)
    if asked is Asked.COMPLETE and status == 409 and _missing(outcome.body):
        return Decision(Verdict.SEND_MISSING, reason)
    if asked is Asked.CHUNK and status == 410:
        return Decision(Verdict.COMPLETE_NOW, reason)
    if status == 415 and asked is Asked.CHUNK and coding != "identity":
        return Decision(Verdict.OTHER_CODING, reason)
    return Decision(Verdict.DEAD, reason)


def _accepted(asked: Asked, outcome: Outcome, reason: str) -> Decision:
    """The meaning of a 2xx: only a real answer to `complete` ends a sealed upload."""
    if asked is Asked.COMPLETE:
        body = outcome.body if isinstance(outcome.body, dict) else {}
        if body.get("superseded") is True:
            return Decision(Verdict.SUPERSEDED, reason)
        if outcome.status in {200, 201} and body.get("job_id") is not None:
            return Decision(Verdict.DONE, reason)
        return Decision(Verdict.PAUSE, f"{reason}: no answer of an upload backend (no job_id)")
    return Decision(Verdict.STORED if asked is Asked.CHUNK else Verdict.DONE, reason)


def _missing(body: Any) -> bool:
    """Whether a `complete` was answered with the chunks that are missing."""
    missing = body.get("missing") if isinstance(body, dict) else None
    return isinstance(missing, list) and all(isinstance(seq, int) for seq in missing)


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds to wait by `Retry-After` (seconds or a date, RFC 9110 10.2.3); at most one hour."""
    value = {name.lower(): text for name, text in headers.items()}.get("retry-after", "").strip()
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return min(float(value[:12]), MAX_RETRY_AFTER_S)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    date = date.replace(tzinfo=UTC) if date.tzinfo is None else date
    return min(max((date - now).total_seconds(), 0.0), MAX_RETRY_AFTER_S)

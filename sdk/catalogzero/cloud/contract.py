"""The words of the data's way: settings, identities, the upload protocol and its decisions.

Owns what client and backend must agree on (docs/reference/upload-protocol.md) and the one pure
function that says what an answer means for an upload. Never touches a file, a socket or a clock.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from catalogzero.config.settings import HandlerSettings, is_loopback
from catalogzero.wire.messages import encode_json

Batch: TypeAlias = Any
"""Rows in memory: a list of dicts, or with `batch_type = "arrow"` a pyarrow Table."""

Params: TypeAlias = Mapping[str, Any]
"""What the call gave under `params`, without `format` and `full`."""

Mode = Literal["replace", "append"]
CONTENT_TYPES: dict[str, str] = {
    "ndjson": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
    "csv": "text/csv; charset=utf-8",
}
HEALTH_SCHEMA = "catalogzero.health/1"
MAX_RETRY_AFTER_S = 3_600.0
CODINGS = ("zstd", "gzip", "identity")
"""Content codings in the order in which a backend that answers 415 is offered them."""


class QuerySource(BaseModel):
    """A query that the client's config names: `data_source: "sql:<name>"` calls it.

    `watermark` names a column of the query's result that only grows: each run then reads the rows
    above the last one read and appends them. Rows where it is null are never read.
    `answer_timeout_s` is the longest wait for the next rows, on PostgreSQL.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    query: str
    url: SecretStr | None = None
    url_file: Path | None = None
    watermark: str | None = None
    answer_timeout_s: float = Field(default=3_600.0, gt=0)

    @model_validator(mode="after")
    def _one_url(self) -> QuerySource:
        """Exactly one of the two places that may hold the database's URL."""
        if (self.url is None) == (self.url_file is None):
            raise ValueError(
                "give one of `url_file` (a file that holds the database URL) and `url`"
            )
        return self


class CloudSettings(HandlerSettings):
    """The settings of a `CloudProcessor`: where to send, as whom, and what may be read.

    `endpoint` is the backend's base URL; plain http is allowed to loopback alone. Times are in
    seconds, `delimiter` and `encoding` are detected when they are not set.
    """

    endpoint: str = Field(description="The backend's URL, to which results go.")
    api_key: SecretStr | None = Field(
        default=None, description="The API key itself; better keep it in a file, or with systemd."
    )
    api_key_file: Path | None = Field(
        default=None, description="A file that holds the API key and nothing else."
    )
    data_roots: list[Path] = Field(
        default_factory=list, description="The only folders that a call's data_source may lie in."
    )
    sources: dict[str, QuerySource] = Field(
        default_factory=dict, description="Database queries by name; a call says sql:<name>."
    )
    upload_form: Literal["auto", "chunked", "simple"] = Field(
        default="auto", description="How results are uploaded; auto asks the backend."
    )
    upload_concurrency: int = Field(
        default=4, ge=1, le=64, description="Chunks that are sent at the same time."
    )
    upload_timeout_s: float = Field(
        default=60.0, gt=0, description="Longest wait for an answer of the backend, in seconds."
    )
    on_bad_record: Literal["fail", "skip", "set_aside"] = Field(
        default="fail", description="What a malformed row does to its run."
    )
    encoding: str | None = Field(
        default=None, description="Of text files, such as utf-8; found out where it is not set."
    )
    delimiter: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="Of CSV files, one character; found out where it is not set.",
    )
    proxy: SecretStr | None = Field(
        default=None, description="URL of an HTTP proxy, with its user where it has one."
    )
    ca_file: Path | None = Field(
        default=None, description="Certificates to trust instead of the system's, as PEM."
    )
    client_cert_file: Path | None = Field(
        default=None, description="A client certificate for TLS, as PEM."
    )
    client_key_file: Path | None = Field(default=None, description="Its private key, as PEM.")

    @field_validator("endpoint")
    @classmethod
    def _endpoint_is_safe(cls, value: str) -> str:
        """An absolute http(s) URL without credentials; plain http to loopback alone."""
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("write the endpoint as https://host/path")
        if parts.username or parts.password or parts.fragment:
            raise ValueError("an endpoint holds no user, password or fragment: use api_key_file")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise ValueError("plain http is allowed to this machine alone: write https://")
        return value

    @field_validator("data_roots")
    @classmethod
    def _roots_are_distinct(cls, value: list[Path]) -> list[Path]:
        """A root's last folder name is part of every source's identity: no two may share it."""
        names = [root.name for root in value]
        if not all(root.is_absolute() and root.name for root in value):
            raise ValueError("write each data root as an absolute path of a folder below /")
        if len(set(names)) < len(names):
            raise ValueError("the last folder names of data_roots must differ from each other")
        return value

    @model_validator(mode="after")
    def _has_a_key(self) -> CloudSettings:
        """A key from one place at least."""
        if self.api_key is None and self.api_key_file is None:
            raise ValueError("set api_key_file (a file that holds the API key) or api_key")
        return self


def url_under(base: str, *path: str) -> str:
    """The URL of a path below the endpoint, its own query kept and its trailing slash ignored."""
    parts = urlsplit(base)
    below = "/".join(path)
    joined = parts.path.rstrip("/") + f"/{below}" if below else parts.path
    return urlunsplit((parts.scheme, parts.netloc, joined, parts.query, ""))


def digest_of(value: Any, key: bytes | None = None) -> str:
    """SHA-256 in hex of a value's canonical JSON; with a key, its HMAC."""
    text = encode_json(value, sort_keys=True)
    if key is not None:
        return hmac.new(key, text, hashlib.sha256).hexdigest()
    return hashlib.sha256(text).hexdigest()


def source_key(
    installation_id: str, stream: str, name: str, params: Params, key: bytes | None = None
) -> str:
    """The identity of a source at the backend; with a key (the client's own) it tells no names."""
    kept = {k: v for k, v in params.items() if k not in {"format", "full"}}
    return digest_of([installation_id, stream, name, kept], key)


def upload_key(source: str, content: Any, output_version: int) -> str:
    """The identity of one content of one source: a digest of the bytes, or `[after, until]`."""
    return digest_of([source, content, output_version])


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who sends: what every request and report carries."""

    installation_id: str
    handler_id: str
    entry: str
    version: str
    stream: str
    sdk_version: str

    @property
    def user_agent(self) -> str:
        """The `User-Agent` of every request."""
        return f"{self.entry}/{self.version} catalogzero/{self.sdk_version}"


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

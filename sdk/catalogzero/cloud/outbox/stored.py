"""What the outbox's file holds, as values: uploads, marks and figures, and JSON as its text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import orjson

from catalogzero.config.settings import RuntimeSettings
from catalogzero.protocol.identities import Keyed

EPOCH, GENERATION, NONCE, MOVED = "epoch", "generation", "nonce", "moved"
INSTALLATION, LAST_NONCE = "installation_id", "last_nonce"
ACKNOWLEDGED = "acknowledged"
"""The names of facts. `moved` says whose installation another folder took over, and since when."""
PAUSED, FAULT, UPLOADED = "paused", "fault", "uploaded"
"""Facts of what an operator looks at: `Pause`, `Fault`, `UploadedTotals`."""
LOGGED = "logged"
"""The fact that says what of the way to the backend was logged last, and how often it came."""
DAMAGED = "damaged"
"""The fact that says what could not be read of a damaged file, and where that is."""
CLOCK_SKEW = "clock_skew_s"
"""The fact that says how far this machine's clock is off the backend's."""
HEALTH_REPORT, HEALTH_FAULT = "health_report_2", "health_fault"
"""Facts: the report that waits, and why the last one was not delivered.

Not the name of earlier releases, whose waiting report may hold a message of an exception.
"""
OF_EACH_INSTANCE = frozenset({PAUSED, FAULT, LOGGED, CLOCK_SKEW, HEALTH_REPORT, HEALTH_FAULT})
"""Facts of one instance's own way to the backend, where several share a store."""
FIRST_SEQ = 10**12
"""No source_seq that is sealed here is below: a watermark of version 1 is not taken for a pair."""


class DamagedChunkError(Exception):
    """A chunk whose bytes cannot be read, or are not those that were stored."""

    def __init__(self, handler_id: str, upload_id: str, seq: int, why: str) -> None:
        purge = f"catalogzero outbox purge {handler_id} {upload_id}"
        super().__init__(
            f"chunk {seq} cannot be read from the outbox's file: {why}: give the upload up "
            f"(`{purge}`), and the next run reads its source again"
        )


@dataclass(frozen=True, slots=True)
class SharedStore:
    """A database in which the instances of a handler keep one outbox, and which of them this is.

    Attributes:
        url: Its PostgreSQL URL, which may hold a password.
        handler_id: Whose outbox it is; several handlers may share a database.
        instance_id: This instance's; empty where it has none.
    """

    url: str = field(repr=False)
    handler_id: str
    instance_id: str

    @classmethod
    def of(cls, runtime: RuntimeSettings, handler_id: str) -> SharedStore | None:
        """That of a handler's section; None where it keeps its outbox in its own folder."""
        if runtime.state is None:
            return None
        return cls(runtime.state.get_secret_value(), handler_id, runtime.instance_id or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One upload, as the outbox knows it; `after`, `until`, `params`, `answer` are JSON values.

    `stream` is None where it is the handler's own.
    """

    number: int
    upload_id: str
    state: str
    source_key: str
    source: str
    mode: str
    full: bool
    params: Any
    upload_key: str | None
    source_seq: int | None
    after: Any
    until: Any
    chunks: int
    records: int
    bytes: int
    bytes_sent: int
    seal_order: int | None
    created_at: str
    ended_at: str | None
    job_id: str | None
    answer: Any
    watermark_of: str
    stream: str | None
    keyed: Keyed | None


@dataclass(frozen=True, slots=True)
class Mark:
    """What was sealed last of a source: the upload, its key, the item's stamp or watermark.

    `bound` says what the watermark's values are of, `owed` that the next run must be `full`, `dead`
    which refused upload stands between the source and what is visible, `recent` which rows the last
    sealed read of a keyed source held: their digests. `missing` says that the backend did not have
    what was sealed last, and that nothing was read since; `base` is the source_seq that is known of
    the source.
    """

    upload_id: str | None = None
    upload_key: str | None = None
    stamp: Any = None
    watermark: Any = None
    mode: str | None = None
    bound: dict[str, str] | None = None
    owed: bool = False
    dead: str | None = None
    keyed: Keyed | None = None
    recent: bytes | None = None
    missing: bool = False
    base: int = 0

    @property
    def value(self) -> Any:
        """The watermark's value, of `[value, source_seq]`; one of version 1 is the value itself."""
        if isinstance(self.watermark, list) and len(self.watermark) == 2:
            value, seq = self.watermark
            if type(seq) is int and seq >= FIRST_SEQ:
                return value
        return self.watermark


@dataclass(frozen=True, slots=True)
class OutboxTotals:
    """The outbox in figures; `oldest_at` is when its oldest unfinished upload was made.

    `missing` are sources whose last upload the backend does not have, or no longer.
    """

    uploads: int
    records: int
    bytes: int
    dead: int
    oldest_at: str | None
    missing: int = 0


class Pause(TypedDict):
    """Why nothing is sent, as a sentence for people on this machine and as a word, since when.

    `next_try_at` is null where nothing is tried before an operator has acted.
    """

    reason: str
    code: str
    since: str
    next_try_at: str | None


class Fault(TypedDict):
    """What the last try to send failed of, while none has gone well since."""

    code: str
    since: str
    next_try_at: str | None


class UploadedTotals(TypedDict):
    """How many uploads, of how many records, the backend has acknowledged, and the last when."""

    uploads: int
    records: int
    at: str | None


class MissingSource(TypedDict):
    """A source whose last upload the backend does not have, with its name if that is known."""

    source_key: str
    source: str | None


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of some uploads; `upload_ids` and `refusals` (their answers) are the first."""

    states: Mapping[str, int]
    records: int
    bytes_sent: int
    job_id: str | None
    upload_ids: list[str]
    refusals: list[Any]


def as_text(value: Any) -> str:
    """A JSON value as the file keeps it."""
    return orjson.dumps(value).decode()


def from_text(text: str | None) -> Any:
    """The JSON value of a text in the file."""
    return None if text is None else orjson.loads(text)

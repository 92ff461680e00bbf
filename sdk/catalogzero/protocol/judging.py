"""The rules of completion: what a `complete` means, given what the backend knows.

Owns one pure function, `judge`, over plain facts; it reads no database and changes nothing. The
order of its questions is part of the protocol (docs/reference/upload-protocol.md): a finished
upload is answered before chunks are looked at, and a repeated key before lateness.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

from catalogzero.protocol.identities import Mode


class UploadState(StrEnum):
    """Where an upload stands at the backend; the last two are final."""

    OPEN = "open"
    COMPLETE = "complete"
    SUPERSEDED = "superseded"


class Judgement(Enum):
    """What becomes of one `complete`."""

    ACCEPTED = "accepted"
    """It becomes visible; in mode replace, or with `full`, alone of its source."""
    DUPLICATE = "duplicate"
    """This upload_id is complete already: nothing changes."""
    SAME_KEY = "same_key"
    """Another upload of this key is visible: only the source's highest source_seq rises."""
    WAS_SUPERSEDED = "was_superseded"
    """This upload_id was superseded already: nothing changes."""
    SUPERSEDED = "superseded"
    """It comes too late: it is finished without ever being seen."""
    MODE_CHANGED = "mode_changed"
    """What is visible has another mode, key or watermark: nothing changes, `full` replaces it."""
    MISSING = "missing"
    """Chunks are missing: nothing changes, the client sends them."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a `complete` asks for; `after` is JSON text, `null` at the start.

    `watermark_of` names what the watermark's values are of, in the client's own words; `merge_key`
    is mode merge's key and tombstone column as one text, empty in the other modes.
    """

    mode: Mode
    full: bool
    source_seq: int
    after: str = "null"
    watermark_of: str = ""
    merge_key: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the backend knows when a `complete` arrives, all read in its transaction.

    `key_visible`: a visible upload of this source carries the completion's upload_key.
    `highest` is the source's highest source_seq, 0 where it has none; `watermark` is JSON text.
    `mode`, `watermark_of` and `merge_key` are of what is visible; `mode` is None where nothing ever
    was.
    """

    state: UploadState
    key_visible: bool
    highest: int
    watermark: str
    missing: bool
    mode: str | None = None
    watermark_of: str = ""
    merge_key: str = ""


def judge(completion: Completion, standing: Standing) -> Judgement:
    """The one verdict on a completion."""
    if standing.state is UploadState.COMPLETE:
        return Judgement.DUPLICATE
    if standing.state is UploadState.SUPERSEDED:
        return Judgement.WAS_SUPERSEDED
    # Before lateness: a repeated content is no loss, however late it comes.
    if standing.key_visible and not completion.full:
        return Judgement.SAME_KEY
    if is_late(completion, standing):
        return Judgement.SUPERSEDED
    if is_of_another_kind(completion, standing):
        return Judgement.MODE_CHANGED
    # Last: what is refused anyway need not be sent.
    return Judgement.MISSING if standing.missing else Judgement.ACCEPTED


def is_late(completion: Completion, standing: Standing) -> bool:
    """Whether the source has gone on without this upload."""
    if completion.mode == "replace" or completion.full:
        return completion.source_seq <= standing.highest
    return completion.after != standing.watermark


def is_of_another_kind(completion: Completion, standing: Standing) -> bool:
    """Whether its rows would stand beside rows that were counted in another way."""
    if completion.full or standing.mode is None:
        return False
    named = {completion.watermark_of, standing.watermark_of} - {""}
    kinds = [(one.mode, one.merge_key) for one in (completion, standing)]
    return kinds[0] != kinds[1] or len(named) > 1

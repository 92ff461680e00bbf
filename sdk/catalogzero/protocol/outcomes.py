"""What a run came to, as one state and a few words: the same wherever a run is shown.

Arrived is the only success: what waits on this machine is `waiting`, even where its run went well.
Knows no page and no terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

# Pydantic takes `typing.TypedDict` from Python 3.12 on only: answers of HTTP APIs hold these.
from typing_extensions import TypedDict

OutcomeState = Literal[
    "uploaded", "unchanged", "reported", "done", "waiting", "running", "failed", "missed"
]
_BEFORE_THE_END = {"queued", "waking", "running", "cancelling", "retry"}
_NEVER_BEGAN = {"missed", "skipped", "lost"}
_NOTHING_NEW = {"unchanged": "nothing new", "superseded": "the backend holds something newer"}
WORST_FIRST = ("rejected", "queued", "superseded", "uploaded", "unchanged")
"""What a result of uploads says as its `status`: the worst of what there is."""

_OF_UPLOADS = {*WORST_FIRST} - {"rejected"}
_MAX_ERROR_CHARS = 300


class RunOutcomeWords(TypedDict):
    """The state of a run, what it did in words, and its rows where its result counts them.

    `uploaded`: everything is at the backend; `unchanged`: nothing was new, or the backend holds
    something newer; `reported`: a health report arrived; `done`: a method of another kind
    succeeded; `waiting`: stored here, not yet sent; `failed`; `missed`: never begun, or lost on
    the way; `running`: it goes on, or is due to begin.
    """

    state: OutcomeState
    words: str
    rows: int | None


def outcome_of(status: str, result: object = None, error: str | None = None) -> RunOutcomeWords:
    """What a run came to.

    Args:
        status: Of an execution or of a run of a handler: queued, running, retry, success, error,
            cancelled, missed, lost …
        result: What its method returned, if it did.
        error: Why it failed, if it did; the first line is shown.
    """
    why = (error or "").strip().partition("\n")[0][:_MAX_ERROR_CHARS]
    if status in _BEFORE_THE_END:
        return {"state": "running", "words": f"{status}: {why}" if why else status, "rows": None}
    if status in _NEVER_BEGAN:
        return {"state": "missed", "words": f"{status}: {why}" if why else status, "rows": None}
    said = result if isinstance(result, Mapping) else {}
    rows = _count(said, "records") if "records" in said else None
    if status != "success" or said.get("status") in {"failed", "rejected"}:
        words = why or str(said.get("error") or status)[:_MAX_ERROR_CHARS]
        return {"state": "failed", "words": words, "rows": rows}
    if rows is None or said.get("status") not in _OF_UPLOADS:
        return _of_another_method(said)
    more = [
        _counted(_count(said, "skipped"), "source", "unchanged"),
        _counted(_count(said, "bad_records"), "bad record", "left out"),
        _counted(_count(said, "left_out"), "file", "left out"),
    ]
    shown_rows = f"{rows:,} {'row' if rows == 1 else 'rows'}"
    state: OutcomeState = "uploaded"
    first = f"uploaded {shown_rows}"
    if said.get("status") == "queued":
        state, first = "waiting", f"{shown_rows} {'waits' if rows == 1 else 'wait'} to be sent"
    elif said.get("status") in _NOTHING_NEW:
        state, first = "unchanged", _NOTHING_NEW[str(said["status"])]
    words = ", ".join([first, *filter(None, more)])
    return {"state": state, "words": words, "rows": rows}


def _of_another_method(said: Mapping[str, object]) -> RunOutcomeWords:
    """Of a result without counts of rows: a health report, or whatever an author returns."""
    match said.get("status"):
        case "reported":
            return {"state": "reported", "words": "reported", "rows": None}
        case "queued":
            return {"state": "waiting", "words": "the report waits to be sent", "rows": None}
        case _:
            return {"state": "done", "words": "done", "rows": None}


def _count(said: Mapping[str, object], name: str) -> int:
    value = said.get(name)
    return value if isinstance(value, int) else 0


def _counted(count: int, thing: str, what: str) -> str:
    """`3 files left out`; an empty text for zero."""
    return f"{count:,} {thing}{'' if count == 1 else 's'} {what}" if count else ""

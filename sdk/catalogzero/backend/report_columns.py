"""What a health report says that the fleet is found, sorted and counted by.

Owns the reading of the reports' fields, which are whatever a client wrote: an
invalid one is left out. It knows no table.
"""

from __future__ import annotations

from math import ceil, isfinite
from typing import Any

from catalogzero.wire.messages import JsonObject

MISSED_REPORTS = 3
SILENT_AFTER_S = 86_400
MAX_PATIENCE_S = 10**9
MAX_REASONS_CHARS = 300
MAX_COUNT = 10**12
MOVED = "installation_moved"
"""The code of sending that is paused as another folder took the installation over."""


def read_report(report: JsonObject) -> JsonObject:
    """The columns of `installations` that a report fills.

    `patience_s` is how long the installation may be silent: three of its own intervals, or a day
    where it names none. Figures are those of its outbox, None where it did not say. `cause` is why
    one that is failing fails: moved, paused, dead (letters), or failed; else empty.
    """
    outbox = report.get("outbox")
    outbox = outbox if isinstance(outbox, dict) else {}
    status, reasons = report.get("status"), report.get("reasons")
    interval_s = number(report.get("interval_s"))
    patience_s = MISSED_REPORTS * interval_s if interval_s else SILENT_AFTER_S
    dead, paused = count(outbox.get("dead")), outbox.get("paused")
    cause = "dead" if dead else "failed"
    if paused:
        cause = "moved" if paused == MOVED else "paused"
    text = ", ".join(map(str, reasons)) if isinstance(reasons, list) else ""
    return {
        "patience_s": ceil(min(patience_s, MAX_PATIENCE_S)),
        "status": status if status in ("ok", "degraded", "failing") else "unknown",
        "reasons": storable(text, MAX_REASONS_CHARS),
        "waiting": count(outbox.get("uploads")),
        "waiting_bytes": count(outbox.get("bytes")),
        "oldest_age_s": number(outbox.get("oldest_age_s")),
        "dead": dead,
        "missing": count(outbox.get("missing")),
        "cause": cause if status == "failing" else "",
    }


def number(value: Any) -> float | None:
    """A finite number, and not below zero; else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and value >= 0 and isfinite(value) else None


def count(value: Any) -> int | None:
    """A whole number, and not below zero, at most a trillion; else None."""
    return min(value, MAX_COUNT) if type(value) is int and value >= 0 else None


def storable(text: str, max_chars: int) -> str:
    """A text without what PostgreSQL cannot hold, cut to its bound."""
    return text.replace("\0", "�")[:max_chars]

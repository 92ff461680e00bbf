"""The outbox in figures, as metrics, health reports and `catalogzero status` show it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from catalogzero.clock import Clock
from catalogzero.cloud.outbox.store import OutboxStore, looked_at
from catalogzero.cloud.outbox.stored import FAULT, Fault, Pause, SharedStore
from catalogzero.runtime.control_answers import OutboxFigures
from catalogzero.runtime.health import disk_free_bytes


def outbox_figures(
    store: OutboxStore, clock: Clock, pause: Pause | None, fault: Fault | None
) -> OutboxFigures:
    """The `outbox` of metrics; in a health report `paused` is its code."""
    totals, uploaded = store.totals(), store.uploaded()
    stopped = pause or fault
    age_s = 0.0
    if totals.oldest_at is not None:
        age_s = (clock.now() - datetime.fromisoformat(totals.oldest_at)).total_seconds()
    return {
        "uploads": totals.uploads,
        "records": totals.records,
        "bytes": totals.bytes,
        "oldest_at": totals.oldest_at,
        "oldest_age_s": round(max(age_s, 0.0), 3),
        "dead": totals.dead,
        "missing": totals.missing,
        "paused": pause["reason"] if pause else None,
        "paused_code": pause["code"] if pause else None,
        "paused_since": pause["since"] if pause else None,
        "next_try_at": stopped["next_try_at"] if stopped else None,
        "fault": fault["code"] if fault else None,
        "fault_since": fault["since"] if fault else None,
        "last_upload_at": uploaded["at"],
        "uploaded_total": uploaded["uploads"],
        "uploaded_records_total": uploaded["records"],
        "disk_free_bytes": disk_free_bytes(store.folder),
    }


def figures_in(
    folder: Path, clock: Clock, shared: SharedStore | None = None
) -> OutboxFigures | None:
    """The figures of an outbox in which nothing is changed; None where there is none: `looked_at`.

    Raises:
        ConfigError: It is damaged, or of another release.
        UnreachableError: The database does not answer.
        OSError: The folder cannot be read.
    """
    with looked_at(folder, clock, shared) as store:
        if store is None:
            return None
        return outbox_figures(store, clock, store.pause(), store.fact(FAULT))

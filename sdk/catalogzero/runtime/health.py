"""How a handler does: the one judgement of it, by its runs, its uploads and its disk.

It stands in metrics and in health reports. Never judged by being alive.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from catalogzero.runtime.control_answers import Failure, HealthJudgement, OutboxFigures

OLD_BACKLOG_S = 3_600.0
SKEW_S = 300.0
LOW_DISK_BYTES = 1 << 30
SECOND_HOST = "the scheduler refuses it: another host answers under its handler_id"
"""Without that host's address, which its log has: reasons leave the machine."""


def judge_health(
    outbox: OutboxFigures | None,
    failure: Failure | None,
    clock_skew_s: float | None = None,
    extra: Sequence[str] = (),
) -> HealthJudgement:
    """Whether a handler is ok, degraded or failing, and why.

    Args:
        outbox: What waits; None for a handler that has no outbox, or did not use it yet.
        failure: What failed last in the handler: code, exception type, method, run_id, counts.
        clock_skew_s: This machine's clock against the backend's.
        extra: Reasons that only the worker knows, each making it degraded at least.
    """
    failing, degraded = list[str](), list(extra)
    if failure:  # in a few words, none of them an exception's
        words = f"{failure['code']} ({failure['type'] or 'no exception'}) in {failure['method']}"
        words += f", run {failure['run_id']}" if "run_id" in failure else ""
        if "failed" in failure and "items" in failure:
            words += f", {failure['failed']} of {failure['items']} items"
        failing.append(f"the last run failed: {words}")
    if outbox is not None:
        if outbox["dead"]:
            failing.insert(0, f"{outbox['dead']} uploads were refused (catalogzero outbox list)")
        if outbox["paused"]:
            failing.insert(0, f"sending is paused: {outbox['paused']}")
        elif outbox["fault"]:
            degraded.append(f"sending does not succeed: {outbox['fault']}")
        if outbox["oldest_age_s"] > OLD_BACKLOG_S:
            degraded.append(f"the oldest upload waits for {outbox['oldest_age_s']:.0f} s")
        if outbox["disk_free_bytes"] < LOW_DISK_BYTES:
            free_mib = outbox["disk_free_bytes"] >> 20
            degraded.append(f"the disk of the outbox is nearly full: {free_mib} MiB are free")
    if clock_skew_s is not None and abs(clock_skew_s) > SKEW_S:
        degraded.append(f"the clock is {clock_skew_s:.0f} s off the backend's")
    reasons = failing + degraded
    if failing:
        return {"status": "failing", "reasons": reasons}
    return {"status": "degraded" if degraded else "ok", "reasons": reasons}


def disk_free_bytes(folder: Path) -> int:
    """What is free on the disk of a state folder, also of one that is still to be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free

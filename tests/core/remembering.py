"""What remembered runs hold, measured in a process of its own: prints it by case, as JSON."""

from __future__ import annotations

import gc
import json
import sys
import tracemalloc
import uuid

from catalogzero import Handler
from catalogzero.clock import SystemClock
from catalogzero.runtime.ended_runs import RunState
from catalogzero.runtime.runs import Run, Runs
from catalogzero.wire.messages import Call, Reply, StartBy, encode_json, encode_reply

CASES = {"small": (12_000, 73), "large": (2_000, 10_000), "failed": (1_000, 3_000)}
"""How many runs end, and how many characters each returns: 73 make a reply of 200 bytes."""
OUTCOMES = {"outcomes": (14_000, 73)}


class Plain(Handler):
    """Has a method."""

    async def echo(self, size: int) -> None:
        """Is not called here."""


METHOD = Plain().callable_methods()["echo"]
CLOCK = SystemClock()


def begin(runs: Runs, params: dict[str, int], start_by: StartBy | None) -> Run:
    """A run that was accepted and begins."""
    call = Call("echo", params, str(uuid.uuid4()), start_by=start_by)
    run = Run(
        run_id=runs.new_id("0123456789abcdef"),
        call=call,
        method=METHOD,
        kwargs=params,
        received_s=CLOCK.monotonic(),
        received_at=CLOCK.now(),
        params=encode_json(params),
    )
    runs.add(run)
    run.started_s = CLOCK.monotonic()
    return run


def end(runs: Runs, run: Run, case: str, chars: int) -> None:
    """It returns that many characters; or fails with as long an error, having reported as much."""
    if case != "failed":
        state, reply = RunState.SUCCESS, Reply(True, "x" * chars)
    else:
        state, reply = RunState.ERROR, Reply(False, error="ü" * chars, code="failed")
        run.note_progress({"note": "y" * chars})
        run.traceback = "z" * chars
    reply.request_id, reply.run_id, reply.duration_ms = run.request_id, run.run_id, 0.123
    runs.end(run, state, reply, encode_reply(reply))


def measured(case: str, number: int, chars: int) -> dict[str, int]:
    """How many of these runs are remembered, the bytes that they hold, and as counted."""
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    runs = Runs(window_s=600, started_s=CLOCK.monotonic(), clock=CLOCK)
    start_by = StartBy("boot", 600) if case in OUTCOMES else None
    for _ in range(number):
        end(runs, begin(runs, {"size": chars}, start_by), case, chars)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before
    kept = runs.newest(number, None, None)
    counted = sum(run.weight_bytes for run in kept if not isinstance(run, Run))
    return {"runs": len(kept), "held": held, "counted": counted}


if __name__ == "__main__":
    tracemalloc.start()
    cases = {**CASES, **OUTCOMES}
    sys.stdout.write(json.dumps({case: measured(case, *sizes) for case, sizes in cases.items()}))

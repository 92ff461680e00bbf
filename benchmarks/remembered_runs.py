"""What the runs that a handler remembers hold in memory.

    python -m benchmarks.remembered_runs [--quick] [--runs 10000] [--large-runs 3000] [--chars 73]

`catalogzero run` serves in a process of its own; its resident memory is read after a few calls, and
again after `runs` more. They return a text of `chars` characters, of which 73 make a reply of 200
bytes; then 10 kB in another process. Params are a whole number. Asleep it is put beside a script
that imports asyncio, pyzmq and psutil and answers REP.

Budgets: 8 MB for 10,000 runs with replies of 200 bytes; 16 MiB and a tenth whatever the replies.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import psutil
from catalogzero import HandlerClient

from benchmarks.report import Figure, Section, main
from benchmarks.sleep import fall_asleep, floor_mb, served

TARGET = "benchmarks.peers.heavy_entry:Heavy"
AT_ONCE = 20
WARM_CALLS = 200
ENVELOPE_BYTES = 127
"""What a reply has beside its result."""

LARGE_CHARS = 10_000 - ENVELOPE_BYTES
FULL = {"runs": 10_000, "large_runs": 3_000, "chars": 200 - ENVELOPE_BYTES}
QUICK = {**FULL, "runs": 400, "large_runs": 400}
SMALL_BUDGET_MB, LARGE_BUDGET_MB = 8.0, 1.1 * (16 << 20) / 1e6


async def remembered(runs: int, chars: int, state: Path) -> tuple[float, float, float]:
    """Memory before and after these runs, and asleep, each in MB."""
    with served(TARGET, state, max_concurrent_jobs=AT_ONCE) as (process, address):
        async with HandlerClient(address) as client:
            await call(client, WARM_CALLS, 1)
            before = own_mb(process)
            await call(client, runs, chars)
            after = own_mb(process)
            return before, after, await fall_asleep(client, process)


async def call(client: HandlerClient, times: int, chars: int) -> None:
    """Call that often for a text of that many characters."""
    for _ in range(0, times, AT_ONCE):
        calls = (client.call("text", {"chars": chars}, timeout_s=60) for _ in range(AT_ONCE))
        await asyncio.gather(*calls)


def own_mb(process: psutil.Process) -> float:
    """Resident memory of a process without its children."""
    return float(process.memory_info().rss) / 1e6


async def measure(runs: int, large_runs: int, chars: int) -> Section:
    """Every figure."""
    with tempfile.TemporaryDirectory() as name:
        before, after, asleep = await remembered(runs, chars, Path(name) / "small")
        large = await remembered(large_runs, LARGE_CHARS, Path(name) / "large")
    floor = floor_mb()
    return Section(
        figures=[
            Figure(
                what=f"{runs:,} remembered runs, replies of {chars + ENVELOPE_BYTES} B",
                samples=[after - before],
                unit="MB",
                at_most=SMALL_BUDGET_MB,
            ),
            Figure(
                what=f"remembered of {large_runs:,} runs, replies of 10 kB",
                samples=[large[1] - large[0]],
                unit="MB",
                at_most=LARGE_BUDGET_MB,
            ),
            Figure(what="asleep then / bare script", samples=[asleep / floor], unit="x"),
        ]
    )


if __name__ == "__main__":
    sys.exit(main(__name__))

"""What a sleeping handler holds, and how soon it is awake.

    python -m benchmarks.sleep [--quick] [--rounds 20] [--idle-s 20] [--megabytes 300] [--json]

`catalogzero run` serves a processor whose isolated job fills as many megabytes, and which uploads a
file; its resident memory and its children's is read before both and asleep after them, beside a
script that imports asyncio, pyzmq and psutil and answers REP. Then the first reply after sleep is
timed beside the same call awake, and the processor time of the idle process over some seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from catalogzero import HandlerClient

from benchmarks.report import Figure, Section, main
from benchmarks.upload import make_csv, sink

ROOT = Path(__file__).parents[1]
SETTLE_S = 1.0
FILE_MB = 10
FULL = {"rounds": 20, "idle_s": 20.0, "megabytes": 300}
QUICK = {"rounds": 2, "idle_s": 1.0, "megabytes": 20}
FLOOR_BUDGET, BEFORE_BUDGET, WAKING_BUDGET_MS, IDLE_BUDGET_PERCENT = 2.0, 1.05, 50.0, 0.1


def rss_mb(pid: int) -> float:
    """Resident memory of a process and its children."""
    process = psutil.Process(pid)
    total = sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
    return float(total) / 2**20


def floor_mb() -> float:
    """Memory of the script that does the least."""
    command = [sys.executable, "-m", "benchmarks.peers.bare_imports"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        found = rss_mb(process.pid)
        process.kill()
    return found


@contextmanager
def served(
    target: str, state: Path, *config: str, **runtime: object
) -> Iterator[tuple[psutil.Process, str]]:
    """`catalogzero run` in a process of its own, and the address that it says."""
    command = [sys.executable, "-m", "catalogzero", "run", target, "--scheduler", "none"]
    runtime |= {"state_dir": state, "log_format": "json"}
    command += [part for name, value in runtime.items() for part in ("--set", f"{name}={value}")]
    command += [part for pair in config for part in ("--config", pair)]
    variables = {**os.environ, "API_KEY": "benchmark"}
    process = subprocess.Popen(command, cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        address = str(json.loads(process.stderr.readline())["address"])
        yield psutil.Process(process.pid), address
    finally:
        process.terminate()
        process.communicate()


async def fall_asleep(client: HandlerClient, process: psutil.Process) -> float:
    """Put a handler to sleep; its memory then."""
    await client.call("sleep", timeout_s=60)
    await asyncio.to_thread(psutil.wait_procs, process.children(), timeout=30)
    await asyncio.sleep(SETTLE_S)
    return rss_mb(process.pid)


async def measure(rounds: int, idle_s: float, megabytes: int) -> Section:
    """Memory, waking and idle processor time of a served handler."""
    with tempfile.TemporaryDirectory() as name, sink() as backend:
        source = Path(name) / "rows.csv"
        make_csv(source, FILE_MB)
        config = (f"endpoint={backend}", f'data_roots=["{name}"]')
        target = "benchmarks.peers.heavy_entry:HeavyProcessor"
        with served(target, Path(name) / "state", *config, min_file_age_s=0) as (process, address):
            async with HandlerClient(address) as client:
                await client.call("echo", timeout_s=60)
                before = rss_mb(process.pid)
                await client.call("crunch", {"megabytes": megabytes}, timeout_s=120)
                params = {"data_source": str(source)}
                sent = await client.call("process_and_upload", params, timeout_s=120)
                assert sent["status"] == "uploaded", sent
                asleep = await fall_asleep(client, process)
                waking = await _waking(client, rounds)
                await client.call("sleep", timeout_s=60)
                idle_percent = await _idle(process, idle_s)
    floor = floor_mb()
    return Section(
        figures=[
            Figure(what="bare script", samples=[floor], unit="MB"),
            Figure(what="handler before", samples=[before], unit="MB"),
            Figure(what="asleep after both", samples=[asleep], unit="MB"),
            Figure(
                what="asleep / bare script",
                samples=[asleep / floor],
                unit="x",
                at_most=FLOOR_BUDGET,
            ),
            Figure(
                what="asleep / before", samples=[asleep / before], unit="x", at_most=BEFORE_BUDGET
            ),
            Figure(what="reply awake", samples=[awake for _, awake in waking], unit="ms"),
            Figure(
                what="first reply after sleep, beyond that awake",
                samples=[first - awake for first, awake in waking],
                unit="ms",
                at_most=WAKING_BUDGET_MS,
            ),
            Figure(
                what="asleep, of a core",
                samples=[idle_percent],
                unit="%",
                at_most=IDLE_BUDGET_PERCENT,
            ),
        ]
    )


async def _waking(client: HandlerClient, rounds: int) -> list[tuple[float, float]]:
    """Milliseconds of the first reply after sleep and of the next one, by round."""
    found = []
    for _ in range(rounds):
        await client.call("sleep", timeout_s=60)
        found.append((await _timed(client), await _timed(client)))
    return found


async def _timed(client: HandlerClient) -> float:
    began = time.perf_counter()
    await client.call("echo")
    return (time.perf_counter() - began) * 1e3


async def _idle(process: psutil.Process, seconds: float) -> float:
    before = process.cpu_times()
    await asyncio.sleep(seconds)
    after = process.cpu_times()
    return 100 * (after.user + after.system - before.user - before.system) / seconds


if __name__ == "__main__":
    sys.exit(main(__name__))

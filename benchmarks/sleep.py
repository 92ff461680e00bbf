"""What a sleeping handler holds, and how soon it is awake.

    python -m benchmarks.sleep [--rounds 20] [--idle-s 20] [--json]

`catalogzero run` serves a processor whose isolated job fills 300 MB, and which uploads a file; its
resident memory and its children's is read before both and asleep after them, beside a script that
imports asyncio, pyzmq and psutil and answers REP. Then the first reply after sleep is timed beside
the same call awake, and the processor time of the idle process over some seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from catalogzero import HandlerClient

from benchmarks.upload import make_csv, sink

ROOT = Path(__file__).parents[1]
SETTLE_S = 1.0
FILE_MB = 10


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


def serve(folder: Path, backend: str) -> tuple[subprocess.Popen[str], str]:
    """`catalogzero run`, and the address that it says."""
    flags = ["--scheduler", "none"]
    for setting in (f"state_dir={folder / 'state'}", "log_format=json", "min_file_age_s=0"):
        flags += ["--set", setting]
    for setting in (f"endpoint={backend}", "api_key=benchmark", f'data_roots=["{folder}"]'):
        flags += ["--config", setting]
    target = "benchmarks.peers.heavy_entry:HeavyProcessor"
    command = [sys.executable, "-m", "catalogzero", "run", target, *flags]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    return process, str(json.loads(process.stderr.readline())["address"])


async def measure(
    process: subprocess.Popen[str], address: str, source: Path, options: Any
) -> dict[str, float]:
    """Memory, waking and idle processor time of a served handler."""
    told: dict[str, float] = {}
    async with HandlerClient(address) as client:
        await client.call("echo", timeout_s=60)
        told["before_mb"] = rss_mb(process.pid)
        await client.call("crunch", {"megabytes": 300}, timeout_s=120)
        sent = await client.call("process_and_upload", {"data_source": str(source)}, timeout_s=120)
        assert sent["status"] == "uploaded", sent
        await client.call("sleep", timeout_s=60)
        psutil.wait_procs(psutil.Process(process.pid).children(), timeout=30)
        await asyncio.sleep(SETTLE_S)
        told["asleep_mb"] = rss_mb(process.pid)
        told["first_reply_ms"], told["awake_reply_ms"] = await _waking(client, options.rounds)
        await client.call("sleep", timeout_s=60)
        told["idle_cpu_percent"] = await _idle(process.pid, options.idle_s)
    return told


async def _waking(client: HandlerClient, rounds: int) -> tuple[float, float]:
    first, awake = [], []
    for _ in range(rounds):
        await client.call("sleep", timeout_s=60)
        first.append(await _timed(client))
        awake.append(await _timed(client))
    return statistics.median(first), statistics.median(awake)


async def _timed(client: HandlerClient) -> float:
    began = time.perf_counter()
    await client.call("echo")
    return (time.perf_counter() - began) * 1e3


async def _idle(pid: int, seconds: float) -> float:
    process = psutil.Process(pid)
    before = process.cpu_times()
    await asyncio.sleep(seconds)
    after = process.cpu_times()
    return 100 * (after.user + after.system - before.user - before.system) / seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--idle-s", type=float, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sink() as backend:
        folder = Path(name)
        make_csv(folder / "rows.csv", FILE_MB)
        process, address = serve(folder, backend)
        try:
            told = asyncio.run(measure(process, address, folder / "rows.csv", options))
        finally:
            process.terminate()
            process.communicate()
    told["floor_mb"] = floor_mb()
    if options.json:
        print(json.dumps(told))
        return
    print(f"floor script              {told['floor_mb']:8.1f} MB")
    print(f"handler before            {told['before_mb']:8.1f} MB")
    ratio, kept = told["asleep_mb"] / told["floor_mb"], told["asleep_mb"] / told["before_mb"]
    print(f"asleep after both         {told['asleep_mb']:8.1f} MB")
    print(f"  x floor                 {ratio:8.2f}     budget <= 2.0")
    print(f"  x before                {kept:8.2f}     budget <= 1.05")
    more = told["first_reply_ms"] - told["awake_reply_ms"]
    print(f"first reply after sleep   {told['first_reply_ms']:8.2f} ms")
    print(f"the same call awake       {told['awake_reply_ms']:8.2f} ms")
    print(f"  more                    {more:8.2f} ms  budget <= 50")
    print(f"idle, asleep              {told['idle_cpu_percent']:8.3f} % of a core, budget < 0.1")


if __name__ == "__main__":
    main()

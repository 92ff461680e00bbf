"""From `catalogzero run` to the first reply, beside the imports that no handler can do without.

    python -m benchmarks.startup [--rounds 7] [--json]

The peer is `python -c "import zmq, psutil, asyncio"`, started and ended; `import catalogzero` is
put beside the import of the libraries that it uses. Rounds alternate; both wall time and processor
time are reported, as the latter suffers less from what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import orjson
import zmq

ROOT = Path(__file__).parents[1]
LIBRARIES = "asyncio, orjson, psutil, pydantic, pydantic_settings, structlog, zmq, zmq.asyncio"
"""What `import catalogzero` imports; tests/house/test_dependencies.py holds it to these."""
Cost = tuple[float, float]
"""(wall seconds, processor seconds)"""


def bare(names: str = "zmq, psutil, asyncio") -> Cost:
    """Start Python, import, end."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", f"import {names}"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    wall_s = time.perf_counter() - began
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    return wall_s, usage.ru_utime + usage.ru_stime


def handler(folder: str) -> Cost:
    """`catalogzero run` until its first reply to a job call."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "catalogzero", "run", "benchmarks.peers.heavy_entry:Heavy"]
    flags = ["--port", str(port), "--scheduler", "none", "--set", f"state_dir={folder}"]
    context = zmq.Context()
    asking = context.socket(zmq.DEALER)
    asking.linger = 0
    asking.setsockopt(zmq.RECONNECT_IVL, 5)
    asking.connect(f"tcp://127.0.0.1:{port}")
    began = time.perf_counter()
    process = subprocess.Popen([*command, *flags], cwd=ROOT, stderr=subprocess.DEVNULL)
    asking.send_multipart((b"", b'{"method": "echo", "params": {"data": 1}, "request_id": "r"}'))
    assert orjson.loads(asking.recv_multipart()[-1])["result"] == 1
    wall_s = time.perf_counter() - began
    process.kill()
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    asking.close()
    context.term()
    return wall_s, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pairs = [(bare(), handler(folder)) for _ in range(options.rounds + 1)][1:]
    imports = [(bare(LIBRARIES), bare("catalogzero")) for _ in range(options.rounds + 1)][1:]
    told = {
        "bare_s": statistics.median(b[0] for b, _ in pairs),
        "handler_s": statistics.median(h[0] for _, h in pairs),
        "wall_ratio": statistics.median(h[0] / b[0] for b, h in pairs),
        "bare_cpu_s": statistics.median(b[1] for b, _ in pairs),
        "handler_cpu_s": statistics.median(h[1] for _, h in pairs),
        "cpu_ratio": statistics.median(h[1] / b[1] for b, h in pairs),
        "libraries_cpu_s": min(libraries[1] for libraries, _ in imports),
        "import_cpu_s": min(ours[1] for _, ours in imports),
    }
    import_ratio = told["import_ratio"] = told["import_cpu_s"] / told["libraries_cpu_s"]
    if options.json:
        print(json.dumps(told))
        return
    print(f"imports alone   {told['bare_s']:6.2f} s wall {told['bare_cpu_s']:6.2f} s CPU")
    print(f"first reply     {told['handler_s']:6.2f} s wall {told['handler_cpu_s']:6.2f} s CPU")
    ratios = f"{told['wall_ratio']:6.2f}        {told['cpu_ratio']:6.2f}"
    print(f"ratio           {ratios}      budget <= 4")
    print(f"import catalogzero / its libraries {import_ratio:5.2f} budget <= 1.15 (CPU, minimum)")


if __name__ == "__main__":
    main()

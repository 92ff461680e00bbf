"""A CSV file to a backend: by a handler, and by a tap and a target on the Singer SDK.

    python -m benchmarks.singer [--quick] [--mb 5] [--rounds 2] [--json]

Both read the same file and send to the same server, which takes everything and keeps nothing. The
tap and the target are what the SDK's own templates make, in an environment that is installed from
`requirements/tap-postgres.txt`; their time holds their start, which a handler does once.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers.upload_processors import Dicts
from benchmarks.report import Figure, Section, main, ratios
from benchmarks.upload import PEERS, call, make_csv, served, sink
from tests.cloud.environments import environment

FULL = {"mb": 5, "rounds": 2}
QUICK = {"mb": 1, "rounds": 1}


def piped(python: Path, source: Path, url: str, folder: Path) -> float:
    """Seconds of the tap piped into the target."""
    commands = []
    for name, config in (
        ("singer_csv_tap", {"path": str(source)}),
        ("singer_target", {"url": url}),
    ):
        settings = folder / f"{name}.json"
        settings.write_text(json.dumps(config))
        commands.append([str(python), str(PEERS / f"{name}.py"), "--config", str(settings)])
    begun = time.perf_counter()
    with subprocess.Popen(commands[0], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tap:
        subprocess.run(commands[1], stdin=tap.stdout, capture_output=True, check=True, timeout=600)
    assert tap.returncode == 0
    return time.perf_counter() - begun


async def measure(mb: int, rounds: int) -> Section:
    """Both in turns."""
    python = environment("tap-postgres") / "bin" / "python"
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as name, sink() as url:
        data = Path(name) / "exports"
        data.mkdir()
        source = data / "rows.csv"
        make_csv(data / "small.csv", 1)
        make_csv(source, mb)
        async with served(Dicts, url, data) as service:
            for _ in range(rounds):
                ours.append((await call(service, source))[0])
                theirs.append(await asyncio.to_thread(piped, python, source, url, data.parent))
    what = f"{mb} MB of CSV"
    return Section(
        figures=[
            Figure(what=f"{what}, dict batches", samples=ours, unit="s"),
            Figure(what=f"{what}, a tap and a target on the Singer SDK", samples=theirs, unit="s"),
            Figure(what="dict batches / Singer SDK", samples=ratios(ours, theirs), unit="x"),
        ]
    )


if __name__ == "__main__":
    sys.exit(main(__name__))

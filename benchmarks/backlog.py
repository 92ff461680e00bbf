"""What an upload costs that is sent from a queue: after an outage the queue is long.

    python -m benchmarks.backlog [--quick] [--queued 1000,10000,100000] [--sent 900] [--json]

An outbox with that many sealed uploads of a few bytes is drained by a served handler to a server
that takes everything and keeps nothing; the time is that between the first of its `complete` calls
and the last one of those counted. The shortest queue and the others are measured in turns.

Bar: with any queue at most 1.5 times as long as with the shortest.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import aiohttp
from catalogzero.clock import SystemClock
from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox.outbox import Opening, Outbox, Sealing
from catalogzero.testing import serving

from benchmarks.peers.upload_processors import Dicts
from benchmarks.report import Figure, Section, Series, main, ratios
from benchmarks.upload import sink

FULL = {"queued": "1000,10000,100000", "sent": 900, "rounds": 3}
QUICK = {"queued": "30,300", "sent": 20, "rounds": 1}
WAIT_S = 300.0


def fill(folder: Path, count: int) -> None:
    """An outbox of that many sealed uploads, each of a source of its own."""
    folder.mkdir()
    with closing(Outbox(folder, SystemClock())) as outbox:
        outbox.store.execute("PRAGMA synchronous=OFF")
        for number in range(count):
            upload = f"u{number:06}"
            source = (f"key-{number}", f"{number}.csv")
            outbox.begin(Opening(upload, *source, "replace", full=False, params={}))
            outbox.add(upload, Chunk(0, 1, b'{"n": 1}\n', "identity", "application/x-ndjson"))
            outbox.seal(Sealing(upload_id=upload, upload_key=f"content-{number}"))


async def drained_ms(folder: Path, sent: int) -> float:
    """Milliseconds an upload of the first `sent` that are completed."""
    with sink() as url:
        processor = Dicts(endpoint=url, api_key="benchmark", data_roots=[str(folder)])
        async with (
            serving(processor, state_dir=folder, log_level="error"),
            aiohttp.ClientSession() as session,
            asyncio.timeout(WAIT_S),
        ):
            completed: list[float] = []
            while len(completed) <= sent:
                await asyncio.sleep(0.1)
                async with session.get(f"{url}/completed") as answer:
                    completed = await answer.json()
    return (completed[sent] - completed[0]) * 1_000 / sent


async def measure(queued: str, sent: int, rounds: int) -> Section:
    """Each length of the queue in turns; `queued` has commas between, the shortest first."""
    lengths = [int(number) for number in queued.split(",")]
    took: dict[int, list[float]] = {length: [] for length in lengths}
    with tempfile.TemporaryDirectory() as name:
        for length in lengths:
            await asyncio.to_thread(fill, Path(name, f"{length}"), length)
        for number in range(rounds):
            for length in lengths:
                state = Path(name, f"state-{number}")
                shutil.copytree(Path(name, f"{length}"), state / "dicts")
                took[length].append(await drained_ms(state, sent))
                shutil.rmtree(state)
    few = lengths[0]
    figures = [
        Figure(what=f"an upload, {length:,} queued", samples=took[length], unit="ms")
        for length in lengths
    ]
    for length in lengths[1:]:
        times, what = ratios(took[length], took[few]), f"an upload, {length:,} queued / {few:,}"
        figures.append(Figure(what=what, samples=times, unit="x", at_most=1.5))
    points = [(length, statistics.median(took[length])) for length in lengths]
    series = Series(what="an upload", per="queued uploads", unit="ms", points=points)
    return Section(figures=figures, series=[series])


if __name__ == "__main__":
    sys.exit(main(__name__))

"""Many small files in one run, to far ends that have what they answered on the disk.

    python -m benchmarks.small_files [--quick] [--files 10000] [--to-backend 1000] [--json]

A served handler, whose worker is up, reads a pattern of CSV files, each of which is an upload of
its own. The far ends are the reference backend on SQLite and on PostgreSQL, and a server that only
appends what comes to a file (`benchmarks/append_server.py`), each in a process of its own. The
floor sends the very same number of bytes in the same two requests for each file with bare aiohttp,
eight uploads at once, and keeps nothing on its own side.

Budget: at least a third of the floor of the same far end.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import orjson
import zstandard
from catalogzero.testing import Serving, serving

from benchmarks.append_server import appending
from benchmarks.backend import database_of, served
from benchmarks.peers.upload_processors import Dicts
from benchmarks.report import Figure, Section, Series, main, ratios
from benchmarks.upload import HEADER, ROW

FULL = {"files": 10_000, "to_backend": 1_000, "kb": 10, "rounds": 1}
QUICK = {"files": 100, "to_backend": 50, "kb": 10, "rounds": 1}
AT_ONCE = 8
BUDGET = 1 / 3
FAR_ENDS = ("appending server", "backend on SQLite", "backend on PostgreSQL")


def make_files(folder: Path, files: int, kilobytes: int) -> None:
    """CSV files of about that size, no two alike."""
    folder.mkdir()
    for number in range(files):
        with (folder / f"{number:06}.csv").open("w") as file:
            size, n = file.write(HEADER), number * 1_000
            while size < kilobytes << 10:
                size += file.write(
                    ROW.format(
                        n=n, day=n % 28 + 1, c=n % 16, tail=n * 7 % 99_999, dep=n % 97 - 20,
                        arr=n * 3 % 113 - 30, dist=n * 13 % 2_500,
                    )
                )  # fmt: skip
                n += 1


@contextmanager
def far_end(name: str, folder: Path) -> Iterator[tuple[str, str]]:
    """The endpoint of one far end, and a key for it."""
    if name == "appending server":
        with appending(folder / f"{uuid.uuid4().hex}.log") as url:
            yield url, "benchmark"
        return
    kind = name.rpartition(" ")[2].lower()
    where = database_of(folder, kind, uuid.uuid4().hex)
    with where as (database, _), served(database, folder) as found:
        yield found


@asynccontextmanager
async def at_work(url: str, key: str, data: Path) -> AsyncIterator[Serving]:
    """A served handler whose worker has done a first small run."""
    processor = Dicts(endpoint=url, api_key=key, data_roots=[str(data)])
    with tempfile.TemporaryDirectory() as state:
        async with serving(
            processor,
            state_dir=Path(state),
            min_file_age_s=0,
            upload_wait_s=3_000,
            log_level="error",
        ) as service:
            await run(service, str(data / "first" / "*.csv"))
            yield service


async def run(service: Serving, pattern: str) -> float:
    """One whole run, until the far end has all of it; its seconds."""
    begun = time.perf_counter()
    result = await service.client.call(
        "process_and_upload", {"data_source": pattern}, timeout_s=3_600
    )
    assert result["status"] == "uploaded", result
    return time.perf_counter() - begun


async def bare(url: str, key: str, files: int, body: bytes) -> float:
    """Seconds of the requests alone."""
    waiting = list(range(files))
    headers = {"Authorization": f"Bearer {key}"}
    as_chunk = {"Content-Type": "application/x-ndjson", "Content-Encoding": "zstd"}
    as_json = {"Content-Type": "application/json"}
    records = zstandard.decompress(body).count(b"\n")

    async def sender(session: aiohttp.ClientSession) -> None:
        while waiting:
            waiting.pop()
            name = uuid.uuid4().hex
            path = f"{url}/uploads/{name}"
            async with session.put(f"{path}/chunks/0", data=body, headers=as_chunk) as answer:
                assert answer.status == 201, await answer.text()
            said = {"upload_key": name, "source_key": name, "source_seq": 1, "chunks": 1}
            said |= {"installation_id": "floor", "records": records}
            complete = orjson.dumps(said)
            async with session.post(f"{path}/complete", data=complete, headers=as_json) as answer:
                assert answer.status == 201, await answer.text()

    async with aiohttp.ClientSession(headers=headers) as session:
        begun = time.perf_counter()
        await asyncio.gather(*(sender(session) for _ in range(AT_ONCE)))
        return time.perf_counter() - begun


def body_of(path: Path) -> bytes:
    """About what leaves of a file: its rows as JSON Lines, zstd."""
    names = HEADER.strip().split(",")
    lines = path.read_text().splitlines()[1:]
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines]
    return zstandard.compress(b"".join(orjson.dumps(row) + b"\n" for row in rows), 3)


async def measure(files: int, to_backend: int, kb: int, rounds: int) -> Section:
    """Files a second to each far end, and of the bare requests; `to_backend` files to a backend."""
    figures: list[Figure] = []
    points: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as ends:
        folder = Path(name)
        data = folder / "exports"
        data.mkdir()
        make_files(data / "first", 10, kb)
        for number in {files, files // 10, to_backend}:
            make_files(data / f"{number}", number, kb)
        body = body_of(data / "first" / "000000.csv")
        for end in FAR_ENDS:
            url, key = ends.enter_context(far_end(end, folder))
            sizes = (files // 10, files) if end == FAR_ENDS[0] else (to_backend,)
            for number in sizes:
                ours, floor = [], []
                for _ in range(rounds):
                    floor.append(number / await bare(url, key, number, body))
                    async with at_work(url, key, data) as service:
                        ours.append(number / await run(service, str(data / f"{number}" / "*.csv")))
                if end == FAR_ENDS[0]:
                    points.append((number, number / statistics.median(ours)))
                what = f"{number:,} files, {end}"
                figures += [
                    Figure(what=what, samples=ours, unit="/s"),
                    Figure(what=f"{what}: bare requests", samples=floor, unit="/s"),
                    Figure(
                        what=f"{what} / bare requests",
                        samples=ratios(ours, floor),
                        unit="x",
                        at_least=BUDGET,
                    ),
                ]
    series = Series(what=f"files to an {FAR_ENDS[0]}", per="files", unit="s", points=points)
    return Section(figures=figures, series=[series])


if __name__ == "__main__":
    sys.exit(main(__name__))

"""process_and_upload against its floors and against plain scripts; memory at two sizes.

    python -m benchmarks.upload [--quick] [--mb 100] [--big-mb 1000] [--rounds 3] [--json]

The far end is one server that takes everything and keeps nothing, in a process of its own. The
floors are each step alone on the same data: read the CSV, encode Parquet (zstd), hash, write the
chunks durably (one file, fsync after each), PUT the same bytes with bare aiohttp. A run is a call
of a served handler whose worker is up. Medians of interleaved rounds.

Bars: Arrow batches at most 0.65 times the sum of the floors, at most 1.25 times a script of polars
and Parquet, and at most 1.1 times the bytes of the smaller of Parquet with a dictionary for each
column and with none; dict batches at most 0.45 times a script of csv.DictReader, json.dumps and
POST; frames at most 1.1 times the tables of pyarrow that hold the same, each yielded once for every
batch; worker's and handler's peak memory at the big size at most 1.15 times that at the small one
(a process of its own for each size).
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import psutil
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from catalogzero import HandlerClient
from catalogzero.testing import Serving, serving

from benchmarks.peers.upload_processors import Dicts, Frames, PandasFrames, PolarsFrames, Tables
from benchmarks.report import Figure, Section, Series, main, ratios

PEERS = Path(__file__).parent / "peers"
ROW = "{n},2013-01-{day:02},carrier-{c},N{tail:05},{dep},{arr},{dist},some words of text {n}\n"
HEADER = "id,date,carrier,tailnum,dep_delay,arr_delay,distance,remark\n"
CHUNK_BYTES = 4 << 20
SCRIPTS = {
    "csv": "csv.DictReader, json.dumps, POST a batch",
    "pyarrow": "pyarrow, Parquet, one POST of all",
    "polars": "polars, JSON Lines, one requests.post of all",
    "polars_parquet": "polars, Parquet, one requests.post of all",
    "pandas": "pandas, Parquet, one requests.post of all",
}
FULL = {"mb": 100, "big_mb": 1_000, "rounds": 3}
QUICK = {"mb": 1, "big_mb": 2, "rounds": 1}
ARROW_BUDGET, POLARS_BUDGET, BYTES_BUDGET, MEMORY_BUDGET = 0.65, 1.25, 1.1, 1.15
DICT_BUDGET, FRAME_BUDGET = 0.45, 1.1
FRAMES = {"polars": PolarsFrames, "pandas": PandasFrames}


def make_csv(path: Path, megabytes: int) -> int:
    """A CSV file of about that number of megabytes; its rows."""
    size, n = 0, 0
    with path.open("w") as file:
        size += file.write(HEADER)
        while size < megabytes << 20:
            rows = [
                ROW.format(
                    n=k, day=k % 28 + 1, c=k % 16, tail=k * 7 % 99_999, dep=k % 97 - 20,
                    arr=k * 3 % 113 - 30, dist=k * 13 % 2_500,
                )
                for k in range(n, n + 10_000)
            ]  # fmt: skip
            n += 10_000
            size += file.write("".join(rows))
    return n


@contextmanager
def sink() -> Iterator[str]:
    """The far end's URL."""
    command = [sys.executable, str(PEERS / "sink.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.terminate()


@asynccontextmanager
async def served(handler: type[Dicts], url: str, data: Path) -> AsyncIterator[Serving]:
    """A served handler whose worker has done a first small run."""
    processor = handler(endpoint=url, api_key="benchmark", data_roots=[str(data)])
    with tempfile.TemporaryDirectory() as state:
        async with serving(
            processor, state_dir=Path(state), min_file_age_s=0, upload_wait_s=600, log_level="error"
        ) as service:
            await call(service, data / "small.csv")
            yield service


async def call(service: Serving, source: Path) -> tuple[float, int]:
    """One whole run; its seconds, and the bytes that it sent."""
    chunk_format = "parquet" if isinstance(service.handler, Tables) else "ndjson"
    params = {"data_source": str(source), "params": {"full": True, "format": chunk_format}}
    begun = time.perf_counter()
    result = await service.client.call("process_and_upload", params, timeout_s=3_600)
    assert result["status"] == "uploaded", result
    return time.perf_counter() - begun, result["bytes_sent"]


async def floors(source: Path, url: str, folder: Path) -> dict[str, float]:
    """Seconds of each step alone."""
    spent: dict[str, float] = {}
    tables: list[pa.Table] = []
    bodies: list[bytes] = []

    def timed(name: str, act: Callable[[], object]) -> None:
        begun = time.perf_counter()
        act()
        spent[name] = time.perf_counter() - begun

    timed("read", lambda: tables.extend(read(source)))
    timed("hash", lambda: hash_file(source))
    timed("encode", lambda: bodies.extend(encode(tables)))
    timed("durable write", lambda: write_durably(bodies, folder / "floor"))
    begun = time.perf_counter()
    async with aiohttp.ClientSession() as session:
        for number, body in enumerate(bodies):
            async with session.put(f"{url}/uploads/floor/chunks/{number}", data=body) as answer:
                assert answer.status == 201
    spent["put"] = time.perf_counter() - begun
    return spent


def read(source: Path) -> list[pa.Table]:
    """All of a CSV file, as text columns."""
    columns = HEADER.strip().split(",")
    convert = pc.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()))
    reader = pc.open_csv(
        source, pc.ReadOptions(use_threads=False, block_size=CHUNK_BYTES), convert_options=convert
    )
    return [pa.Table.from_batches([batch]) for batch in reader]


def hash_file(source: Path) -> str:
    """SHA-256 of the file."""
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def encode(tables: list[pa.Table], *, dictionary: bool = True) -> list[bytes]:
    """Each table as a Parquet file; with a dictionary for each column, or with none."""
    bodies = []
    for table in tables:
        out = pa.BufferOutputStream()
        pq.write_table(table, out, compression="zstd", use_dictionary=dictionary)
        bodies.append(out.getvalue().to_pybytes())
    return bodies


def write_durably(bodies: list[bytes], path: Path) -> None:
    """Append each body to a file, and sync."""
    with path.open("wb") as file:
        for body in bodies:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())


def script(kind: str, source: Path, url: str) -> float:
    """Seconds of a plain script, without its start."""
    command = [sys.executable, str(PEERS / "plain_scripts.py"), kind, str(source), f"{url}/script"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


async def peak_mb(handler: psutil.Process, client: HandlerClient, source: Path) -> float:
    """The highest memory of handler and worker together during a run."""
    params = {"data_source": str(source), "params": {"full": True, "format": "parquet"}}
    run = asyncio.create_task(client.call("process_and_upload", params, timeout_s=3_600))
    peak = 0
    while not run.done():
        each = [handler, *handler.children()]
        peak = max(peak, sum(process.memory_info().rss for process in each))
        await asyncio.wait([run], timeout=0.02)
    assert (await run)["status"] == "uploaded"
    return peak / (1 << 20)


@asynccontextmanager
async def alone(url: str, data: Path) -> AsyncIterator[tuple[psutil.Process, HandlerClient]]:
    """A handler in a process of its own (`catalogzero run`), whose worker is up.

    Raises:
        RuntimeError: It ended before its worker was up; with what it wrote to stderr.
    """
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = str(held.getsockname()[1])
    named = ("benchmarks.peers.upload_processors:Tables", "--handler-id", "bench", "--port", port)
    config = (f"endpoint={url}", f"data_roots={json.dumps([str(data)])}")
    with tempfile.TemporaryDirectory() as state, tempfile.TemporaryFile("w+") as errors:
        runtime = (f"state_dir={state}", "min_file_age_s=0", "upload_wait_s=600")
        command = [sys.executable, "-m", "catalogzero", "run", *named, "--scheduler", "none"]
        command += [part for pair in runtime for part in ("--set", pair)]
        command += [part for pair in config for part in ("--config", pair)]
        # A secret on the command line would be refused.
        environment = {**os.environ, "API_KEY": "benchmark"}
        process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=errors)
        ended = asyncio.create_task(process.wait())
        try:
            async with HandlerClient(f"tcp://127.0.0.1:{port}") as client:
                params = {"data_source": str(data / "small.csv"), "format": "parquet"}
                up = asyncio.create_task(client.call("process_and_upload", params, timeout_s=60))
                await asyncio.wait([up, ended], return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    up.cancel()
                    errors.seek(0)
                    raise RuntimeError(f"the handler ended ({ended.result()}): {errors.read()}")
                await up
                yield psutil.Process(process.pid), client
        finally:
            if not ended.done():
                process.terminate()
            await ended


async def measure(mb: int, big_mb: int, rounds: int) -> Section:
    """Every figure; no memory where `big_mb` is 0."""
    with tempfile.TemporaryDirectory() as name, sink() as url:
        data = Path(name) / "exports"
        data.mkdir()
        source = data / "medium.csv"
        make_csv(data / "small.csv", 1)
        make_csv(source, mb)
        figures = await times(url, data, source, rounds) + await frames(url, data, source, rounds)
        if big_mb:
            make_csv(data / "big.csv", big_mb)
            figures += await memory(url, data, source)
        return Section(figures=figures, series=await growth(url, data, mb))


async def growth(url: str, data: Path, mb: int) -> list[Series]:
    """Seconds of a run over a hundredth of the file, a tenth, and all of it."""
    sizes = sorted({max(1, mb // 100), max(1, mb // 10), mb})
    rows = [make_csv(data / f"{size}.csv", size) for size in sizes]
    found = []
    for what, handler in (("Arrow batches", Tables), ("dict batches", Dicts)):
        async with served(handler, url, data) as service:
            took = [(await call(service, data / f"{size}.csv"))[0] for size in sizes]
        points = list(zip(rows, took, strict=True))
        found.append(Series(what=f"a run of {what}", per="rows", unit="s", points=points))
    return found


async def times(url: str, data: Path, source: Path, rounds: int) -> list[Figure]:
    """Times and their ratios."""
    steps: list[dict[str, float]] = []
    scripts = [kind for kind in SCRIPTS if importlib.util.find_spec(kind.partition("_")[0])]
    ways: dict[str, list[float]] = {way: [] for way in ("arrow", "dicts", *scripts)}
    sent: list[float] = []
    async with served(Tables, url, data) as tables, served(Dicts, url, data) as dicts:
        for _ in range(rounds):
            steps.append(await floors(source, url, data.parent))
            spent, size = await call(tables, source)
            ways["arrow"].append(spent)
            sent.append(size)
            ways["dicts"].append((await call(dicts, source))[0])
            for kind in scripts:
                ways[kind].append(await asyncio.to_thread(script, kind, source, url))
    floor = [sum(step.values()) for step in steps]
    sizes = [sum(map(len, encode(read(source), dictionary=each))) for each in (True, False)]
    return [
        *(
            Figure(what=f"floor: {name}", samples=[step[name] for step in steps], unit="s")
            for name in steps[0]
        ),
        Figure(what="sum of floors", samples=floor, unit="s"),
        Figure(what="run, Arrow batches to Parquet", samples=ways["arrow"], unit="s"),
        Figure(what="run, dict batches to JSON Lines", samples=ways["dicts"], unit="s"),
        *(
            Figure(what=f"script: {SCRIPTS[kind]}", samples=ways[kind], unit="s")
            for kind in scripts
        ),
        Figure(
            what="Arrow run / sum of floors",
            samples=ratios(ways["arrow"], floor),
            unit="x",
            at_most=ARROW_BUDGET,
        ),
        *(
            Figure(
                what="Arrow run / script of polars and Parquet",
                samples=ratios(ways["arrow"], ways[kind]),
                unit="x",
                at_most=POLARS_BUDGET,
            )
            for kind in scripts
            if kind == "polars_parquet"
        ),
        Figure(
            what="Arrow run, bytes sent / smaller of dictionaries on and off",
            samples=[size / min(sizes) for size in sent],
            unit="x",
            at_most=BYTES_BUDGET,
        ),
        Figure(
            what="dict run / script",
            samples=ratios(ways["dicts"], ways["csv"]),
            unit="x",
            at_most=DICT_BUDGET,
        ),
    ]


async def frames(url: str, data: Path, source: Path, rounds: int) -> list[Figure]:
    """Times of frames, by those of the tables that they are made of."""
    found: list[Figure] = []
    async with served(Frames, url, data) as tables:
        for kind, handler in FRAMES.items():
            if importlib.util.find_spec(kind) is None:
                continue
            async with served(handler, url, data) as own:
                runs = [
                    (await call(own, source), await call(tables, source)) for _ in range(rounds)
                ]
            ours, theirs = ([one[0] for one in each] for each in zip(*runs, strict=True))
            found += [
                Figure(what=f"run, frames of {kind} to Parquet", samples=ours, unit="s"),
                Figure(
                    what=f"run of frames of {kind} / of pyarrow's tables",
                    samples=ratios(ours, theirs),
                    unit="x",
                    at_most=FRAME_BUDGET,
                ),
            ]
    return found


async def memory(url: str, data: Path, medium: Path) -> list[Figure]:
    """Peak memory at both sizes."""
    async with alone(url, data) as (handler, client):
        small = await peak_mb(handler, client, medium)
    async with alone(url, data) as (handler, client):
        large = await peak_mb(handler, client, data / "big.csv")
    return [
        Figure(what="peak memory, small file", samples=[small], unit="MB"),
        Figure(what="peak memory, big file", samples=[large], unit="MB"),
        Figure(
            what="peak memory, big / small",
            samples=[large / small],
            unit="x",
            at_most=MEMORY_BUDGET,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main(__name__))

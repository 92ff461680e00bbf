"""What a plain script does instead: read, dump, POST. No outbox, no retries, no second chance.

python plain_scripts.py csv|pyarrow|polars|polars_parquet|pandas FILE URL
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import aiohttp

BATCH = 10_000


async def by_csv(path: Path, url: str) -> None:
    """csv.DictReader, json.dumps, POST."""
    async with aiohttp.ClientSession() as session:
        with path.open(newline="") as file:
            lines: list[str] = []
            for row in csv.DictReader(file):
                lines.append(json.dumps(row))
                if len(lines) == BATCH:
                    await post(session, url, "\n".join(lines).encode())
                    lines = []
            await post(session, url, "\n".join(lines).encode())


async def by_pyarrow(path: Path, url: str) -> None:
    """Read the whole file as a table, write it as Parquet in memory, POST."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    table = pyarrow.csv.read_csv(path)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    async with aiohttp.ClientSession() as session:
        await post(session, url, sink.getvalue().to_pybytes())


def by_polars(path: Path, url: str) -> None:
    """Read the whole file with polars, write it as JSON Lines in memory, requests.post."""
    import polars as pl
    import requests

    requests.post(
        url, data=pl.read_csv(path).write_ndjson().encode(), timeout=600
    ).raise_for_status()


def by_polars_parquet(path: Path, url: str) -> None:
    """The same as Parquet."""
    import polars as pl
    import requests

    out = io.BytesIO()
    pl.read_csv(path).write_parquet(out)
    requests.post(url, data=out.getvalue(), timeout=600).raise_for_status()


def by_pandas(path: Path, url: str) -> None:
    """Read the whole file with pandas, write it as Parquet in memory, requests.post."""
    import pandas as pd
    import requests

    out = io.BytesIO()
    pd.read_csv(path).to_parquet(out, compression="zstd")
    requests.post(url, data=out.getvalue(), timeout=600).raise_for_status()


WAYS: dict[str, Callable[[Path, str], Coroutine[None, None, None] | None]] = {
    "csv": by_csv,
    "pyarrow": by_pyarrow,
    "polars": by_polars,
    "polars_parquet": by_polars_parquet,
    "pandas": by_pandas,
}


async def post(session: aiohttp.ClientSession, url: str, body: bytes) -> None:
    """One POST that must succeed."""
    async with session.post(url, data=body) as answer:
        answer.raise_for_status()


if __name__ == "__main__":
    begun = time.perf_counter()
    work = WAYS[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
    if work is not None:
        asyncio.run(work)
    sys.stdout.write(f"{time.perf_counter() - begun:.3f}\n")

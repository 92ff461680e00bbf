"""What a plain script does instead: read, dump, POST. No outbox, no retries, no second chance.

python plain_scripts.py dicts|arrow FILE URL
"""

from __future__ import annotations

import asyncio
import csv
import json
import sys
import time
from pathlib import Path

import aiohttp

BATCH = 10_000


async def dicts(path: Path, url: str) -> None:
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


async def arrow(path: Path, url: str) -> None:
    """Read the whole file as a table, write it as Parquet in memory, POST."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    table = pyarrow.csv.read_csv(path)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    async with aiohttp.ClientSession() as session:
        await post(session, url, sink.getvalue().to_pybytes())


async def post(session: aiohttp.ClientSession, url: str, body: bytes) -> None:
    """One POST that must succeed."""
    async with session.post(url, data=body) as answer:
        answer.raise_for_status()


if __name__ == "__main__":
    begun = time.perf_counter()
    asyncio.run({"dicts": dicts, "arrow": arrow}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3]))
    sys.stdout.write(f"{time.perf_counter() - begun:.3f}\n")

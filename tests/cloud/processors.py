"""Processors that the tests serve."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

from catalogzero import Batch, CloudProcessor, Params, Rows


class Doubler(CloudProcessor):
    """Doubles `n`."""

    def process(self, batches: Iterable[Rows], params: Params) -> Iterator[Batch]:
        for batch in batches:
            yield [{"n": int(row["n"]) * 2, "name": row.get("name")} for row in batch]


class Plain(CloudProcessor):
    """Passes everything on."""

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        yield from batches


class NoFigures(Plain):
    """Its own metrics fail."""

    async def get_metrics(self) -> dict[str, Any]:
        raise ValueError("no figures")


class ArrowPlain(Plain):
    """Passes Arrow tables on."""

    batch_type = "arrow"


class Total(CloudProcessor):
    """One row at the end."""

    def process(self, batches: Iterable[Rows], params: Params) -> Iterator[Batch]:
        yield [{"total": sum(int(row["n"]) for batch in batches for row in batch)}]


class Counter(CloudProcessor):
    """Reads its own source: the numbers up to one in a file, appended."""

    mode = "append"

    def read(
        self, data_source: str, params: Params, after: int | None = None
    ) -> Generator[Batch, None, int]:
        until = int(Path(data_source).read_text())
        for n in range((after or 0) + 1, until + 1):
            yield [{"n": n}]
        return until

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        yield from batches

"""Processors that pass everything on: what is measured is the way, not the work."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from catalogzero import Batch, CloudProcessor, Params


class Dicts(CloudProcessor):
    """Lists of dicts, as most vendors write it."""

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        """Pass on."""
        yield from batches


class Waiting(CloudProcessor):
    """Waits over each file, as one does that asks another service for what it adds."""

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        """Pass on, after a while."""
        time.sleep(params["seconds"])
        yield from batches


class Tables(Dicts):
    """Arrow tables, the fast way."""

    batch_type = "arrow"


class Frames(Tables):
    """One table for each batch: the first one, made what a library has of it."""

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        """The first batch as often as there are batches, so that what makes it costs nothing."""
        frame: Any = None
        for table in batches:
            frame = self.made(table) if frame is None else frame
            yield frame

    def made(self, table: Any) -> Any:
        """The frame of a table: itself."""
        return table


class PolarsFrames(Frames):
    """Frames of Polars."""

    def made(self, table: Any) -> Any:
        """As Polars has it: with views of texts."""
        import polars as pl

        return pl.from_arrow(table)


class PandasFrames(Frames):
    """Frames of pandas."""

    def made(self, table: Any) -> Any:
        """As pandas has it, its columns Arrow's own."""
        import pandas as pd

        return table.to_pandas(types_mapper=pd.ArrowDtype)

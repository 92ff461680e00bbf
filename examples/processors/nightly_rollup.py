"""A Parquet file for each night, rolled up with Polars: sales by shop and day."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import polars as pl
from catalogzero import ArrowStream, CloudProcessor, Params


class NightlyRollup(CloudProcessor):
    """One row for each shop and day of a file; a file that is exported again replaces its own."""

    stream = "sales_by_day"
    batch_type = "arrow"

    def process(self, batches: Iterable[ArrowStream], params: Params) -> Iterator[pl.DataFrame]:
        """Sums of batches are summed again, so that memory holds sums alone."""
        keys = ["shop", "day"]
        sums = pl.DataFrame()
        for batch in batches:
            sold = pl.DataFrame(batch).with_columns(day=pl.col("sold_at").dt.date())
            part = sold.group_by(keys).agg(pl.col("price").sum(), orders=pl.len())
            sums = pl.concat([sums, part]) if sums.width else part
        if sums.width:
            yield sums.group_by(keys).agg(pl.col("price", "orders").sum()).sort(keys)

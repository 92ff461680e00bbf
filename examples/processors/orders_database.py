"""A PostgreSQL table that is updated, and whose rows may come late.

The client's config names the query, its watermark, and how late a row may be:

    sources:
      orders:
        url_file: /etc/acme/db_url
        query: SELECT order_id, shop, cents, updated_at, deleted FROM orders
        watermark: updated_at
        lookback: 3600
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from catalogzero import CloudProcessor, Params, Rows, Stream


class OrdersDatabase(CloudProcessor):
    """Sends each order's newest state, with its price in whole units."""

    streams = (Stream("orders", key=("order_id",), tombstone="deleted"),)

    def process(self, batches: Iterable[Rows], params: Params) -> Iterator[Rows]:
        """An order for an order."""
        for batch in batches:
            yield [{**row, "price": row["cents"] / 100} for row in batch]

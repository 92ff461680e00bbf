"""Any Singer tap, here one of a shop's database; the client's config names it:

taps:
  shop:
    command: /opt/taps/bin/tap-postgres
    config_file: /etc/acme/tap.json
    catalog_file: /etc/acme/catalog.json
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from catalogzero import CloudProcessor, Params, Rows


class ShopTap(CloudProcessor):
    """Sends what the tap reads, each stream by its name and key; of orders with their shop."""

    def process(self, batches: Iterable[Rows], params: Params) -> Iterator[Rows]:
        """A row for a row."""
        more = {"shop": params["shop"]} if self.run.item.stream.endswith("orders") else {}
        for batch in batches:
            yield [{**row, **more} for row in batch]

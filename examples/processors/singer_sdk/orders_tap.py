# mypy: disable-error-code="import-not-found,misc"
"""The API of `rate_limited_api.py`, read by a tap on the Singer SDK: for `docs/compare.md`.

Runs in an environment of its own, with `singer-sdk` in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import requests
from singer_sdk import RESTStream, Tap
from singer_sdk import typing as th
from singer_sdk.pagination import BaseAPIPaginator


class SincePaginator(BaseAPIPaginator[int]):
    """The next page begins behind the last order."""

    def get_next(self, response: requests.Response) -> int | None:
        """The last order's id; None at the end."""
        rows = response.json()
        return rows[-1]["order_id"] if rows else None


class OrdersStream(RESTStream[int]):
    """The orders, in the order of their ids."""

    name = "orders"
    path = "/orders"
    primary_keys = ("order_id",)
    replication_key = "order_id"
    is_sorted = True
    schema = th.PropertiesList(th.Property("order_id", th.IntegerType)).to_dict()

    @property
    def url_base(self) -> str:
        """The API's address."""
        return str(self.config["url"])

    def get_new_paginator(self) -> SincePaginator:
        """From where the last run ended."""
        return SincePaginator(self.get_starting_replication_key_value(None) or 0)

    def get_url_params(
        self, context: Mapping[str, Any] | None, next_page_token: int | None
    ) -> dict[str, Any]:
        """The page behind an order."""
        return {"since": next_page_token or 0}

    def backoff_wait_generator(self) -> Any:
        """As long as the API asks for; a second after any other fault."""
        return self.backoff_runtime(
            value=lambda error: float(
                getattr(error.response, "headers", {}).get("Retry-After", "1")
            )
        )


class OrdersTap(Tap):
    """The tap."""

    name = "tap-orders"
    config_jsonschema = th.PropertiesList(
        th.Property("url", th.StringType, required=True)
    ).to_dict()

    def discover_streams(self) -> list[OrdersStream]:
        """Its one stream."""
        return [OrdersStream(self)]


if __name__ == "__main__":
    OrdersTap.cli()

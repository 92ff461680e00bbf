# mypy: disable-error-code="import-not-found,misc"
"""A tap on the Singer SDK that reads a CSV file, as its template makes them.

Runs in an environment of its own, with `singer-sdk` in it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from typing import Any

from singer_sdk import Stream, Tap
from singer_sdk import typing as th


class RowsStream(Stream):
    """The rows of the file; every column is text."""

    name = "rows"

    @property
    def schema(self) -> dict[str, Any]:
        """By the file's header."""
        with open(self.config["path"], newline="") as file:
            columns = next(csv.reader(file))
        return dict(
            th.PropertiesList(*(th.Property(name, th.StringType) for name in columns)).to_dict()
        )

    def get_records(self, context: Mapping[str, Any] | None) -> Iterable[dict[str, Any]]:
        """Row by row."""
        with open(self.config["path"], newline="") as file:
            yield from csv.DictReader(file)


class CsvTap(Tap):
    """The tap."""

    name = "tap-rows"
    config_jsonschema = th.PropertiesList(
        th.Property("path", th.StringType, required=True)
    ).to_dict()

    def discover_streams(self) -> list[RowsStream]:
        """Its one stream."""
        return [RowsStream(self)]


if __name__ == "__main__":
    CsvTap.cli()

"""What `process` does with rows: nothing."""

import csv
from pathlib import Path

import pytest
from catalogzero import ConfigError

from singer_processor.handler import SingerProcessor

SAMPLE = Path(__file__).parent.parent / "src/singer_processor/sample.csv"


def test_rows_pass_as_they_are() -> None:
    with SAMPLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    handler = SingerProcessor(
        endpoint="https://backend.example", api_key="k", data_roots=[SAMPLE.parent]
    )

    assert list(handler.process(iter([rows]), {})) == [rows]


def test_the_endpoint_is_the_client_s_to_name() -> None:
    with pytest.raises(ConfigError, match="endpoint"):
        SingerProcessor(api_key="k", data_roots=[SAMPLE.parent])

"""Each row of docs/reference/values.md, on real values through the real encoders."""

from __future__ import annotations

import enum
import io
import math
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catalogzero.cloud.encoding import encoder_for
from catalogzero.cloud.rows.tables import rows_in, table_of, table_of_rows
from catalogzero.cloud.rows.values import UnfitError, json_lines
from catalogzero.errors import FailedError
from catalogzero.protocol.codings import decoded

PAGE = Path(__file__).parents[2] / "docs/reference/values.md"
FORMATS = ("ndjson", "csv", "parquet")
BAD = "bad record"


class Color(enum.Enum):
    RED = "red"


WORDS = {
    **{"math": math, "np": np, "pa": pa, "Decimal": Decimal, "UUID": UUID, "Color": Color},
    **{"date": date, "datetime": datetime, "time": time, "timedelta": timedelta},
    **{"timezone": timezone, "UTC": UTC, "ZoneInfo": ZoneInfo},
}


def cell(text: str) -> str:
    """A cell of the page without its backticks."""
    return "" if text == "nothing" else text.strip("`").replace("␀", "\0")


def table_after(heading: str) -> list[list[str]]:
    """The rows of the table under a heading, their cells as written."""
    lines = PAGE.read_text("utf-8").partition(f"## {heading}\n")[2].split("\n## ")[0].splitlines()
    rows = [line.strip("|").split(" | ") for line in lines if line.startswith("|")][2:]
    return [[part.strip() for part in row] for row in rows]


ROWS = table_after("Values in rows")
ARRAYS = table_after("Values in Arrow tables")


def encoded(chunk_format: str, batch: Any) -> tuple[bytes, list[str]]:
    """The body of a batch's one chunk, and why its records were refused."""
    refused: list[str] = []

    def refuse(row: int, error: UnfitError, record: Any) -> None:
        refused.append(f"row {row} {error.column}: {error}")

    encoder = encoder_for(chunk_format, 1 << 20, refuse)
    chunks = [encode() for encode in [*encoder.add(batch), *encoder.finish()]]
    return b"".join(decoded(chunk.body, chunk.coding) for chunk in chunks), refused


def assert_becomes(batch: Any, chunk_format: str, wanted: str, json: str) -> None:
    """One record with the column x becomes what a cell of the page says."""
    body, refused = encoded(chunk_format, batch)
    if wanted == BAD:
        assert len(refused) == 1
        assert refused[0].startswith("row 1 x: ")
        assert "pandas" not in refused[0]
        return

    assert refused == []
    if chunk_format == "ndjson":
        assert body.decode() == f'{{"x":{cell(wanted)},"y":1}}\n'
    elif chunk_format == "csv":
        assert body.decode() == f"x,y\n{cell(wanted)},1\n"
    else:
        table = pq.read_table(io.BytesIO(body))
        assert str(table.schema.field("x").type).replace(" ('x')", "") == cell(wanted)
        if json != BAD:
            [row] = next(rows_in(table_of(table.select(["x"])), texts=True))
            assert same(json_lines([row]), f'{{"x":{cell(json)}}}')


def same(one: bytes, other: str) -> bool:
    """Equal JSON, numbers compared with every digit."""
    if one.decode().strip() == other:
        return True
    return bool(Decimal(one.decode().strip()[5:-1]) == Decimal(other[5:-1]))


@pytest.mark.parametrize("column", range(3))
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_value_in_a_row_becomes_what_the_page_says(row: list[str], column: int) -> None:
    value = eval(cell(row[1]), WORDS)  # noqa: S307  # the page's own words

    assert_becomes([{"x": value, "y": 1}], FORMATS[column], row[2 + column], row[2])


@pytest.mark.parametrize("column", range(3))
@pytest.mark.parametrize("row", [row for row in ROWS if row[4] != BAD], ids=lambda row: row[0])
def test_a_table_made_of_the_row_becomes_the_same(row: list[str], column: int) -> None:
    value = eval(cell(row[1]), WORDS)  # noqa: S307  # the page's own words
    table = table_of_rows([{"x": value, "y": 1}])

    assert_becomes(table, FORMATS[column], row[2 + column], row[2])


@pytest.mark.parametrize("column", range(3))
@pytest.mark.parametrize("row", ARRAYS, ids=lambda row: row[0])
def test_a_value_in_a_table_becomes_what_the_page_says(row: list[str], column: int) -> None:
    array = eval(cell(row[1]), WORDS)  # noqa: S307  # the page's own words

    assert_becomes(pa.table({"x": array, "y": [1]}), FORMATS[column], row[2 + column], row[2])


@pytest.mark.parametrize("row", ARRAYS, ids=lambda row: row[0])
def test_the_rows_of_a_table_become_the_same_text(row: list[str]) -> None:
    """As a Parquet file read in dict batches does."""
    array = eval(cell(row[1]), WORDS)  # noqa: S307  # the page's own words
    rows = [row for part in rows_in(table_of(pa.table({"x": array}))) for row in part]

    body, refused = encoded("ndjson", rows)

    assert body.decode() == ("" if row[2] == BAD else f'{{"x":{cell(row[2])}}}\n')
    assert len(refused) == (row[2] == BAD)


@pytest.mark.parametrize("chunk_format", ["ndjson", "csv"])
def test_one_bad_record_among_many_is_named_and_the_others_are_written(chunk_format: str) -> None:
    rows: list[dict[str, Any]] = [
        {"n": number, "x": 2**70 if number % 2 else None} for number in range(1, 101)
    ]
    rows[41]["x"] = [math.nan]

    body, refused = encoded(chunk_format, rows)

    assert [line.partition(":")[0] for line in refused] == ["row 42 x"]
    assert len(body.splitlines()) == 99 + (chunk_format == "csv")


@pytest.mark.parametrize("batch_type", ["dict", "arrow"])
def test_a_bad_record_fails_by_row_and_column_where_nobody_takes_it(batch_type: str) -> None:
    rows = [{"price": 1.0}, {"price": math.inf}]
    batch = rows if batch_type == "dict" else pa.Table.from_pylist(rows)

    with pytest.raises(FailedError, match="row 2, column price: NaN and infinities"):
        list(encoder_for("ndjson", 1000).add(batch))


@pytest.mark.parametrize("value", [{1: "a", "1": "b"}, {"deep": None}])
def test_names_that_are_one_text_and_endless_nests_are_bad(value: dict[Any, Any]) -> None:
    if "deep" in value:
        value["deep"] = value

    _, refused = encoded("ndjson", [{"x": value}])

    assert [line.partition(":")[0] for line in refused] == ["row 1 x"]


def test_in_one_column_alone_null_is_no_empty_line() -> None:
    body, _ = encoded("csv", [{"x": None}, {"x": ""}, {"x": "a"}])

    assert body == b'x\n""\n""\na\n'


def test_a_carriage_return_stays_in_its_cell() -> None:
    body, _ = encoded("csv", [{"x": "a\rb", "y": 1}])

    assert body == b'x,y\n"a\rb",1\n'


def test_a_number_of_five_thousand_digits_arrives() -> None:
    body, _ = encoded("ndjson", [{"x": 10**5000}])

    assert body == b'{"x":1' + b"0" * 5000 + b"}\n"


def test_a_row_of_keys_that_are_no_text_is_written_with_their_text() -> None:
    body, _ = encoded("ndjson", [{1: "a", None: True}])

    assert orjson.loads(body) == {"1": "a", "null": True}

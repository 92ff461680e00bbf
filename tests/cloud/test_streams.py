"""The columns of an upload: declared, or those that come first; and the frames that are batches."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catalogzero import Batch, CloudProcessor, FailedError, Params, Stream
from catalogzero.cloud.encoding import ColumnFilter, encoder_for, parquet_file
from catalogzero.cloud.rows.batches import rows_of
from catalogzero.config.settings import EgressPolicy
from pydantic import BaseModel, Field

from tests.cloud.processors import Plain
from tests.cloud.test_matrix import folder, plain_bodies

__all__ = ["folder"]

FORMATS = ("ndjson", "csv", "parquet")


class Order(BaseModel):
    """A row."""

    id: int
    price: float | None
    note: str | None = Field(default="-", description="What the client wrote.")
    total: Decimal | None = Field(default=None, max_digits=10, decimal_places=2)


ARROW = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        ("price", pa.float64()),
        pa.field("note", pa.string(), metadata={"description": "What the client wrote."}),
    ]
)


def author(batches: list[Any], **declared: Any) -> type[CloudProcessor]:
    """A processor that yields these batches."""

    def read(self: Any, data_source: str, params: Params, after: Any = None) -> Iterator[Batch]:
        yield from batches

    return type("Author", (Plain,), {"read": read, "__module__": __name__, **declared})


def columns_of(bodies: list[bytes], chunk_format: str) -> list[list[str]]:
    """The columns of each chunk, in order."""
    if chunk_format == "parquet":
        return [pq.read_schema(io.BytesIO(body)).names for body in bodies]
    if chunk_format == "csv":
        return [body.decode().splitlines()[0].split(",") for body in bodies]
    import json

    return [list(json.loads(line)) for body in bodies for line in body.splitlines()]


@pytest.mark.parametrize("chunk_format", FORMATS)
@pytest.mark.parametrize("schema", [ARROW, Order], ids=["pyarrow", "pydantic"])
@pytest.mark.parametrize("make", [list, pa.Table.from_pylist], ids=["dict", "arrow"])
def test_every_chunk_follows_the_declared_schema(
    tmp_path: Path, folder: Path, schema: Any, make: Callable[[Any], Any], chunk_format: str
) -> None:
    batches = [make([{"price": 1.0, "id": 1}]), make([{"id": 2}]), make([{"note": "x", "id": 3}])]

    result, bodies = plain_bodies(
        tmp_path, author(batches, streams=(Stream("orders", schema),)), "mine", chunk_format
    )

    wanted = ARROW.names if schema is ARROW else list(Order.model_fields)
    assert result["records"] == 3
    assert {tuple(names) for names in columns_of(bodies, chunk_format)} == {tuple(wanted)}


@pytest.mark.parametrize("chunk_format", FORMATS)
@pytest.mark.parametrize("schema", [ARROW, Order], ids=["pyarrow", "pydantic"])
@pytest.mark.parametrize(
    ("bad", "column"),
    [
        ({"id": "5"}, "id"),
        ({"id": 5.5}, "id"),
        ({"id": True}, "id"),
        ({"price": 1.0}, "id"),
        ({"id": 5, "price": "cheap"}, "price"),
        ({"id": 5, "colour": None}, "colour"),
    ],
)
def test_a_row_that_does_not_fit_is_a_bad_record_by_row_and_column(
    tmp_path: Path, folder: Path, schema: Any, bad: dict[str, Any], column: str, chunk_format: str
) -> None:
    rows = [{"id": 1}, {"id": 2}, bad, {"id": 3}]
    made = author([rows[:1], rows[1:]], schema=schema)

    with pytest.raises(FailedError, match=f"mine: row 3, column {column}: "):
        plain_bodies(tmp_path, made, "mine", chunk_format)
    result, _ = plain_bodies(tmp_path, made, "mine", chunk_format, on_bad_record="skip")

    assert (result["records"], result["bad_records"]) == (3, 1)


def test_a_constraint_of_the_model_holds(tmp_path: Path, folder: Path) -> None:
    made = author([[{"id": 1, "price": None, "total": Decimal("1.234")}]], schema=Order)

    with pytest.raises(FailedError, match="row 1, column total: "):
        plain_bodies(tmp_path, made, "mine", "ndjson")


def test_a_column_that_the_client_drops_does_not_leave_though_it_is_declared(
    tmp_path: Path, folder: Path
) -> None:
    columns = ColumnFilter(EgressPolicy(drop=["id"], hash=["price"]), b"k" * 16)
    table = pa.table({"id": [1], "price": [2.0]})

    assert columns(table).column_names == ["price"]
    assert columns(pl.from_arrow(table)).to_pylist() == columns(table).to_pylist()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"streams": (Stream("a"), Stream("a"))}, "each of several needs a name of its own"),
        ({"streams": (Stream(""), Stream("a"))}, "each of several needs a name of its own"),
        ({"streams": (Stream("a"),), "schema": ARROW}, "says twice"),
        ({"streams": ("orders",)}, "tuple of `Stream` objects"),
    ],
)
def test_a_class_whose_streams_are_at_fault_is_not_made(body: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        author([], **body)


@pytest.mark.parametrize("schema", [{"id": int}, pa.schema([("a", pa.int8()), ("a", pa.int8())])])
def test_a_schema_of_another_kind_or_with_a_name_twice_is_refused(schema: Any) -> None:
    with pytest.raises(TypeError, match=r"pyarrow\.Schema or a pydantic model|stands twice"):
        Stream("orders", schema)


async def test_describe_shows_the_declared_columns(folder: Path) -> None:
    for schema in (ARROW, Order):
        made = author([], streams=(Stream("orders", schema),))(
            endpoint="http://127.0.0.1:1", api_key="key"
        )
        [stream] = (await made.describe())["streams"]
        properties = stream["schema"]["properties"]

        assert (stream["name"], made.identity().stream) == ("orders", "orders")
        assert list(properties)[:3] == ["id", "price", "note"]
        assert properties["note"]["description"] == "What the client wrote."
        assert stream["schema"]["required"][0] == "id"


def parquet_of(batches: list[Any], chunk_bytes: int = 1 << 20) -> tuple[list[pa.Table], list[str]]:
    """The chunks of Parquet, and why records were refused."""
    refused: list[str] = []
    encoder = encoder_for(
        "parquet",
        chunk_bytes,
        lambda row, error, _: refused.append(f"{row} {error.column}: {error}"),
    )
    chunks = [encode for batch in batches for encode in encoder.add(batch)]
    chunks += encoder.finish()
    return [pq.read_table(io.BytesIO(encode().body)) for encode in chunks], refused


def test_parquet_of_rows_keeps_every_column_of_the_first_chunk() -> None:
    rows = [
        {"a": None},
        {"b": "x", "a": 1},
        {"a": 1.5},
        {"a": Decimal("1")},
        {"c": [None]},
        {"c": [1]},
    ]

    [table], refused = parquet_of([[row] for row in rows])

    assert table.to_pylist() == [
        {"a": None, "b": None, "c": None},
        {"a": 1.0, "b": "x", "c": None},
        {"a": 1.5, "b": None, "c": None},
        {"a": None, "b": None, "c": [None]},
        {"a": None, "b": None, "c": [1]},
    ]
    assert refused[0].startswith("4 a: it is a Decimal, and the column is double; ")


@pytest.mark.parametrize("make", [list, pa.Table.from_pylist], ids=["dict", "arrow"])
def test_after_the_first_chunk_another_column_or_type_is_a_bad_record_with_a_hint(
    make: Callable[[Any], Any],
) -> None:
    first = [{"n": number, "empty": None} for number in range(200)]
    later: list[dict[str, Any]] = [{"n": 1, "new": 1}, {"n": "1"}, {"empty": 1}, {"n": 7}]

    tables, refused = parquet_of([make(first), *(make([row]) for row in later)], 1000)

    assert {table.schema for table in tables} == {tables[0].schema}
    assert sum(table.num_rows for table in tables) == 201
    assert [line.split(":")[0] for line in refused] == ["201 new", "202 n", "203 empty"]
    assert all("`schema = …`" in line for line in refused)


def word(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_parquet_has_a_dictionary_where_that_is_smaller() -> None:
    count = 20_000
    columns = {
        "few": [word(number * 7919 % 50) for number in range(count)],
        "many": [word(number) for number in range(count)],
        "sorted": list(range(count)),
        "nested": [
            {"few": [word(number * 31 % 9)], "many": word(-number)} for number in range(count)
        ],
    }
    for names in (["few"], ["many"], ["sorted"], ["nested"], list(columns)):
        batches = [pa.table({name: columns[name] for name in names})] * 2
        encoder = encoder_for("parquet", 1 << 20)
        encodes = [encode for batch in batches for encode in encoder.add(batch)]
        encodes += encoder.finish()
        ours = [encode().body for encode in encodes]
        tables = [pq.read_table(io.BytesIO(body)) for body in ours]
        on, off = (
            sum(len(parquet_file(table, dictionary)) for table in tables)
            for dictionary in (True, False)
        )

        assert pa.concat_tables(tables).equals(pa.concat_tables(batches))
        assert sum(map(len, ours)) <= 1.02 * min(on, off)


def test_the_first_chunk_says_which_columns_have_a_dictionary_whichever_is_encoded_first() -> None:
    made = []
    for order in (1, -1):
        encoder = encoder_for("parquet", 100_000)
        few = pa.table({"text": [f"one of a few {number % 9}" for number in range(10_000)]})
        many = pa.table({"text": list(map(word, range(10_000)))})
        encodes = [*encoder.add(few), *encoder.add(many), *encoder.finish()]
        made.append(sorted((encode().seq, encode().body) for encode in encodes[::order]))

    assert len(made[0]) > 4
    assert made[0] == made[1]


def test_a_second_column_of_csv_is_a_bad_record_with_a_hint() -> None:
    refused: list[str] = []
    encoder = encoder_for("csv", 1000, lambda row, error, _: refused.append(f"{row} {error}"))

    chunks = [*encoder.add([{"a": 1}, {"a": 2, "b": 1}, {}]), *encoder.finish()]

    assert [encode().records for encode in chunks] == [2]
    assert refused[0].startswith("2 the upload has no such column")
    assert "`schema = …`" in refused[0]


def test_values_that_arrow_would_cut_are_refused() -> None:
    from datetime import UTC, date, datetime

    pairs = [
        (1, 1.5e300, None),
        (True, 1, "2 x"),
        (datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC), "2 x"),  # noqa: DTZ001
        (date(2026, 1, 1), datetime(2026, 1, 1, 5), "2 x"),  # noqa: DTZ001
        ("a", b"b", "2 x"),
        (2**60 + 1, 0.5, "1 x"),
    ]
    for one, other, bad in pairs:
        _, refused = parquet_of([[{"x": one}, {"x": other}]])

        assert [line.split(":")[0] for line in refused] == ([] if bad is None else [bad])


FRAMES: dict[str, Callable[[pa.Table], Any]] = {
    "pyarrow": lambda table: table,
    "record batch": lambda table: table.to_batches()[0],
    "reader": lambda table: table.to_reader(),
    "pandas": lambda table: table.to_pandas(),
    "polars": pl.from_arrow,
    "duckdb": lambda table: duckdb.from_arrow(table),
}


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("chunk_format", FORMATS)
def test_frames_of_every_library_are_batches(
    tmp_path: Path, folder: Path, kind: str, chunk_format: str
) -> None:
    table = pa.table({"n": [1, 2, 3], "name": ["one", "", "three"]})
    made = author([FRAMES[kind](table), FRAMES[kind](table)])

    result, [body] = plain_bodies(tmp_path, made, "mine", chunk_format)
    _, [wanted] = plain_bodies(tmp_path, author([table, table]), "mine", chunk_format)

    assert result["records"] == 6
    if chunk_format == "parquet":
        found = pq.read_table(io.BytesIO(body))
        assert found.to_pylist() == pq.read_table(io.BytesIO(wanted)).to_pylist()
    else:
        assert body == wanted


def test_the_index_of_pandas_is_no_column() -> None:
    frame = pd.DataFrame({"n": [1, 2, 3], "kind": pd.Categorical(["a", "b", "a"])})

    [table], refused = parquet_of([frame[frame.n > 1], frame[frame.n < 2]])
    [named], _ = parquet_of([frame.set_index("n")])

    assert refused == []
    assert table.to_pylist() == [
        {"n": 2, "kind": "b"},
        {"n": 3, "kind": "a"},
        {"n": 1, "kind": "a"},
    ]
    assert named.column_names == ["kind"]


@pytest.mark.parametrize("chunk_format", FORMATS)
def test_categories_of_polars_are_their_texts(chunk_format: str) -> None:
    texts = pl.DataFrame({"kind": ["a", None, "é", "a"]})
    categories = texts.with_columns(pl.col("kind").cast(pl.Categorical))
    nested = [pl.concat_list("kind", "kind").alias("both"), pl.struct("kind").alias("inner")]

    found, wanted = (
        [encode() for encode in (*encoder.add(frame.with_columns(nested)), *encoder.finish())]
        for encoder, frame in (
            (encoder_for(chunk_format, 1000), categories),
            (encoder_for(chunk_format, 1000), texts),
        )
    )

    if chunk_format == "parquet":
        found, wanted = (
            [pq.read_table(io.BytesIO(chunk.body)).to_pylist() for chunk in chunks]
            for chunks in (found, wanted)
        )
    assert found == wanted


@pytest.mark.parametrize("batch", [pl.Series([1]), pa.chunked_array([[1]]), "text", {"a": 1}, 5])
def test_what_is_no_batch_is_refused_by_its_kind(batch: Any) -> None:
    with pytest.raises(FailedError, match=type(batch).__name__):
        list(encoder_for("ndjson", 1000).add(batch))


def test_nested_rows_of_a_large_table_are_those_of_pyarrow() -> None:
    kind = pa.list_(pa.struct([("a", pa.int64()), ("b", pa.map_(pa.string(), pa.int64()))]))
    values = [
        None if n % 7 == 0 else [{"a": n, "b": [("k", n)]}, None] * (n % 3) for n in range(9_000)
    ]
    table = pa.table({"x": pa.array(values, kind)})
    table = pa.concat_tables([table.slice(100, 4_000), table.slice(3, 4_500)])

    found = [
        [part and {**part, "b": list(part["b"].items())} for part in row["x"] or []]
        for row in rows_of(table)
    ]

    assert found == [row["x"] or [] for row in table.to_pylist()]


def test_a_frame_with_a_column_twice_is_refused() -> None:
    with pytest.raises(FailedError, match="'a' stands twice"):
        list(encoder_for("ndjson", 1000).add(pa.table([[1], [2]], names=["a", "a"])))


def test_rows_need_no_pyarrow() -> None:
    """Encoded in a process in which it cannot be imported."""
    code = """
import sys
sys.modules["pyarrow"] = None
from pydantic import BaseModel
from catalogzero.cloud.encoding import encoder_for, ColumnFilter
from catalogzero.cloud.rows.streams import RowCheck
from catalogzero.cloud.rows.values import fail
from catalogzero.config.settings import EgressPolicy
class Row(BaseModel):
    id: int
for chunk_format in ("ndjson", "csv"):
    encoder, check = encoder_for(chunk_format, 1000), RowCheck(Row, fail)
    filtered = ColumnFilter(EgressPolicy(drop=["x"]), b"k")
    [(start, part)] = check([{"id": 2**70}])
    chunks = encoder.add(filtered(part), start)
    assert [encode().records for encode in [*chunks, *encoder.finish()]] == [1]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("depth", [300, 2_000])
@pytest.mark.parametrize("chunk_format", ["ndjson", "csv"])
def test_a_value_that_nests_too_deep_is_a_bad_record(chunk_format: str, depth: int) -> None:
    deep: Any = 1
    for _ in range(depth):
        deep = [deep]
    refused: list[str] = []
    encoder = encoder_for(
        chunk_format, 1000, lambda row, error, _: refused.append(f"{row} {error}")
    )

    chunks = [*encoder.add([{"x": [1]}, {"x": deep}, {"x": [2]}]), *encoder.finish()]

    assert sum(encode().records for encode in chunks) == 2
    assert refused == ["2 it nests too deep"]

"""Every source, batch type and format: what was there arrives, value by value."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from catalogzero import Batch, CloudProcessor, FailedError, Params
from catalogzero.cloud.counters import RunSummary
from catalogzero.cloud.preview import preview_run
from catalogzero.config.settings import RuntimeSettings

from tests.cloud.processors import ArrowPlain, Plain
from tests.cloud.test_queries import POSTGRESQL

FORMATS = ("ndjson", "csv", "parquet")

NATIVE: dict[str, tuple[pa.Array, Any]] = {
    "whole": (pa.array([2**62], pa.int64()), 2**62),
    "unsigned": (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
    "decimal": (pa.array([Decimal("12345678901234567890.12")]), Decimal("12345678901234567890.12")),
    "wide": (pa.array([Decimal(10**60)], pa.decimal256(61, 0)), Decimal(10**60)),
    "float": (pa.array([0.1]), 0.1),
    "truth": (pa.array([True]), True),
    "nothing": (pa.array([None], pa.int64()), None),
    "text": (pa.array(['a "b", c\nd']), 'a "b", c\nd'),
    "empty": (pa.array([""]), ""),
    "nul": (pa.array(["a\0b"]), "a\0b"),
    "bytes": (pa.array([b"\x00\xff"]), "AP8="),
    "nanos": (pa.array([1], pa.timestamp("ns")), "1970-01-01T00:00:00.000000001"),
    "zoned": (
        pa.array([1], pa.timestamp("us", "Asia/Tokyo")),
        "1970-01-01T09:00:00.000001+09:00",
    ),
    "far": (pa.array([253402300800], pa.timestamp("s")), "10000-01-01T00:00:00.000000"),
    "first": (pa.array([-62135596800], pa.timestamp("ms")), None),
    "day": (pa.array([date(2026, 1, 2)]), "2026-01-02"),
    "far_day": (pa.array([2932897], pa.int32()).cast(pa.date32()), "10000-01-01"),
    "clock": (pa.array([1], pa.time64("ns")), "00:00:00.000000001"),
    "took": (pa.array([1], pa.duration("ns")), "PT0.000000001S"),
    "dictionary": (pa.array(["a"]).dictionary_encode(), "a"),
    "many": (pa.array([[1, None]]), [1, None]),
    "struct": (pa.array([{"a": 1, "b": None}]), {"a": 1, "b": None}),
}
NATIVE["first"] = (pa.array([-62135596800], pa.timestamp("s")), "0001-01-01T00:00:00.000000")

TEXTS = {"n": "00012345678901234567890", "empty": "", "quoted": 'a "b", c', "nul": "a\0b"}
JSON = {
    "whole": -(2**63),
    "unsigned": 2**64 - 1,
    "float": 0.1,
    "truth": False,
    "nothing": None,
    "text": "a\0b\n",
    "many": [1, None],
    "struct": {"a": "b"},
}
SELECT = """SELECT
    12345678901234567890.12::numeric AS decimal, 0.1::float8 AS float, true AS truth,
    NULL::int AS nothing, '' AS empty, E'a "b", c' AS text, '\\x00ff'::bytea AS bytes,
    'infinity'::date AS endless, '-infinity'::timestamptz AS beginless,
    '10000-01-01 00:00:00.5'::timestamp AS far, '2026-01-02'::timestamp AS moment,
    '2026-01-02 00:00:00+00'::timestamptz AS zoned, '1 mon'::interval AS months,
    '90 s'::interval AS took, ARRAY[1, NULL] AS many,
    '00000000-0000-0000-0000-000000000001'::uuid AS uuid, ':a ::b %s' AS colons"""
SELECTED = {
    "decimal": Decimal("12345678901234567890.12"),
    "float": 0.1,
    "truth": True,
    "nothing": None,
    "empty": "",
    "text": 'a "b", c',
    "bytes": "AP8=",
    "endless": "infinity",
    "beginless": "-infinity",
    "far": "10000-01-01T00:00:00.500000",
    "moment": "2026-01-02T00:00:00.000000",
    "zoned": "2026-01-02T00:00:00.000000+00:00",
    "months": "P1M0DT0.000000S",
    "took": "PT90.000000S",
    "many": [1, None],
    "uuid": "00000000-0000-0000-0000-000000000001",
    "colons": ":a ::b %s",
}
PYTHON: dict[str, tuple[Any, Any]] = {
    "huge": (2**70, 2**70),
    "decimal": (Decimal("0E-8"), Decimal("0.00000000")),
    "float": (0.1, 0.1),
    "nothing": (None, None),
    "text": ("é", "é"),
    "moment": (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00.000000+00:00"),
    "took": (timedelta(microseconds=1), "PT0.000001S"),
    "struct": ({"a": [1.5]}, {"a": [1.5]}),
}


def own(rows: list[dict[str, Any]], base: type[CloudProcessor]) -> type[CloudProcessor]:
    """A processor that reads these rows itself."""

    class Own(base):  # type: ignore[misc,valid-type]
        def read(self, data_source: str, params: Params, after: Any = None) -> Iterator[Batch]:
            arrow = self.batch_type == "arrow"
            yield pa.Table.from_pylist(rows) if arrow else rows

    return Own


def plain_bodies(
    tmp_path: Path, author: type[CloudProcessor], source: str, chunk_format: str, **config: Any
) -> tuple[RunSummary, list[bytes]]:
    """The result of a run, and the bodies of its chunks as a backend unpacks them."""
    made = author(
        endpoint="http://127.0.0.1:1", api_key="key", data_roots=[tmp_path / "in"], **config
    )
    made._attach(
        runtime=RuntimeSettings(
            state_dir=tmp_path / "state", min_file_age_s=0, installation_id="here"
        ),
        handler_id="site",
    )
    seen = preview_run(made, source, {"format": chunk_format}, limit=0)
    result, requests = seen.result, seen.requests
    return result, [request.plain for request in requests if request.method == "PUT"]


def arrived(body: bytes, chunk_format: str) -> dict[str, Any]:
    """The one record of a chunk, in JSON's kinds; numbers with every digit."""
    if chunk_format == "ndjson":
        row: dict[str, Any] = json.loads(body, parse_float=Decimal)
        return row
    if chunk_format == "csv":
        names, cells = csv.reader(io.StringIO(body.decode(), newline=""))
        return dict(zip(names, cells, strict=True))
    from catalogzero.cloud.rows.tables import rows_in, table_of
    from catalogzero.cloud.rows.values import json_lines

    [row] = next(rows_in(table_of(pq.read_table(io.BytesIO(body))), texts=True))
    return arrived(json_lines([row]), "ndjson")


def as_cell(value: Any) -> str:
    """What a value, as NDJSON has it, is in a cell of CSV."""
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return orjson.dumps(value).decode()
    return format(value, "f") if isinstance(value, Decimal) else str(value)


def assert_arrived(body: bytes, chunk_format: str, wanted: dict[str, Any]) -> None:
    row = arrived(body, chunk_format)

    if chunk_format == "csv":
        assert row == {name: as_cell(value) for name, value in wanted.items()}
    else:
        exact = {n: Decimal(str(v)) if isinstance(v, float) else v for n, v in wanted.items()}
        assert row.keys() == exact.keys()
        assert {n: v for n, v in row.items() if v != exact[n]} == {}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    return made


@pytest.mark.parametrize("chunk_format", FORMATS)
@pytest.mark.parametrize("author", [Plain, ArrowPlain])
def test_of_a_parquet_file(
    tmp_path: Path, folder: Path, author: type[CloudProcessor], chunk_format: str
) -> None:
    pq.write_table(
        pa.table({name: array for name, (array, _) in NATIVE.items()}), folder / "a.parquet"
    )

    _, [body] = plain_bodies(tmp_path, author, str(folder), chunk_format)

    assert_arrived(body, chunk_format, {name: value for name, (_, value) in NATIVE.items()})


@pytest.mark.parametrize("chunk_format", FORMATS)
@pytest.mark.parametrize("author", [Plain, ArrowPlain])
def test_of_a_csv_file(
    tmp_path: Path, folder: Path, author: type[CloudProcessor], chunk_format: str
) -> None:
    with (folder / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([TEXTS.keys(), TEXTS.values()])

    _, [body] = plain_bodies(tmp_path, author, str(folder), chunk_format)

    assert_arrived(body, chunk_format, TEXTS)


@pytest.mark.parametrize("chunk_format", FORMATS)
@pytest.mark.parametrize("author", [Plain, ArrowPlain])
def test_of_json_lines(
    tmp_path: Path, folder: Path, author: type[CloudProcessor], chunk_format: str
) -> None:
    (folder / "a.jsonl").write_bytes(orjson.dumps(JSON))

    _, [body] = plain_bodies(tmp_path, author, str(folder), chunk_format)

    assert_arrived(body, chunk_format, JSON)


@pytest.mark.postgresql
@pytest.mark.parametrize("chunk_format", FORMATS)
@pytest.mark.parametrize("author", [Plain, ArrowPlain])
def test_of_a_query(
    tmp_path: Path, folder: Path, author: type[CloudProcessor], chunk_format: str
) -> None:
    sources = {"all": {"url": POSTGRESQL, "query": SELECT}}
    engine = sa.create_engine(POSTGRESQL, poolclass=sa.NullPool)
    try:
        engine.connect().close()
    except sa.exc.OperationalError as error:
        pytest.skip(f"no PostgreSQL: {error.orig}")

    _, [body] = plain_bodies(tmp_path, author, "sql:all", chunk_format, sources=sources)

    assert_arrived(body, chunk_format, SELECTED)


@pytest.mark.parametrize("chunk_format", FORMATS)
@pytest.mark.parametrize("base", [Plain, ArrowPlain])
def test_of_an_own_read(
    tmp_path: Path, folder: Path, base: type[CloudProcessor], chunk_format: str
) -> None:
    arrow = base is ArrowPlain
    rows = {n: v for n, (v, _) in PYTHON.items() if not (arrow and n == "huge")}
    wanted = {n: w for n, (_, w) in PYTHON.items() if n in rows}

    _, [body] = plain_bodies(tmp_path, own([rows], base), "mine", chunk_format)

    assert_arrived(body, chunk_format, wanted)


@pytest.mark.parametrize("rule", ["fail", "skip", "quarantine"])
@pytest.mark.parametrize("chunk_format", FORMATS)
@pytest.mark.parametrize(
    ("base", "bad"),
    [
        (Plain, Decimal("NaN")),
        (Plain, "half \ud800"),
        (Plain, object()),
        (ArrowPlain, [float("nan")]),
    ],
    ids=["decimal-nan", "surrogate", "object", "arrow-nan"],
)
def test_a_bad_record_is_met_as_the_setting_says(
    tmp_path: Path, folder: Path, base: type[CloudProcessor], bad: Any, chunk_format: str, rule: str
) -> None:
    holds = {"csv": Decimal, "parquet": list}.get(chunk_format, object)
    if chunk_format != "ndjson" and type(bad) is holds:
        pytest.skip("the format holds it")
    good: Any = {Decimal: Decimal(1), list: [1.0], str: "a"}.get(type(bad), 1)
    author = own([{"x": good}, {"x": bad}, {"x": good}], base)

    if rule == "fail":
        with pytest.raises(FailedError, match="mine: row 2, column x: ") as caught:
            plain_bodies(tmp_path, author, "mine", chunk_format, on_bad_record=rule)
        assert "pandas" not in str(caught.value)
        return
    result, [_] = plain_bodies(tmp_path, author, "mine", chunk_format, on_bad_record=rule)

    assert (result["records"], result["bad_records"]) == (2, 1)


@pytest.mark.parametrize("author", [Plain, ArrowPlain])
def test_a_column_that_stands_twice_is_refused_in_parquet_and_sql(
    tmp_path: Path, folder: Path, author: type[CloudProcessor]
) -> None:
    pq.write_table(pa.table([[1], [2]], names=["id", "id"]), folder / "a.parquet")
    (tmp_path / "client.db").touch()
    url = f"sqlite:///{tmp_path}/client.db"
    sources = {"all": {"url": url, "query": "SELECT 1 AS id, 2 AS id"}}

    for source in (str(folder), "sql:all"):
        with pytest.raises(FailedError, match="'id' stands twice"):
            plain_bodies(tmp_path, author, source, "ndjson", sources=sources)

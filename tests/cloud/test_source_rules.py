"""The rules of docs/reference/sources.md: what is read, and what is refused with what to write."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from catalogzero.cloud.reading.records import BadRecords, ReadOptions
from catalogzero.cloud.reading.sources import Roots
from catalogzero.cloud.rows.values import json_lines
from catalogzero.errors import FailedError
from hypothesis import given, settings
from hypothesis import strategies as st

BOTH = pytest.mark.parametrize("arrow", [False, True], ids=["dict", "arrow"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "exports"
    folder.mkdir()
    return folder


def read(root: Path, content: bytes, name: str = "a.csv", rule: Any = "fail", **how: Any) -> Any:
    """The rows of a file of that content, and how many records were bad."""
    (root / name).write_bytes(content)
    options = ReadOptions(**how)
    [item] = Roots([root]).items(str(root / name), options)
    bad = BadRecords(rule, root.parent / "aside.jsonl")
    rows = []
    with item.open(None, bad) as reading:
        for batch in reading.batches():
            rows += batch.to_pylist() if options.arrow else batch
        [found] = reading.found()
    assert found.rows == len(rows)
    return rows, bad.count, found


# --- encoding


@BOTH
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("setting", [None, "utf-8"])
def test_a_mark_says_what_a_text_is_and_is_no_part_of_it(
    root: Path, name: str, encoding: str, setting: str | None, arrow: bool
) -> None:
    text = '"n",s\n1,é😀\n' if name == "a.csv" else '{"n": "1", "s": "é😀"}\n'
    mark = "\ufeff" if encoding.endswith("-be") else ""

    rows, _, found = read(root, (mark + text).encode(encoding), name, encoding=setting, arrow=arrow)

    assert rows == [{"n": "1", "s": "é😀"}]
    assert found.encoding in {"utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"}


@BOTH
@pytest.mark.parametrize(("name", "text"), [("a.csv", "n,s\n1,é\n"), ("a.jsonl", '{"s": "é"}\n')])
def test_a_set_encoding_holds_for_every_text(root: Path, name: str, text: str, arrow: bool) -> None:
    for encoding in ("cp1252", "cp1250", "utf-16-le", "shift_jis_2004"):
        rows, _, _ = read(root, text.encode(encoding), name, encoding=encoding, arrow=arrow)
        assert rows[0]["s"] == "é"


@BOTH
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_other_bytes_are_refused_whatever_the_rule_with_the_setting_to_write(
    root: Path, name: str, arrow: bool
) -> None:
    good, odd = (
        ("n,s\n1,x\n", "2,Café 5 €\n") if name == "a.csv" else ('{"s":1}\n', '{"s":"Café €"}\n')
    )
    content = good.encode() * 5_000 + odd.encode("cp1252")
    line = content.count(b"\n")

    with pytest.raises(FailedError, match=rf"{name}, line {line}: .*Caf") as caught:
        read(root, content, name, rule="skip", arrow=arrow, delimiter=",")

    assert "cp1252 '" in caught.value.message
    assert "`encoding: cp1252`" in caught.value.message


@BOTH
def test_with_a_set_encoding_what_cannot_be_decoded_is_a_bad_record(
    root: Path, arrow: bool
) -> None:
    lone = "n,s\n1,x\n2,".encode("utf-16-le") + b"\x00\xd8" + "\n3,z\n".encode("utf-16-le")

    for content, encoding in ((lone, "utf-16-le"), (b"n,s\n1,x\n2,\x81\n3,z\n", "cp1252")):
        rows, bad, _ = read(root, content, rule="skip", encoding=encoding, arrow=arrow)
        assert ([row["n"] for row in rows], bad) == (["1", "3"], 1)


def test_utf_16_without_a_mark_is_not_taken_for_utf_8(root: Path) -> None:
    with pytest.raises(FailedError, match="NUL in a column's name"):
        read(root, "email,n\na@b,1\n".encode("utf-16-le"), rule="skip")


# --- delimiter


@BOTH
@pytest.mark.parametrize(
    ("text", "delimiter", "first"),
    [
        ("id;price\n1;2,50\n2;3,10\n", ";", {"id": "1", "price": "2,50"}),
        ('id;a\n1;"x, y"\n', ";", {"id": "1", "a": "x, y"}),
        ('"a;b"|c\n"1;2"|3\n', "|", {"a;b": "1;2", "c": "3"}),
        ("a\tb\n1\t2\n", "\t", {"a": "1", "b": "2"}),
        ("value\n1\n", ",", {"value": "1"}),
        ("a,b\n1,2\n3\n", ",", {"a": "1", "b": "2"}),
    ],
)
def test_the_delimiter_is_the_one_that_fits_header_and_rows(
    root: Path, text: str, delimiter: str, first: dict[str, str], arrow: bool
) -> None:
    rows, _, found = read(root, text.encode(), rule="skip", arrow=arrow)

    assert (rows[0], found.delimiter, found.columns) == (first, delimiter, len(first))


@pytest.mark.parametrize(
    "text", ["id;price, EUR\n1;2,50\n", "a,b;c\n1;2\n3,4\n", "note\nhello, you\n", "a,b;c\n"]
)
def test_where_not_one_delimiter_fits_it_is_asked_for(root: Path, text: str) -> None:
    with pytest.raises(FailedError, match="set `delimiter` in the handler's config"):
        read(root, text.encode(), rule="skip")


def test_tsv_means_tab_also_packed_and_in_capitals(root: Path) -> None:
    content = gzip.compress(b"a,b\tc;d\n1,2\t3\n", mtime=0)

    assert read(root, content, "A.TSV.GZ")[0] == [{"a,b": "1,2", "c;d": "3"}]


# --- what a file is


@BOTH
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (gzip.compress(b"a,b\n1,2\n", mtime=0), "gzip"),
        (zstandard.compress(b"a,b\n1,2\n"), "zstd"),
        (b"PK\x03\x04" + bytes(30), "zip"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(30), "Excel"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.csv.gz"])
def test_what_is_no_text_is_refused_by_its_first_bytes(
    root: Path, content: bytes, what: str, name: str, arrow: bool
) -> None:
    packed = gzip.compress(content, mtime=0) if name.endswith(".gz") else content

    with pytest.raises(FailedError, match=f"{name} holds .*{what}"):
        read(root, packed, name, rule="skip", encoding="cp437", arrow=arrow)


@BOTH
def test_parquet_and_packed_files_are_read_as_what_they_are(root: Path, arrow: bool) -> None:
    pq.write_table(pa.table({"n": [1, 2]}), root.parent / "p")
    parquet = (root.parent / "p").read_bytes()

    assert read(root, parquet, "a.csv", arrow=arrow)[0] == [{"n": 1}, {"n": 2}]
    assert read(root, zstandard.compress(b"n\n1\n"), "a.csv.gz", arrow=arrow)[0] == [{"n": "1"}]
    assert read(root, b"PAR1,b\n1,2\n", "b.csv", arrow=arrow)[0] == [{"PAR1": "1", "b": "2"}]


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.zst", "A.CSV.GZ", "a.parquet"])
def test_a_packed_file_of_no_bytes_is_cut_short(root: Path, name: str) -> None:
    with pytest.raises(FailedError, match=f"{name} is (damaged or cut short|not a readable)"):
        read(root, b"", name, rule="skip", allow_empty=True)


# --- CSV


@BOTH
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_blank_lines_are_rows_only_where_there_is_one_column(
    root: Path, end: str, arrow: bool
) -> None:
    one = read(root, f"{end}v{end}1{end}{end}3{end}".encode(), arrow=arrow)[0]
    two = read(root, f"{end}v,w{end}{end}1,2{end}{end}".encode(), arrow=arrow)[0]

    assert one == [{"v": "1"}, {"v": ""}, {"v": "3"}]
    assert two == [{"v": "1", "w": "2"}]


@BOTH
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_header_of_many_names_is_read_in_steps_that_grow_with_it(
    root: Path, suffix: str, arrow: bool
) -> None:
    header = ",".join(f"column_{number}" for number in range(60_000))
    content = f"{header}\n{','.join('1' * 60_000)}\n".encode()

    rows, bad, found = read(
        root,
        gzip.compress(content, mtime=0) if suffix else content,
        f"a.csv{suffix}",
        "skip",
        arrow=arrow,
    )

    assert (len(rows[0]), bad, found.columns) == (60_000, 0, 60_000)


@BOTH
@pytest.mark.parametrize("quote", ["", '"'])
def test_a_header_over_a_mebibyte_is_refused_before_much_is_read(
    root: Path, quote: str, arrow: bool
) -> None:
    content = f"a,{quote}" + "x,\n"[: 2 + len(quote)] * (6 << 20)

    tracemalloc.start()
    with pytest.raises(FailedError, match=r"a\.csv, line 1.* (1 MiB|never closed)"):
        read(root, content.encode(), rule="skip", delimiter=",", arrow=arrow)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 2 * len(content) + (16 << 20)


@BOTH
@pytest.mark.parametrize("rule", ["fail", "skip", "quarantine"])
def test_a_quote_that_is_never_closed_fails_the_file_and_names_its_line(
    root: Path, rule: str, arrow: bool
) -> None:
    content = 'n,s\n1,"a\nb"\n2,"open\n' + "3,x\n" * 1_000

    with pytest.raises(FailedError, match=r"a\.csv, line 4: a quote is opened here"):
        read(root, content.encode(), rule=rule, arrow=arrow)


@BOTH
def test_a_cell_of_more_than_16_mib_fails_the_file(root: Path, arrow: bool) -> None:
    content = b'n,s\n1,"' + b"x\n" * (9 << 20) + b'"\n2,y\n'

    with pytest.raises(FailedError, match=r"line 2: a cell .* longer than 16 MiB"):
        read(root, content, rule="skip", delimiter=",", arrow=arrow)


@BOTH
def test_text_after_a_closing_quote_is_a_bad_record_of_all_its_lines(
    root: Path, arrow: bool
) -> None:
    rows, bad, _ = read(root, b'n,s\n1,a\n"2"x,"p\n9,9\nq"\n3,c\n', rule="quarantine", arrow=arrow)

    [entry] = map(json.loads, (root.parent / "aside.jsonl").read_bytes().splitlines())
    assert ([row["n"] for row in rows], bad) == (["1", "3"], 1)
    assert (entry["line"], entry["record"]) == (3, '"2"x,"p\n9,9\nq"')


# --- JSON Lines


NUMBERS = [
    "12345678901234567890123456789",
    "-9223372036854775809",
    "18446744073709551615",
    "0.1234567890123456789012345",
    "1e400",
    "1E-400",
    "9007199254740993.0",
    "9" * 5_000,
]


@pytest.mark.parametrize("number", NUMBERS)
def test_json_numbers_keep_every_digit(root: Path, number: str) -> None:
    [row] = read(root, f'{{"a": {{"n": [{number}, 0.1, 7]}}}}\n'.encode(), "a.jsonl")[0]

    exact, near, whole = row["a"]["n"]
    assert Decimal(str(exact) if len(number) < 4_000 else exact) == Decimal(number)
    assert (near, whole, type(near), type(whole)) == (0.1, 7, float, int)


@settings(max_examples=500, deadline=None)
@given(
    st.from_regex(r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,24})?([eE][-+]?[0-9]{1,3})?", fullmatch=True)
)
def test_no_json_number_changes(tmp_path_factory: pytest.TempPathFactory, number: str) -> None:
    [row] = read(tmp_path_factory.mktemp("root"), f'{{"n":{number}}}\n'.encode(), "a.jsonl")[0]

    value = row["n"]
    assert Decimal(repr(value) if isinstance(value, float) else value) == Decimal(number)


@pytest.mark.parametrize(
    "line",
    [
        '{"a": 1, "a": 2}',
        '{"x": {"a": 1, "b": ":", "a": 2}}',
        '{"a": ":", "a": "\\u003a\\u003A"}',
        '{"a": 1, "\\u0061": 2}',
        '{"n": 12345678901234567890123, "n": 1}',
        '{"n": NaN}',
        '{"n": -Infinity, "m": 12345678901234567890123}',
        '{"s": "\\ud800"}',
        '{"s": "\\ud800", "m": 12345678901234567890123}',
        "[1]",
        '"x"',
        '{"a": ' * 2_000 + "12345678901234567890123" + "}" * 2_000,
        '{"a": ' * 300 + "12345678901234567890123" + "}" * 300,
        '{"a": ' * 300 + "1" + "}" * 300,
        '{"a": 1}{"b": 2}',
    ],
)
def test_what_json_has_not_or_has_twice_is_a_bad_record(root: Path, line: str) -> None:
    content = f'{{"n": 1}}\n{line}\n{{"n": 2}}\n'.encode()

    rows, bad, _ = read(root, content, "a.jsonl", rule="skip")

    assert (rows, bad) == ([{"n": 1}, {"n": 2}], 1)
    with pytest.raises(FailedError, match=r"a\.jsonl, line 2: not a JSON object"):
        read(root, content, "a.jsonl")


@BOTH
@pytest.mark.parametrize(
    "text",
    [
        '[{"n": 1}]',
        '[\n{"n": 1},\n{"n": 2}\n]\n',
        '{\n  "n": 1,\n  "m": 2\n}\n',
        '{"n": 1,\n"m": 2}',
    ],
)
def test_json_that_is_not_in_lines_is_refused_as_such(root: Path, text: str, arrow: bool) -> None:
    with pytest.raises(FailedError, match="one object a line"):
        read(root, text.encode(), "a.json", rule="skip", arrow=arrow)


def test_arrow_batches_of_json_lines_keep_long_numbers(root: Path) -> None:
    rows, _, _ = read(root, b'{"n": 12345678901234567890123}\n{"n": 1}\n', "a.jsonl", arrow=True)

    assert [row["n"] for row in rows] == [12345678901234567890123, 1]


# --- Parquet


def test_times_of_a_parquet_file_keep_their_nine_digits_also_where_they_nest(root: Path) -> None:
    moment = pa.scalar(1_700_000_000_123_456_789, pa.timestamp("ns"))
    zoned = pa.array([moment.value], pa.timestamp("ns", "Europe/Paris"))
    table = pa.table(
        {
            "t": pa.array([moment.value], pa.timestamp("ns")),
            "z": zoned,
            "d": pa.array([-1], pa.duration("ns")),
            "c": pa.array([1_000_000_001], pa.time64("ns")),
            "l": pa.array([[moment.value, None]], pa.list_(pa.timestamp("ns"))),
            "s": pa.array(
                [{"t": moment.value, "n": 1}],
                pa.struct([("t", pa.timestamp("ns")), ("n", pa.int8())]),
            ),
            "n": pa.array([None], pa.timestamp("ns")),
        }
    )
    pq.write_table(table, root.parent / "p")
    text = "2023-11-14T22:13:20.123456789"

    rows = read(root, (root.parent / "p").read_bytes(), "a.parquet")[0]
    assert [json.loads(line) for line in json_lines(rows).splitlines()] == [
        {
            "t": text,
            "z": "2023-11-14T23:13:20.123456789+01:00",
            "d": "-PT0.000000001S",
            "c": "00:00:01.000000001",
            "l": [text, None],
            "s": {"t": text, "n": 1},
            "n": None,
        }
    ]


def test_old_and_far_times_of_a_parquet_file_are_as_written(root: Path) -> None:
    days = [datetime(1, 1, 1), datetime(9999, 12, 31)]  # noqa: DTZ001  # as Spark writes them
    pq.write_table(pa.table({"t": days}), root.parent / "p", use_deprecated_int96_timestamps=True)
    far = pa.array([253_402_300_800], pa.timestamp("s"))
    pq.write_table(pa.table({"t": far, "d": far.cast(pa.date32())}), root.parent / "q")

    rows = [read(root, (root.parent / name).read_bytes(), "a.parquet")[0] for name in "pq"]

    assert rows[0] == [{"t": day} for day in days]
    assert rows[1] == [{"t": "10000-01-01T00:00:00.000000", "d": "10000-01-01"}]


@BOTH
def test_two_columns_of_one_name_are_refused_by_name(root: Path, arrow: bool) -> None:
    twice = pa.table([pa.array([1]), pa.array([2])], names=["value", "value"])
    nested = pa.table({"s": pa.StructArray.from_arrays([[1], [2]], names=["x", "x"])})

    for table, name in ((twice, "value"), (nested, "x")):
        pq.write_table(table, root.parent / "p")
        with pytest.raises(FailedError, match=rf"a\.parquet.*'{name}' stands twice"):
            read(root, (root.parent / "p").read_bytes(), "a.parquet", arrow=arrow)


# --- folders


def test_a_folder_is_listed_in_order_and_says_what_it_leaves_out(root: Path) -> None:
    names = ["a-b/x.csv", "a.csv", "a/x.csv", "a/y/B.CSV.GZ", "b.csv", ".h/x.csv", "_x.csv", "n.md"]
    for name in names:
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_text("n\n1\n")
    (root / ".h" / "only.csv").write_text("n\n1\n")
    (root / "link.csv").symlink_to(root / "a" / "x.csv")
    (root / "other.csv").symlink_to(root / ".h" / "only.csv")
    (root / "same.csv").symlink_to(root / ".h" / "only.csv")

    files = Roots([root]).items(str(root), ReadOptions())

    listed = [item.name.removeprefix("exports/") for item in files]
    assert listed == ["a-b/x.csv", "a.csv", "a/x.csv", "a/y/B.CSV.GZ", "b.csv", ".h/only.csv"]
    assert len(files) == len(listed)
    assert (files.left_out, files.left_out_names) == (1, ["n.md"])


def test_a_folder_is_listed_as_it_is_read(root: Path) -> None:
    for number in range(3_000):
        folder = root / f"{number // 100:02}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.csv").touch()
    files = iter(Roots([root]).items(str(root), ReadOptions()))

    first = next(files)
    for number in range(1, 30):  # no folder but the first was listed yet
        (root / f"{number:02}" / "later.csv").touch()

    assert first.name.endswith("/00/0.csv")
    assert sum(1 for _ in files) == 2_999 + 29

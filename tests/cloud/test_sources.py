"""Files as sources: what is found, what is refused, and what their records are."""

from __future__ import annotations

import csv
import gzip
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from catalogzero.cloud.reading.records import BadRecords, ReadOptions
from catalogzero.cloud.reading.sources import FileItem, Roots, open_beneath
from catalogzero.errors import BadParamsError, FailedError, SourceChangedError
from hypothesis import given, settings
from hypothesis import strategies as st

CSV = "n,name\n1,one\n2,two\n"
PLAIN, ARROW = ReadOptions(), ReadOptions(arrow=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "exports"
    folder.mkdir()
    return folder


def read(
    root: Path, name: str, options: ReadOptions = PLAIN, rule: Any = "fail"
) -> tuple[list[dict[str, Any]], BadRecords]:
    """The rows of a file below the root."""
    [item] = Roots([root]).items(str(root / name), options)
    bad = BadRecords(rule, root.parent / "aside.jsonl")
    with item.open(None, bad) as reading:
        rows = []
        for batch in reading.batches():
            rows += batch.to_pylist() if options.arrow else batch
        reading.check()
    return rows, bad


@pytest.mark.parametrize("options", [ReadOptions(), ARROW])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", CSV),
        ("a.tsv", CSV.replace(",", "\t")),
        ("semicolon.csv", CSV.replace(",", ";")),
        ("quoted.csv", 'n,name\n"1","one"\r\n2,"two"\r\n'),
        ("a.jsonl", '{"n": "1", "name": "one"}\n\n{"n": "2", "name": "two"}'),
    ],
)
def test_the_same_rows_come_from_every_kind_of_file(
    root: Path, name: str, text: str, suffix: str, options: ReadOptions
) -> None:
    packed = {"": text.encode(), ".gz": gzip.compress(text.encode())}
    packed[".zst"] = zstandard.ZstdCompressor().compress(text.encode())
    (root / f"{name}{suffix}").write_bytes(packed[suffix])

    rows, _ = read(root, f"{name}{suffix}", options)

    assert rows == [{"n": "1", "name": "one"}, {"n": "2", "name": "two"}]


@pytest.mark.parametrize("options", [ReadOptions(batch_rows=2), ReadOptions(2, arrow=True)])
def test_a_parquet_file_keeps_its_types(root: Path, options: ReadOptions) -> None:
    rows = [{"n": n, "x": n / 2, "tags": ["a"] * n} for n in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), root / "a.parquet")

    assert read(root, "a.parquet", options)[0] == rows


@pytest.mark.parametrize("options", [ReadOptions(), ARROW])
@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "name\nJos\u00e9\n"),
        ("utf-8-sig", "name\nJos\u00e9\n"),
        ("utf-16", "name\nJos\u00e9\n"),
    ],
)
def test_encodings_are_found_by_their_marks(
    root: Path, encoding: str, text: str, options: ReadOptions
) -> None:
    (root / "a.csv").write_bytes(text.encode(encoding))

    assert read(root, "a.csv", options)[0] == [{"name": "Jos\u00e9"}]


def test_an_older_encoding_is_set_and_never_guessed(root: Path) -> None:
    text = "name;city\n" + "J\u00fcrgen;M\u00fcnchen\n" * 50
    (root / "a.csv").write_bytes(text.encode("cp1252"))

    with pytest.raises(FailedError, match=r"a\.csv, line 2: .*cp1252 'J\u00fcrgen;M\u00fcnchen'"):
        read(root, "a.csv", rule="skip")
    set_by_hand = ReadOptions(encoding="cp1252", delimiter=";")
    assert read(root, "a.csv", set_by_hand)[0][0]["city"] == "M\u00fcnchen"


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.csv", b"n,name\n1,one\n2\n3,three\n", 3),
        ("a.csv", b"n,name\n1,one\n2,two,2\n3,three\n", 3),
        ("a.csv", b"n,name\n1,one\n2,\xff\n3,three\n" + b"4,x\n" * 20_000, 3),
        ("a.jsonl", b'{"n": "1"}\n{"n": \n{"n": "3"}\n', 2),
        ("a.jsonl", b'{"n": "1"}\n[2]\n{"n": "3"}\n', 2),
    ],
)
def test_a_malformed_record_is_reported_by_file_and_line(
    root: Path, name: str, text: bytes, line: int
) -> None:
    (root / name).write_bytes(text)
    options = ReadOptions(encoding="utf-8" if b"\xff" in text else None)

    with pytest.raises(FailedError, match=f"exports/{name}, line {line}: "):
        read(root, name, options)
    rows, bad = read(root, name, options, rule="skip")
    assert bad.count == 1
    assert [row["n"] for row in rows[:2]] == ["1", "3"]
    assert read(root, name, options, rule="quarantine")[1].count == 1
    assert f'"line":{line}' in (root.parent / "aside.jsonl").read_text()


def test_arrow_batches_meet_malformed_rows_by_the_same_rule(root: Path) -> None:
    (root / "a.csv").write_text("n,name\n1,one\n2\n3,three\n")

    with pytest.raises(FailedError, match=r"exports/a\.csv"):
        read(root, "a.csv", ARROW)
    rows, bad = read(root, "a.csv", ARROW, rule="skip")
    assert ([row["n"] for row in rows], bad.count) == (["1", "3"], 1)


@pytest.mark.parametrize("header", ["n,n", "n,", '"n","n"'])
def test_columns_that_cannot_be_distinguished_are_refused(root: Path, header: str) -> None:
    (root / "a.csv").write_text(f"{header}\n1,2\n")

    with pytest.raises(FailedError, match="line 1"):
        read(root, "a.csv", rule="skip")


@pytest.mark.parametrize("arrow", [False, True])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize("text", ["", "\n", "\ufeff", "\r\n\n"])
def test_a_file_without_a_line_is_an_export_only_where_that_is_allowed(
    root: Path, text: str, name: str, arrow: bool
) -> None:
    (root / name).write_text(text)

    with pytest.raises(FailedError, match=f"exports/{name} is empty .*allow_empty: true"):
        read(root, name, ReadOptions(arrow=arrow), rule="skip")
    assert read(root, name, ReadOptions(arrow=arrow, allow_empty=True))[0] == []


@pytest.mark.parametrize("options", [ReadOptions(), ARROW])
def test_a_header_alone_is_an_empty_export(root: Path, options: ReadOptions) -> None:
    (root / "a.csv").write_text("n,name\n")

    assert read(root, "a.csv", options)[0] == []


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_file_that_is_cut_short_fails(root: Path, suffix: str) -> None:
    text = os.urandom(5_000).hex().encode()
    pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
    (root / f"a.jsonl{suffix}").write_bytes(pack(b'{"x": "' + text + b'"}\n')[:-50])

    with pytest.raises(FailedError, match="cut short"):
        read(root, f"a.jsonl{suffix}", rule="skip")


def test_a_file_that_grows_while_it_is_read_is_noticed(root: Path) -> None:
    path = root / "a.csv"
    path.write_text(CSV)
    [item] = Roots([root]).items(str(path), ReadOptions())

    with item.open(None, BadRecords("fail", root / "aside")) as reading:
        list(reading.batches())
        with path.open("a") as file:
            file.write("3,three\n")
        with pytest.raises(SourceChangedError, match=r"exports/a\.csv"):
            reading.check()


def test_the_digest_is_of_the_whole_file_also_where_reading_stopped_early(root: Path) -> None:
    path = root / "a.csv"
    path.write_text("n\n" + "1\n" * 100_000)
    [item] = Roots([root]).items(str(path), ReadOptions(batch_rows=10))

    with item.open(None, BadRecords("fail", root / "aside")) as reading:
        next(reading.batches())
        assert reading.content() == item.digest()


def test_a_folder_holds_its_data_files_and_those_below(root: Path) -> None:
    (root / "2026").mkdir()
    for name in ("b.csv", "2026/a.jsonl", ".hidden.csv", "_part.csv", "notes.md"):
        (root / name).write_text("{}")

    names = [item.name for item in Roots([root]).items(str(root), ReadOptions())]
    by_pattern = Roots([root]).items(str(root / "**" / "*.jsonl"), ReadOptions())

    assert names == ["exports/2026/a.jsonl", "exports/b.csv"]
    assert [item.name for item in by_pattern] == ["exports/2026/a.jsonl"]


@pytest.mark.parametrize(
    "source",
    [
        "{root}/../outside.csv",
        "{root}/../*.csv",
        "{root}/../exports-other/a.csv",
        "{root}/link.csv",
        "{root}/linked/outside.csv",
        "{root}/*.csv",
        "{root}/a\0.csv",
        "{root}/none.csv",
        "{root}/pipe.csv",
        "{root}/none/*.csv",
        "relative.csv",
        "",
        "/",
        "/dev/zero",
    ],
)
def test_nothing_outside_the_roots_and_no_special_file_is_read(root: Path, source: str) -> None:
    (root.parent / "outside.csv").write_text(CSV)
    (root.parent / "exports-other").mkdir()
    (root.parent / "exports-other" / "a.csv").write_text(CSV)
    (root / "link.csv").symlink_to(root.parent / "outside.csv")
    (root / "linked").symlink_to(root.parent)
    os.mkfifo(root / "pipe.csv")

    with pytest.raises(BadParamsError):
        open_all(root, source.format(root=root))


def open_all(root: Path, source: str) -> None:
    """Open every file that a data_source names."""
    for item in Roots([root]).items(source, ReadOptions()):
        with item.open(None, BadRecords("fail", root / "aside")):
            pass


def test_a_link_that_stays_inside_its_root_is_followed(root: Path) -> None:
    (root / "a.csv").write_text(CSV)
    (root / "current.csv").symlink_to(root / "a.csv")

    items = Roots([root]).items(str(root), ReadOptions())

    assert [item.name for item in items] == ["exports/a.csv"]


def test_a_path_swapped_for_a_link_after_it_was_checked_is_not_followed(root: Path) -> None:
    secret, inside = root.parent / "secret", root / "in"
    for folder in (secret, inside):
        folder.mkdir()
        (folder / "a.csv").write_text(folder.name)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            inside.rename(root / "away")
            inside.symlink_to(secret)
            inside.unlink()
            (root / "away").rename(inside)

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen = set()
    try:
        for _ in range(300):
            try:
                descriptor = open_beneath(str(root), "in/a.csv")
            except BadParamsError:
                continue
            seen.add(os.read(descriptor, 100))
            os.close(descriptor)
    finally:
        stop.set()
        swapper.join()

    assert seen <= {b"in"}


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.lists(
            st.text(st.characters(codec="utf-8", exclude_characters="\0\r")), min_size=2, max_size=2
        ),
        max_size=8,
    )
)
def test_what_a_csv_writer_wrote_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    path = tmp_path_factory.mktemp("root") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *rows])
    item = FileItem(str(path.parent), "a.csv", "a.csv", ReadOptions(delimiter=","))

    with item.open(None, BadRecords("fail", path.with_suffix(".aside"))) as reading:
        found = [row for batch in reading.batches() for row in batch]

    assert found == [{"a": a, "b": b} for a, b in rows]

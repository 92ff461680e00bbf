"""Batches of dicts: they are read and encoded as a whole, by the rules that hold for each row."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import catalogzero
import pytest
from catalogzero.cloud.counters import WatchedRows
from catalogzero.cloud.encoding import ColumnFilter, encoder_for
from catalogzero.cloud.outbox.stored import Mark
from catalogzero.cloud.reading.items import Plan
from catalogzero.cloud.reading.records import BadRecords, ReadOptions
from catalogzero.cloud.reading.sources import FileItem
from catalogzero.cloud.rows.streams import RowCheck, Stream
from catalogzero.cloud.rows.values import fail
from catalogzero.cloud.writing import StreamWriter, note_read
from catalogzero.config.settings import EgressPolicy
from catalogzero.protocol.codings import decoded
from hypothesis import given, settings
from hypothesis import strategies as st

OURS = str(Path(catalogzero.__file__).parent)
ROWS = 40_000
ROW = {"id": "", "day": "2026-01-02", "name": 'a "b", null', "note": "", "amount": "1.5"}
TEXTS = st.text(st.sampled_from('ab"\n\r,é\u2028\ue000'), max_size=9)


def write(path: Path, count: int) -> None:
    """A file of some rows, in the format that its name says."""
    rows = [{**ROW, "id": str(number)} for number in range(count)]
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ROW)
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def calls_of_ours(rounds: Iterator[object]) -> int:
    """How often Python code of ours is entered in the rounds, the steps of generators too."""
    found = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal found
        found += event == "call" and frame.f_code.co_filename.startswith(OURS)

    sys.setprofile(count)
    try:
        for _ in rounds:
            pass
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("chunk_format", ["ndjson", "csv"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("mode", ["replace", "merge"])
@pytest.mark.parametrize("with_arrow", [True, False])
def test_a_row_costs_no_call(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    chunk_format: str,
    mode: Any,
    with_arrow: bool,
) -> None:
    """From the file to the chunk, with pyarrow and without."""
    if not with_arrow:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    write(tmp_path / f"a.{suffix}", ROWS)
    item = FileItem(str(tmp_path), f"a.{suffix}", "a", ReadOptions())
    encoder, check = encoder_for(chunk_format, 1 << 20), RowCheck(None, fail)
    columns = ColumnFilter(EgressPolicy(drop=["day"]), b"k")
    writer = StreamWriter(Plan(Stream("s", key=("id",)), mode), "k", Mark(), full=True)
    records = 0

    def rounds() -> Iterator[object]:
        nonlocal records
        with item.open(None, BadRecords("fail")) as reading:
            for batch in reading.batches():
                note_read([writer], batch)
                given = WatchedRows(batch)
                made = [row for row in given if row["amount"]]
                for one in (given, made):
                    for start, part in check(one):
                        for encode in encoder.add(columns(part), start):
                            chunk = encode()
                            records += chunk.records
                            yield chunk

    calls = calls_of_ours(rounds())
    records += sum(encode().records for encode in encoder.finish())

    assert records == 2 * ROWS
    assert calls < ROWS // 20


@pytest.mark.parametrize("chunk_format", ["ndjson", "csv"])
@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.tuples(TEXTS, TEXTS | st.none()), max_size=9), max_size=4),
    st.integers(1, 60),
)
def test_a_chunk_ends_with_the_record_that_fills_it(
    chunk_format: str, batches: list[list[tuple[str, str | None]]], chunk_bytes: int
) -> None:
    rows = [[dict(zip("ab", values, strict=True)) for values in batch] for batch in batches]
    alone = encoder_for(chunk_format, 1)
    header = len("a,b\n") if chunk_format == "csv" else 0
    lines = [decoded(one().body, "zstd")[header:] for batch in rows for one in alone.add(batch)]
    wanted: list[tuple[int, bytes]] = [(0, b"")]
    for line in lines:
        if len(wanted[-1][1]) >= chunk_bytes:
            wanted.append((0, b""))
        wanted[-1] = (wanted[-1][0] + 1, wanted[-1][1] + line)

    encoder = encoder_for(chunk_format, chunk_bytes)
    chunks = [encode() for batch in rows for encode in encoder.add(batch)]
    chunks += [encode() for encode in encoder.finish()]

    assert len(lines) == sum(map(len, rows))
    found = [(chunk.records, decoded(chunk.body, "zstd")[header:]) for chunk in chunks]
    assert found == [one for one in wanted if one[0]]
    if chunk_format == "csv":
        texts = [decoded(chunk.body, "zstd").decode() for chunk in chunks]
        read = [row for text in texts for row in csv.DictReader(io.StringIO(text, newline=""))]
        assert read == [{"a": row["a"], "b": row["b"] or ""} for batch in rows for row in batch]


@pytest.mark.parametrize(("count", "is_loaded"), [(ROWS, False), (12 * ROWS, True)])
def test_only_a_large_file_loads_pyarrow(tmp_path: Path, count: int, is_loaded: bool) -> None:
    write(tmp_path / "a.csv", count)
    code = f"""
import sys
from catalogzero.cloud.reading.records import BadRecords, ReadOptions
from catalogzero.cloud.reading.sources import FileItem
with FileItem({str(tmp_path)!r}, "a.csv", "a", ReadOptions()).open(None, BadRecords("fail")) as one:
    rows = sum(map(len, one.batches()))
print(rows, "pyarrow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == [str(count), str(is_loaded)]


def test_a_batch_knows_which_row_was_taken_last() -> None:
    batch = WatchedRows([{"n": number} for number in range(3)])
    places = [batch.at for _ in batch]
    after = batch.at
    rows = iter(batch)
    before = batch.at
    next(rows)

    assert places == [0, 1, 2]
    assert (before, batch.at, after) == (-1, 0, None)
    assert not hasattr(WatchedRows([1]), "at")

"""CSV files of every kind against Python's csv module: equal rows, or both refuse."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import zstandard
from catalogzero.cloud.reading.records import BadRecords, ReadOptions
from catalogzero.cloud.reading.sources import FileItem
from catalogzero.errors import FailedError
from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st

ENDS = st.sampled_from(["\n", "\r\n", "\r"])
PIECES = ['"', '""', ",", ";", "\n", "\r", "\r\n", "a", "bc", " ", "\ufeff", "é", "\0", "\u2028"]
SOUP = st.lists(st.sampled_from([*PIECES, '"', "\n", ",", "\x0b", "\udcff"]), max_size=12)
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
END = "the end of the file"


@dataclass
class Outcome:
    """What a file holds: its rows, and line and text of each malformed record; or a refusal."""

    rows: list[tuple[str, ...]] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    refused: bool = False


def quoted(text: str) -> str:
    """A cell in quotes."""
    return '"' + text.replace('"', '""') + '"'


@st.composite
def files(draw: st.DrawFn) -> str:
    """A CSV file of mostly good lines: each kind of fault now and then."""
    words = st.text(st.sampled_from('ab"é \n\r,;\ufeff'), max_size=6)
    cells = st.one_of(
        st.sampled_from(["", "1", 'x"y', '1,5" x', 'say "hi"', "\ufeffz", "é" * 9]),
        words.map(quoted),
        words.map(quoted),
        st.tuples(words, st.sampled_from(["x", " ", '"z', "\udcff"])).map(
            lambda both: quoted(both[0]) + both[1]
        ),
    )
    end, width = draw(ENDS), draw(st.integers(1, 3))
    names = [f"n{number}" * draw(st.sampled_from([1, 1, 9])) for number in range(width)]
    header = ",".join(draw(st.sampled_from([name, quoted(name)])) for name in names)
    made = [*draw(st.lists(ENDS, max_size=2)), header + end]
    for _ in range(draw(st.integers(0, 8))):
        many = draw(st.sampled_from([width] * 6 + [0, width + 1]))
        line = ",".join(draw(cells) for _ in range(many))
        made.append(line + draw(st.sampled_from([end] * 8 + ["\n", "\r", "\r\n"])))
    made += draw(st.one_of(st.just([]), SOUP))
    return "".join(made)


def expected(text: str, delimiter: str = ",") -> Outcome:
    """What the csv module makes of a text.

    A record ends where the module, not strict, ends it; it is malformed where the module, strict,
    refuses those lines, where it has not the header's width, or holds undecodable bytes.
    """
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for line in [*io.StringIO(text, newline=""), END]:
            taken.append(line)
            yield line

    outcome, columns, line = Outcome(), None, 1
    for _ in csv.reader(lines(), delimiter=delimiter):
        record, taken = taken[:], []
        if record == [END]:
            break
        if record[-1] == END:
            return Outcome(refused=True)
        row: list[str] | None
        try:
            row = next(csv.reader(record, delimiter=delimiter, strict=True))
        except csv.Error:
            row = None
        if row and any("\udc80" <= char <= "\udcff" for char in "".join(row)):
            row = None
        if columns is None:
            if row is None or (row and not are_names(row)):
                return Outcome(refused=True)
            columns = row or None
        elif row == [] and len(columns) > 1:
            pass
        elif row is not None and len(row or [""]) == len(columns):
            outcome.rows.append(tuple(row or [""]))
        else:
            outcome.bad.append((line, escaped("".join(record).rstrip("\r\n"))))
        line += len(record)
    return outcome if columns else Outcome(refused=True)


def are_names(row: list[str]) -> bool:
    """Whether a header names each column, and no two alike."""
    names = [name.strip().strip("\ufeff").strip() for name in row]
    return len({*names}) == len(names) and "" not in names and "\0" not in "".join(names)


def escaped(text: str) -> str:
    """A text as it is set aside."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def found(content: bytes, suffix: str, folder: Path, options: ReadOptions) -> Outcome:
    """What the reader makes of a file."""
    name = f"a.csv{suffix}"
    (folder / name).write_bytes(PACKED[suffix](content))
    aside = folder / "aside.jsonl"
    aside.unlink(missing_ok=True)
    outcome = Outcome()
    item = FileItem(str(folder), name, name, options)
    try:
        with item.open(None, BadRecords("quarantine", aside)) as reading:
            for batch in reading.batches():
                assert 0 < len(batch) <= options.batch_rows
                rows = batch.to_pylist() if options.arrow else batch
                outcome.rows += [tuple(row.values()) for row in rows]
    except FailedError as error:
        return Outcome(refused=name in str(error))
    if aside.exists():
        entries = map(json.loads, aside.read_bytes().splitlines())
        outcome.bad = [(entry["line"], entry["record"]) for entry in entries]
    return outcome


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("oracle")


@pytest.mark.parametrize("suffix", PACKED)
@settings(max_examples=850, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    files(),
    st.integers(1, 60) | st.just(1 << 20),
    st.sampled_from([1, 3, 10_000]),
)
@example('n,name\n1,5" x\n2,"p\nq"\n', 5, 2)
@example('a,b\n1,"x\ny","p\nq\nr"\n3,c\n', 3, 2)
@example('a,b\n1,"x\ny","p\nq\nr"\n3,c\n', 4, 2)
def test_both_kinds_of_batches_hold_the_rows_of_the_csv_module(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    text: str,
    block_bytes: int,
    batch_rows: int,
) -> None:
    """Dicts with pyarrow and without, and tables."""
    text = text.removeprefix("\ufeff")
    content = text.encode("utf-8", "surrogateescape")
    options = ReadOptions(batch_rows, False, "utf-8", ",", block_bytes=block_bytes)
    arrow = replace(options, arrow=True, batches_ahead=2)
    wanted = expected(text)
    note(repr((text, suffix, block_bytes, batch_rows)))
    csv.field_size_limit(1 << 24)

    assert found(content, suffix, folder, options) == wanted
    assert found(content, suffix, folder, arrow) == wanted
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pyarrow", None)
        assert found(content, suffix, folder, options) == wanted

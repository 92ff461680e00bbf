"""Records: the kinds of files that hold them, how a CSV file is written, and malformed ones.

A malformed record is met as `on_bad_record` says, by file and line. `readers` makes batches.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import orjson

from catalogzero.errors import BadParamsError, FailedError

_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_DELIMITERS = (",", ";", "\t", "|")
SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How records are read; `encoding` and `delimiter` are detected when None."""

    batch_rows: int = 10_000
    arrow: bool = False
    encoding: str | None = None
    delimiter: str | None = None


class BadRecords:
    """What becomes of malformed records: fail, skip (counted) or set aside in a file.

    Args:
        rule: The setting `on_bad_record`.
        aside: The file for records that are set aside, JSON Lines; made with the first of them.
    """

    def __init__(self, rule: Literal["fail", "skip", "set_aside"], aside: Path) -> None:
        self._rule, self._aside = rule, aside
        self.count = 0

    def take(self, name: str, line: int | None, why: str, text: str) -> None:
        """Meet one malformed record; raises `FailedError` where the rule is to fail."""
        self.count += 1
        where = name if line is None else f"{name}, line {line}"
        if self._rule == "fail":
            raise FailedError(
                f"{where}: {why}; mend the file, or set on_bad_record to skip or set_aside"
            )
        if self._rule == "set_aside":
            entry = {"source": name, "line": line, "reason": why, "record": text}
            self._aside.parent.mkdir(parents=True, exist_ok=True)
            with self._aside.open("ab") as file:
                file.write(orjson.dumps(entry) + b"\n")

    def restart(self) -> None:
        """Forget what the last attempt met."""
        self.count = 0
        self._aside.unlink(missing_ok=True)


def kind_of(name: str) -> str:
    """csv, jsonl or parquet, by a file's name without `.gz` and `.zst`.

    Raises:
        BadParamsError: The name ends in nothing that is known.
    """
    bare = name.removesuffix(".gz").removesuffix(".zst")
    kind = _SUFFIXES.get(Path(bare).suffix.lower())
    if kind is None:
        why = f"is no data file: its name ends in none of {', '.join(_SUFFIXES)} (.gz, .zst)"
        raise BadParamsError(
            f"data_source {name!r} {why}", details=[{"field": "data_source", "message": why}]
        )
    return kind


def require_extra(extra: Literal["parquet", "sql"]) -> None:
    """Say how to get what an extra brings, where it is missing.

    Raises:
        FailedError: It is not installed.
    """
    if find_spec({"parquet": "pyarrow", "sql": "sqlalchemy"}[extra]) is None:
        raise FailedError(f"the extra `{extra}` is missing: pip install 'catalogzero[{extra}]'")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a CSV file is written."""

    encoding: str
    delimiter: str


def detect(content: io.BufferedIOBase, name: str, options: ReadOptions) -> Dialect:
    """Encoding and delimiter, as set or by a look at the file's first 64 KiB."""
    sample = _peek(content)
    encoding = options.encoding or _encoding_of(sample)
    try:
        head = sample.decode(encoding, "replace").lstrip("\ufeff").split("\n", 1)[0]
    except LookupError as error:
        raise FailedError(f"{name}: {error}; set `encoding` to one that Python knows") from error
    if options.delimiter:
        return Dialect(encoding, options.delimiter)
    if ".tsv" in name:
        return Dialect(encoding, "\t")
    return Dialect(encoding, max(_DELIMITERS, key=_outside_quotes(head).count))


def column_names(header: list[str], name: str) -> list[str]:
    """The names of a header line.

    Raises:
        FailedError: A name is missing or stands twice, so that rows cannot be told apart.
    """
    names = [column.strip() for column in header]
    twice = sorted({column for column in names if names.count(column) > 1})
    if "" in names or twice:
        fault = f"{', '.join(twice)} stands twice" if any(twice) else "a column has no name"
        raise FailedError(f"{name}, line 1: {fault}; each column needs a name of its own")
    return names


def _peek(content: io.BufferedIOBase) -> bytes:
    """The first bytes, left in place."""
    peek: Callable[[int], bytes] = getattr(content, "peek")  # noqa: B009  # not in the base class
    return peek(SAMPLE_BYTES)[:SAMPLE_BYTES]


def _encoding_of(sample: bytes) -> str:
    """The encoding of a text by its mark, else UTF-8 where it fits, else the likeliest."""
    if sample.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    with suppress(UnicodeDecodeError):
        codecs.getincrementaldecoder("utf-8")().decode(sample)
        return "utf-8"
    from charset_normalizer import from_bytes

    best = from_bytes(sample).best()
    return best.encoding if best else "cp1252"


def _outside_quotes(line: str) -> str:
    """A line without its quoted parts."""
    return "".join(line.split('"')[::2])

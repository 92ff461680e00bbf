"""Records: the kinds of files that hold them, how a CSV file is written, and malformed ones.

A malformed record is met as `on_bad_record` says, by file and line. `readers` makes batches.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson

from catalogzero.cloud.rows.values import refuse_twice
from catalogzero.config.state_folder import create_private
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


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How records are read; `encoding` and `delimiter` None: by the rules of docs/reference.

    `block_bytes` of text are read at a time, and a multiple of them for Arrow batches.
    """

    batch_rows: int = 10_000
    arrow: bool = False
    encoding: str | None = None
    delimiter: str | None = None
    allow_empty: bool = False
    block_bytes: int = 1 << 20


@dataclass(slots=True)
class Found:
    """What a file was read as; what its kind has not is None."""

    source: str
    kind: str = ""
    encoding: str | None = None
    delimiter: str | None = None
    columns: int | None = None
    rows: int = 0


class BadRecords:
    """What becomes of malformed records: fail, skip (counted) or set aside in a file.

    Args:
        rule: The setting `on_bad_record`.
        aside: The file for records that are set aside, JSON Lines; made with the first of them.
    """

    def __init__(
        self, rule: Literal["fail", "skip", "set_aside"], aside: Path = Path(os.devnull)
    ) -> None:
        self._rule, self._aside = rule, aside
        self.count = 0
        self.failure: FailedError | None = None

    def take(self, name: str, line: int | None, why: str, text: str) -> None:
        """Meet one malformed record; raises `FailedError` where the rule is to fail."""
        self.count += 1
        where = name if line is None else f"{name}, line {line}"
        if self._rule == "fail":
            self.failure = FailedError(
                f"{where}: {why}; fix the file, or set on_bad_record to skip or set_aside"
            )
            raise self.failure
        if self._rule == "set_aside":
            record = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            entry = {"source": name, "line": line, "reason": why, "record": record}
            create_private(self._aside)
            with self._aside.open("ab") as file:
                file.write(orjson.dumps(entry) + b"\n")

    def restart(self) -> None:
        """Forget what the last attempt met."""
        self.count = 0
        self._aside.unlink(missing_ok=True)


def bare_name(name: str) -> str:
    """A file's name in small letters, without `.gz` and `.zst`."""
    return name.lower().removesuffix(".gz").removesuffix(".zst")


def kind_of(name: str) -> str:
    """csv, jsonl or parquet, by a file's name.

    Raises:
        BadParamsError: The name ends in nothing that is known.
    """
    kind = _SUFFIXES.get(Path(bare_name(name)).suffix)
    if kind is None:
        why = f"is no data file: its name ends in none of {', '.join(_SUFFIXES)} (.gz, .zst)"
        raise BadParamsError(
            f"data_source {name!r} {why}", details=[{"field": "data_source", "message": why}]
        )
    return kind


def is_data(name: str) -> bool:
    """Whether a file's name is that of a data file."""
    return Path(bare_name(name)).suffix in _SUFFIXES


def refuse_names(names: list[str], where: str) -> None:
    """Refuse column names by which rows cannot be told apart.

    Raises:
        FailedError: A name is missing, stands twice, or holds NUL.
    """
    if "" in names:
        number = names.index("") + 1
        raise FailedError(f"{where}: column {number} has no name; each column needs one")
    refuse_twice(names, where)
    if any("\0" in name for name in names):
        raise FailedError(f"{where}: NUL in a column's name: is it UTF-16? Set `encoding`")


def empty(name: str, why: str) -> FailedError:
    """The error of a file in which there is nothing."""
    return FailedError(
        f"{name} is empty ({why}), and replaces nothing: see what wrote it, or set "
        "`allow_empty: true` in the handler's config"
    )

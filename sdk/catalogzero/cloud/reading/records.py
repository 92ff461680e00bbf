"""Records: the kinds of files that hold them, how a CSV file is written, and malformed ones.

A malformed record is met as `on_bad_record` says, by file and line. `readers` makes batches.
"""

from __future__ import annotations

import os
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypedDict, cast

import orjson

from catalogzero.cloud.rows.values import refuse_twice
from catalogzero.config.state_folder import create_private
from catalogzero.errors import BadParamsError, FailedError
from catalogzero.protocol.codings import MAX_RATIO, Bounds

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


FILE_BOUNDS = Bounds(max_frames=10_000_000, max_ratio=MAX_RATIO)
"""Of packed files: as long as they like, a window as `zstd` itself takes it (128 MiB)."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How records are read; `encoding` and `delimiter` None: by the rules of docs/reference.

    `block_bytes` of text are read at a time, and a multiple of them for Arrow batches. Of larger
    files and of queries, `batches_ahead` batches are read while those before them are processed.
    """

    batch_rows: int = 10_000
    arrow: bool = False
    encoding: str | None = None
    delimiter: str | None = None
    allow_empty: bool = False
    block_bytes: int = 1 << 20
    packed_bounds: Bounds = FILE_BOUNDS
    batches_ahead: int = 0


class FoundFile(TypedDict):
    """What a file was read as, as a run's result lists it."""

    source: str
    kind: str
    encoding: str | None
    delimiter: str | None
    columns: int | None
    rows: int


@dataclass(slots=True)
class Found:
    """What a file was read as; None where its kind has no such property."""

    source: str
    kind: str = ""
    encoding: str | None = None
    delimiter: str | None = None
    columns: int | None = None
    rows: int = 0

    def shown(self) -> FoundFile:
        """As a run's result lists it."""
        return cast("FoundFile", asdict(self))


class BadRecords:
    """What becomes of malformed records: fail, skip (counted) or keep them in a file.

    Args:
        rule: The setting `on_bad_record`.
        quarantine: The file for records that are kept, JSON Lines; made with the first of them.
    """

    def __init__(
        self, rule: Literal["fail", "skip", "quarantine"], quarantine: Path = Path(os.devnull)
    ) -> None:
        self._rule, self._quarantine = rule, quarantine
        self.count = 0
        self.failure: FailedError | None = None
        # A source's come from the thread that reads ahead, those of results from the run's own.
        self._lock = threading.Lock()

    def take(self, name: str, line: int | None, why: str, text: str) -> None:
        """Meet one malformed record; raises `FailedError` where the rule is to fail."""
        with self._lock:
            self._take(name, line, why, text)

    def _take(self, name: str, line: int | None, why: str, text: str) -> None:
        self.count += 1
        where = name if line is None else f"{name}, line {line}"
        if self._rule == "fail":
            self.failure = FailedError(
                f"{where}: {why}; fix the file, or set on_bad_record to skip or quarantine"
            )
            raise self.failure
        if self._rule == "quarantine":
            record = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            entry = {"source": name, "line": line, "reason": why, "record": record}
            create_private(self._quarantine)
            with self._quarantine.open("ab") as file:
                file.write(orjson.dumps(entry) + b"\n")

    def restart(self) -> None:
        """Forget what the last attempt met."""
        self.count = 0
        self._quarantine.unlink(missing_ok=True)


def suffix_of(name: str) -> str:
    """The end of a file's name in small letters, that of what is packed where it ends in `.gz`."""
    return Path(name.lower().removesuffix(".gz").removesuffix(".zst")).suffix


def kind_of(name: str) -> str:
    """csv, jsonl or parquet, by a file's name.

    Raises:
        BadParamsError: The name ends in nothing that is known.
    """
    kind = _SUFFIXES.get(suffix_of(name))
    if kind is None:
        why = f"is not a data file: its name must end in {', '.join(_SUFFIXES)} (.gz, .zst)"
        raise BadParamsError(
            f"data_source {name!r} {why}", details=[{"field": "data_source", "message": why}]
        )
    return kind


def is_data(name: str) -> bool:
    """Whether a file's name is that of a data file."""
    return suffix_of(name) in _SUFFIXES


def refuse_names(names: list[str], where: str) -> None:
    """Refuse column names that do not distinguish rows' values.

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

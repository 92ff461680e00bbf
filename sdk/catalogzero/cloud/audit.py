"""The audit log: the proof of what left this machine.

JSON Lines: an entry before each push, one after it, each with the SHA-256 of the line before, so
that a line changed, taken out or put in shows. Its head goes out with each health report.
A file that has grown is renamed, `audit.000001.jsonl` being the first, and the next one goes on
with its chain; the oldest are deleted, whole files only.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson

from catalogzero.clock import Clock
from catalogzero.config.state_folder import create_private
from catalogzero.errors import FailedError
from catalogzero.wire.messages import JsonObject

NAME = "audit.jsonl"
GENESIS = "0" * 64
MAX_BYTES = 64 << 20
KEPT_FILES = 30
_TAIL_BYTES = 1 << 16
_OPEN_TRIES = 20
_ROTATED = re.compile(r"audit\.([0-9]{6,})\.jsonl")


class AuditLog:
    """The append-only log of pushes in a state folder; one process writes it.

    Args:
        folder: The handler's state folder.
        clock: For the times that it writes.
        make_room: Called when a push cannot be written; True where it may fit now.
        max_bytes: A file that has reached it is rotated, after the entry of a push.
        kept_files: Rotated files that are kept.

    Attributes:
        path: The file that is written.
        head: The digest of the newest line.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        make_room: Callable[[], bool] = lambda: False,
        *,
        max_bytes: int = MAX_BYTES,
        kept_files: int = KEPT_FILES,
    ) -> None:
        self.path, self._clock, self._make_room = folder / NAME, clock, make_room
        self._max_bytes, self._kept_files = max_bytes, kept_files
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._synced = 0
        # A kill in the middle of a rotation leaves the newest lines in the newest rotated file.
        with ExitStack() as files:
            tails = [_tail(files.enter_context(path.open("rb"))) for path in _rotated(folder)[-1:]]
        create_private(self.path)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        with open(self._descriptor, "rb", closefd=False) as file:
            own = _tail(file)
        lines, numbers = [line for tail in (*tails, own) for line in tail.split(b"\n") if line], [0]
        for line in lines:
            with suppress(orjson.JSONDecodeError, KeyError, TypeError):
                numbers.append(orjson.loads(line)["n"])
        self.head = hashlib.sha256(lines[-1]).hexdigest() if lines else GENESIS
        self._number, self._torn = max(numbers), bool(own) and not own.endswith(b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def begin(self, **about: Any) -> int:
        """Write that a push is about to leave; returns its number.

        Raises:
            OSError: It could not be written, so the push must not leave.
        """
        with self._lock:
            self._number += 1
            number = self._number
            entry = {"n": number, "event": "push", **about}
            try:
                self._append(entry)
            except OSError:
                if not self._make_room():
                    raise
                self._append(entry)
        self._sync(number)
        return number

    def _sync(self, number: int) -> None:
        """Have an entry on the disk before the first byte leaves; those that wait share a sync."""
        with self._syncing:
            if self._synced >= number:
                return
            with self._lock:
                newest = self._number
            os.fdatasync(self._descriptor)
            self._synced = newest
            with self._lock:
                self._rotate()

    def settle(self, number: int, **outcome: Any) -> None:
        """Write what became of a push; where that fails, it stays unsettled."""
        with self._lock, suppress(OSError):
            self._append({"n": number, "event": "settled", **outcome})

    def _append(self, entry: JsonObject) -> None:
        entry = {"at": self._clock.now().isoformat(), **entry, "prev": self.head}
        line = orjson.dumps(entry)
        data = (b"\n" if self._torn else b"") + line + b"\n"
        # Until the line is whole: whatever follows a part of one begins a line of its own.
        self._torn = True
        if os.write(self._descriptor, data) < len(data):
            raise OSError("the audit log's line was cut short")
        self._torn, self.head = False, hashlib.sha256(line).hexdigest()

    def _rotate(self) -> None:
        """Begin another file where this one has grown; where that fails, this one goes on."""
        if os.fstat(self._descriptor).st_size < self._max_bytes:
            return
        rotated = _rotated(self.path.parent)
        number = _number_of(rotated[-1]) + 1 if rotated else 1
        target = self.path.with_name(f"audit.{number:06}.jsonl")
        with suppress(OSError):
            os.fdatasync(self._descriptor)  # what was written since, whose push still waits
            self.path.rename(target)
            try:
                flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL
                descriptor = os.open(self.path, flags, 0o600)
            except OSError:
                target.rename(self.path)
                return
            os.close(self._descriptor)
            self._descriptor = descriptor
            for path in [*rotated, target][: -self._kept_files]:
                path.unlink()


def _tail(file: IO[bytes]) -> bytes:
    """The end of a log, in which its newest line is whole, unless a kill cut it."""
    file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
    return file.read()


def _number_of(path: Path) -> int:
    """The number in a rotated file's name."""
    found = _ROTATED.fullmatch(path.name)
    return int(found[1]) if found else 0


def _rotated(folder: Path) -> list[Path]:
    """The rotated files of a folder, the oldest first."""
    return sorted(filter(_number_of, folder.glob("audit.*.jsonl")), key=_number_of)


def audit_paths(folder: Path) -> list[Path]:
    """The files of an audit log, the oldest first."""
    current = folder / NAME
    return [*_rotated(folder), *([current] if current.exists() else [])]


@contextmanager
def audit_files(folder: Path) -> Iterator[list[IO[bytes]]]:
    """Every file of an audit log, the oldest first, open to be read while it is written.

    Raises:
        FailedError: It was rotated again and again meanwhile.
    """
    for _ in range(_OPEN_TRIES):
        with ExitStack() as undo:
            wanted, files = audit_paths(folder), list[IO[bytes]]()
            with suppress(FileNotFoundError):
                files += [undo.enter_context(path.open("rb")) for path in wanted]
            # A rotation in between would hide a file, and the chain would look broken.
            if len(files) == len(wanted) and audit_paths(folder) == wanted:
                yield files
                return
    raise FailedError(f"the audit log in {folder} is rotated too often to be read: try again")


@dataclass(slots=True)
class AuditReport:
    """What a look through an audit log found."""

    files: int = 0
    deleted_files: int = 0
    """The oldest ones, which rotation deleted: the figures below are without them."""
    entries: int = 0
    pushes: int = 0
    records: int = 0
    bytes: int = 0
    head: str = GENESIS
    unsettled: list[int] = field(default_factory=list)
    torn: int = 0
    broken_in: str | None = None
    """The file of that line."""
    broken_at: int | None = None
    """The first line, in its file, whose `prev` is not the digest of the line before it."""


def verify_audit(folder: Path) -> AuditReport:
    """Follow the chain of the audit log in a state folder, over all its files.

    Where rotation deleted the oldest ones, it begins with the first that is left.

    Raises:
        FailedError: It was rotated again and again meanwhile.
    """
    with audit_files(folder) as files:
        numbers = [_number_of(Path(file.name)) for file in files]
        deleted = max(numbers[0] - 1, 0) if numbers else 0
        named = [(Path(file.name).name, file) for file in files]
        report = verify_lines(named, is_begun=not deleted)
    report.files, report.deleted_files = len(named), deleted
    return report


def verify_lines(named: Iterable[tuple[str, Iterable[bytes]]], *, is_begun: bool) -> AuditReport:
    """Follow the chain of some lines, in files of these names.

    Args:
        named: Each file's name, and its lines.
        is_begun: Whether the first line is that of the whole log.
    """
    report, open_pushes = AuditReport(), set[int]()
    for name, lines in named:
        for number, line in enumerate(filter(None, (line.rstrip(b"\n") for line in lines)), 1):
            entry = None
            with suppress(orjson.JSONDecodeError):
                entry = orjson.loads(line)
            if isinstance(entry, dict):
                is_next = entry.get("prev") == report.head or not is_begun
                if not is_next and report.broken_at is None:
                    report.broken_in, report.broken_at = name, number
                _count(report, entry, open_pushes)
            else:
                report.torn += 1
            is_begun = True
            report.head = hashlib.sha256(line).hexdigest()
    report.unsettled = sorted(open_pushes)
    return report


def _count(report: AuditReport, entry: JsonObject, open_pushes: set[int]) -> None:
    """Add one entry to the figures."""
    report.entries += 1
    if entry.get("event") == "push":
        report.pushes += 1
        report.records += entry.get("records", 0)
        report.bytes += entry.get("bytes", 0)
        open_pushes.add(entry["n"])
    else:
        open_pushes.discard(entry.get("n", 0))

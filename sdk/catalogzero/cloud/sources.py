"""Sources: the files that may be read, and their records in batches.

Owns the rule that nothing outside `data_roots` is opened: a path is resolved, and then opened
component by component without following a link, so that no change in between leads out. Bytes are
hashed as they are read. Named queries are in `queries.py`; what becomes of the records, elsewhere.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from catalogzero.cloud.readers import read_records
from catalogzero.cloud.records import BadRecords, ReadOptions, kind_of
from catalogzero.cloud.settings import Batch
from catalogzero.errors import BadParamsError, FailedError, SourceChangedError
from catalogzero.protocol.codings import MAX_RATIO, Bounds, OverBoundsError, UnpackError, unpack
from catalogzero.protocol.identities import Mode, digest_of

_READ_BYTES = 1 << 20
_PACKED_BYTES = 1 << 16
_MAGIC = frozenset("*?[")
FILE_BOUNDS = Bounds(max_frames=10_000_000, max_ratio=MAX_RATIO)
"""Of packed files: as long as they like, a window as `zstd` itself takes it (128 MiB)."""


class Reading(Protocol):
    """One pass over a source item; a context manager that closes what it opened."""

    after: Any
    until: Any

    def __enter__(self) -> Self:
        """Open it."""

    def __exit__(self, *_: object) -> None:
        """Close it."""

    def batches(self) -> Iterator[Batch]:
        """The records, in batches."""

    def content(self) -> str | None:
        """The digest of all that was read, once the batches are through; None where it has none."""

    def bytes_read(self) -> int:
        """How far a file is read, packed as it is; 0 where it is no file."""

    def check(self) -> None:
        """Raise `SourceChangedError` when the source is no longer what was opened."""


class Item(Protocol):
    """One source item: what one upload holds."""

    @property
    def name(self) -> str:
        """Its name in the source's identity."""

    @property
    def mode(self) -> Mode:
        """Whether an upload replaces what the source had, or appends to it."""

    @property
    def bound(self) -> dict[str, str] | None:
        """What its watermark's values are of: `column`, `database`, `query`; None without."""

    def stamp(self) -> Any:
        """JSON that stays equal while the item is unchanged, got without reading it; or None."""

    def open(self, after: Any, bad: BadRecords) -> Reading:
        """A pass over it, from a watermark on where it has one."""


class Roots:
    """The folders under which a `data_source` may lie."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = {os.path.realpath(root): root.name for root in roots}

    def items(self, data_source: str, options: ReadOptions) -> list[FileItem]:
        """The files of a path, a folder (with all below it) or a pattern; sorted by name.

        Raises:
            BadParamsError: Nothing there, not a data file, or outside the data roots.
        """
        if "\0" in data_source or not os.path.isabs(data_source):
            raise _bad_source(data_source, "is no absolute path")
        self._resolved(data_source)
        if os.path.isdir(data_source):
            found = list(self._below(data_source))
        elif _MAGIC & set(data_source) and not os.path.exists(data_source):
            found = [p for p in glob.glob(data_source, recursive=True) if not os.path.isdir(p)]
        else:
            kind_of(data_source)
            found = [data_source]
        items = {item.name: item for item in (self._item(path, options) for path in found)}
        if not items:
            raise _bad_source(data_source, "matches no data file")
        return [items[name] for name in sorted(items)]

    def _below(self, folder: str) -> Iterator[str]:
        """The data files below a folder; hidden and unfinished ones are left out."""
        for where, folders, names in os.walk(folder, onerror=_raise):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                with suppress(BadParamsError):
                    kind_of(name)
                    if not name.startswith((".", "_", "~")):
                        yield os.path.join(where, name)

    def _resolved(self, path: str) -> tuple[str, str]:
        """The data root that a path lies under, links resolved, and the resolved path."""
        head = path
        while _MAGIC & set(head) and not os.path.exists(head):
            head = os.path.dirname(head)
        real = os.path.realpath(head)
        for root in self._roots:
            if real == root or real.startswith(root.rstrip("/") + "/"):
                return root, real
        raise _bad_source(path, "lies outside data_roots, or a link in it leads out of them")

    def _item(self, path: str, options: ReadOptions) -> FileItem:
        root, real = self._resolved(path)
        relative = os.path.relpath(real, root)
        return FileItem(root, relative, f"{self._roots[root]}/{relative}", options)


@dataclass(frozen=True, slots=True)
class FileItem:
    """A file under a data root."""

    root: str
    relative: str
    name: str
    options: ReadOptions
    mode: ClassVar[Mode] = "replace"
    bound: ClassVar[None] = None

    def stamp(self) -> list[int]:
        """Size, modification time and inode."""
        try:
            return identity(os.stat(os.path.join(self.root, self.relative), follow_symlinks=False))
        except OSError as error:
            raise _bad_source(self.name, f"cannot be read: {error.strerror}") from error

    def is_gone(self) -> bool:
        """Whether no file of that name is there, in a data root that is."""
        return os.path.isdir(self.root) and not os.path.lexists(
            os.path.join(self.root, self.relative)
        )

    def digest(self) -> str:
        """The digest of its bytes as they are now."""
        raw = HashingFile(open_beneath(self.root, self.relative))
        try:
            return raw.digest()
        finally:
            raw.release()

    def modified_at(self) -> float:
        """When the file was last written, in Unix seconds."""
        return self.stamp()[1] / 1e9

    def open(self, after: Any, bad: BadRecords) -> FileReading:
        """See `Item.open`; a file has no watermark."""
        return FileReading(self, bad)


class FileReading:
    """One pass over a file: its bytes are hashed as they are read."""

    after = until = None

    def __init__(self, item: FileItem, bad: BadRecords) -> None:
        self._item, self._bad = item, bad
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        descriptor = open_beneath(self._item.root, self._item.relative)
        self._raw = HashingFile(descriptor)
        self._stack.callback(self._raw.release)
        self._identity = identity(os.fstat(descriptor))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def batches(self) -> Iterator[Batch]:
        """See `Reading.batches`; raises `FailedError` that names the file, and the line."""
        item = self._item
        try:
            content = unpacked(self._raw, item.relative)
            yield from read_records(content, item.name, item.options, self._bad)
        except OverBoundsError as error:
            raise FailedError(
                f"{item.name} is over a bound of packed files: {error}; if it is as it should be, "
                "unpack it before it is read"
            ) from error
        except UnpackError as error:
            self.check()
            raise FailedError(f"{item.name} is damaged or cut short: {error}") from error

    def content(self) -> str:
        """See `Reading.content`: of the file's own bytes, packed as they are."""
        return self._raw.digest()

    def bytes_read(self) -> int:
        """See `Reading.bytes_read`."""
        return self._raw.count

    def check(self) -> None:
        """See `Reading.check`."""
        if self._identity != self._item.stamp():
            raise SourceChangedError(f"{self._item.name} changed while it was read")


@dataclass(frozen=True, slots=True)
class Group:
    """All items of a run as one: `unit = "run"`."""

    name: str
    items: Sequence[Item]
    mode: ClassVar[Mode] = "replace"
    bound: ClassVar[None] = None

    def stamp(self) -> Any:
        """The stamps of all, where each has one."""
        stamps = [[item.name, item.stamp()] for item in self.items]
        return None if any(stamp is None for _, stamp in stamps) else stamps

    def open(self, after: Any, bad: BadRecords) -> GroupReading:
        """See `Item.open`."""
        return GroupReading([(item.name, item.open(None, bad)) for item in self.items])


@dataclass(slots=True)
class GroupReading:
    """The passes over all items of a run, one after another."""

    readings: list[tuple[str, Reading]]
    after: Any = None
    until: Any = None
    _opened: int = 0
    _digests: list[tuple[str, str | None]] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Each pass closes itself as it ends."""

    def batches(self) -> Iterator[Batch]:
        """See `Reading.batches`."""
        for name, reading in self.readings:
            with reading:
                self._opened += 1
                yield from reading.batches()
                self._digests.append((name, reading.content()))

    def content(self) -> str:
        """See `Reading.content`."""
        return digest_of(self._digests)

    def bytes_read(self) -> int:
        """See `Reading.bytes_read`."""
        return sum(reading.bytes_read() for _, reading in self.readings[: self._opened])

    def check(self) -> None:
        """See `Reading.check`."""
        for _, reading in self.readings:
            reading.check()


class HashingFile(io.RawIOBase):
    """A file whose bytes are counted and go through SHA-256 as they are read.

    Owns its descriptor.
    """

    def __init__(self, descriptor: int) -> None:
        self._file = io.FileIO(descriptor, "rb")
        self._sha = hashlib.sha256()
        self.count = 0

    def readable(self) -> bool:
        """It can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read and hash."""
        count = self._file.readinto(buffer) or 0
        self._sha.update(memoryview(buffer)[:count])
        self.count += count
        return count

    def digest(self) -> str:
        """The digest of the whole file; what was not read yet is read now."""
        while self.read(_READ_BYTES):
            pass
        return self._sha.hexdigest()

    def whole(self) -> io.FileIO:
        """The file itself, hashed to its end and back at its start: for formats that seek."""
        self.digest()
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Readers close what they read from; this file stays open for its digest."""

    def release(self) -> None:
        """Close the descriptor."""
        self._file.close()


class _Unpacked(io.RawIOBase):
    """The content of a packed file."""

    def __init__(self, packed: io.RawIOBase, coding: str) -> None:
        parts = iter(lambda: packed.read(_PACKED_BYTES) or b"", b"")
        self._pieces, self._left = unpack(parts, coding, FILE_BOUNDS), memoryview(b"")

    def readable(self) -> bool:
        """It can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Unpack until the buffer is full, or to the file's end."""
        count = 0
        while count < len(buffer) and (self._left or self._next()):
            some = self._left[: len(buffer) - count]
            buffer[count : count + len(some)] = some
            self._left, count = self._left[len(some) :], count + len(some)
        return count

    def _next(self) -> bool:
        """Unpack a piece, if there is one."""
        self._left = memoryview(next(self._pieces, b""))
        return bool(self._left)


def unpacked(raw: HashingFile, name: str) -> io.BufferedReader:
    """The content of a file: gzip and zstd taken off by its suffix, buffered."""
    coding = {".gz": "gzip", ".zst": "zstd"}.get(os.path.splitext(name)[1])
    return io.BufferedReader(_Unpacked(raw, coding) if coding else raw, _READ_BYTES)


def identity(found: os.stat_result) -> list[int]:
    """What stays equal while a file is not written to: size, mtime in ns, inode."""
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def open_beneath(root: str, relative: str) -> int:
    """A descriptor of a regular file below a folder; no link is followed on the way.

    Raises:
        BadParamsError: Not there, a link on the way, not a regular file, or not readable.
    """
    parts = relative.split("/")
    if ".." in parts or "\0" in relative:
        raise _bad_source(relative, "leads out of its data root")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder = -1
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in parts[:-1]:
            below = os.open(part, flags | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = below
        return _open_regular(parts[-1], folder, flags | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        why = "a link" if error.errno in {errno.ELOOP, errno.ENOTDIR} else error.strerror
        raise _bad_source(relative, f"cannot be opened: {why}") from error
    finally:
        if folder >= 0:
            os.close(folder)


def _open_regular(name: str, folder: int, flags: int) -> int:
    """Open one file, refused before and after unless it is a regular one."""
    if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        raise _bad_source(name, "is not a regular file")
    descriptor = os.open(name, flags, dir_fd=folder)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise _bad_source(name, "is not a regular file")


def _bad_source(data_source: str, why: str) -> BadParamsError:
    """The error of a data_source that may not or cannot be read."""
    message = f"data_source {data_source!r} {why}"
    return BadParamsError(message, details=[{"field": "data_source", "message": why}])


def _raise(error: OSError) -> None:
    """A folder that cannot be listed is an error, not an empty folder."""
    raise _bad_source(str(error.filename), f"cannot be listed: {error.strerror}") from error

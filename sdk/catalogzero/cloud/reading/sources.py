"""Sources: the files that may be read, and their records in batches.

Owns the rule that nothing outside `data_roots` is opened: a path is resolved, and then opened
component by component without following a link, so that no change in between leads out. Bytes are
hashed as they are read. Named queries are in `queries.py`; what becomes of the records, elsewhere.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import hashlib
import io
import os
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from catalogzero.cloud.reading.ahead import read_ahead
from catalogzero.cloud.reading.items import Item, Reading
from catalogzero.cloud.reading.readers import look, read_records
from catalogzero.cloud.reading.records import (
    BadRecords,
    Found,
    ReadOptions,
    is_data,
    kind_of,
)
from catalogzero.cloud.rows.values import SHOWN_NAMES
from catalogzero.cloud.run_context import SourceItem
from catalogzero.errors import BadParamsError, FailedError, SourceChangedError
from catalogzero.protocol.codings import Bounds, OverBoundsError, UnpackError, unpack
from catalogzero.wire.messages import utf8

if TYPE_CHECKING:
    import pyarrow as pa

_READ_BYTES = 1 << 20
_PACKED_BYTES = 1 << 16
_MAGIC = frozenset("*?[")
_PARQUET = b"PAR1"
_PACKED = {b"\x1f\x8b\x08": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_SUFFIXES = {".gz": "gzip", ".zst": "zstd"}


class Roots:
    """The folders under which a `data_source` may lie."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = {os.path.realpath(root): root.name for root in roots}

    def items(self, data_source: str, options: ReadOptions) -> Files:
        """The files of a path, a folder (with all below it) or a pattern.

        What lies there and may not or cannot be read is an item that fails.

        Raises:
            BadParamsError: Nothing there, not a data file, or outside the data roots.
        """
        if "\0" in data_source or not os.path.isabs(data_source):
            raise bad_source(data_source, "is not an absolute path")
        root, real = self._resolved(data_source)
        if os.path.isdir(data_source):
            return Files(data_source, partial(self._in_folder, root, real, options))
        if _MAGIC & set(data_source) and not os.path.exists(data_source):
            return Files(data_source, partial(self._matching, data_source, options))
        kind_of(data_source)
        return Files(data_source, lambda: iter([self._item(data_source, options)]))

    def item(self, data_source: str, name: str, options: ReadOptions) -> FileItem:
        """The one of the files of `items` that has this name; most are found without a listing.

        Raises:
            BadParamsError: As `items`, or there is none of that name.
        """
        found = self._by_name(data_source, name, options)
        if found is None:
            listed = self.items(data_source, options)
            found = next((one for one in listed if utf8(one.name) == name), None)
        if found is None:
            why = f"has no item {name!r}: it was removed or renamed since it was listed"
            raise bad_source(data_source, why)
        return found

    def _by_name(self, data_source: str, name: str, options: ReadOptions) -> FileItem | None:
        """The file of that name where it lies as a listing would find it, and no link leads to it;
        None where only a listing can say.
        """
        if "\0" in data_source + name or not os.path.isabs(data_source):
            return None
        root, real = self._resolved(data_source)
        if os.path.isdir(data_source):
            relative = os.path.relpath(real, root)
            prefix = self._roots[root] if relative == "." else f"{self._roots[root]}/{relative}"
            below = name.removeprefix(f"{prefix}/")
            is_below = below != name and is_shown(below)
            path = f"{real}/{below}"
        else:
            folder, pattern = os.path.split(data_source)
            below = os.path.basename(name)
            path = f"{folder}/{below}"
            hides = below.startswith(".") and not pattern.startswith(".")
            is_simple = not (_MAGIC & set(folder) or "**" in pattern or hides)
            is_below = is_simple and fnmatch.fnmatchcase(below, pattern)
        if not (is_below and is_data(path) and os.path.isfile(path)):
            return None
        # A folder's listing gives a link by what it leads to, and does not follow one to a folder.
        if os.path.isdir(data_source) and os.path.realpath(path) != path:
            return None
        found = self._item_or_refused(path, options)
        return found if found.name == name else None

    def _in_folder(self, root: str, folder: str, options: ReadOptions) -> Iterator[FileItem | str]:
        """The files below a folder, of others than data the path alone.

        One that only links lead to comes once, by the first.
        """
        linked = set()
        for path, error in files_below(folder):
            if error is not None:
                yield Refused("", "", path, options, error)
            elif not is_data(path):
                yield path
            elif not os.path.islink(path):
                relative = path[len(root) + 1 :]
                yield FileItem(root, relative, f"{self._roots[root]}/{relative}", options)
            else:
                item = self._item_or_refused(path, options)
                real = f"{item.root}/{item.relative}"
                # The listing gives a file below the folder by itself; its link would send it twice.
                inside = real.startswith(f"{folder}/") and is_shown(real[len(folder) + 1 :])
                comes_itself = inside and is_data(real) and os.path.exists(real)
                if item.name not in linked and not comes_itself:
                    linked.add(item.name)
                    yield item

    def _matching(self, pattern: str, options: ReadOptions) -> Iterator[FileItem | str]:
        """The files that a pattern matches, of others than data the path alone; each once."""
        seen = set()
        for path in sorted(glob.iglob(pattern, recursive=True)):
            if os.path.isdir(path):
                continue
            if not is_data(path):
                yield path
                continue
            item = self._item_or_refused(path, options)
            if item.name not in seen:
                seen.add(item.name)
                yield item

    def _resolved(self, path: str) -> tuple[str, str]:
        """The data root that a path lies under, links resolved, and the resolved path."""
        head = path
        while _MAGIC & set(head) and not os.path.exists(head):
            head = os.path.dirname(head)
        real = os.path.realpath(head)
        for root in self._roots:
            if real == root or real.startswith(root.rstrip("/") + "/"):
                return root, real
        why = "lies outside data_roots, or a link in it leads out of them"
        raise bad_source(path, f"{why}: move it below one of them, or add its folder to them")

    def _item_or_refused(self, path: str, options: ReadOptions) -> FileItem:
        """The item of a listed file; one that fails where a link leads out of the roots."""
        try:
            return self._item(path, options)
        except BadParamsError as error:
            return Refused("", "", path, options, error)

    def _item(self, path: str, options: ReadOptions) -> FileItem:
        root, real = self._resolved(path)
        relative = os.path.relpath(real, root)
        return FileItem(root, relative, f"{self._roots[root]}/{relative}", options)


class Files(Collection["FileItem"]):
    """The files that a data_source names, sorted; each pass lists them again, folder by folder.

    Attributes:
        left_out: How many files of a folder or pattern are not read, as their names say; known
            once `len` has counted those that are.
        left_out_names: The first 20 of them.

    Raises:
        BadParamsError: No file matches.
    """

    def __init__(self, data_source: str, listed: Callable[[], Iterator[FileItem | str]]) -> None:
        self._listed = listed
        self.left_out, self.left_out_names = 0, list[str]()
        self._count: int | None = None
        if next(iter(self), None) is None:
            raise bad_source(data_source, "matches no data file")

    def __len__(self) -> int:
        if self._count is None:
            self._count = 0
            for one in self._listed():
                if isinstance(one, FileItem):
                    self._count += 1
                else:
                    self.left_out += 1
                    if self.left_out <= SHOWN_NAMES:
                        self.left_out_names.append(os.path.basename(one))
        return self._count

    def __iter__(self) -> Iterator[FileItem]:
        return (one for one in self._listed() if isinstance(one, FileItem))

    def __contains__(self, item: object) -> bool:
        return any(item == one for one in self)


@dataclass(frozen=True)
class FileItem(Item):
    """A file under a data root."""

    root: str
    relative: str
    name: str
    options: ReadOptions

    def stamp(self) -> list[int]:
        """Size, modification time and inode."""
        try:
            return identity(os.stat(os.path.join(self.root, self.relative), follow_symlinks=False))
        except OSError as error:
            raise bad_source(self.name, f"cannot be read: {error.strerror}") from error

    def is_gone(self) -> bool:
        """Whether no file of that name is there, in a data root that is."""
        # A share that is not mounted looks empty: its files are not gone.
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

    def shown(self, stream: str) -> SourceItem:
        """See `Item.shown`."""
        size, modified_ns, _ = self.stamp()
        modified = datetime.fromtimestamp(modified_ns / 1e9, UTC)
        return SourceItem(self.name, stream, Path(self.root, self.relative), size, modified)

    def open(self, after: Any, bad: BadRecords) -> FileReading:
        """See `Item.open`; a file has no watermark."""
        return FileReading(self, bad)

    def look(self) -> Found:
        """What its first 64 KiB are read as; raises as `FileReading.batches` does."""
        with self.open(None, BadRecords("fail")) as reading:
            return reading.look()


@dataclass(frozen=True)
class Refused(FileItem):
    """What a folder or a pattern holds, and may not or cannot be read: it fails alone."""

    error: BadParamsError

    def stamp(self) -> list[int]:
        """Raises why it is not read."""
        raise self.error

    def open(self, after: Any, bad: BadRecords) -> FileReading:
        """Raises why it is not read."""
        raise self.error


class FileReading(Reading):
    """One pass over a file: its bytes are hashed as they are read."""

    def __init__(self, item: FileItem, bad: BadRecords) -> None:
        super().__init__()
        self._item, self._bad, self._found = item, bad, Found(item.name)

    def __enter__(self) -> Self:
        descriptor = open_beneath(self._item.root, self._item.relative)
        self._raw = HashingFile(descriptor)
        self._stack.callback(self._raw.release)
        self._identity = identity(os.fstat(descriptor))
        return self

    def batches(self) -> Iterator[Any]:
        """See `Reading.batches`; raises `FailedError` that names the file, and the line."""
        options, size = self._item.options, self._identity[0]
        ahead = options.batches_ahead if size > options.block_bytes else 0
        batches = read_ahead(self._batches(), ahead, self._stack)
        return chain.from_iterable(map(self._cut, batches)) if options.arrow else batches

    def _cut(self, table: pa.Table) -> Iterator[pa.Table]:
        """The batches of a table, which may be a whole block of text."""
        rows = self._item.options.batch_rows
        return (table.slice(start, rows) for start in range(0, table.num_rows, rows))

    def _batches(self) -> Iterator[Any]:
        with self._whole():
            content, found = self._opened(), self._found
            for batch in read_records(content, found, self._item.options, self._bad):
                found.rows += len(batch)
                yield batch

    def look(self) -> Found:
        """See `FileItem.look`."""
        with self._whole():
            look(self._opened(), self._found, self._item.options)
        return self._found

    def found(self) -> Sequence[Found]:
        """See `Reading.found`."""
        return [self._found] if self._found.kind else []

    def _opened(self) -> io.BufferedIOBase:
        """The content, as its first bytes say what it is, else its name."""
        name, (start, end) = self._item.relative.lower(), self._raw.ends()
        self._found.kind = kind_of(name)
        coding = _SUFFIXES.get(os.path.splitext(name)[1])
        # Both ends: a text may begin with these letters, too.
        if start == end == _PARQUET:
            self._found.kind, coding = "parquet", None
        elif coding:
            if not start:
                raise EOFError("it has not one byte")
            coding = next((of for magic, of in _PACKED.items() if start.startswith(magic)), coding)
        bounds = self._item.options.packed_bounds
        raw = UnpackedFile(self._raw, coding, bounds) if coding else self._raw
        return io.BufferedReader(raw, _READ_BYTES)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Name the file where what packs it is at fault."""
        try:
            yield
        except OverBoundsError as error:
            raise FailedError(
                f"{self._item.name} is over a bound of packed files: {error}; if it is as it "
                "should be, unpack it before it is read"
            ) from error
        except (EOFError, UnpackError) as error:
            self.check()
            raise FailedError(f"{self._item.name} is damaged or cut short: {error}") from error

    def content(self) -> str:
        """See `Reading.content`: of the file's own bytes, packed as they are."""
        return self._raw.digest()

    def bytes_read(self) -> int:
        """See `Reading.bytes_read`."""
        return self._raw.count

    def check(self) -> None:
        """See `Reading.check`."""
        try:
            same = self._identity == self._item.stamp()
        except BadParamsError:  # renamed, or taken away
            same = False
        if not same:
            raise SourceChangedError(f"{self._item.name} changed while it was read")


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

    def ends(self) -> tuple[bytes, bytes]:
        """The first four bytes and the last four; nothing is hashed, and none is passed over."""
        number = self._file.fileno()
        size = os.fstat(number).st_size
        return os.pread(number, 4, 0), os.pread(number, 4, max(size - 4, 0))

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


class UnpackedFile(io.RawIOBase):
    """The content of a packed file, unpacked as it is read."""

    def __init__(self, packed: io.RawIOBase, coding: str, bounds: Bounds) -> None:
        parts = iter(lambda: packed.read(_PACKED_BYTES) or b"", b"")
        self._pieces, self._left = unpack(parts, coding, bounds), memoryview(b"")

    def readable(self) -> bool:
        """It can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Give what is left of a piece, or of the next one; nothing at the file's end."""
        self._left = self._left or memoryview(next(self._pieces, b""))
        some = self._left[: len(buffer)]
        buffer[: len(some)] = some
        self._left = self._left[len(some) :]
        return len(some)


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
        raise bad_source(relative, "leads out of its data root")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    folder = -1
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in parts[:-1]:
            below = os.open(part, flags | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = below
        # Looked at before, too: opening a device may do something.
        if not stat.S_ISREG(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode):
            raise bad_source(parts[-1], "is not a regular file")
        # A FIFO or a terminal that takes its place in between must not block, nor become ours.
        flags |= os.O_NONBLOCK | os.O_NOCTTY
        descriptor = os.open(parts[-1], flags, dir_fd=folder)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise bad_source(parts[-1], "is not a regular file")
        return descriptor
    except OSError as error:
        why = "a link" if error.errno in {errno.ELOOP, errno.ENOTDIR} else error.strerror
        fix = "; let this handler's user read it" if isinstance(error, PermissionError) else ""
        raise bad_source(relative, f"cannot be opened: {why}{fix}") from error
    finally:
        if folder >= 0:
            os.close(folder)


def bad_source(data_source: str, why: str) -> BadParamsError:
    """The error of a data_source that may not or cannot be read."""
    message = f"data_source {data_source!r} {why}"
    return BadParamsError(message, details=[{"field": "data_source", "message": why}])


def files_below(folder: str) -> Iterator[tuple[str, BadParamsError | None]]:
    """The files below a folder, in the order of their paths; the names of one folder are held.

    A folder that cannot be listed comes in their place, with its error.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                f"{entry.name}/" if entry.is_dir() else entry.name
                for entry in entries
                if not (entry.is_dir() and entry.is_symlink())
            )
    except OSError as error:
        yield folder, bad_source(folder, f"cannot be listed: {error.strerror}")
        return
    for name in names:
        if name.endswith("/") and not name.startswith("."):
            yield from files_below(f"{folder}/{name[:-1]}")
        elif not name.endswith("/") and is_shown(name):
            yield f"{folder}/{name}", None


def is_shown(path: str) -> bool:
    """Whether it is neither hidden, nor in a hidden folder, nor unfinished."""
    parts = path.split("/")
    return not (parts[-1].startswith(("_", "~")) or any(part.startswith(".") for part in parts))

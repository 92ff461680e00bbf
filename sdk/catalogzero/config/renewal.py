"""Files that are renewed on the disk while a process runs: keys, tokens, certificates.

Their content is taken with the next use; nothing is watched in between.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from catalogzero.errors import ConfigError

T = TypeVar("T")
FileStamp = tuple[int, int, int]


def file_stamp(path: Path) -> FileStamp:
    """What changes with the content of a file: its time, size and inode.

    Raises:
        OSError: It cannot be looked at.
    """
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size, found.st_ino


def file_stamps(paths: Sequence[Path | None]) -> tuple[FileStamp | None, ...]:
    """The stamps of files; None for one that is not named, or cannot be looked at."""
    stamps: list[FileStamp | None] = []
    for path in paths:
        try:
            stamps.append(None if path is None else file_stamp(path))
        except OSError:
            stamps.append(None)
    return tuple(stamps)


class Renewed(Generic[T]):
    """What files hold, read again once they have changed; call it for what they hold now.

    Files that are missing or half written meanwhile change nothing: what was read before serves.

    Args:
        read: Reads them.
        paths: The files that it reads.

    Raises:
        ConfigError: They cannot be read the first time.
    """

    def __init__(self, read: Callable[[], T], *paths: Path) -> None:
        self._read, self._paths = read, paths
        self._stamps = file_stamps(paths)
        self._value = read()

    def __call__(self) -> T:
        found = file_stamps(self._paths)
        if found != self._stamps:
            with suppress(ConfigError, OSError, ValueError):
                self._value, self._stamps = self._read(), found
        return self._value


def current(value: T | Callable[[], T]) -> T:
    """A value, or what one that is renewed is now."""
    return value() if callable(value) else value

"""A handler's state folder: one process at a time owns it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from catalogzero.errors import ConfigError

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[str]) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: IO[str]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a state folder; the system lets go of it when this process ends, however it ends.

    Raises:
        ConfigError: It cannot be written, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (folder / "lock").open("w")
    except OSError as error:
        told = f"state folder {folder} cannot be written ({error.strerror}): set `state_dir`"
        raise ConfigError(told) from None
    with file:
        try:
            _lock(file)
        except OSError:
            raise ConfigError(
                f"state folder {folder} is in use: another handler of this handler_id runs"
            ) from None
        yield

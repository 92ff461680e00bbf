"""Files that hold a secret: who else on this machine may write or read them."""

from __future__ import annotations

import logging
import os
import stat
import sys
from pathlib import Path

from catalogzero.errors import ConfigError


def read_key(path: Path, *, warn: bool = False) -> str:
    """The text of a file that holds a secret.

    Args:
        path: The file.
        warn: Log a warning where others may read it; a handler's own are warned of by its service.

    Raises:
        ConfigError: Others may write it.
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
    """
    refuse_writable(path)
    if warn and read_by_others(path):
        logging.getLogger(__name__).warning("others may read %s: chmod 600 it", path)
    return path.read_text("utf-8")


def refuse_writable(path: Path) -> None:
    """Refuse a file that others may write: they would choose the secret, or where it goes.

    A group counts where it is not this process's own. A file that is missing is its reader's fault.

    Raises:
        ConfigError: With the fix.
    """
    mode, group = _mode_of(path)
    others = stat.S_IWOTH | (0 if group == os.getegid() else stat.S_IWGRP)
    if mode & others:
        raise ConfigError(f"{path} holds a secret, and others may write it: chmod go-w {path}")


def read_by_others(path: Path) -> bool:
    """Whether every user of this machine may read a file; containers mount secrets so (0444)."""
    return bool(_mode_of(path)[0] & stat.S_IROTH)


def _mode_of(path: Path) -> tuple[int, int]:
    """Mode and group; none where there is no file, and on Windows, which has other rights."""
    if sys.platform == "win32":
        return 0, 0
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mode, found.st_gid

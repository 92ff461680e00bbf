"""Files that hold a secret: who else on this machine may write or read them."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

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


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A file of this user alone that takes the place of `path`, unless the `with` block fails.

    A key that is made in the block cannot be lost for want of a place: that is refused before.

    Raises:
        ConfigError: It cannot be made there.
        OSError: It was made, and cannot be written to its end.
    """
    # Written beside it: who has an old file at that place open never reads the key.
    part = path.with_name(f"{path.name}.part")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        part.unlink(missing_ok=True)
        part.touch(mode=0o600, exist_ok=False)
    except OSError as error:
        raise ConfigError(f"cannot write the key to {path}: {error.strerror}") from None
    try:
        with part.open("w", encoding="utf-8") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def credential_name(path: Path) -> str:
    """The name under which a unit is handed a file: unlike paths have unlike names."""
    end = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9._]', '-', path.name)[:100]}-{end}"


def handed_over(value: Any, name: str = "") -> Any:
    """A section's settings, with each `*_file` that systemd handed over where it lies now.

    The unit reads these files as root, and the handler as nobody of note: the file that its
    settings name is the one to read outside of the unit.
    """
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return value
    if isinstance(value, dict):
        return {key: handed_over(one, str(key)) for key, one in value.items()}
    if isinstance(value, str) and name.endswith("_file"):
        credential = Path(folder, credential_name(Path(value).absolute()))
        return str(credential) if credential.exists() else value
    return value


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
    """Whether other users may read a file: every one, or a group that is not this process's own.

    Containers mount secrets so (0444): it is warned of, not refused.
    """
    mode, group = _mode_of(path)
    return bool(mode & (stat.S_IROTH | (0 if group == os.getegid() else stat.S_IRGRP)))


def _mode_of(path: Path) -> tuple[int, int]:
    """Mode and group; none where there is no file, and on Windows, which has other rights."""
    if sys.platform == "win32":
        return 0, 0
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mode, found.st_gid

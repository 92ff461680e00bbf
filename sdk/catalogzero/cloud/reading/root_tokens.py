"""Root tokens: a file in each data root that says which disk it is.

Two hosts may have a folder of the same path, each on a disk of its own; and one disk under two
paths. A file's name says neither, a token in the root does. It is no secret, and every host's user
must be able to read it. Owns the file; what all instances see is compared elsewhere.
"""

from __future__ import annotations

import os
import re
import stat
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote

from catalogzero.errors import BadParamsError, ConfigError

ROOT_FILE = ".catalogzero-root"
_MAX_BYTES = 200
_TOKEN = re.compile(r"[A-Za-z0-9-]{8,100}")
_RANDOM = "/proc/sys/kernel/random/uuid"


def read_token(root: Path) -> str | None:
    """The token of a data root; None where it has none.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    path = root / ROOT_FILE
    try:
        # No link is followed, and a FIFO of that name holds up nobody.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        fix = "let every host's user read it (`chmod 644`), and let it be no link"
        raise ConfigError(f"{root}: {path} cannot be read: {error.strerror}: {fix}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigError(f"{root}: {path} is no file: take it away, and start again")
        text = os.read(descriptor, _MAX_BYTES).decode("ascii", "replace")
    except OSError as error:
        raise ConfigError(f"{root}: {path} cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if not _TOKEN.fullmatch(text.strip()):
        raise ConfigError(f"{root}: {path} holds no token: write one, with {by_hand(root)}")
    return text.strip()


def make_token(root: Path) -> str:
    """The token of a data root, made where there is none; of two hosts that make it one wins.

    Raises:
        ConfigError: It cannot be made here, with the command that does it elsewhere.
    """
    path, part = root / ROOT_FILE, root / f"{ROOT_FILE}.{uuid.uuid4()}"
    made = str(uuid.uuid4())
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(descriptor, 0o644)  # whatever the umask
            os.write(descriptor, f"{made}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        # A link is there whole or not at all, and takes nobody's place; a rename would.
        with suppress(FileExistsError):
            os.link(part, path)
        _sync(root)
    except OSError as error:
        raise ConfigError(
            f"{root}: {path} cannot be made: {error.strerror}: make it by hand, on a host that "
            f"may write there: {by_hand(root)}"
        ) from error
    finally:
        with suppress(OSError):
            part.unlink()
    found = read_token(root)
    if found is None:
        raise ConfigError(f"{root}: {path} was taken away as it was made: start again")
    return found


def _sync(folder: Path) -> None:
    """Have a folder's names on the disk, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def may_make_token(root: Path) -> bool:
    """Whether this user may make a token there; nothing is made."""
    return os.access(root, os.W_OK | os.X_OK)


def by_hand(root: Path) -> str:
    """The command that makes a token."""
    path = quote(str(root / ROOT_FILE))
    return f"`cat {_RANDOM} > {path} && chmod 644 {path}`"


def root_of(path: str, tokens: Mapping[Path, str]) -> str | None:
    """The token of the data root that a file lies in.

    Args:
        path: The file's, links resolved (as `FileItem.root` is).
        tokens: The token of each data root.

    Returns:
        That of the innermost root; None where it lies in none of them.
    """
    inside = [
        (len(real), token)
        for root, token in tokens.items()
        if path == (real := os.path.realpath(root)) or path.startswith(f"{real.rstrip('/')}/")
    ]
    return max(inside)[1] if inside else None


def root_with(token: str, roots: Sequence[Path], source: str) -> Path:
    """The data root of this host that has a token now: it may have been unmounted meanwhile.

    Raises:
        BadParamsError: No root has it: the item is one of another disk.
    """
    for root in roots:
        with suppress(ConfigError):
            if read_token(root) == token:
                return root
    message = (
        f"{source} lies on a disk that is not mounted here: none of the data_roots "
        f"({', '.join(map(str, roots))}) has the token {token} in its {ROOT_FILE}: mount it, and "
        "call again"
    )
    raise BadParamsError(message, details=[{"field": "item.root", "message": message}])

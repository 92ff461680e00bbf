"""State on the disk: private from its first byte, and of one process at a time.

Nothing is narrowed afterwards: what another user opened once stays open to them.
"""

from __future__ import annotations

import os
import shlex
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


def keep_private() -> None:
    """Whatever this process makes from now on is its user's alone: umask 077."""
    os.umask(0o077)


def make_private(folder: Path) -> None:
    """Make a folder where it is missing, and those above it, each of mode 0700."""
    for one in reversed([folder, *folder.parents]):
        if not one.exists():
            one.mkdir(mode=0o700, exist_ok=True)


def create_private(path: Path) -> None:
    """Make a file where it is missing, empty and of mode 0600, in a folder of mode 0700."""
    make_private(path.parent)
    if not path.exists():
        path.touch(mode=0o600)


def owner_hint(path: Path) -> str:
    """What to do where this user may not use a path: whose it is, and how to ask as that user."""
    place = _nearest(path)
    if place.stat().st_uid == os.geteuid():
        return f"{place} is yours: give it its modes, with `chmod u+rwX {shlex.quote(str(place))}`"
    owner = owner_of(path)
    return f"{place} belongs to {owner}: run this as that user, with `sudo -u {owner} …`"


def owner_of(path: Path) -> str:
    """Whose a path is, or the nearest above it that can be looked at; as `sudo -u` takes it."""
    return _user_name(_nearest(path).stat().st_uid)


def _nearest(path: Path) -> Path:
    """The path, or the first above it that can be looked at."""
    for place in (path, *path.absolute().parents):
        try:
            place.stat()
        except OSError:
            continue
        return place
    return Path("/")


def _user_name(uid: int) -> str:
    """The name of a user; its number where it has no name at present."""
    try:
        import pwd  # not on Windows

        return pwd.getpwuid(uid).pw_name
    except (ImportError, KeyError):
        return f"'#{uid}'"


def open_to_others(path: Path) -> bool:
    """Whether other users of this machine can read a file, or list a folder.

    A group counts where it is not this process's own, as with key files.
    """
    if sys.platform == "win32":
        return False
    path = path.absolute()
    try:
        found, above = path.stat(), [folder.stat() for folder in path.parents]
    except OSError:
        # Gone meanwhile, as a database's -wal goes with its last user.
        return False
    group = found.st_gid if found.st_mode & 0o040 and found.st_gid != os.getegid() else None
    by_all = found.st_mode & 0o004 and all(one.st_mode & 0o001 for one in above)
    by_group = group is not None and all(
        one.st_mode & (0o010 if one.st_gid == group else 0o001) for one in above
    )
    return bool(by_all or by_group)


def read_by_others(folder: Path) -> list[Path]:
    """What of a state folder other users of this machine can read: of an older release, say."""
    return [path for path in (folder, *folder.rglob("*")) if open_to_others(path)]


def holder_of(folder: Path) -> int | None:
    """The process that holds a state folder; None where none does, or that cannot be known.

    Looks at the kernel's list: to try the lock would keep a handler from it that starts meanwhile.
    """
    try:
        found = (folder / "lock").stat()
        place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
        for line in Path("/proc/locks").read_text("ascii").splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5] == place:
                return int(words[4])
    except (OSError, IndexError, ValueError):
        return None
    return None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a state folder; the system lets go of it when this process ends, however it ends.

    Raises:
        ConfigError: It cannot be written, or another process holds it.
    """
    try:
        create_private(folder / "lock")
        file = (folder / "lock").open("w")
    except OSError as error:
        fix = owner_hint(folder) if isinstance(error, PermissionError) else "make room or repair it"
        text = f"state folder {folder} cannot be written ({error.strerror}): {fix}"
        raise ConfigError(f"{text}; or set `state_dir`") from None
    with file:
        # Of the open file, not of a pid in it: nothing stale is left by a kill.
        try:
            _lock(file)
        except OSError:
            raise ConfigError(
                f"state folder {folder} is in use: another handler of this handler_id runs"
            ) from None
        yield

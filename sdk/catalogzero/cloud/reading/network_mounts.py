"""Which files lie on a network file system, and how old they must be there.

Another host's clock sets their times, and what is known of them here is as old as a cache of
attributes: a file may still be written to that looks two seconds old. With instances on several
hosts it is read only once it has rested for a minute, unless the operator says otherwise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from catalogzero.config.settings import RuntimeSettings

NETWORK_MIN_AGE_S = 60.0
"""Above the 60 s for which NFS may hold a file's attributes (`acregmax`), with clocks in step."""
NETWORK_TYPES = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "davfs"),
        *("ceph", "glusterfs", "lustre", "gpfs", "beegfs", "orangefs", "pvfs2", "panfs"),
        *("ocfs2", "gfs2", "9p", "virtiofs", "vboxsf"),
        *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.s3fs"),
        *("fuse.mount-s3", "fuse.mountpoint-s3", "fuse.goofys", "fuse.gcsfuse", "fuse.blobfuse"),
        *("fuse.blobfuse2", "fuse.rclone", "fuse.juicefs", "fuse.seaweedfs", "fuse.mfs"),
        *("fuse.moosefs", "fuse.lizardfs", "fuse.quobyte", "fuse.curlftpfs", "fuse.smbnetfs"),
    }
)
"""Types in /proc/self/mountinfo of file systems that several hosts write to."""
_MOUNTINFO = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")


def type_at(path: str, mountinfo: str) -> str | None:
    """The type of the file system that a path lies on.

    Args:
        path: Absolute, links resolved.
        mountinfo: The text of /proc/self/mountinfo.

    Returns:
        As the kernel names it; None where the text has no mount of it.
    """
    longest, found = -1, None
    for line in mountinfo.splitlines():
        mount, _, source = line.partition(" - ")
        fields = mount.split(" ")
        if len(fields) < 6 or not source:
            continue
        point = _ESCAPED.sub(lambda code: chr(int(code[1], 8)), fields[4])
        is_above = path == point or path.startswith(f"{point.rstrip('/')}/")
        # Of two at one place the later hides the earlier, as over an automount.
        if is_above and len(point) >= longest:
            longest, found = len(point), source.split(" ")[0]
    return found


def network_type(path: str, mountinfo: str | None = None) -> str | None:
    """The type of a path's file system where that is a network's; None elsewhere, or unknown.

    Args:
        path: Absolute, links resolved.
        mountinfo: By default this process's; a system without one knows no types.
    """
    if mountinfo is None:
        try:
            mountinfo = _MOUNTINFO.read_text("utf-8", "surrogateescape")
        except OSError:
            return None
    found = type_at(path, mountinfo)
    return found if found in NETWORK_TYPES else None


def min_file_age_s(
    runtime: RuntimeSettings, paths: Iterable[str], mountinfo: str | None = None
) -> float:
    """How old files must be before they are read.

    Args:
        runtime: Its `min_file_age_s` holds wherever somebody set it, and without a shared store.
        paths: The files', links resolved.
        mountinfo: See `network_type`.
    """
    given_s = runtime.min_file_age_s
    if runtime.state is None or is_set(runtime):
        return given_s
    on_network = any(network_type(path, mountinfo) for path in paths)
    return max(given_s, NETWORK_MIN_AGE_S) if on_network else given_s


def young_roots(
    runtime: RuntimeSettings, roots: Sequence[Path], mountinfo: str | None = None
) -> list[tuple[Path, str]]:
    """The data roots on a network whose files somebody lets be younger, each with its type."""
    is_lower = is_set(runtime) and runtime.min_file_age_s < NETWORK_MIN_AGE_S
    if runtime.state is None or not is_lower:
        return []
    typed = ((root, network_type(os.path.realpath(root), mountinfo)) for root in roots)
    return [(root, found) for root, found in typed if found is not None]


def is_set(runtime: RuntimeSettings) -> bool:
    """Whether somebody set `min_file_age_s`, in the file, the environment or a flag."""
    return "min_file_age_s" in runtime.model_fields_set

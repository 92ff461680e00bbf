"""Data roots on a network: which they are, and how old files must be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from catalogzero.cloud.reading.network_mounts import (
    NETWORK_TYPES,
    min_file_age_s,
    network_type,
    type_at,
    young_roots,
)
from catalogzero.config.settings import RuntimeSettings

MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:26 / /proc rw,nosuid - proc proc rw
41 22 0:40 / /srv rw,relatime shared:5 master:2 - nfs4 nas:/srv rw,vers=4.2
42 41 8:17 / /srv/local rw - xfs /dev/sdb1 rw
43 22 0:50 / /mnt/our\040files rw - cifs //nas/our\040files rw
44 22 0:60 / /auto rw - autofs systemd-1 rw
45 44 0:61 / /auto rw - nfs nas:/auto rw
46 22 0:70 / /ssh rw - fuse.sshfs me@there: rw
47 22 0:71 /a\134b /back\134slash rw - lustre x@tcp:/fs rw
not a mount
"""
SHM = "/dev/shm"  # noqa: S108  # a tmpfs on every Linux
SHARED: dict[str, Any] = {"state": "postgresql://127.0.0.1:1/none"}


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/", "ext4"),
        ("/opt/a.csv", "ext4"),
        ("/srv", "nfs4"),
        ("/srv/exports/a.csv", "nfs4"),
        ("/srvs/a.csv", "ext4"),
        ("/srv/local/a.csv", "xfs"),
        ("/mnt/our files/a.csv", "cifs"),
        ("/auto/a.csv", "nfs"),
        ("/ssh/a.csv", "fuse.sshfs"),
        ("/back\\slash/a.csv", "lustre"),
    ],
)
def test_a_path_lies_on_the_innermost_mount_and_of_two_at_one_place_the_later(
    path: str, wanted: str
) -> None:
    assert type_at(path, MOUNTS) == wanted
    assert network_type(path, MOUNTS) == (wanted if wanted in NETWORK_TYPES else None)


def test_a_text_without_mounts_knows_none() -> None:
    assert type_at("/srv", "") is None


def test_of_this_machine_proc_is_proc_and_a_tmpfs_is_no_network() -> None:
    mounts = Path("/proc/self/mountinfo").read_text()

    assert type_at("/proc/self", mounts) == "proc"
    assert type_at(SHM, mounts) == "tmpfs"
    assert network_type(SHM) is None
    assert min_file_age_s(RuntimeSettings(**SHARED), [f"{SHM}/a.csv"]) == 2.0


def test_with_instances_a_file_on_a_network_rests_for_a_minute() -> None:
    shared, files = RuntimeSettings(**SHARED), ["/opt/a.csv", "/srv/a.csv"]

    assert min_file_age_s(shared, files, MOUNTS) == 60.0
    assert min_file_age_s(shared, files[:1], MOUNTS) == 2.0
    assert min_file_age_s(shared, [], MOUNTS) == 2.0


def test_what_the_operator_set_counts_and_so_does_a_handler_that_is_alone() -> None:
    files = ["/srv/a.csv"]
    for set_s in (0.0, 2.0, 90.0):
        runtime = RuntimeSettings(**SHARED, min_file_age_s=set_s)
        assert min_file_age_s(runtime, files, MOUNTS) == set_s
    given = {**SHARED, "settle_s": 5}
    former = RuntimeSettings(**given)

    assert min_file_age_s(former, files, MOUNTS) == 5.0
    assert min_file_age_s(RuntimeSettings(), files, MOUNTS) == 2.0


def test_a_lower_age_that_was_set_is_named_with_the_root_and_its_type() -> None:
    roots = [Path("/srv"), Path("/opt")]
    low = RuntimeSettings(**SHARED, min_file_age_s=5)
    enough = RuntimeSettings(**SHARED, min_file_age_s=60)

    assert young_roots(low, roots, MOUNTS) == [(Path("/srv"), "nfs4")]
    assert young_roots(enough, roots, MOUNTS) == []
    assert young_roots(RuntimeSettings(**SHARED), roots, MOUNTS) == []
    assert young_roots(RuntimeSettings(min_file_age_s=5), roots, MOUNTS) == []

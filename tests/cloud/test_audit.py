"""The audit log over several files: its chain is one, whatever is rotated, deleted or killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pytest
from catalogzero.clock import SystemClock
from catalogzero.cloud.audit import KEPT_FILES, MAX_BYTES, AuditLog, verify_audit

WRITES = """
import sys
from pathlib import Path
from catalogzero.clock import SystemClock
from catalogzero.cloud.audit import AuditLog
log = AuditLog(Path(sys.argv[1]), SystemClock(), max_bytes=1, kept_files=10_000)
while True:
    number = log.begin(bytes=1, records=1)
    log.settle(number, status=200)
    print(number, flush=True)
"""


def pushed(
    folder: Path, count: int, max_bytes: int = MAX_BYTES, kept_files: int = KEPT_FILES
) -> str:
    """Log as many pushes; the head."""
    log = AuditLog(folder, SystemClock(), max_bytes=max_bytes, kept_files=kept_files)
    for number in range(count):
        log.settle(log.begin(bytes=number, records=1), status=200)
    log.close()
    return log.head


@pytest.mark.parametrize("max_bytes", [MAX_BYTES, 1])
def test_entries_that_come_together_share_a_sync_and_each_is_synced_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_bytes: int
) -> None:
    log = AuditLog(tmp_path, SystemClock(), max_bytes=max_bytes)
    first_syncs, goes_on, on_disk = threading.Event(), threading.Event(), list[int]()

    def entries() -> int:
        return verify_audit(tmp_path).pushes

    def sync(descriptor: int) -> None:
        found = os.pread(descriptor, 1 << 16, 0).count(b'"push"')
        if not first_syncs.is_set():
            first_syncs.set()
            assert goes_on.wait(30)
        on_disk.append(found)

    monkeypatch.setattr("os.fdatasync", sync)
    with ThreadPoolExecutor(6) as threads:
        pushes = [threads.submit(log.begin, bytes=1)]
        assert first_syncs.wait(30)
        pushes += [threads.submit(log.begin, bytes=1) for _ in range(5)]
        while entries() < 6:
            threading.Event().wait(0.001)
        assert not any(push.done() for push in pushes)
        goes_on.set()
        assert sorted(push.result() for push in pushes) == [1, 2, 3, 4, 5, 6]
    log.close()

    assert on_disk[0] == 1
    assert on_disk[1] == 6  # before a file with entries that wait is given up, too
    assert len(on_disk) <= (2 if max_bytes > 1 else 4)


def test_the_chain_goes_on_over_files_and_restarts(tmp_path: Path) -> None:
    for _ in range(3):
        head = pushed(tmp_path, 20, max_bytes=1_024)

    report = verify_audit(tmp_path)

    assert report.files > 5
    assert (report.deleted_files, report.broken_at, report.unsettled) == (0, None, [])
    assert (report.pushes, report.records, report.head) == (60, 60, head)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_the_oldest_files_are_deleted_and_the_report_says_how_many(tmp_path: Path) -> None:
    head = pushed(tmp_path, 60, max_bytes=1_024, kept_files=3)

    report = verify_audit(tmp_path)

    assert report.files == 4
    assert report.deleted_files > 3
    assert (report.broken_at, report.head) == (None, head)
    assert 0 < report.pushes < 60


@pytest.mark.parametrize("how", ["change", "remove"])
def test_a_rotated_file_that_was_changed_or_taken_out_is_named(tmp_path: Path, how: str) -> None:
    pushed(tmp_path, 20, max_bytes=1_024)
    rotated = tmp_path / "audit.000002.jsonl"
    if how == "change":
        rotated.write_bytes(rotated.read_bytes().replace(b'"records":1', b'"records":7', 1))
    else:
        rotated.unlink()

    report = verify_audit(tmp_path)

    where = ("audit.000002.jsonl", 3) if how == "change" else ("audit.000003.jsonl", 1)
    assert (report.broken_in, report.broken_at) == where


def test_a_kill_between_the_two_steps_of_a_rotation_loses_nothing(tmp_path: Path) -> None:
    pushed(tmp_path, 5)
    (tmp_path / "audit.jsonl").rename(tmp_path / "audit.000001.jsonl")
    head = pushed(tmp_path, 5)

    report = verify_audit(tmp_path)

    assert (report.broken_at, report.pushes, report.head) == (None, 10, head)
    first = orjson.loads((tmp_path / "audit.jsonl").read_bytes().splitlines()[0])
    assert first["n"] == 6


def test_whoever_is_killed_while_every_push_rotates_loses_no_push_that_left(
    tmp_path: Path,
) -> None:
    printed = 0
    for count in (1, 3, 7, 20, 55):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITES, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        with child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(count)]
            child.kill()
            lines += child.stdout.readlines()
        printed = max([printed, *(int(line) for line in lines if line.endswith("\n"))])

        report = verify_audit(tmp_path)
        assert report.broken_at is None
        assert report.pushes >= printed


def test_a_log_is_verified_while_it_is_rotated(tmp_path: Path) -> None:
    writer = threading.Thread(target=pushed, args=(tmp_path, 400), kwargs={"max_bytes": 4_096})
    writer.start()
    while writer.is_alive():
        assert verify_audit(tmp_path).broken_at is None
    writer.join()

    assert verify_audit(tmp_path).pushes == 400

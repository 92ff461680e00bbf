"""A disk without room: runs fail with a clear error, and it recovers by itself."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from catalogzero.clock import SystemClock
from catalogzero.cloud.audit import AuditLog, verify_audit
from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox.outbox import Opening, Outbox, Sealing
from catalogzero.cloud.outbox.outbox_file import is_disk_full
from catalogzero.errors import FailedError
from catalogzero.testing import serving

from tests.cloud.processors import Plain
from tests.cloud.reference import ReferenceBackend

SIZE = 12 << 20
BODY = os.urandom(1 << 18)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(outbox: Outbox, upload_id: str) -> int:
    """Chunks until the disk is full; how many there are."""
    outbox.begin(Opening(upload_id, "key", "exports/a.csv", "replace", full=False, params={}))
    for seq in range(1_000):
        try:
            outbox.add(upload_id, Chunk(seq, 1, BODY, "identity", "application/x-ndjson"))
        except sqlite3.OperationalError as error:
            if is_disk_full(error):
                return seq
            raise
    raise AssertionError("the disk is not small")


def test_a_full_disk_stops_a_run_and_lets_what_is_sealed_end(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(SIZE // 2))
    outbox = Outbox(small_disk, SystemClock())
    outbox.begin(Opening("sealed", "other", "exports/b.csv", "replace", full=False, params={}))
    outbox.add("sealed", Chunk(0, 1, BODY, "identity", "application/x-ndjson"))
    outbox.seal(Sealing(upload_id="sealed", upload_key="content", stamp=[1]))

    assert fill(outbox, "torn") > 3
    outbox.acknowledge("sealed", 0, len(BODY))
    assert outbox.completing("sealed") is not None
    outbox.done("sealed", "job-1")
    assert outbox.store.upload("sealed").state == "done"
    assert not (small_disk / "outbox.reserve").exists()
    ballast.unlink()
    outbox.abandon("torn")
    outbox.store.tidy()
    outbox.begin(Opening("next", "key", "exports/a.csv", "replace", full=False, params={}))
    outbox.add("next", Chunk(0, 1, BODY, "identity", "application/x-ndjson"))
    assert outbox.seal(Sealing(upload_id="next", upload_key="content"))[0] > 0
    assert (small_disk / "outbox.reserve").exists()
    outbox.close()


def test_a_push_is_logged_in_the_reserve_s_room_when_the_disk_is_full(small_disk: Path) -> None:
    outbox = Outbox(small_disk, SystemClock())
    log = AuditLog(small_disk, SystemClock(), outbox.store.drop_reserve)
    with (small_disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
        for _ in range(SIZE):
            ballast.write(bytes(4_096))

    first = log.begin(request="chunk", url="http://127.0.0.1/v1")

    assert not (small_disk / "outbox.reserve").exists()
    log.settle(first, status=201)
    assert verify_audit(log.path.parent).broken_at is None
    log.close()
    outbox.close()


def test_an_outbox_at_its_limit_refuses_runs_before_they_read(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, SystemClock(), max_bytes=len(BODY))
    outbox.refuse_when_full()
    outbox.begin(Opening("one", "key", "exports/a.csv", "replace", full=False, params={}))
    outbox.add("one", Chunk(0, 1, BODY, "identity", "application/x-ndjson"))

    with pytest.raises(FailedError, match="outbox_max_bytes"):
        outbox.refuse_when_full()
    outbox.close()


async def test_a_run_that_fills_the_disk_says_where_and_goes_on_when_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    data = tmp_path / "exports"
    data.mkdir()
    (ballast := small_disk / "ballast").write_bytes(bytes(SIZE // 2))
    noise = (os.urandom(600).hex() for _ in range(15_000))
    (data / "big.csv").write_text("noise\n" + "\n".join(noise))
    (data / "small.csv").write_text("a\n1\n")
    async with ReferenceBackend("k") as backend:
        settings: dict[str, Any] = {"endpoint": backend.url, "api_key": "k", "data_roots": [data]}
        async with serving(Plain(**settings), state_dir=small_disk, min_file_age_s=0) as at:
            with pytest.raises(FailedError, match=r"the disk is full at .*: make room"):
                await at.client.call("process_and_upload", {"data_source": str(data / "big.csv")})
            ballast.unlink()
            done = await at.client.call(
                "process_and_upload", {"data_source": str(data / "small.csv")}
            )

    assert (done["status"], done["records"]) == ("uploaded", 1)

"""A long queue costs each of its uploads no more than a short one, in steps of the database."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox.outbox import Opening, Outbox, Sealing
from catalogzero.testing import ManualClock

from tests.cloud.stores import file_of

SENT = 20
STEPS_A_CALL = 10


def queue(outbox: Outbox, count: int) -> None:
    """Sealed uploads, each of a source of its own."""
    outbox.store.execute("PRAGMA synchronous=OFF")
    for number in range(count):
        upload = f"u{number:06}"
        outbox.begin(
            Opening(upload, f"key-{number}", f"{number}.csv", "replace", full=False, params={})
        )
        outbox.add(upload, Chunk(0, 1, b"{}\n", "identity", "application/x-ndjson"))
        outbox.seal(Sealing(upload_id=upload, upload_key=f"content-{number}"))


def steps_of_sending(outbox: Outbox) -> int:
    """What the database does while some uploads are sent, as the sender asks it."""
    counted = 0

    def count() -> None:
        nonlocal counted
        counted += STEPS_A_CALL

    outbox.store.totals()
    file_of(outbox).set_progress_handler(count, STEPS_A_CALL)
    for _ in range(SENT):
        upload = outbox.store.open_uploads()[0]
        outbox.store.unsent(upload.upload_id, 4)
        outbox.acknowledge(upload.upload_id, 0, 10)
        assert outbox.store.may_complete(upload)
        outbox.completing(upload.upload_id)
        outbox.done(upload.upload_id, "job", 10)
        outbox.store.summary([upload.upload_id], 20)
        outbox.store.is_open(upload.upload_id)
        outbox.store.totals()
    file_of(outbox).set_progress_handler(None, 0)
    return counted


@pytest.mark.parametrize("ended", [0, 800])
def test_a_long_queue_costs_each_of_its_uploads_what_a_short_one_does(
    tmp_path: Path, ended: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalogzero.cloud.outbox.store.LONG_QUEUE", 50)
    found = {}
    for count in (300, 3_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        with closing(Outbox(folder, ManualClock(), kept_ended=100)) as outbox:
            queue(outbox, count + ended)
            for number in range(ended):
                outbox.done(f"u{number:06}", "job")
            found[count] = steps_of_sending(outbox)
    assert found[3_000] <= 1.5 * found[300], found

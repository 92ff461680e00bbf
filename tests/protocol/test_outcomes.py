"""What a run came to, in words: one rule for pages, commands and metrics."""

from __future__ import annotations

import pytest
from catalogzero.protocol.outcomes import outcome_of

CASES = [
    ("success", {"status": "uploaded", "records": 5000, "skipped": 1}, None, "uploaded"),
    ("success", {"status": "queued", "records": 2812}, None, "waiting"),
    ("success", {"status": "unchanged", "records": 0, "skipped": 3}, None, "unchanged"),
    ("success", {"status": "superseded", "records": 7}, None, "unchanged"),
    ("success", {"status": "rejected", "records": 1, "error": "no"}, None, "failed"),
    ("error", None, "line 18,204: 11 fields\nTraceback", "failed"),
    ("cancelled", None, None, "failed"),
    ("retry", None, "connection refused", "running"),
    ("missed", None, None, "missed"),
    ("lost", None, "no answer", "missed"),
    ("success", {"status": "reported", "metrics": {}}, None, "reported"),
    ("success", {"status": "queued", "metrics": {}}, None, "waiting"),
    ("success", 7, None, "done"),
    ("success", {"records": 5}, None, "done"),
    ("success", {"status": "uploaded", "records": "many"}, None, "uploaded"),
]


@pytest.mark.parametrize(("status", "result", "error", "state"), CASES)
def test_arrived_is_the_only_success(
    status: str, result: object, error: str | None, state: str
) -> None:
    assert outcome_of(status, result, error)["state"] == state


def test_it_is_said_in_words() -> None:
    def words(status: str, result: object, error: str | None = None) -> str:
        return outcome_of(status, result, error)["words"]

    counts = {"status": "uploaded", "records": 5000, "skipped": 1, "bad_records": 2, "left_out": 1}
    assert words("success", counts) == (
        "uploaded 5,000 rows, 1 source unchanged, 2 bad records left out, 1 file left out"
    )
    assert words("success", {"status": "queued", "records": 1}) == "1 row waits to be sent"
    assert words("success", {"status": "unchanged", "records": 0}) == "nothing new"
    assert words("error", None, "line 18,204: 11 fields\nTraceback …") == "line 18,204: 11 fields"
    assert words("missed", None) == "missed"

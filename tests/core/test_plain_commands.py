"""Plain handlers, as ScheduleZero's are, at the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.core.plain import PlainHandler

LONG = 123456789012345678901234567890


def asked(*words: str) -> subprocess.CompletedProcess[str]:
    """A command of the command line, run to its end."""
    line = [sys.executable, "-m", "catalogzero", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_line_talks_to_a_plain_handler() -> None:
    answers = {
        "work": b'{"success": true, "rows": %d, "mean": NaN}' % LONG,
        "get_metrics": b'{"success": true, "memory_mb": 12}',
        "bad": b"{",
    }
    with PlainHandler(answers) as plain:
        ping = asked("ping", plain.address, "--json")
        work = asked("call", plain.address, "work")
        metrics = asked("metrics", plain.address, "--json")
        describe = asked("describe", plain.address)
        bad = asked("call", plain.address, "bad")

    assert json.loads(ping.stdout) == {"message": "pong", "handler_id": "plain"}
    assert json.loads(work.stdout) == {"rows": LONG, "mean": None}
    assert json.loads(metrics.stdout) == {"memory_mb": 12}
    assert (describe.returncode, bad.returncode) == (1, 1)
    assert "Unknown method: describe" in describe.stderr
    assert "the reply is not JSON" in bad.stderr
    assert [call["method"] for call in plain.called("work") + plain.called("bad")] == [
        "work",
        "bad",
    ]


@pytest.mark.parametrize("told", [b'{"name": "plain", "methods": ["work"]}', b'["work"]', b'"a"'])
def test_describe_shows_what_a_plain_handler_says_of_itself(told: bytes) -> None:
    with PlainHandler({"describe": told}) as plain:
        shown = asked("describe", plain.address)

    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.strip()

"""Control characters of peers, exceptions and files: never obeyed by a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.support import finished, running, served_address

CLEAR, CONCEAL, C1, TURN = "\x1b[2J", "\x1b[8m", "\x9b2J", "\u202e"
HOSTILE = f"{CLEAR}{C1}{TURN}\r{CONCEAL}\nFAKE"
MODULE = f"""
import logging
from catalogzero import Handler

class Rogue(Handler):
    def say(self) -> str:
        return {HOSTILE!r}

    def fails(self) -> None:
        self.log.warning({HOSTILE!r}, note={HOSTILE!r})
        logging.getLogger("theirs").warning({HOSTILE!r})
        raise RuntimeError({HOSTILE!r})
"""
OBEYED = (CLEAR, C1, TURN, "\rFAKE", "\x07")


@pytest.fixture
def rogue(tmp_path: Path) -> Path:
    """A folder with a handler that says what no terminal should obey."""
    (tmp_path / "rogue.py").write_text(MODULE)
    return tmp_path


def on_a_terminal(*arguments: str, cwd: Path) -> str:
    """What a `catalogzero …` command writes on a terminal, output and errors."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "catalogzero", *arguments]
    with subprocess.Popen(command, cwd=cwd, stdout=theirs, stderr=theirs, stdin=theirs):
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 65_536)
            except OSError:  # Linux: the other side has closed
                break
            if not part:
                break
            said += part
    os.close(ours)
    return said.decode()


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_logs_and_error_lines_escape_what_an_exception_holds(rogue: Path, log_format: str) -> None:
    given = ("--set", f"state_dir={rogue}", "--set", f"log_format={log_format}")

    done = finished("run", "rogue:Rogue", "--once", "fails", *given, cwd=rogue)

    assert done.returncode == 1
    assert "\\u001b[2J" in done.stderr
    assert not [one for one in OBEYED if one in done.stdout + done.stderr]
    logged = done.stderr.split("catalogzero: ")[0]
    if log_format == "console":  # a traceback has lines of its own, a line of the log is one
        logged = logged.split("Traceback")[0]
    assert not [line for line in logged.splitlines() if line.startswith("FAKE")]


def test_what_a_handler_answers_is_escaped_and_stays_json(rogue: Path) -> None:
    given = ("--set", f"state_dir={rogue}")

    done = finished("run", "rogue:Rogue", "--once", "say", *given, cwd=rogue)

    assert json.loads(done.stdout) == HOSTILE
    assert done.stdout.isascii()


async def test_a_terminal_obeys_nothing_of_a_handler_in_a_table(rogue: Path) -> None:
    (rogue / "handler_registry.yaml").write_text(
        "scheduler: none\nhandlers:\n  - {handler_id: rogue, module_path: rogue, class_name: "
        f"Rogue, state_dir: {rogue}}}\n"
    )
    json_log = {"CATALOGZERO_LOG_FORMAT": "json"}
    with running("run", "rogue", cwd=rogue, **json_log) as process:
        address = await asyncio.to_thread(served_address, process)
        shown = on_a_terminal("call", address, "fails", cwd=rogue)

    assert "\\u001b[2J" in shown
    assert not [one for one in (*OBEYED, CONCEAL) if one in shown]


def test_an_error_line_escapes_the_name_of_a_file(tmp_path: Path) -> None:
    shown = on_a_terminal("ping", "x", "--registry", f"{CLEAR}{C1}{TURN}{CONCEAL}", cwd=tmp_path)

    assert CONCEAL not in shown
    assert "\\u001b[2J" in shown
    assert not [one for one in OBEYED if one in shown]


def test_a_preview_escapes_the_rows_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f"name,b\r\nx{CLEAR}{C1}y,1\r\n", newline="")

    shown = on_a_terminal("preview", "file-processor", "rows.csv", cwd=tmp_path)

    assert "\\u001b[2J" in shown
    assert not [one for one in OBEYED if one in shown]


def test_a_table_on_a_terminal_keeps_its_colours(tmp_path: Path) -> None:
    assert "\x1b[1m" in on_a_terminal("--help", cwd=tmp_path)

"""The support archive: whole where something hangs or is broken, without secrets and rows."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import zipfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from catalogzero import HandlerClient, RunError
from catalogzero.cli.bundle import LEFT_OUT, without_literals

from tests.core.support import running, served_address

pytestmark = pytest.mark.timeout(300)

ROW, SECRET = "Erika Mustermann 1964", "s3cr3t-canary-value"
MODULE = f"""
import threading
from catalogzero import Handler, HandlerSettings

class Leaky(Handler):
    def spill(self) -> None:
        self.log.warning("row seen", row="{ROW}", rows=7)
        self.log.warning(f"a row: {{'{ROW}'.upper()}}")
        raise ValueError("row 7: {ROW}")

class Stuck(Handler):
    def __init__(self, **config):
        threading.Event().wait()
"""
REGISTRY = f"""
scheduler: {{scheduler}}
handlers:
- {{{{handler_id: leaky, module_path: leaky, class_name: Leaky, port: {{port}}}}}}
- {{{{handler_id: stuck, module_path: leaky, class_name: Stuck}}}}
- handler_id: broken
  module_path: leaky
  class_name: Leaky
  config: {{{{api_key: {SECRET}}}}}
"""
SYSTEMCTL = f"""#!/bin/sh
[ "$1" = show ] && {{ echo ActiveState=active; exit; }}
echo '[Service]'
echo 'Environment=ACME_API_KEY={SECRET} LEVEL=info'
"""


def test_a_bundle_of_all_is_whole_and_holds_no_row_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / "leaky.py").write_text(MODULE)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "systemctl").write_text(SYSTEMCTL)
    (programs / "journalctl").write_text(f"#!/bin/sh\ncat {tmp_path}/log\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    environment = {
        "CATALOGZERO_STATE_DIR": str(tmp_path / "state"),
        "CATALOGZERO_LOG_FORMAT": "json",
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    out = tmp_path / "support.zip"
    out.touch(mode=0o644)

    async def spill(address: str) -> None:
        async with HandlerClient(address) as client:
            with pytest.raises(RunError, match="Mustermann"):
                await client.call("spill")

    with ExitStack() as stack:
        ports = ("--port", "0", "--zmq-port", "0", "--json")
        scheduler = stack.enter_context(running("scheduler", *ports, cwd=tmp_path, **environment))
        assert scheduler.stdout is not None
        listens = json.loads(scheduler.stdout.readline())
        registry = tmp_path / "handler_registry.yaml"
        registry.write_text(REGISTRY.format(scheduler=listens["zmq_address"], port=0))
        handler = stack.enter_context(running("run", "leaky", cwd=tmp_path, **environment))
        address = served_address(handler)
        port = address.rpartition(":")[2]
        registry.write_text(REGISTRY.format(scheduler=listens["zmq_address"], port=port))
        asyncio.run(spill(address))
        url = ("--scheduler-url", listens["url"])
        # What the handler logs of that run, and a line of another kind.
        assert handler.stderr is not None
        lines: list[str] = []
        while not any("a row" in line for line in lines):
            lines.append(handler.stderr.readline())
        (tmp_path / "log").write_text("".join([*lines, f"ValueError: row 7: {ROW}\n", ROW]))
        words = ("bundle", *url, "--log", "log", "--timeout-s", "8")
        plain = bundled(*words, "--json", cwd=tmp_path, **environment)
        first = contents(out)
        whole = bundled(*words, "leaky", "--with-messages", cwd=tmp_path, **environment)
        second = contents(out)

    assert (plain.returncode, whole.returncode) == (0, 0), plain.stderr + whole.stderr
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    for text in (*first.values(), plain.stdout):
        assert ROW not in text
        assert ROW.upper() not in text
    for text in (*first.values(), *second.values(), plain.stdout, whole.stdout):
        assert SECRET not in text
    left_out = {one["part"]: one["left_out"] for one in json.loads(plain.stdout)["parts"]}
    assert left_out == {
        one["part"]: one["left_out"] for one in json.loads(first["summary.json"])["parts"]
    }
    assert "took too long" in left_out["stuck/describe.json"]
    assert "broken" not in (left_out["leaky/describe.json"] or "")
    assert "cannot be made" in left_out["broken/checks.json"]
    assert "nobody answers" in left_out["conductor/fleet.json"]
    (run,) = json.loads(first["leaky/runs.json"])["runs"]
    assert (run["method"], run["error"]) == ("spill", f"ValueError: {LEFT_OUT}")
    assert json.loads(first["scheduler/health.json"])["status"] == "ok"
    assert "leaky" in first["scheduler/handlers.json"]
    assert "ACME_API_KEY=**********" in first["leaky/unit.txt"]
    assert "LEVEL=info" in first["leaky/unit.txt"]
    for name in ("leaky/journal.txt", "logs/1-log"):
        entries = [json.loads(one) for one in first[name].splitlines() if one.startswith("{")]
        (seen,) = [one for one in entries if one["event"] == "row seen"]
        assert (seen["row"], seen["rows"]) == (LEFT_OUT, 7)
        assert f"ValueError: {LEFT_OUT}" in first[name]
        assert ROW in second[name]
    assert ROW in second["leaky/runs.json"]


def bundled(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, run to its end; one part of it hangs for as long as it may."""
    with running(*words, cwd=cwd, **environment) as process:
        out, err = process.communicate(timeout=90)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def contents(archive: Path) -> dict[str, str]:
    """The files of an archive."""
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name).decode() for name in opened.namelist()}


@pytest.mark.parametrize(
    ("sql", "shown"),
    [
        (
            "SELECT a1, \"b\" FROM t WHERE n = 42 AND s = 'it''s' -- why 'not'\n",
            "SELECT a1, ? FROM t WHERE n = ? AND s = ? \n",
        ),
        ("SELECT 1.5e3, 0xFF, x /* 'secret' */ FROM t", "SELECT ?, ?, x  FROM t"),
        ("SELECT * FROM t WHERE s = 'C:\\' AND r = 'secret'", LEFT_OUT),
        ("SELECT $$secret$$", LEFT_OUT),
        ("SELECT 'open", LEFT_OUT),
    ],
)
def test_of_sql_no_literal_is_left(sql: str, shown: str) -> None:
    assert without_literals(sql) == shown

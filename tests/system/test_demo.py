"""The demo, as a stranger runs it: interrupted in the middle it leaves nothing, and runs again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
MARK = "QUICKSTART_TEST"
pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("demo")]


@pytest.fixture(scope="module")
def mark() -> str:
    """What every process of these tests carries in its environment."""
    return uuid.uuid4().hex


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's folder, one for all of these tests."""
    return tmp_path_factory.mktemp("build") / "demo"


def demo(folder: Path, mark: str, *options: str, **environment: str) -> subprocess.Popen[str]:
    """Start the demo in a folder of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "examples.quickstart", "--into", str(folder), *options],
        cwd=ROOT,
        env={**os.environ, MARK: mark, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def marked(mark: str) -> Iterator[psutil.Process]:
    """The processes that carry the mark."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                yield process
        except psutil.Error:
            continue


def assert_nothing_left(mark: str) -> None:
    """No process of the demo lives, once those just killed are gone."""
    left = list(marked(mark))
    _, alive = psutil.wait_procs(left, timeout=20)
    assert alive == []


def test_interrupted_in_the_middle_it_leaves_no_process(folder: Path, mark: str) -> None:
    with demo(folder, mark) as process:
        assert process.stdout
        for line in process.stdout:
            if "Vendor: build" in line:
                break
        while not (folder / "logs/catalogzero-build.log").exists():
            assert process.poll() is None
        assert len(list(marked(mark))) > 1

        process.send_signal(signal.SIGINT)
        said = process.stdout.read()

    assert process.returncode == 130
    assert "Interrupted" in said
    assert_nothing_left(mark)


def test_every_step_holds_and_the_counts_are_exact(folder: Path, mark: str) -> None:
    with demo(folder, mark) as process:
        said, _ = process.communicate()
    assert process.returncode == 0, said

    report = json.loads((folder / "report.json").read_text())
    assert report["held"] is True
    assert report["source"]["rows"] == 336_776
    assert report["stored"]["rows"] == 336_776
    assert report["crash"]["while_down_rows"] == 336_776
    assert report["crash"]["after_rows"] == 336_776
    assert report["crash"]["chunks_stored_at_kill"] > 0
    assert report["memory"]["rss_asleep_mb"] <= report["memory"]["rss_before_mb"] * 1.05
    assert report["conductor"]["health_check"]["healthy"] == 1
    assert report["vendor"]["edited_lines"] <= 30
    assert_nothing_left(mark)

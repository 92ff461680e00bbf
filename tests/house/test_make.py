"""`make` and `.ci` where something is missing: one sentence, before anything is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the checkout with a bare environment and what is given."""
    bare = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull, **env}
    return subprocess.run(
        command, cwd=ROOT, env=bare, capture_output=True, text=True, timeout=140, check=False
    )


def script(path: Path, text: str) -> str:
    """Write an executable sh script and return its path."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def assert_one_sentence(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """A failed command that says one line on standard error, with these words in it."""
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_setup_without_python_says_which_to_install(tmp_path: Path) -> None:
    done = run(".ci/setup", PYTHON="no-such-python", VENV=str(tmp_path / "venv"))

    assert_one_sentence(done, "no-such-python", "3.11", "install")
    assert not (tmp_path / "venv").exists()


def test_setup_with_an_old_python_says_which_to_install(tmp_path: Path) -> None:
    old = script(tmp_path / "python", "echo 3.9")

    done = run(".ci/setup", PYTHON=old, VENV=str(tmp_path / "venv"))

    assert_one_sentence(done, "3.9", "3.11", "install")
    assert not (tmp_path / "venv").exists()


def test_setup_without_the_venv_module_says_how_to_install_it(tmp_path: Path) -> None:
    lacking = script(
        tmp_path / "python", f'case "$*" in *ensurepip*) exit 1 ;; esac\nexec {sys.executable} "$@"'
    )

    done = run(".ci/setup", PYTHON=lacking, VENV=str(tmp_path / "venv"))

    assert_one_sentence(done, "venv", "python3-venv")
    assert not (tmp_path / "venv").exists()


def test_setup_without_a_network_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9/simple"

    done = run(
        ".ci/setup", PYTHON=sys.executable, VENV=str(tmp_path / "venv"), PIP_INDEX_URL=nowhere
    )

    assert_one_sentence(done, "index does not answer", "network")
    assert not (tmp_path / "venv").exists()


def test_ci_without_make_says_how_to_install_it(tmp_path: Path) -> None:
    for tool in ("sh", "dirname"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))

    done = run(".ci/run", PATH=str(tmp_path))

    assert_one_sentence(done, "make", "install")


@pytest.mark.skipif(not (ROOT / ".venv/ready").exists(), reason="no .venv here")
def test_a_python_that_is_not_here_is_named_and_no_failure() -> None:
    done = run(".ci/pythons", PYTHONS="9.8 9.9")

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "Further Pythons: passed none; failed none; absent here 9.8 9.9."
    ]


@pytest.mark.skipif(not (ROOT / ".venv/ready").exists(), reason="no .venv here")
def test_a_python_that_is_here_and_does_not_serve_is_a_failure(tmp_path: Path) -> None:
    script(tmp_path / "python9.8", 'case "$*" in "-c ") exit 0 ;; *) echo 9.8 ;; esac')

    done = run(".ci/pythons", PYTHONS="9.8", PATH=f"{tmp_path}:{os.environ['PATH']}")

    assert done.returncode != 0
    assert "catalogzero needs 3.11 to 3.13" in done.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_make_alone_lists_its_targets_with_a_line_each() -> None:
    done = run("make")

    listed = re.findall(r"^make ([a-z-]+) +\S.*$", done.stdout, re.MULTILINE)
    assert {
        "demo",
        "test",
        "pythons",
        "test-all",
        "lint",
        "bench",
        "chaos",
        "interop",
        "docs",
    } <= set(listed)
    assert len(listed) == len(done.stdout.splitlines())


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_interop_without_a_server_says_what_to_name() -> None:
    done = run("make", "-o", ".venv/ready", "interop")

    assert done.returncode != 0
    assert "SCHEDULEZERO_HTTP=" in done.stderr

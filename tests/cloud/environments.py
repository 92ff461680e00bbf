"""Environments of packages of the index that only a test needs: Singer taps, others' clients."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).parents[2] / "requirements"


def environment(name: str) -> Path:
    """An environment with what a lock file of `requirements/` pins, kept for other sessions.

    Where the index does not answer, the test that asks for it is skipped.
    """
    lock = REQUIREMENTS / f"{name}.txt"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    folder = Path(sys.prefix, "for-tests", f"{name}-{digest}")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # other processes of the session wait for it
        if not (folder / "ready").exists():
            uv = [sys.executable, "-m", "uv"]
            made = [*uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable]
            subprocess.run([*made, str(folder)], check=True)
            command = [*uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python")]
            command += ["--require-hashes", "--requirement", str(lock)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode and "error sending request" in done.stderr:
                pytest.skip(f"the package index does not answer: {done.stderr.splitlines()[0]}")
            assert done.returncode == 0, done.stderr
            (folder / "ready").touch()
    return folder

"""The manifest says what the code does, and the package has what the template makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ENTRY = Path(__file__).parents[1]


def test_the_catalog_takes_it() -> None:
    command = [sys.executable, "-m", "catalogzero", "catalog", "lint", str(ENTRY)]
    told = subprocess.run(command, capture_output=True, text=True)

    assert told.returncode == 0, told.stdout + told.stderr
    assert "0 errors" in told.stdout + told.stderr


def test_its_command_tells_its_verbs() -> None:
    code = "import sys; sys.argv = ['conductorzero', '--help']; import conductorzero.cli as c"
    command = [sys.executable, "-c", f"{code}; c.main()"]
    told = subprocess.run(command, capture_output=True, text=True, check=True)

    assert "conductorzero run" in told.stdout
    assert "conductorzero check" in told.stdout

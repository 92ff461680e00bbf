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


def test_its_command_lists_its_verbs() -> None:
    code = "import sys; sys.argv = ['conductorzero', '--help']; import conductorzero.cli as c"
    command = [sys.executable, "-c", f"{code}; c.main()"]
    told = subprocess.run(command, capture_output=True, text=True, check=True)

    assert "conductorzero run" in told.stdout
    assert "conductorzero check" in told.stdout


def test_it_has_the_shape_that_the_template_gives(tmp_path: Path) -> None:
    answers = ["vendor_name=Zero", "product_name=Conductor", "endpoint=https://api.zero.example/v1"]
    command = [sys.executable, "-m", "catalogzero", "new", str(tmp_path), "--no-input"]
    subprocess.run([*command, *answers, "kind=handler", "ci=none"], capture_output=True, check=True)
    (made,) = tmp_path.iterdir()
    paths = [path.relative_to(made) for path in made.rglob("*") if path.is_file()]
    names = {str(path) for path in paths if path.parts[0] not in (".git", ".catalogzero")}
    asked = {
        name.replace("zero-conductor", "conductorzero").replace("zero_conductor", "conductorzero")
        for name in names - {"tests/test_handler.py"}  # it has many
    }

    assert "src/conductorzero/handler.py" in asked
    assert {name for name in asked if not (ENTRY / name).is_file()} == set()

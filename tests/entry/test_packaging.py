"""`catalogzero build`: what cannot be published is refused, and leaves nothing in dist/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from catalogzero.entry.scaffold import scaffold

CATALOGZERO = Path(sys.executable).parent / "catalogzero"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    return scaffold({}, tmp_path)


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CATALOGZERO, "build"], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("file", "before", "after", "told"),
    [
        ("catalogzero.toml", "description = ", "# ", "description: Field required"),
        ("catalogzero.toml", 'id = "acme-', 'id = "other-', "make them the same"),
        ("handler.py", "def process", "def (process", "handler.py, line "),
    ],
)
def test_what_cannot_be_published_is_not_built(
    package: Path, file: str, before: str, after: str, told: str
) -> None:
    path = package / "src" / "acme_processor" / file
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after, 1))

    done = build(package)

    assert done.returncode == 3
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((package / "dist").iterdir())


def test_a_folder_that_is_no_package_is_refused_with_the_fix(tmp_path: Path) -> None:
    done = build(tmp_path)

    assert done.returncode == 3
    assert "has no pyproject.toml: name the package's folder" in done.stderr

"""What may not stand anywhere in the tree, and what a wheel of it must hold."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
HOSTS = ["py" + "pi.org", "python" + "hosted", "npm" + "js.", "crates" + ".io", "ana" + "conda.org"]
MACHINE = r"/" + r"(?:work|root|home|Users|opt/py" + r"pi)/\w"
WAITING = r"\b(?:time|asyncio|anyio)\.sle" + r"ep\((?!0\))"


def tracked(pattern: str = ".") -> Iterator[tuple[str, str]]:
    """The name and the text of each tracked text file below a folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", pattern], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file():
            yield name, path.read_bytes().decode(errors="replace")


def places(pattern: str, folder: str = ".") -> list[str]:
    """Where a pattern stands, as `file:line: text`."""
    found = []
    for name, text in tracked(folder):
        for number, line in enumerate(text.splitlines(), 1):
            if re.search(pattern, line):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    return found


@pytest.fixture(scope="module", autouse=True)
def _a_checkout() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")


@pytest.mark.parametrize("host", HOSTS)
def test_no_file_names_the_host_of_a_package_index(host: str) -> None:
    assert places(re.escape(host)) == []


def test_no_file_holds_a_path_of_somebody_s_machine() -> None:
    assert places(MACHINE) == []


def test_no_test_waits_by_the_clock() -> None:
    assert [place for place in places(WAITING, "tests") if "/test_" in place] == []


def test_lock_files_pin_each_package_by_hash() -> None:
    for name, text in tracked("requirements"):
        if name.endswith(".txt"):
            packages = re.findall(r"^[\w.-]+==\S+.*\\\n +--hash=sha256:", text, re.MULTILINE)
            assert len(packages) == len(re.findall(r"^\S", text, re.MULTILINE)), name


def test_the_wheel_holds_every_file_of_the_sdk(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path))

    names = {name.removeprefix("sdk/") for name, _ in tracked("sdk/catalogzero")}
    assert names - set(ZipFile(wheel).namelist()) == set()

"""What an install brings along, and what `import catalogzero` costs: no more than is listed."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions, requires
from pathlib import Path

from catalogzero.entry.wheels import requirements_here
from packaging.utils import canonicalize_name

from benchmarks.startup import LIBRARIES

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "dependencies.md"
LISTED = dict(re.findall(r"^\| `([\w-]+)` \| [^|]+ \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE))
OWN_MODULES, OTHER_MODULES = 52, 10
"""What `import catalogzero` may load beside its libraries: modules of its own, and of Python."""


def base_install() -> set[str]:
    """The distributions that `pip install catalogzero` brings along on this machine."""
    found: set[str] = set()
    waiting = list(requirements_here(requires("catalogzero"), ""))
    while waiting:
        requirement = waiting.pop()
        name = str(canonicalize_name(requirement.name))
        if name not in found:
            found.add(name)
            for extra in ("", *requirement.extras):
                waiting += requirements_here(requires(name), extra)
    return found


def licence_of(name: str) -> str:
    """What a distribution's metadata says of its licence, at its shortest."""
    fields = distribution(name).metadata
    classified = [
        line.split(" :: ")[-1]
        for line in fields.get_all("Classifier") or ()
        if line.startswith("License :: ")
    ]
    [said] = fields.get_all("License-Expression") or fields.get_all("License") or [""]
    return said if 0 < len(said) < 80 else ", ".join(classified) or "not stated"


def loaded(code: str) -> set[str]:
    """The modules that are loaded once a new Python has run this."""
    told = [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"]
    return set(subprocess.run(told, capture_output=True, text=True, check=True).stdout.split())


def test_the_base_install_is_what_is_listed_and_no_larger() -> None:
    assert base_install() == LISTED.keys()


def test_each_is_listed_with_the_licence_that_it_states() -> None:
    assert {name: licence_of(name) for name in LISTED} == LISTED


def test_import_catalogzero_loads_its_libraries_and_little_else() -> None:
    ours, libraries = loaded("import catalogzero"), loaded(f"import {LIBRARIES}")
    beside = {name for name in ours - libraries if name.split(".")[0] != "catalogzero"}
    foreign = {name.split(".")[0] for name in beside} & packages_distributions().keys()

    assert foreign <= {"zmq"}
    assert len(beside) <= OTHER_MODULES, sorted(beside)
    assert len([name for name in ours if name.startswith("catalogzero")]) <= OWN_MODULES

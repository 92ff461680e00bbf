"""What an install brings along, and what `import catalogzero` costs: no more than is listed."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions, requires
from pathlib import Path

from catalogzero import HandlerClient
from catalogzero.entry.wheels import requirements_here
from packaging.utils import canonicalize_name

from benchmarks.startup import LIBRARIES

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "dependencies.md"
LISTED = dict(re.findall(r"^\| `([\w-]+)` \| [^|]+ \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE))
OWN_MODULES, RUN_MODULES, OTHER_MODULES = 54, 58, 10
"""What the names of `catalogzero` may load beside its libraries: modules of its own, of Python."""


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


def beside(ours: set[str], floor: set[str]) -> tuple[int, set[str], set[str]]:
    """What is loaded beyond a floor: modules of its own, distributions, modules of Python."""
    own = [name for name in ours if name.split(".")[0] == "catalogzero"]
    others = {name for name in ours - floor if name.split(".")[0] != "catalogzero"}
    foreign = {name.split(".")[0] for name in others} & packages_distributions().keys()
    return len(own), foreign, {name for name in others if name.split(".")[0] not in foreign}


def test_import_catalogzero_loads_next_to_nothing() -> None:
    own, foreign, others = beside(loaded("import catalogzero"), loaded("import signal, pathlib"))

    assert (own, foreign) == (2, set())
    assert len(others) <= 15, sorted(others)


def test_all_of_catalogzero_loads_its_libraries_and_little_else() -> None:
    own, foreign, others = beside(
        loaded("from catalogzero import *"), loaded(f"import {LIBRARIES}")
    )

    assert foreign <= {"zmq"}
    assert len(others) <= OTHER_MODULES, sorted(others)
    assert own <= OWN_MODULES


HELP = "import typer, typer.rich_utils, rich.markdown"
"""What the help of any typer app loads."""
SHOW_HELP = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=sys.__stderr__))
sys.argv = ["catalogzero", "--help"]
from catalogzero.cli.main import main
main()
"""


def test_help_loads_what_that_of_any_typer_app_does_and_no_command() -> None:
    done = subprocess.run([sys.executable, "-c", SHOW_HELP], capture_output=True, text=True)
    own, foreign, others = beside(set(done.stderr.split()), loaded(HELP))

    assert "Usage: catalogzero" in done.stdout
    assert foreign <= {"typer", "rich"}
    assert len(others) <= OTHER_MODULES, sorted(others)
    assert own <= 10


LISTING = """
import sys
from catalogzero import Handler

class Listing(Handler):
    def modules(self) -> list[str]:
        return list(sys.modules)
"""


async def listed(address: str) -> set[str]:
    """What a handler has loaded by its first reply."""
    async with HandlerClient(address) as client:
        return set(await client.call("modules", timeout_s=30))


def test_a_handler_has_loaded_little_by_its_first_reply(tmp_path: Path) -> None:
    (tmp_path / "listing.py").write_text(LISTING)
    command = [sys.executable, "-m", "catalogzero", "run", "listing:Listing"]
    command += ["--scheduler", "none", "--set", "log_format=json", "--set", "state_dir=state"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        ours = asyncio.run(listed(json.loads(process.stderr.readline())["address"]))
        process.terminate()
        process.communicate(timeout=30)
    own, foreign, others = beside(ours, loaded(f"import typer, {LIBRARIES}"))

    assert foreign <= {"zmq", "typer", "pydantic", "pydantic_settings", "platformdirs"}
    assert len(others) <= 2 * OTHER_MODULES, sorted(others)
    assert own <= RUN_MODULES, own

"""A registry file that cannot be used: `run`, `check` and `status` name the place and the fix."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from string import Template
from typing import NamedTuple

import pytest

from tests.incidents.plant import Plant

UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Before a command of root's: files are closed to it as they are to others."""
GOOD = """\
scheduler: none
handlers:
  - handler_id: site
    module_path: tests.incidents.processors
    class_name: Exports
    port: $port
    min_file_age_s: 0
    config:
      endpoint: http://127.0.0.1:9/v1
      api_key_file: $key_file
      data_roots: [$data]
  - handler_id: other
    module_path: tests.incidents.processors
    class_name: Exports
    config:
      {endpoint: "http://127.0.0.1:9/v1", api_key_file: $key_file, data_roots: [$data]}
"""


class Broken(NamedTuple):
    """A way to break the file: what stands in the place of a text, the line, what is said.

    `still` is the handler that `status` shows all the same; none where the file has no sections.
    """

    old: str
    new: str
    line: int
    fault: str
    still: str = "other"


BROKEN = {
    "empty": Broken(GOOD, "", 1, "a mapping with `handlers:` is expected", still=""),
    "a list": Broken(
        "scheduler: none\nhandlers:\n", "", 1, "a mapping with `handlers:` is exp", still=""
    ),
    "no handlers": Broken("handlers:", "handler:", 1, "`handlers:` is missing", still=""),
    "no YAML": Broken(
        "config:\n", "config: {\n", 10, "not YAML: did not find expected ',' or '}'", still=""
    ),
    "a tab": Broken("    port", "\tport", 6, "not YAML: found a tab character", still=""),
    "not UTF-8": Broken(
        "scheduler", "# K\udcf6ln\nscheduler", 1, "not UTF-8: save the file as", still=""
    ),
    "a wrong type": Broken("age_s: 0", "age_s: soon", 7, "min_file_age_s: .*valid number"),
    "a bad port": Broken("port: ", "port: 7", 6, "port: .*less than or equal to 65535"),
    "an unknown key": Broken("min_file_age_s: 0", "colour: red", 7, "unknown key `colour`"),
    "a key almost right": Broken("age_s:", "age:", 7, "did you mean `min_file_age_s`\\?"),
    "a setting almost right": Broken("endpoint:", "endpont:", 9, "did you mean `endpoint`\\?"),
    "no class named": Broken("    class_name: Exports\n", "", 3, "and `class_name`, are missing"),
    "no such module": Broken("processors", "nowhere", 4, "No module named .*: install it"),
    "no such class": Broken("Exports", "Export", 5, "is no handler class; there are: .*Exports"),
    "no handler": Broken("tests.incidents.processors", "pathlib", 5, "is no handler class"),
    "one name twice": Broken(
        "_id: other", "_id: site", 12, "stands in line 3 already", still="site"
    ),
    "one port twice": Broken(
        "_id: other", "_id: other\n    port: $port", 13, "stands in line 6", still="site"
    ),
    "one key twice": Broken("    min_", "    port: 1\n    min_", 7, "`port` stands in line 6 alr"),
}


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    """A machine with two handlers in its registry file, `site` and `other`."""
    async with Plant(tmp_path, "http://127.0.0.1:9/v1") as machine:
        write(machine, GOOD)
        yield machine


def write(plant: Plant, text: str) -> None:
    """Write the registry file, with the machine's own places in it."""
    port, key_file, data = plant.section["port"], plant.key_file, plant.data
    text = Template(text).substitute(port=port, key_file=key_file, data=data)
    plant.registry.write_text(text, errors="surrogateescape")


async def shown(plant: Plant, fault: str, *before: str) -> list[str]:
    """That `run` ends with 3 and says so in one line, and `status` shows it; whom it shows."""
    command = (*before, sys.executable, "-m", "catalogzero")
    run, status = await asyncio.gather(
        plant.shell(*command, "run", "site"), plant.shell(*command, "status", "--json")
    )
    troubles = status.json["troubles"]
    found = [one for one in troubles if re.search(fault, one["what"])]
    # What only its class can say is said by the command that `status` names.
    trouble, *_ = found or [one for one in troubles if one["of"] == "site"]
    commands = ("catalogzero run site", "catalogzero check site", "catalogzero status")

    assert (run.code, run.out) == (3, "")
    assert any(re.search(fault, line) for line in run.err.splitlines()), run.err
    assert "Traceback" not in run.err + status.err
    assert status.code in (1, 2)
    assert any(one in trouble["next"] for one in commands)
    return [row["handler_id"] for row in status.json["handlers"]]


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_file_is_named_with_its_line_and_the_fix(plant: Plant, kind: str) -> None:
    broken = BROKEN[kind]
    assert broken.old in GOOD
    write(plant, GOOD.replace(broken.old, broken.new, 1))
    before = plant.registry.read_bytes()

    rows = await shown(plant, rf"handler_registry\.yaml:{broken.line}: .*{broken.fault}")

    assert broken.still in [*rows, ""]
    assert plant.registry.read_bytes() == before


async def test_a_file_that_is_not_there_is_named_with_the_option(plant: Plant) -> None:
    plant.registry.unlink()

    await shown(
        plant, r"handler_registry\.yaml is not there|name the registry file with --registry"
    )


@pytest.mark.skipif(os.getuid() != 0, reason="gives root's rights away")
async def test_a_file_that_this_user_may_not_read_is_named(plant: Plant) -> None:
    plant.registry.chmod(0)
    fault = r"handler_registry\.yaml: may not be read by this user: .*`chmod u\+rwX handler_reg"

    await shown(plant, fault, *UNPRIVILEGED)

    await plant.shell("chmod", "u+rwX", "handler_registry.yaml")
    command = (*UNPRIVILEGED, sys.executable, "-m", "catalogzero", "check", "site", "--json")
    assert (await plant.shell(*command)).json["findings"][0]["status"] == "pass"


async def test_check_names_every_fault_at_once_and_passes_once_they_are_corrected(
    plant: Plant,
) -> None:
    write(plant, GOOD.replace("port: ", "port: 7").replace("endpoint:", "endpont:", 1))
    wrong = await plant.command("check", "site", "--json")
    write(plant, GOOD)
    right = await plant.command("check", "site", "--json")

    found = " ".join(one["found"] for one in wrong.json["findings"])
    assert wrong.code == 3
    assert "handler_registry.yaml:6: port: " in found
    assert "handler_registry.yaml:9: config.endpont: " in found
    assert wrong.json["next"] == "catalogzero check site"
    assert right.json["findings"][0]["status"] == "pass"
    assert right.code == 1  # nobody answers at its endpoint

"""Each rule of `catalog lint` finds the fault that it names, in a package that was clean."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from catalogzero.entry import lint
from catalogzero.entry.class_rules import CLASS_RULES
from catalogzero.entry.package_source import read_package
from catalogzero.entry.scaffold import scaffold
from catalogzero.testing import HandlerContract

CATALOGZERO = Path(sys.executable).parent / "catalogzero"
SRC = "src/acme_processor"

DOC = '        """Count."""\n'
COUNT = "    def count(self, first: int) -> int:\n{doc}        return first\n\n    def process("
IMPORTED = "from catalogzero import CloudProcessor, Params, Rows\n"
TYPED = """from catalogzero import CloudProcessor, Rows
from pydantic import BaseModel, Field

class Params(BaseModel):
    day: str = Field("", json_schema_extra={"identity": False})
"""
FAULTS: dict[str, tuple[str, str, str]] = {
    "CZ101": ("pyproject.toml", '[project.entry-points."catalogzero.handlers"]', "[tool.nothing]"),
    "CZ102": (f"{SRC}/catalogzero.toml", 'kind = "processor"', 'kind = "magic"'),
    "CZ103": (f"{SRC}/catalogzero.toml", 'id = "acme-processor"', 'id = "other"'),
    "CZ104": ("pyproject.toml", 'dynamic = ["version"]', 'version = "9.9"'),
    "CZ105": (f"{SRC}/handler.py", "from typing import Any", "import no_such_module_at_all"),
    "CZ106": (f"{SRC}/handler.py", "    def process(", COUNT.format(doc=DOC)),
    "CZ119": (f"{SRC}/handler.py", IMPORTED, TYPED),
    "CZ107": (f"{SRC}/catalogzero.toml", '"api.acme.example"', '"other.example"'),
    "CZ108": (f"{SRC}/catalogzero.toml", "data_collected = [", "data_collected = []\ntags = ["),
    "CZ109": (f"{SRC}/catalogzero.toml", 'method = "health_report"', 'method = "no_such"'),
    "CZ110": (f"{SRC}/catalogzero.toml", 'type = "interval", minutes', 'type = "lunar", minutes'),
    "CZ111": (f"{SRC}/settings.py", "    endpoint:", '    db_password: str = ""\n    endpoint:'),
    "CZ112": (f"{SRC}/settings.py", 'env_prefix="ACME_PROCESSOR_"', 'env_prefix=""'),
    "CZ113": (f"{SRC}/handler.py", "    def process(", COUNT.format(doc="")),
    "CZ114": ("pyproject.toml", "catalogzero[parquet]>=0.1,<1", "catalogzero>=0.1"),
    "CZ115": (
        f"{SRC}/handler.py",
        "from typing",
        "from catalogzero.runtime.runs import Runs\nfrom typing",
    ),
    "CZ116": (
        f"{SRC}/handler.py",
        "def cleaned(",
        "async def f():\n    time.sleep(0)\n\n\ndef cleaned(",
    ),
    "CZ117": ("pyproject.toml", 'readme = "README.md"\n', ""),
    "CZ118": (f"{SRC}/catalogzero.toml", 'support_email = "help@acme.example"', ""),
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that breaks no rule."""
    answers = {"vendor_name": "Acme", "author_email": "help@acme.example"}
    return scaffold(answers, tmp_path_factory.mktemp("lint"))


@pytest.fixture
def package(clean: Path, tmp_path: Path) -> Path:
    return shutil.copytree(clean, tmp_path / clean.name)


def broken(package: Path, code: str) -> None:
    name, before, after = FAULTS[code]
    path = package / name
    text = path.read_text()
    assert before in text
    if code == "CZ108":
        text = text.replace('tags = ["files"]\n', "")
    path.write_text(text.replace(before, after, 1))


def test_a_fresh_package_breaks_no_rule(clean: Path) -> None:
    assert lint.lint(read_package(clean)) == []


def test_every_rule_has_a_fault() -> None:
    assert FAULTS.keys() == lint.RULES.keys()


@pytest.mark.parametrize("code", FAULTS)
def test_a_fault_is_found_by_the_rule_that_names_it(package: Path, code: str) -> None:
    broken(package, code)

    found = lint.lint(read_package(package))

    assert code in {finding.rule.code for finding in found}
    (finding, *_) = [finding for finding in found if finding.rule.code == code]
    assert lint.RULES[code].fix in str(finding)


def test_fix_writes_what_the_code_reports_and_keeps_what_the_vendor_wrote(package: Path) -> None:
    broken(package, "CZ106")
    before = (package / SRC / "catalogzero.toml").read_text()

    changed = lint.fix(read_package(package))

    after = (package / SRC / "catalogzero.toml").read_text()
    own = before.partition("# Written by")[0]
    assert changed == [(package / SRC / "catalogzero.toml").resolve()]
    assert after.startswith(own)
    assert 'name = "count"' in after
    assert lint.lint(read_package(package)) == []


def test_a_declared_schema_that_the_manifest_lacks_is_drift_and_fix_writes_it(
    package: Path,
) -> None:
    handler = package / SRC / "handler.py"
    text = handler.read_text()
    model = "class Row(BaseModel):\n    id: int\n    note: str | None = None\n\n\n"
    text = text.replace("    def process(", "    schema = Row\n\n    def process(", 1)
    handler.write_text(
        text.replace("class Acme", f"from pydantic import BaseModel\n\n\n{model}class Acme", 1)
    )

    [found] = [
        finding for finding in lint.lint(read_package(package)) if finding.rule.code == "CZ106"
    ]
    lint.fix(read_package(package))

    [stream] = read_package(package).manifest("acme-processor").streams
    assert "output schema" in found.message
    assert list(stream.row_schema["properties"]) == ["id", "note"]
    assert stream.row_schema["required"] == ["id"]
    assert [f for f in lint.lint(read_package(package)) if f.rule.code == "CZ106"] == []


ASKED = """

class Asked(BaseModel):
    \"\"\"What a call asks for.\"\"\"

    day: str = {day}
    region: str = ""


class Acme"""
OUTSIDE = 'Field("", json_schema_extra={"identity": False})'


def release(package: Path, day: str, attribute: str = "") -> list[str]:
    """Another release of the package's code; what CZ119 and CZ106 find before and after a fix."""
    handler = package / SRC / "handler.py"
    text = handler.with_suffix(".first")
    if not text.exists():
        text.write_text(handler.read_text())
    code = text.read_text().replace("class Acme", ASKED.format(day=day).lstrip("\n"), 1)
    code = code.replace("params: Params", "params: Asked", 1)
    code = code.replace("    def process(", f"    {attribute}\n\n    def process(", 1)
    handler.write_text("from pydantic import BaseModel, Field\n" + code)
    lint.fix(read_package(package))
    found = lint.lint(read_package(package))
    return [one.message for one in found if one.rule.code in ("CZ106", "CZ119")]


def test_a_release_may_not_change_in_silence_which_params_make_a_source(package: Path) -> None:
    manifest = package / SRC / "catalogzero.toml"
    now, no_longer = (
        f"the param 'day' is {word} part of the identity" for word in ("now", "no longer")
    )

    assert release(package, '""') == []
    assert "day" in manifest.read_text()
    before = manifest.read_text()
    assert release(package, OUTSIDE) == [no_longer]
    assert manifest.read_text() == before
    assert release(package, OUTSIDE, "output_version = 2") == []
    assert "identity = false" in manifest.read_text()
    assert release(package, '""', "output_version = 2") == [now]
    assert release(package, '""', 'output_version = 2\n    stream = "days"') == []
    assert 'stream = "days"' in manifest.read_text()


def test_the_command_prints_findings_and_ends_with_1(package: Path) -> None:
    broken(package, "CZ107")

    done = subprocess.run(
        [CATALOGZERO, "catalog", "lint", package, "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )

    assert done.returncode == 1
    (finding,) = json.loads(done.stdout)["findings"]
    assert finding["code"] == "CZ107"
    assert finding["path"] == f"{SRC}/catalogzero.toml"


@pytest.mark.parametrize(
    ("trigger", "fault"),
    [
        ('{ type = "interval", minutes = 15 }', None),
        ('{ type = "interval", minutes = 15, end_date = "2030-01-01" }', None),
        ('{ type = "date", run_time = "2030-01-01T02:00:00+00:00" }', None),
        ('{ type = "cron", hour = "2", day_or_weekday = true }', None),
        ('{ type = "cron", hour = "25" }', "higher than the maximum"),
        ('{ type = "interval", minutes = 0 }', "the interval must be"),
        ('{ type = "interval", minute = 5 }', "interval takes no 'minute'"),
        ('{ type = "cron", timezone = "Europe/Berlin" }', "cron needs at least one of"),
    ],
)
def test_a_trigger_is_fit_where_the_scheduler_takes_it(
    package: Path, trigger: str, fault: str | None
) -> None:
    path = package / SRC / "catalogzero.toml"
    text = re.sub(r"^trigger = .*$", f"trigger = {trigger}", path.read_text(), flags=re.MULTILINE)
    path.write_text(text)

    found = [one.message for one in lint.lint(read_package(package)) if one.rule.code == "CZ110"]

    assert bool(found) == (fault is not None)
    assert all(fault and fault in message for message in found)


def test_lint_and_contract_demand_the_same_of_a_class() -> None:
    checks = {check.name: check for check in HandlerContract.checks()}

    assert {rule.code for rule in CLASS_RULES} == {"CZ106", "CZ111", "CZ112", "CZ113", "CZ119"}
    for rule in CLASS_RULES:
        assert (checks[rule.name].reason, checks[rule.name].fix) == (rule.reason, rule.fix)
        assert lint.RULES[rule.code].fix == rule.fix


def test_what_only_the_contract_demanded_of_a_class_lint_demands_now(package: Path) -> None:
    handler = package / SRC / "handler.py"
    untyped = COUNT.format(doc=DOC).replace("first: int", "first")
    handler.write_text(handler.read_text().replace("    def process(", untyped, 1))

    found = [one.message for one in lint.lint(read_package(package)) if one.rule.code == "CZ113"]

    assert found == ["parameter 'first' of 'count' has no type"]

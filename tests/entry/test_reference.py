"""The reference pages name every rule and every check, in the code's own words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from catalogzero.cloud.settings import CloudSettings
from catalogzero.entry.lint import RULES
from catalogzero.entry.manifest import Manifest
from catalogzero.scheduler.trigger_forms import KEYS
from catalogzero.testing import ProcessorContract
from catalogzero.testing.checks import ContractCheck

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


@pytest.mark.parametrize("code", RULES)
def test_every_rule_stands_on_its_page_with_its_fix(code: str) -> None:
    rule = RULES[code]

    row = f"| {code} | {rule.demand} | {rule.fix} |"
    assert row in (REFERENCE / "lint.md").read_text()


@pytest.mark.parametrize("check", ProcessorContract.checks(), ids=lambda check: check.name)
def test_every_check_stands_on_its_page_with_reason_and_fix(check: ContractCheck) -> None:
    row = f"| `{check.name}` | {check.reason} | {check.fix} |"

    assert row in (REFERENCE / "contract.md").read_text()


@pytest.mark.parametrize("key", Manifest.model_fields)
def test_every_key_of_a_manifest_stands_on_its_page(key: str) -> None:
    assert f"`{key}`" in (REFERENCE / "manifest.md").read_text()


@pytest.mark.parametrize("kind", KEYS)
def test_every_key_of_a_trigger_stands_on_the_manifest_s_page(kind: str) -> None:
    page = (REFERENCE / "manifest.md").read_text()

    assert [key for key in (kind, *KEYS[kind]) if f"`{key}`" not in page] == []


@pytest.mark.parametrize("name", CloudSettings.model_fields)
def test_every_setting_of_a_processor_stands_on_its_page_with_its_meaning(name: str) -> None:
    meaning = CloudSettings.model_fields[name].description

    (row,) = re.findall(
        rf"^\| `{name}` \|.*", (REFERENCE / "settings.md").read_text(), re.MULTILINE
    )
    assert meaning
    assert row.endswith(f"| {meaning} |")

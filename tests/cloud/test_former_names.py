"""Settings that were renamed: what a registry file, the environment or a call still says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from catalogzero.cli.check import check_handler
from catalogzero.cloud.settings import CloudSettings
from catalogzero.config.settings import RuntimeSettings, merged_settings
from catalogzero.runtime.launch import make_handler

OLD = ("`settle_s` is deprecated: write `min_file_age_s`",)


def made(**where: dict[str, float]) -> RuntimeSettings:
    """Settings merged of a file and flags."""
    values = merged_settings(RuntimeSettings, file=where["file"], flags=where["flags"])
    return RuntimeSettings(**values)


def test_a_former_key_is_read_and_reported() -> None:
    settings = RuntimeSettings(settle_s=7)  # type: ignore[call-arg]

    assert (settings.min_file_age_s, tuple(settings.deprecations)) == (7, OLD)


@pytest.mark.parametrize("name", ["CATALOGZERO_SETTLE_S", "CATALOGZERO_MIN_FILE_AGE_S"])
def test_the_environment_beats_the_file_by_either_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "5")

    for key in ("settle_s", "min_file_age_s"):
        assert made(file={key: 3}, flags={}).min_file_age_s == 5
        assert made(file={}, flags={key: 4}).min_file_age_s == 4


def test_the_present_names_are_not_reported() -> None:
    assert not made(file={"min_file_age_s": 3}, flags={}).deprecations
    given: dict[str, Any] = {"endpoint": "https://backend.example", "api_key": "k"}
    assert not CloudSettings(**given, on_bad_record="quarantine").deprecations


def test_a_former_value_is_read_and_reported() -> None:
    given: dict[str, Any] = {"endpoint": "https://backend.example", "api_key": "k"}
    settings = CloudSettings(**given, on_bad_record="set_aside")

    assert settings.on_bad_record == "quarantine"
    [text] = settings.deprecations
    assert "`quarantine`" in text


async def test_check_names_the_former_names_of_a_registry_file(tmp_path: Path) -> None:
    registry = tmp_path / "catalogzero.yaml"
    registry.write_text(
        f"""scheduler: none
handlers:
  - handler_id: site
    module_path: tests.cloud.processors
    class_name: Plain
    state_dir: {tmp_path / "state"}
    settle_s: 3
    config:
      endpoint: http://127.0.0.1:9/v1
      api_key: test-key
      data_roots: [{tmp_path}]
      on_bad_record: set_aside
"""
    )
    handler = make_handler("site", registry=registry)

    [found] = [one for one in await check_handler(handler) if one.name == "renamed settings"]

    assert handler.runtime.min_file_age_s == 3
    assert found.status == "warn"
    assert "`settle_s`" in found.found
    assert "`on_bad_record: set_aside`" in found.found


def test_a_former_value_that_a_subclass_has_as_its_default_is_read_too() -> None:
    class Older(CloudSettings):
        on_bad_record: str = "set_aside"  # type: ignore[assignment]

    given: dict[str, Any] = {"endpoint": "https://backend.example", "api_key": "k"}
    assert Older(**given).on_bad_record == "quarantine"

"""A client and a catalog: list, show, install, upgrade, roll back, remove."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from catalogzero.config.registry import load_registry
from catalogzero.entry import install as installing
from catalogzero.entry import registry_section
from catalogzero.entry.index import build_catalog
from catalogzero.entry.lock import Origin
from catalogzero.entry.manifest import Manifest, parse_manifest
from catalogzero.errors import ConfigError, UnreachableError

from tests.entry.wheels import LOCK, OURS, write_entry

pytestmark = pytest.mark.xdist_group("install")
MakeWheel = Callable[..., Path]
CATALOGZERO = Path(sys.executable).parent / "catalogzero"
MANIFEST = """\
manifest_version = 1
id = "acme-processor"
name = "Acme"
version = "1.0.0"
kind = "processor"
description = "Cleans rows."
vendor = { name = "Acme" }
requires = { python = ">=3.11", catalogzero = ">=0.1" }

[config_schema]
required = ["region"]

[config_schema.properties]
region = { type = "string", description = "Where you are." }
depth = { type = "integer", default = 3 }
api_key_file = { anyOf = [{ format = "path", type = "string" }, { type = "null" }] }
data_roots = { type = "array" }
"""


@pytest.fixture(scope="module")
def site(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog of two releases, the newer one not yanked, and a third that is."""
    folder = tmp_path_factory.mktemp("install")
    newer = [write_entry(folder / "new", version=version) for version in ("1.1.0", "2.0.0")]
    build_catalog(
        [shelf / "acme_processor-1.0.0-py3-none-any.whl", *newer, _sdk(shelf)],
        folder / "site",
        origin=Origin(find_links=(shelf,), no_index=True),
        pythons=(OURS,),
        yank={"acme-processor==2.0.0": "loses rows"},
    )
    return folder / "site"


def _sdk(shelf: Path) -> Path:
    return shelf / "catalogzero-0.1.0-py3-none-any.whl"


@pytest.fixture
def client(tmp_path: Path) -> str:
    venv.create(tmp_path / "client", with_pip=False)
    return str(tmp_path / "client" / "bin" / "python")


def test_install_takes_the_newest_release_in_use_and_says_what_changed(
    site: Path, client: str
) -> None:
    change = installing.install(installing.open_catalog(str(site)), "acme-processor", python=client)

    assert change.lines() == [
        "acme-helper (new) -> 2.0",
        "acme-processor (new) -> 1.1.0",
        "catalogzero (new) -> 0.1.0",
    ]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_install_upgrade_roll_back_and_remove_say_what_changed(site: Path, client: str) -> None:
    catalog = installing.open_catalog(str(site))

    first = installing.install(catalog, "acme-processor", version="1.0.0", python=client)
    upgraded = installing.install(catalog, "acme-processor", python=client)
    back = installing.install(catalog, "acme-processor", version="1.0.0", python=client)
    removed = installing.remove("acme-processor", python=client)

    assert first.lines() == [
        "acme-helper (new) -> 2.0",
        "acme-processor (new) -> 1.0.0",
        "catalogzero (new) -> 0.1.0",
    ]
    assert upgraded.lines() == ["acme-processor 1.0.0 -> 1.1.0"]
    assert back.lines() == ["acme-processor 1.1.0 -> 1.0.0"]
    assert removed.lines() == ["acme-processor 1.0.0 -> (removed)"]


def test_a_file_that_is_not_the_one_published_is_refused(
    site: Path, tmp_path: Path, client: str, make_entry: MakeWheel
) -> None:
    changed = shutil.copytree(site, tmp_path / "changed")
    make_entry(changed / "files", version="1.1.0").write_bytes(b"something else")

    with pytest.raises(Exception, match="DO NOT MATCH THE HASHES"):
        installing.install(installing.open_catalog(str(changed)), "acme-processor", python=client)

    assert "acme-processor" not in installing.look("acme-processor", client)["distributions"]


def test_a_catalog_that_contradicts_itself_is_refused(site: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(site, tmp_path / "changed")
    catalog = installing.open_catalog(str(changed))
    own = catalog.find("acme-processor").release(None).sha256
    other = min(set(catalog.content.files.values()) - {own})
    pin = f"acme-processor==1.1.0 --hash=sha256:{other}\n"
    (changed / f"requirements/acme-processor-1.1.0-{LOCK}.txt").write_text(pin)

    with pytest.raises(ConfigError, match="contradicts itself"):
        installing.install(catalog, "acme-processor")


def test_a_yanked_release_is_installed_only_when_it_is_named(site: Path) -> None:
    offer = installing.open_catalog(str(site)).find("acme-processor")

    assert offer.release(None).version == "1.1.0"
    assert offer.release("2.0.0").yanked == "loses rows"


def test_an_entry_or_a_release_that_is_not_there_is_reported_with_those_that_are(
    site: Path,
) -> None:
    catalog = installing.open_catalog(str(site))

    with pytest.raises(ConfigError, match="no entry 'acme'; there are: acme-processor"):
        catalog.find("acme")
    with pytest.raises(ConfigError, match=r"no release 9; there are: 2\.0\.0, 1\.1\.0, 1\.0\.0"):
        catalog.find("acme-processor").release("9")


def test_an_interpreter_that_is_not_there_is_reported_in_a_sentence(site: Path) -> None:
    catalog = installing.open_catalog(str(site))

    with pytest.raises(ConfigError, match="/nosuch/python cannot be run: No such file"):
        installing.install(catalog, "acme-processor", python="/nosuch/python")


def test_a_catalog_that_nobody_serves_is_unreachable() -> None:
    with pytest.raises(UnreachableError, match="does not answer"):
        installing.open_catalog("http://127.0.0.1:9")


def test_list_and_show_report_what_a_client_wants_to_know(site: Path) -> None:
    environment = {**os.environ, "CATALOGZERO_CATALOG": str(site)}

    listed = subprocess.run(
        [CATALOGZERO, "catalog", "list"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    shown = subprocess.run(
        [CATALOGZERO, "catalog", "show", "acme-processor"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )

    assert "acme-processor  1.1.0" in listed.stdout
    for fact in ("every column", "api.acme.example", "2.0.0 (yanked: loses rows)"):
        assert fact in shown.stdout


def manifest() -> Manifest:
    return parse_manifest(MANIFEST, "test")


def test_a_section_is_written_with_every_setting_explained(tmp_path: Path) -> None:
    path = tmp_path / "handler_registry.yaml"

    handler_id = registry_section.add_section(path, manifest())

    written = load_registry(path).find(handler_id)
    assert (handler_id, written.entry) == ("acme_processor", "acme-processor")
    assert written.runtime == {"port": 5001}
    assert written.config == {
        "region": "",
        "api_key_file": "/etc/acme-processor/api_key",
        "data_roots": [],
    }
    assert 'region: ""  # text, Where you are.' in path.read_text()
    assert "# depth: 3  # whole number" in path.read_text()


def test_a_section_takes_the_settings_that_are_known_already(tmp_path: Path) -> None:
    path = tmp_path / "handler_registry.yaml"

    registry_section.add_section(
        path, manifest(), {"region": "1", "depth": "4", "data_roots": "/data/exports"}
    )

    written = load_registry(path).handlers[0].config
    assert written == {
        "region": "1",
        "depth": 4,
        "api_key_file": "/etc/acme-processor/api_key",
        "data_roots": ["/data/exports"],
    }


def test_a_setting_that_the_entry_lacks_and_a_secret_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "handler_registry.yaml"
    secret = MANIFEST + 'api_key = { type = "string", format = "password" }\n'

    with pytest.raises(ConfigError, match=r"no setting 'regoin'; it has: region, depth"):
        registry_section.add_section(path, manifest(), {"regoin": "EU"})
    with pytest.raises(ConfigError, match="use api_key_file"):
        registry_section.add_section(path, parse_manifest(secret, "test"), {"api_key": "canary"})

    assert not path.exists()


def test_a_section_is_added_below_those_that_stand_there_and_changes_none(tmp_path: Path) -> None:
    path = tmp_path / "handler_registry.yaml"
    before = (
        "# mine\nscheduler: none\nhandlers:\n"
        "- handler_id: acme_processor\n  entry: other\n  port: 5001\n"
    )
    path.write_text(before)

    handler_id = registry_section.add_section(path, manifest())

    assert path.read_text().startswith(before)
    assert handler_id == "acme_processor_2"
    assert load_registry(path).find(handler_id).runtime["port"] == 5002


def test_a_file_to_which_no_section_can_be_added_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "handler_registry.yaml"
    before = "handlers: []\n"
    path.write_text(before)

    with pytest.raises(ConfigError, match="by hand"):
        registry_section.add_section(path, manifest())

    assert path.read_text() == before


def test_what_an_upgrade_asks_of_the_client_is_reported() -> None:
    before = {"properties": {"a": {"type": "string"}, "b": {"type": "string"}}}
    after = {
        "properties": {"b": {"type": "integer"}, "c": {"type": "string"}},
        "required": ["c"],
    }

    assert registry_section.changed_settings(before, after) == [
        "new setting c (required)",
        "setting a is gone",
        "setting b means something else",
    ]

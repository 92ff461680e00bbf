"""Manifests, pages and indexes that mean harm: what they say stays words, and nothing runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import yaml
from catalogzero.config.registry import load_registry
from catalogzero.entry import install as installing
from catalogzero.entry import registry_section
from catalogzero.entry.index import build_catalog
from catalogzero.entry.lock import Origin
from catalogzero.entry.manifest import Manifest
from catalogzero.entry.serving import CatalogServer
from catalogzero.errors import ConfigError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.entry.wheels import LOCK, OURS, write_entry, write_wheel

pytestmark = pytest.mark.xdist_group("hostile")
BREAKS = "\n", "\r", "\x85", "\u2028", "\u2029", "\x0b"
ATTACK = "x{}    host: 0.0.0.0{}    egress: {{hosts: [evil.example]}}{}  - handler_id: other"


def manifest(**changes: Any) -> Manifest:
    """A manifest of an entry, with parts of it changed."""
    told = {
        "manifest_version": 1,
        "id": "acme-processor",
        "name": "Acme",
        "version": "1.0.0",
        "kind": "processor",
        "description": "Cleans rows.",
        "vendor": {"name": "Acme"},
        "requires": {"python": ">=3.11", "catalogzero": ">=0.1"},
    }
    return Manifest.model_validate({**told, **changes})


TEXTS = st.text() | st.sampled_from([ATTACK.format(b, b, b) for b in BREAKS])
JSON = st.none() | st.booleans() | st.integers() | TEXTS | st.lists(TEXTS, max_size=3)


@settings(max_examples=200, deadline=None)
@given(
    words=st.lists(JSON, max_size=4), kind=TEXTS, meaning=TEXTS, default=JSON, must=st.booleans()
)
def test_no_manifest_writes_a_key_into_the_client_s_file(
    tmp_path_factory: pytest.TempPathFactory,
    words: list[Any],
    kind: str,
    meaning: str,
    default: Any,
    must: bool,
) -> None:
    setting = {"type": kind, "enum": words, "description": meaning, "default": default}
    schema = {"properties": {"region": setting, "depth": {"type": kind}}}
    path = tmp_path_factory.mktemp("client") / "handler_registry.yaml"

    registry_section.add_section(
        path, manifest(config_schema={**schema, "required": ["region"] if must else []})
    )

    (added,) = yaml.safe_load(path.read_text("utf-8"))["handlers"]
    assert added == {
        "handler_id": "acme_processor",
        "entry": "acme-processor",
        "port": 5001,
        "config": {"region": ""} if must else {},
    }
    assert load_registry(path).find("acme_processor").runtime == {"port": 5001}


@pytest.mark.parametrize(
    "changes",
    [
        {"documentation": "javascript:alert(1)"},
        {"documentation": "data:text/html,x"},
        {"documentation": "https://docs.example/\nx"},
        {"vendor": {"name": "A", "url": "JavaScript:alert(1)"}},
        {"vendor": {"name": "A", "support_email": "a@b.example?bcc=c@d.example"}},
        {"config_schema": {"properties": {"a: 1\nhost": {"type": "string"}}}},
        {"config_schema": {"properties": 5}},
        {"config_schema": {"properties": {"a": {"enum": "text"}}}},
        {"config_schema": {"properties": {"a": {"anyOf": [True]}}}},
        {"config_schema": {"required": ["host"]}},
    ],
    ids=str,
)
def test_a_manifest_that_is_more_than_words_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        manifest(**changes)


def test_a_schema_too_deep_to_read_is_refused() -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(500):
        deep = {"anyOf": [deep]}

    with pytest.raises(ValueError, match="deeper than 20"):
        manifest(config_schema={"properties": {"a": deep}})


@pytest.fixture(scope="module")
def published(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog of one entry."""
    folder = tmp_path_factory.mktemp("hostile")
    wheels = [shelf / f"{name}-py3-none-any.whl" for name in ("acme_processor-1.0.0",)]
    build_catalog(
        [*wheels, shelf / "catalogzero-0.1.0-py3-none-any.whl"],
        folder / "site",
        origin=Origin(find_links=(shelf,), no_index=True),
        pythons=(OURS,),
    )
    return folder / "site"


@pytest.fixture
def site(published: Path, tmp_path: Path) -> Path:
    """A copy of the catalog, for a test to spoil."""
    return shutil.copytree(published, tmp_path / "site")


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The catalog over HTTP."""
    with CatalogServer(site) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


def test_every_page_has_a_policy_that_runs_nothing(site: Path) -> None:
    pages = list(site.rglob("*.html"))

    assert len(pages) > 3
    for page in pages:
        assert "Content-Security-Policy\" content=\"default-src 'none'" in page.read_text("utf-8")


def test_no_link_leads_out_of_the_folder_that_is_served(site: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("canary")
    (site / "file").symlink_to(tmp_path / "secret" / "key")
    (site / "folder").symlink_to(tmp_path / "secret")
    (site / "again.json").symlink_to(site / "catalog.json")

    with served(site) as url:
        answers = [httpx.get(f"{url}/{path}") for path in ("file", "folder/", "folder/key")]
        inside = httpx.get(f"{url}/again.json")

    assert [answer.status_code for answer in answers] == [404, 404, 404]
    assert not any("canary" in answer.text or "key" in answer.text for answer in answers)
    assert inside.json()["entries"]
    assert "default-src 'none'" in inside.headers["content-security-policy"]


def pins(text: str) -> Callable[[Path], None]:
    """Spoils a catalog: the entry's requirements file says this, too."""

    def spoil(site: Path) -> None:
        path = site / "requirements" / f"acme-processor-1.0.0-{LOCK}.txt"
        path.write_text(path.read_text("utf-8") + text, "utf-8")

    return spoil


def document(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Spoils a catalog: `catalog.json` is changed."""

    def spoil(site: Path) -> None:
        path = site / "catalog.json"
        told = json.loads(path.read_text("utf-8"))
        change(told)
        path.write_text(json.dumps(told), "utf-8")

    return spoil


HASH = "--hash=sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (pins("evil==1.0\n"), "'evil==1.0' is not name==version with a hash"),
        (pins(f"evil==1.0 {HASH}\n"), "is not a file of the catalog"),
        (pins(f"evil @ https://evil.example/e.whl {HASH}\n"), "is not name==version"),
        (pins("--extra-index-url https://evil.example\n"), "is not name==version"),
        (pins("-r /etc/passwd\n"), "is not name==version"),
        (document(lambda d: d["files"].update({"evil-1.0.tar.gz": "0" * 64})), "evil-1.0.tar.gz"),
        (document(lambda d: d["files"].update({"../e-1.whl": "0" * 64})), "../e-1.whl"),
        (
            document(lambda d: d["files"].update({"e-1-py3-none-any.whl": ""})),
            "e-1-py3-none-any.whl",
        ),
        (
            document(lambda d: d["entries"][0]["releases"][0]["locks"][0].update(file="../../key")),
            "releases.0.locks.0.file",
        ),
        (
            document(lambda d: d["entries"].append(d["entries"][0])),
            "two of its entries are 'acme-processor'",
        ),
        (
            document(
                lambda d: d["entries"].append(
                    {**d["entries"][0], "id": "other", "distribution": "Acme_Processor"}
                )
            ),
            "two of its entries are 'acme-processor'",
        ),
        (document(lambda d: d["entries"][0].update(documentation="javascript:x")), "documentation"),
        (document(lambda d: d.update(files=[1])), "catalog.json: files: "),
    ],
)
def test_an_index_that_is_more_than_pinned_wheels_is_refused(
    site: Path, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(site)

    with pytest.raises(ConfigError) as refused:
        installing.install(installing.open_catalog(str(site)), "acme-processor")

    assert said in str(refused.value)


def test_names_that_normalise_alike_are_refused(site: Path) -> None:
    path = site / "requirements" / f"acme-processor-1.0.0-{LOCK}.txt"
    pin = " ".join(
        path.read_text("utf-8").partition("\nacme-processor")[0].replace("\\\n", "").split()
    )
    assert pin.startswith("acme-helper==2.0 ")
    pins(pin.replace("acme-helper==2.0", "Acme_Helper==1.0") + "\n")(site)

    with pytest.raises(ConfigError, match="names acme-helper twice"):
        installing.install(installing.open_catalog(str(site)), "acme-processor")


@pytest.mark.parametrize("place", ["http://catalog.example", "ftp://127.0.0.1/x", "file:///tmp/x"])
def test_a_catalog_is_https_or_on_this_machine(place: str) -> None:
    with pytest.raises(ConfigError, match="https://…, or http to this machine"):
        installing.open_catalog(place)


def test_two_distributions_of_one_entry_are_refused_where_a_catalog_is_built(
    shelf: Path, tmp_path: Path
) -> None:
    other = write_entry(tmp_path / "one")
    with_other_name = write_wheel(
        tmp_path / "two",
        "acme-again",
        requires=("catalogzero>=0.1",),
        files={"acme_again/catalogzero.toml": _manifest_in(other)},
        entry_points="[catalogzero.entries]\nacme-processor = acme_again\n",
    )

    with pytest.raises(ConfigError, match="both provide the entry 'acme-processor'"):
        build_catalog(
            [other, with_other_name, shelf / "catalogzero-0.1.0-py3-none-any.whl"],
            tmp_path / "site",
            origin=Origin(find_links=(shelf,), no_index=True),
            pythons=(OURS,),
        )


def _manifest_in(wheel: Path) -> str:
    import zipfile

    with zipfile.ZipFile(wheel) as archive:
        return archive.read("acme_processor/catalogzero.toml").decode()


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, str]:
    """An environment in which two distributions provide the entry and handler `acme-processor`."""
    for name in ("one", "two"):
        info = tmp_path / name / f"acme_{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-{name}\nVersion: 1.0\n")
        point = f"acme-processor = acme_{name}"
        points = f"[catalogzero.handlers]\n{point}:P\n[catalogzero.entries]\n{point}\n"
        (info / "entry_points.txt").write_text(points)
        (tmp_path / name / f"acme_{name}.py").write_text(
            "from catalogzero import Handler\n\n"
            f"class P(Handler):\n    def who(self) -> str:\n        return {name!r}\n"
        )
    places = os.pathsep.join(str(tmp_path / name) for name in ("one", "two"))
    return {**os.environ, "PYTHONPATH": places, "CATALOGZERO_STATE_DIR": str(tmp_path / "state")}


def test_a_name_that_two_distributions_provide_is_refused(
    pair: dict[str, str], tmp_path: Path
) -> None:
    def once(target: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "catalogzero", "run", target, "--once", "who"]
        return subprocess.run(command, env=pair, cwd=tmp_path, capture_output=True, text=True)

    refused, named = once("acme-processor"), once("acme-two")

    assert refused.returncode == 3
    assert "acme-one and acme-two both provide 'acme-processor'" in refused.stderr
    assert json.loads(named.stdout) == "two"


def test_an_entry_that_another_distribution_provides_is_not_installed_over_it(
    site: Path, pair: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", pair["PYTHONPATH"])

    with pytest.raises(ConfigError, match="acme-one provides an entry 'acme-processor' here"):
        installing.install(
            installing.open_catalog(str(site)), "acme-processor", python=sys.executable
        )

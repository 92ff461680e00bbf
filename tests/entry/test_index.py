"""A catalog: what pip finds in it, and what people and programs read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import venv
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import unescape
from pathlib import Path

import pytest
from catalogzero.entry.index import CatalogReport, build_catalog
from catalogzero.entry.lock import Origin
from catalogzero.entry.pip import pip_command
from catalogzero.entry.serving import CatalogServer
from catalogzero.errors import CatalogZeroError, ConfigError

from tests.entry.wheels import LOCK, OURS

pytestmark = pytest.mark.xdist_group("index")
MakeWheel = Callable[..., Path]
UV = Path(sys.executable).parent / "uv"


def rows_of(page: str) -> list[str]:
    """The rows of a page's tables as a reader sees them, a bar between cells."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    texts = [[unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in row] for row in cells]
    return ["|".join(filter(None, row)) for row in texts]


def publish(
    *dists: Path,
    out: Path,
    shelf: Path,
    pythons: Sequence[str] = (OURS,),
    yank: Mapping[str, str] | None = None,
    replace: bool = False,
) -> CatalogReport:
    return build_catalog(
        [*dists, shelf / "catalogzero-0.1.0-py3-none-any.whl"],
        out,
        origin=Origin(find_links=(shelf,), no_index=True),
        pythons=pythons,
        yank=yank,
        replace=replace,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="session")
def published(shelf: Path) -> Path:
    entry = shelf / "acme_processor-1.0.0-py3-none-any.whl"
    publish(entry, out=shelf.parent / "site", shelf=shelf)
    return shelf.parent / "site"


@pytest.fixture
def site(published: Path, tmp_path: Path) -> Path:
    return shutil.copytree(published, tmp_path / "site")


@pytest.fixture
def served(site: Path) -> Iterator[str]:
    with CatalogServer(site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.url
        server.shutdown()
        thread.join(10)


@pytest.fixture
def client(tmp_path: Path) -> Path:
    """A fresh environment that knows no index."""
    venv.create(tmp_path / "client", with_pip=False)
    return tmp_path / "client" / "bin" / "python"


def pip(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(
        [*pip_command(), "--python", python, "--disable-pip-version-check", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


def installed(python: Path) -> set[str]:
    return {path.name for path in python.parent.parent.glob("lib/*/site-packages/*.dist-info")}


def test_pip_installs_an_entry_and_all_that_it_needs_from_the_catalog_alone(
    served: str, client: Path
) -> None:
    done = pip(client, "install", "--index-url", f"{served}/simple", "acme-processor")

    assert done.returncode == 0, done.stderr
    assert installed(client) == {
        "acme_helper-2.0.dist-info",
        "acme_processor-1.0.0.dist-info",
        "catalogzero-0.1.0.dist-info",
    }


def test_pip_installs_by_hashes_from_the_catalog_alone(served: str, client: Path) -> None:
    requirements = f"{served}/requirements/acme-processor-1.0.0-{LOCK}.txt"

    done = pip(
        client, "install", "--require-hashes", "--index-url", f"{served}/simple", "-r", requirements
    )

    assert done.returncode == 0, done.stderr
    assert len(installed(client)) == 3


@pytest.mark.skipif(not UV.exists(), reason="needs uv")
def test_uv_installs_an_entry_from_the_catalog_alone(served: str, client: Path) -> None:
    install = [str(UV), "pip", "install", "--no-config", "--no-cache", "--python", str(client)]

    done = subprocess.run(
        [*install, "--default-index", f"{served}/simple", "acme-processor"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )

    assert done.returncode == 0, done.stderr
    assert len(installed(client)) == 3


def test_pip_refuses_a_file_that_was_changed_at_the_catalog(
    served: str, site: Path, shelf: Path, client: Path, make_wheel: MakeWheel
) -> None:
    make_wheel(site / "files", "acme-helper", "2.0", files={"acme_helper/evil.py": "pass"})

    done = pip(client, "install", "--index-url", f"{served}/simple", "acme-processor")

    assert done.returncode
    assert "DO NOT MATCH THE HASHES" in done.stderr


def test_the_simple_index_carries_hashes_and_metadata_for_every_file(site: Path) -> None:
    pages = sorted((site / "simple").glob("*/index.html"))

    for page in pages:
        (link,) = re.findall(
            r'href="\.\./\.\./files/([^#"]+)#sha256=([0-9a-f]+)"', page.read_text()
        )
        name, digest = link
        assert hashlib.sha256((site / "files" / name).read_bytes()).hexdigest() == digest
        metadata = hashlib.sha256((site / "files" / f"{name}.metadata").read_bytes()).hexdigest()
        assert f'data-core-metadata="sha256={metadata}"' in page.read_text()
    assert [page.parent.name for page in pages] == ["acme-helper", "acme-processor", "catalogzero"]


def test_the_json_index_says_the_same_as_the_pages(site: Path) -> None:
    document = json.loads((site / "simple/acme-processor/index.json").read_text())

    (file,) = document["files"]
    assert document["versions"] == ["1.0.0"]
    assert (
        f"#sha256={file['hashes']['sha256']}"
        in (site / "simple/acme-processor/index.html").read_text()
    )


def test_the_same_wheels_give_the_same_bytes(site: Path, shelf: Path, tmp_path: Path) -> None:
    entry = shelf / "acme_processor-1.0.0-py3-none-any.whl"

    publish(entry, out=tmp_path / "again", shelf=shelf)
    publish(entry, out=site, shelf=shelf)

    assert contents(tmp_path / "again") == contents(site)


def test_an_entry_s_page_reports_what_leaves_and_escapes_what_it_reports(site: Path) -> None:
    page = (site / "entries/acme-processor/index.html").read_text()

    assert "Acme &lt;Processor&gt;" in page
    assert "every column" in page
    assert "api.acme.example" in page
    assert '--index-url "$CATALOG/simple" acme-processor' in unescape(page)
    assert all(" src=" in one for one in re.findall(r"<script[^>]*>", page))


def test_a_newer_release_is_added_beside_the_older_one(
    site: Path, shelf: Path, tmp_path: Path, make_entry: MakeWheel
) -> None:
    newer = make_entry(tmp_path / "new", version="1.1.0")

    report = publish(newer, out=site, shelf=shelf)

    assert report.entries == {"acme-processor": "1.1.0"}
    document = json.loads((site / "catalog.json").read_text())
    versions = [release["version"] for release in document["entries"][0]["releases"]]
    assert versions == ["1.1.0", "1.0.0"]


def test_a_yanked_release_is_marked_stays_marked_and_is_not_the_newest(
    site: Path, shelf: Path, tmp_path: Path, make_entry: MakeWheel
) -> None:
    newer = make_entry(tmp_path / "new", version="1.1.0")

    publish(newer, out=site, shelf=shelf, yank={"acme-processor==1.1.0": "loses rows"})
    publish(newer, out=site, shelf=shelf)

    document = json.loads((site / "catalog.json").read_text())
    assert document["entries"][0]["version"] == "1.0.0"
    assert document["entries"][0]["releases"][0]["yanked"] == "loses rows"
    assert 'data-yanked="loses rows"' in (site / "simple/acme-processor/index.html").read_text()


def test_a_release_to_yank_that_is_not_there_is_refused(site: Path, shelf: Path) -> None:
    entry = shelf / "acme_processor-1.0.0-py3-none-any.whl"

    with pytest.raises(ConfigError, match=r"no release to yank: acme-processor==9"):
        publish(entry, out=site, shelf=shelf, yank={"acme-processor==9": "x"})


def test_a_published_file_cannot_change_unless_that_is_said(
    site: Path, shelf: Path, tmp_path: Path, make_wheel: MakeWheel
) -> None:
    other = tmp_path / "other"
    changed = make_wheel(
        other,
        "acme-processor",
        requires=("acme-helper",),
        files={
            "acme_processor/catalogzero.toml": _manifest_of(shelf),
            "acme_processor/new.py": "",
        },
        entry_points="[catalogzero.entries]\nacme-processor = acme_processor\n",
    )
    before = contents(site)

    with pytest.raises(ConfigError, match="published with other content; raise its version"):
        publish(changed, out=site, shelf=shelf)
    assert contents(site) == before

    publish(changed, out=site, shelf=shelf, replace=True)
    assert contents(site) != before


def _manifest_of(shelf: Path) -> str:
    with zipfile.ZipFile(shelf / "acme_processor-1.0.0-py3-none-any.whl") as archive:
        return archive.read("acme_processor/catalogzero.toml").decode()


def test_a_folder_without_an_entry_is_refused(tmp_path: Path, make_wheel: MakeWheel) -> None:
    plain = make_wheel(tmp_path, "plain")

    with pytest.raises(ConfigError, match="no catalog entry among"):
        build_catalog([plain], tmp_path / "site")

    assert not (tmp_path / "site").exists()


def test_a_manifest_of_another_version_is_refused(
    shelf: Path, tmp_path: Path, make_entry: MakeWheel
) -> None:
    entry = make_entry(tmp_path / "new", version="1.1.0")
    renamed = entry.rename(entry.with_name("acme_processor-1.2.0-py3-none-any.whl"))

    with pytest.raises(ConfigError, match=r"says version 1\.1\.0"):
        publish(renamed, out=tmp_path / "site", shelf=shelf)


STREAMS = """
[[streams]]
name = "orders"
[streams.schema]
required = ["id"]
[streams.schema.properties]
id = { type = "integer", description = "Its <number>." }
note = { anyOf = [{ type = "string" }, { type = "null" }] }
"""


def test_the_declared_columns_stand_in_the_catalog_and_on_the_entry_s_page(
    shelf: Path, tmp_path: Path, make_entry: MakeWheel
) -> None:
    entry = make_entry(tmp_path / "new", version="1.3.0", more=STREAMS)

    publish(entry, out=tmp_path / "site", shelf=shelf)

    [described] = json.loads((tmp_path / "site" / "catalog.json").read_text())["entries"]
    page = (tmp_path / "site" / "entries" / "acme-processor" / "index.html").read_text()
    assert list(described["streams"][0]["schema"]["properties"]) == ["id", "note"]
    assert "Columns of <code>orders</code>" in page
    assert "id|whole number, required|Its <number>." in rows_of(page)
    assert "note|text" in rows_of(page)


PARAMS = """
[[methods]]
name = "process_and_upload"
[methods.params_schema]
required = ["params"]
properties = { params = { "$ref" = "#/$defs/Prices", description = "For `process`." } }
[methods.params_schema."$defs".Prices]
required = ["region"]
[methods.params_schema."$defs".Prices.properties]
region = { type = "string", description = "Of <all>." }
as_of = { type = "string", format = "date", identity = false, description = "The day." }
"""


def test_the_params_of_process_stand_on_the_entry_s_page(
    shelf: Path, tmp_path: Path, make_entry: MakeWheel
) -> None:
    entry = make_entry(tmp_path / "new", version="1.3.0", more=PARAMS)

    publish(entry, out=tmp_path / "site", shelf=shelf)

    page = (tmp_path / "site" / "entries" / "acme-processor" / "index.html").read_text()
    for row in (
        "params|any, required|For process.",
        "params.region|text, required|Of <all>.",
        "params.as_of|date|The day. Another value is the same source.",
    ):
        assert row in rows_of(page)


@pytest.mark.parametrize("odd", ['"$defs" = 3', 'required = "n"', '"$defs" = { P = 7 }'])
def test_a_schema_that_is_none_is_refused(
    shelf: Path, tmp_path: Path, make_entry: MakeWheel, odd: str
) -> None:
    more = f'[[methods]]\nname = "count"\n[methods.params_schema]\n{odd}\n'
    entry = make_entry(tmp_path / "new", version="1.3.0", more=more)

    with pytest.raises(ConfigError, match="JSON Schema"):
        publish(entry, out=tmp_path / "site", shelf=shelf)


def test_a_dependency_that_is_nowhere_is_reported_in_pip_s_words(
    shelf: Path, tmp_path: Path
) -> None:
    alone = shutil.copytree(shelf, tmp_path / "shelf")
    (alone / "acme_helper-2.0-py3-none-any.whl").unlink()

    with pytest.raises(CatalogZeroError, match=r"(?s)acme-helper.*--find-links"):
        publish(alone / "acme_processor-1.0.0-py3-none-any.whl", out=tmp_path / "s", shelf=alone)


def test_serving_a_folder_that_is_no_catalog_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a catalog"):
        CatalogServer(tmp_path)

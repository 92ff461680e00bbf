"""The locks of a catalog: what is built here installs there, by plain pip and by `catalog install`.

uv and pip are real, and so are the environments; wheels are small ones in a folder or an index
below `tmp_path`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from catalogzero.entry import install as installing
from catalogzero.entry.index import CatalogReport, build_catalog
from catalogzero.entry.lock import Origin
from catalogzero.entry.pip import pip_command
from catalogzero.errors import CatalogZeroError, ConfigError

from tests.entry.wheels import LOCK, OURS, PLATFORM, write_entry, write_wheel

pytestmark = pytest.mark.xdist_group("locks")
CATALOGZERO = Path(sys.executable).parent / "catalogzero"
MACHINE = PLATFORM.removeprefix("linux_")


def build(
    *dists: Path,
    shelf: Path,
    out: Path,
    pythons: Sequence[str] = (OURS,),
    platforms: Sequence[str] = (),
    index_url: str | None = None,
    replace: bool = False,
) -> CatalogReport:
    """Build a catalog of which only the wheels given are its own; a shelf has the others."""
    origin = Origin((shelf,), index_url, no_index=index_url is None)
    return build_catalog(
        dists, out, origin=origin, pythons=pythons, platforms=platforms, replace=replace
    )


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder with what entries need, in two versions."""
    for version in ("1.0", "2.0"):
        write_wheel(tmp_path / "shelf", "acme-helper", version)
    return tmp_path / "shelf"


@pytest.fixture
def sdk(tmp_path: Path) -> Path:
    """A small wheel in the SDK's place."""
    return write_wheel(tmp_path / "own", "catalogzero", "0.1.0")


def interpreter(version: str) -> str:
    """A Python of that version on this machine."""
    places = [Path(found)] if (found := shutil.which(f"python{version}")) else []
    places += sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python3"))
    for place in places:
        asked = subprocess.run([place, "--version"], capture_output=True, text=True, check=False)
        if asked.stdout.startswith(f"Python {version}."):
            return str(place)
    pytest.skip(f"there is no Python {version} on this machine")


def environment(folder: Path, version: str = OURS) -> str:
    """A fresh environment of a Python; its interpreter."""
    python = sys.executable if version == OURS else interpreter(version)
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True, timeout=100)
    return str(folder / "bin" / "python")


def plain_pip(python: str, site: Path, *what: str) -> dict[str, str]:
    """Let pip install from a site alone; what is installed then."""
    options = ["--disable-pip-version-check", "install", "--index-url", f"{site.as_uri()}/simple"]
    done = subprocess.run(
        [*pip_command(), "--python", python, *options, *what],
        env={"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": os.devnull},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return installing.look("", python)["distributions"]


def install(python: str, site: Path, entry_id: str) -> dict[str, str]:
    """Install by `catalog install`; what is installed then."""
    catalog = installing.open_catalog(str(site))
    return installing.install(catalog, entry_id, python=python).after


def lock_of(site: Path, release: str, machine: str = LOCK) -> dict[str, str]:
    """A lock's pins: name → version; every line has one hash."""
    text = (site / "requirements" / f"{release}-{machine}.txt").read_text()
    pins = re.findall(r"^(\S+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}\n", text, re.MULTILINE)
    assert len(text.splitlines()) == 2 * len(pins)
    return dict(pins)


@pytest.mark.timeout(300)
def test_two_builds_into_one_site_with_conflicting_pins_both_install(
    tmp_path: Path, shelf: Path, sdk: Path
) -> None:
    site = tmp_path / "site"
    needs = {"acme-old": "acme-helper<2", "acme-new": "acme-helper>=2"}
    for name, needed in needs.items():
        entry = write_entry(tmp_path / name, name, requires=(needed,))
        report = build(entry, sdk, shelf=shelf, out=site)

    assert report.serves == {name: [f"Python {OURS} on {PLATFORM}"] for name in sorted(needs)}
    for name, version in {"acme-old": "1.0", "acme-new": "2.0"}.items():
        expected = {name: "1.0.0", "acme-helper": version, "catalogzero": "0.1.0"}
        assert lock_of(site, f"{name}-1.0.0") == expected
        assert plain_pip(environment(tmp_path / f"{name}-plain"), site, name) == expected
        assert install(environment(tmp_path / f"{name}-env"), site, name) == expected


@pytest.fixture(scope="module")
def for_pythons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog whose entry needs a package compiled for each Python, and one for older ones."""
    folder = tmp_path_factory.mktemp("pythons")
    shelf = folder / "shelf"
    for number in ("311", "312", "313"):
        tag = f"cp{number}-cp{number}-{PLATFORM}"
        write_wheel(shelf, "acme-native", files={f"built_for_{number}.py": ""}, tag=tag)
    write_wheel(shelf, "acme-backport")
    needs = ("acme-native", 'acme-backport; python_version < "3.13"')
    own = (
        write_entry(folder / "e", requires=needs),
        write_wheel(folder / "own", "catalogzero", "0.1.0"),
    )
    build(*own, shelf=shelf, out=folder / "site", pythons=())
    return folder / "site"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_a_catalog_installs_on_each_python_that_it_serves(
    tmp_path: Path, for_pythons: Path, version: str
) -> None:
    expected = {"acme-processor": "1.0.0", "acme-native": "1.0.0", "catalogzero": "0.1.0"}
    if version != "3.13":
        expected["acme-backport"] = "1.0.0"

    plain = environment(tmp_path / "plain", version)
    pinned = environment(tmp_path / "pinned", version)
    hashed = environment(tmp_path / "hashed", version)

    requirements = for_pythons / f"requirements/acme-processor-1.0.0-py{version}-{PLATFORM}.txt"
    assert plain_pip(plain, for_pythons, "acme-processor") == expected
    assert plain_pip(hashed, for_pythons, "--require-hashes", "-r", str(requirements)) == expected
    assert install(pinned, for_pythons, "acme-processor") == expected
    built_for = next((tmp_path / "pinned").glob("lib/*/site-packages/built_for_*.py"))
    assert built_for.name == f"built_for_{version.replace('.', '')}.py"


def test_a_build_serves_what_entry_and_catalogzero_allow_and_says_so(
    tmp_path: Path, shelf: Path, sdk: Path
) -> None:
    entry = write_entry(tmp_path / "e", metadata="Requires-Python: >=3.12.1\n")
    wheels = (entry, sdk, "--find-links", shelf, "--no-index")
    done = subprocess.run(
        [CATALOGZERO, "catalog", "build", *wheels, "--out", tmp_path / "site"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    served = f"Python 3.12 on {PLATFORM}, Python 3.13 on {PLATFORM}"
    assert f"acme-processor 1.0.0 for {served}\n" in done.stdout
    page = (tmp_path / "site/entries/acme-processor/index.html").read_text()
    assert f"Python 3.12, 3.13 on {PLATFORM}" in page
    assert f"requirements/acme-processor-1.0.0-py3.13-{PLATFORM}.txt" in page
    with pytest.raises(ConfigError, match=r"no entry given allows Python 3\.11"):
        build(entry, sdk, shelf=shelf, out=tmp_path / "site", pythons=["3.11"])


def test_the_extras_of_sdk_and_entry_are_in_the_catalog_and_the_vendor_s_own_are_not(
    tmp_path: Path, shelf: Path
) -> None:
    for name in ("acme-clock", "acme-driver", "acme-linter"):
        write_wheel(shelf, name)
    sdk = write_wheel(
        tmp_path / "own",
        "catalogzero",
        "0.1.0",
        metadata="Provides-Extra: scheduler\n",
        requires=('acme-clock; extra == "scheduler"',),
    )
    entry = write_entry(
        tmp_path / "e",
        metadata="Provides-Extra: mainframe\nProvides-Extra: dev\n",
        requires=('acme-driver; extra == "mainframe"', 'acme-linter; extra == "dev"'),
    )

    build(entry, sdk, shelf=shelf, out=tmp_path / "site")

    wheels = {path.name.partition("-")[0] for path in (tmp_path / "site/files").glob("*.whl")}
    assert wheels == {"acme_clock", "acme_driver", "acme_processor", "catalogzero"}
    assert lock_of(tmp_path / "site", "acme-processor-1.0.0").keys() == {
        "acme-processor",
        "catalogzero",
    }


def test_a_source_archive_is_refused(tmp_path: Path, sdk: Path) -> None:
    shelf = tmp_path / "sources"
    shelf.mkdir()
    files = {
        "PKG-INFO": "Metadata-Version: 2.2\nName: acme-helper\nVersion: 2.0\n",
        "setup.py": "raise SystemExit('a source archive was run')",
    }
    with tarfile.open(shelf / "acme_helper-2.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            (tmp_path / name).write_text(text)
            archive.add(tmp_path / name, f"acme_helper-2.0/{name}")

    with pytest.raises(CatalogZeroError, match=r"(?s)cannot be locked.*acme-helper") as refused:
        build(write_entry(tmp_path / "e"), sdk, shelf=shelf, out=tmp_path / "site")

    assert "was run" not in str(refused.value)
    assert not (tmp_path / "site").exists()


def test_an_index_gives_nothing_of_a_name_that_is_the_catalog_s_own(
    tmp_path: Path, shelf: Path, sdk: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    other_sdk = write_wheel(elsewhere, "catalogzero", "9.0")
    same = write_entry(elsewhere, requires=("acme-helper", "catalogzero==9.0"))
    build(same, other_sdk, shelf=shelf, out=tmp_path / "index")
    entry = write_entry(tmp_path / "e")

    index = f"{(tmp_path / 'index').as_uri()}/simple"
    build(entry, sdk, shelf=shelf, out=tmp_path / "site", index_url=index)

    assert lock_of(tmp_path / "site", "acme-processor-1.0.0")["catalogzero"] == "0.1.0"
    published = tmp_path / "site/files" / entry.name
    assert published.read_bytes() == entry.read_bytes() != same.read_bytes()


def test_a_folder_gives_nothing_of_a_name_that_is_the_catalog_s_own(
    tmp_path: Path, shelf: Path, sdk: Path
) -> None:
    write_wheel(shelf, "catalogzero", "9.0")
    same = write_entry(shelf, requires=("acme-helper<2",))
    entry = write_entry(tmp_path / "e")

    build(entry, sdk, shelf=shelf, out=tmp_path / "site")

    expected = {"acme-processor": "1.0.0", "acme-helper": "2.0", "catalogzero": "0.1.0"}
    assert same.read_bytes() != entry.read_bytes()
    assert lock_of(tmp_path / "site", "acme-processor-1.0.0") == expected
    assert install(environment(tmp_path / "env"), tmp_path / "site", "acme-processor") == expected


def test_a_wheel_of_the_catalog_s_own_in_pip_s_folders_is_refused(
    tmp_path: Path, shelf: Path, sdk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_entry(tmp_path / "links", requires=("acme-helper<2",))
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "links"))

    with pytest.raises(ConfigError, match=r"acme-processor==1\.0\.0 is the catalog's own, and is"):
        build(write_entry(tmp_path / "e"), sdk, shelf=shelf, out=tmp_path / "site")


def test_pip_s_own_index_is_asked_where_no_other_is_named(
    tmp_path: Path, shelf: Path, sdk: Path
) -> None:
    entry = write_entry(tmp_path / "e")
    build(entry, sdk, shelf=shelf, out=tmp_path / "index")
    settings = tmp_path / "pip.conf"
    settings.write_text(f"[global]\nindex-url = {(tmp_path / 'index').as_uri()}/simple\n")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_"))}

    done = subprocess.run(
        [CATALOGZERO, "catalog", "build", entry, sdk, "--python", OURS, "--out", tmp_path / "site"],
        env={**kept, "PIP_CONFIG_FILE": str(settings)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert lock_of(tmp_path / "site", "acme-processor-1.0.0")["acme-helper"] == "2.0"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog locked for three platforms, with a wheel of a newer release for the newest."""
    folder = tmp_path_factory.mktemp("platforms")
    shelf = folder / "compiled"
    for version, platform in {
        "1.0": f"manylinux2014_{MACHINE}",
        "1.1": f"manylinux_2_28_{MACHINE}",
        "2.0": f"manylinux_2_34_{MACHINE}",
        "3.0": f"musllinux_1_2_{MACHINE}",
    }.items():
        write_wheel(shelf, "acme-helper", version, tag=f"py3-none-{platform}")
    platforms = [
        f"{kind}_{MACHINE}" for kind in ("manylinux_2_17", "manylinux_2_28", "musllinux_1_2")
    ]
    own = write_entry(folder / "e"), write_wheel(folder / "own", "catalogzero", "0.1.0")
    build(*own, shelf=shelf, out=folder / "site", platforms=platforms)
    return folder / "site"


@pytest.fixture
def for_platforms(locked: Path, tmp_path: Path) -> Path:
    """A copy of it, for a test to change."""
    return shutil.copytree(locked, tmp_path / "site")


def test_each_platform_has_a_lock_of_wheels_that_it_can_install(for_platforms: Path) -> None:
    for platform, version in {
        "manylinux_2_17": "1.0",
        "manylinux_2_28": "1.1",
        "musllinux_1_2": "3.0",
    }.items():
        machine = f"py{OURS}-{platform}_{MACHINE}"
        assert lock_of(for_platforms, "acme-processor-1.0.0", machine)["acme-helper"] == version


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"glibc": [2, 36]}, "manylinux_2_28"),
        ({"glibc": [2, 27]}, "manylinux_2_17"),
        ({"glibc": []}, "musllinux_1_2"),
        ({"glibc": [2, 12]}, None),
        ({"python": "3.10"}, None),
        ({"machine": "riscv64"}, None),
    ],
    ids=str,
)
def test_a_client_takes_the_lock_that_fits_its_machine(
    for_platforms: Path,
    tmp_path: Path,
    changes: Mapping[str, object],
    expected: str | None,
) -> None:
    seen = {"python": OURS, "machine": MACHINE, "glibc": [2, 36], "distributions": {}}
    said = json.dumps({**seen, "providers": [], "manifest": "", **changes})
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{said}'\n")
    python.chmod(0o755)
    for path in (for_platforms / "requirements").iterdir():
        path.write_text(f"{path.name}: chosen")  # not a pin: refused where it is read

    with pytest.raises(ConfigError) as refused:
        install(str(python), for_platforms, "acme-processor")

    chosen = f"acme-processor-1.0.0-py{OURS}-{expected}_{MACHINE}.txt: chosen"
    absent = f"is not published for Python {changes.get('python', OURS)} on this"
    assert (chosen if expected else absent) in str(refused.value)


def test_a_catalog_with_one_file_of_requirements_is_still_read(
    tmp_path: Path, shelf: Path, sdk: Path
) -> None:
    site = tmp_path / "site"
    build(write_entry(tmp_path / "e"), sdk, shelf=shelf, out=site)
    lock = site / f"requirements/acme-processor-1.0.0-{LOCK}.txt"
    lock.rename(site / "requirements/acme-processor-1.0.0.txt")
    document = json.loads((site / "catalog.json").read_text())
    release = document["entries"][0]["releases"][0]
    del release["locks"]
    release["requirements"] = "requirements/acme-processor-1.0.0.txt"
    (site / "catalog.json").write_text(json.dumps(document))

    after = install(environment(tmp_path / "client"), site, "acme-processor")

    assert after.keys() == {"acme-processor", "acme-helper", "catalogzero"}


def test_a_wheel_that_is_replaced_is_named_by_every_lock(
    tmp_path: Path, shelf: Path, sdk: Path
) -> None:
    site = tmp_path / "site"
    build(write_entry(tmp_path / "e", "acme-one"), sdk, shelf=shelf, out=site)
    other = write_wheel(tmp_path / "o", "catalogzero", "0.1.0", files={"catalogzero/new.py": ""})
    two = write_entry(tmp_path / "e", "acme-two")

    build(two, other, shelf=shelf, out=site, replace=True)

    after = install(environment(tmp_path / "client"), site, "acme-one")
    assert after["catalogzero"] == "0.1.0"


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"pythons": ["312"]}, "Python '312': write a version such as 3.12"),
        ({"platforms": ["win32"]}, "platform 'win32': write it as manylinux_2_28_x86_64"),
    ],
    ids=str,
)
def test_a_target_that_is_invalid_is_refused(
    tmp_path: Path, shelf: Path, sdk: Path, options: dict[str, list[str]], fault: str
) -> None:
    with pytest.raises(ConfigError, match=fault):
        build(write_entry(tmp_path / "e"), sdk, shelf=shelf, out=tmp_path / "site", **options)  # type: ignore[arg-type]

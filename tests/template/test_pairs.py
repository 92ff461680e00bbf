"""Every pair of choices makes a package that is clean, typed, tested, and builds."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from catalogzero.entry import lint
from catalogzero.entry.packaging import build_package, describe_build
from catalogzero.entry.scaffold import scaffold, template_folder, template_rules
from catalogzero.entry.subject import read_subject
from catalogzero.entry.wheels import sha256_of

pytestmark = [pytest.mark.xdist_group("pairs"), pytest.mark.slow]
Choice = tuple[tuple[str, str], ...]
BIN = Path(sys.executable).parent


def choices() -> dict[str, tuple[str, ...]]:
    """Every answer that is one of a few words."""
    with template_rules(template_folder()) as rules:
        found: dict[str, tuple[str, ...]] = rules.CHOICES
        return found


def all_combinations() -> list[Choice]:
    """Every combination of choices; none is left out."""
    named = [[(name, word) for word in words] for name, words in choices().items()]
    return list(itertools.product(*named))


def pairwise() -> list[Choice]:
    """Few combinations in which every pair of choices stands."""
    waiting = {pair for made in all_combinations() for pair in itertools.combinations(made, 2)}
    found = []
    while waiting:
        best = max(all_combinations(), key=lambda made: len(waiting & pairs(made)))
        found.append(best)
        waiting -= pairs(best)
    return found


def pairs(made: Choice) -> set[tuple[tuple[str, str], ...]]:
    """The pairs of one combination."""
    return set(itertools.combinations(made, 2))


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, str], Path]]:
    """A package for each combination that covers the pairs, with its answers."""
    folder = tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
        return [
            (dict(made), scaffold({**dict(made), "product_name": f"Pair {n}"}, folder))
            for n, made in enumerate(pairwise())
        ]


Packages = list[tuple[dict[str, str], Path]]


def test_the_packages_cover_every_pair() -> None:
    covered = set().union(*(pairs(made) for made in pairwise()))

    assert covered == set().union(*(pairs(made) for made in all_combinations()))
    assert len(pairwise()) < 20


def test_every_package_is_clean_for_ruff(packages: Packages) -> None:
    folders = [folder for _, folder in packages]

    for arguments in (("check", "--no-cache"), ("format", "--no-cache", "--diff")):
        done = run(BIN / "ruff", *arguments, *folders, cwd=folders[0].parent)
        assert done.returncode == 0, done.stdout


@pytest.mark.timeout(240)
def test_every_package_is_strictly_typed(packages: Packages) -> None:
    sources = [folder / "src" for _, folder in packages]

    done = run(
        BIN / "mypy",
        "--strict",
        "--explicit-package-bases",
        *sources,
        cwd=packages[0][1].parent,
        MYPYPATH=os.pathsep.join(map(str, sources)),
    )

    assert done.returncode == 0, done.stdout


def own_tests(packages: Packages) -> None:
    """Run the vendor's own tests of packages, all in one go."""
    sources = [str(folder / "src") for _, folder in packages]
    tests = [folder / "tests/test_process.py" for _, folder in packages]

    done = run(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider"),
        *("--import-mode=importlib", "-W", "error", "-c", os.devnull, "--rootdir"),
        packages[0][1].parent,
        *tests,
        cwd=packages[0][1].parent,
        PYTHONPATH=os.pathsep.join(sources),
    )

    assert done.returncode == 0, done.stdout
    assert f"{2 * len(packages)} passed" in done.stdout


def test_a_package_of_each_source_passes_its_own_tests(packages: Packages) -> None:
    of_source = {answers["source"]: (answers, folder) for answers, folder in packages}

    own_tests(list(of_source.values()))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_package_passes_its_own_tests(packages: Packages) -> None:
    own_tests(packages)


def test_every_package_is_fit_for_a_catalog(packages: Packages) -> None:
    for answers, folder in packages:
        findings = lint.lint(read_subject(folder))
        errors = [str(found) for found in findings if found.rule.severity == "error"]
        assert errors == [], answers


def test_every_package_has_what_was_chosen_and_nothing_else(packages: Packages) -> None:
    for answers, folder in packages:
        systemd = list(folder.glob("deploy/*.service"))
        docker = (folder / "deploy/Dockerfile").exists()
        assert bool(systemd) == (answers["packaging"] in ("systemd", "both")), answers
        assert docker == (answers["packaging"] in ("docker", "both")), answers
        assert (folder / ".github").exists() == (answers["ci"] == "github"), answers
        assert (folder / ".gitlab-ci.yml").exists() == (answers["ci"] == "gitlab"), answers
        assert not [path for path in folder.rglob("*") if "{{" in path.name]


def test_every_package_s_readme_shows_files_that_can_be_read(packages: Packages) -> None:
    for _, folder in packages:
        text = (folder / "README.md").read_text()
        (registry,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        written = yaml.safe_load((folder / "handler_registry.yaml").read_text())
        assert yaml.safe_load(registry) == written
        (schedule,) = re.findall(r"-d '(\{.*?\n\})'", text, re.DOTALL)
        assert json.loads(schedule)["trigger"] == {"type": "cron", "minute": "0", "hour": "2"}


def units(packages: Packages) -> list[Path]:
    return [unit for _, folder in packages for unit in folder.glob("deploy/*.service")]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_takes_every_unit_and_finds_it_hardened(packages: Packages, tmp_path: Path) -> None:
    for unit in units(packages):
        copy = tmp_path / unit.name
        copy.write_text(re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", unit.read_text()))

        verified = run("systemd-analyze", "verify", "--man=no", copy, cwd=tmp_path)
        rated = run("systemd-analyze", "security", "--offline=true", copy, cwd=tmp_path)

        assert (verified.returncode, verified.stderr) == (0, "")
        exposure = re.search(r"Overall exposure level.*?: ([\d.]+)", rated.stdout)
        assert exposure
        assert float(exposure[1]) < 2.0


def test_a_package_builds_wheel_and_sdist_with_everything_in_them(
    packages: Packages, tmp_path: Path
) -> None:
    built = build_package(packages[0][1], tmp_path)
    sums, bill = describe_build(built)
    sdist, wheel = built

    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = packages[0][1].name.replace("-", "_")
    assert {f"{package}/{name}" for name in ("handler.py", "catalogzero.toml", "py.typed")} <= names
    assert not [name for name in names if name.startswith("tests/")]
    assert sums.read_text().splitlines() == [f"{sha256_of(path)}  {path.name}" for path in built]
    told = json.loads(bill.read_text())
    named = {component["name"] for component in told["components"]}
    assert {"catalogzero", "pydantic", "pyarrow", "pyzmq"} <= named
    assert {link["ref"] for link in told["dependencies"]} == {
        told["metadata"]["component"]["purl"],
        *(component["purl"] for component in told["components"]),
    }
    assert sdist.name.endswith(".tar.gz")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("source", ["files", "sql", "custom"])
def test_a_fresh_package_breaks_no_check_of_the_contract(
    packages: Packages, source: str, tmp_path: Path
) -> None:
    _, folder = next(found for found in packages if found[0]["source"] == source)

    done = run(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider"),
        cwd=folder,
        PYTHONPATH=str(folder / "src"),
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_combinations_are_clean_and_parse(tmp_path: Path) -> None:
    for number, made in enumerate(all_combinations()):
        folder = scaffold({**dict(made), "product_name": f"All {number}"}, tmp_path)
        tomllib.loads((folder / "pyproject.toml").read_text())

    done = run(BIN / "ruff", "check", "--no-cache", ".", cwd=tmp_path)
    formatted = run(BIN / "ruff", "format", "--no-cache", "--check", ".", cwd=tmp_path)

    assert (done.returncode, formatted.returncode) == (0, 0), done.stdout + formatted.stdout

"""Every pair of choices makes a package that is clean, typed, tested, and builds.

Twenty packages hold every pair. Each of them is generated, looked at by ruff, by `catalog lint` and
by hadolint. One for each different Python tree among them is built (wheel and sdist), installed
beside the others, asked for its version, typed and tested. Left out here:

- in `make test`, the contract suite and the preview for all but three packages, in which every
  kind and upload_form but auto stands, and every source but files, with which tests/house walks
  a newcomer's way, and singer, whose Python is that of files: where these are the same, so is the
  Python but for its names (a test compares them); `make test-all` runs both for every package.
- in `make test`, what is no pair: all 624 combinations are generated and looked at by ruff in
  `make test-all`; the others' Python is that of a pair.
- an image built from the Dockerfile: that needs a Docker engine and a base image. hadolint reads
  every Dockerfile, and `test_paths` carries out its instructions in a folder.
- other versions of Python than the one that runs the tests.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml
from catalogzero.entry import lint
from catalogzero.entry.package_source import read_package
from catalogzero.entry.packaging import build_package, describe_build
from catalogzero.entry.pip import pip_command
from catalogzero.entry.scaffold import scaffold, template_folder, template_rules
from catalogzero.entry.wheels import sha256_of
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.specifiers import SpecifierSet

from tests.cloud.environments import environment
from tests.entry.environments import borrowing_environment

pytestmark = pytest.mark.xdist_group("pairs")
Choice = tuple[tuple[str, str], ...]
Packages = list[tuple[dict[str, str], Path]]
BIN = Path(sys.executable).parent
SEED = 82
"""The first shuffle from which the greedy choice needs no more than the twelve that it must."""


def choices() -> dict[str, tuple[str, ...]]:
    """Every answer that is one of a few words."""
    with template_rules(template_folder()) as rules:
        found: dict[str, tuple[str, ...]] = rules.CHOICES
        return found


def all_combinations() -> list[Choice]:
    """Every combination of choices that is not refused; no other is left out."""
    named = [[(name, word) for word in words] for name, words in choices().items()]
    with template_rules(template_folder()) as rules:
        return [
            made for made in itertools.product(*named) if not list(rules.choice_faults(dict(made)))
        ]


def pairwise() -> list[Choice]:
    """Few combinations in which every pair of choices stands."""
    offered = all_combinations()
    random.Random(SEED).shuffle(offered)  # noqa: S311 - the same order every time
    waiting = set().union(*map(pairs, offered))
    found = []
    while waiting:
        best = max(offered, key=lambda made: len(waiting & pairs(made)))
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
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """A package for each combination that covers the pairs, with its answers."""
    folder = tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
        return [
            (dict(made), scaffold({**dict(made), **names(number)}, folder))
            for number, made in enumerate(pairwise())
        ]


def names(number: int) -> dict[str, str]:
    """Answers by which packages in one folder, and their modules, differ."""
    return {
        "product_name": f"Pair {number:02}",
        "project_slug": f"p{number:02}",
        "module_path": f"pair{number:02}.handler",
    }


@pytest.fixture(scope="module")
def trees(packages: Packages) -> Packages:
    """A package for each different Python tree; not a tap's where there is a file's."""
    ordered = sorted(packages, key=lambda made: made[0]["source"] != "singer")
    return list({python_kind(answers): (answers, folder) for answers, folder in ordered}.values())


@pytest.fixture(scope="module")
def installed(trees: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment in which the wheels of `trees` are installed."""
    folder = tmp_path_factory.mktemp("installed")
    for _, package in trees:
        for builder in (SdistBuilder, WheelBuilder):
            list(builder(str(package)).build(directory=str(folder / "dist")))
    python = borrowing_environment(folder / "venv")
    checkout = template_folder().parent
    run(BIN / "hatchling", "build", "-t", "wheel", "-d", folder / "dist", cwd=checkout)
    wheels = sorted((folder / "dist").glob("*.whl"))
    install = ("install", "--quiet", "--no-index", "--no-deps", "--no-compile", *wheels)
    done = run(*pip_command(), "--python", python, *install, cwd=folder)
    assert done.returncode == 0, done.stderr
    return python


def python_of(folder: Path) -> dict[str, str]:
    """A package's Python files; its own names taken out."""
    own = re.compile(r"(?i)(acme_?)?p(air[ _]?)?[0-9]{2}")
    return {
        own.sub("", path.relative_to(folder).as_posix()): own.sub("", path.read_text())
        for path in folder.rglob("*.py")
    }


def python_kind(answers: dict[str, str]) -> tuple[str, str, str]:
    """The answers of which a package's Python depends; a tap's rows are processed as a file's."""
    source = answers["source"].replace("singer", "files")
    return answers["kind"], source, answers["upload_form"]


def diagonal(trees: Packages) -> Packages:
    """Four packages, in which every kind, source (a tap's as a file's) and upload_form stands."""
    wanted = [
        ("processor", "files", "auto"),
        ("processor", "sql", "chunked"),
        ("processor", "custom", "simple"),
        ("handler", "files", "auto"),
    ]
    found = {python_kind(answers): (answers, folder) for answers, folder in trees}
    return [found[kind] for kind in wanted]


def test_the_packages_cover_every_pair() -> None:
    covered = set().union(*(pairs(made) for made in pairwise()))

    assert covered == set().union(*(pairs(made) for made in all_combinations()))
    assert len(pairwise()) == 20


def test_packages_of_one_kind_source_and_upload_form_have_the_same_python(
    packages: Packages,
) -> None:
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    for answers, folder in packages:
        tree = found.setdefault(python_kind(answers), python_of(folder))
        assert python_of(folder) == tree, answers
    assert len(found) == 10


def test_every_package_is_clean_for_ruff(packages: Packages) -> None:
    folders = [folder for _, folder in packages]

    for arguments in (("check", "--no-cache"), ("format", "--no-cache", "--diff")):
        done = run(BIN / "ruff", *arguments, *folders, cwd=folders[0].parent)
        assert done.returncode == 0, done.stdout


@pytest.mark.timeout(300)
def test_every_package_is_strictly_typed(trees: Packages) -> None:
    folders = [folder for _, folder in trees]
    sources = [folder / "src" for folder in folders]

    done = run(
        *(BIN / "mypy", "--strict", "--explicit-package-bases", "--cache-dir", os.devnull),
        *(path for folder in folders for path in (folder / "src", folder / "tests")),
        cwd=folders[0].parent,
        MYPYPATH=os.pathsep.join(map(str, sources)),
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(300)
def test_every_package_is_clean_in_pyright(trees: Packages, installed: Path) -> None:
    """In the mode that is pyright's own; `basedpyright` is pyright with its Node.js."""
    parent = trees[0][1].parent
    folders = [f"{folder.name}/{part}" for _, folder in trees for part in ("src", "tests")]
    config = parent / "pyrightconfig.json"
    config.write_text(json.dumps({"include": folders, "typeCheckingMode": "standard"}))

    pyright = environment("pyright") / "bin" / "basedpyright"
    done = run(pyright, "--project", config, "--pythonpath", installed, cwd=parent)

    assert done.returncode == 0, done.stdout


def test_every_package_is_installed_and_passes_its_own_tests(
    trees: Packages, installed: Path
) -> None:
    names = {"processor": "test_process.py", "handler": "test_handler.py"}
    tests = [folder / "tests" / names[answers["kind"]] for answers, folder in trees]
    parent = trees[0][1].parent

    done = run(
        *(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"),
        *("--asyncio-mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"),
        *("--import-mode=importlib", "-c", os.devnull, "--rootdir", parent, *tests),
        cwd=parent,
    )

    assert done.returncode == 0, done.stdout
    assert f"{2 * len(trees) - 1} passed" in done.stdout  # the handler has one test


def test_every_package_s_command_says_its_version(trees: Packages, installed: Path) -> None:
    for _, folder in trees:
        done = run(installed.with_name(folder.name), "--version", cwd=folder)
        assert (done.returncode, done.stdout) == (0, f"{folder.name} 0.1.0\n"), done.stderr


def preview(folder: Path, installed: Path, answers: dict[str, str]) -> None:
    """`preview --sample` works at once: without key, endpoint or registry file."""
    with tempfile.TemporaryDirectory() as alone:
        done = subprocess.run(
            [installed.with_name(folder.name), "preview", "--sample"],
            cwd=alone,
            env={"HOME": alone, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    verb = "POST" if answers["upload_form"] == "simple" else "PUT"
    assert f"{verb} https://api.acme.example/v1/process" in done.stdout
    assert "nothing was sent" in done.stdout


def break_no_check(folder: Path, installed: Path) -> None:
    """A fresh package's own tests, the contract suite among them, pass untouched."""
    quiet = ("-q", "-p", "no:cacheprovider")
    done = run(installed, "-m", "pytest", *quiet, cwd=folder)
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(1, 4))  # the first is a newcomer's: test_newcomer
def test_a_fresh_package_previews_its_sample_and_breaks_no_check_of_the_contract(
    trees: Packages, installed: Path, number: int
) -> None:
    answers, folder = diagonal(trees)[number]

    break_no_check(folder, installed)
    if answers["kind"] == "processor":
        preview(folder, installed, answers)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(10))
def test_every_package_previews_its_sample_and_breaks_no_check_of_the_contract(
    trees: Packages, installed: Path, number: int
) -> None:
    answers, folder = trees[number]
    if (answers, folder) in diagonal(trees)[1:]:
        pytest.skip("runs above")

    break_no_check(folder, installed)
    if answers["kind"] == "processor":
        preview(folder, installed, answers)


def test_every_package_is_fit_for_a_catalog(packages: Packages) -> None:
    for answers, folder in packages:
        findings = lint.lint(read_package(folder))
        errors = [str(found) for found in findings if found.rule.severity == "error"]
        assert errors == [], answers


def test_every_package_has_what_was_chosen_and_nothing_else(packages: Packages) -> None:
    for answers, folder in packages:
        systemd = f"{folder.name} systemd --registry" in (folder / "README.md").read_text()
        docker = (folder / "deploy/Dockerfile").exists()
        assert systemd == (answers["packaging"] in ("systemd", "both")), answers
        assert docker == (answers["packaging"] in ("docker", "both")), answers
        samples = list(folder.glob("src/*/sample.csv"))
        assert len(samples) == (answers["kind"] == "processor"), answers
        assert (folder / ".github").exists() == (answers["ci"] == "github"), answers
        assert (folder / ".gitlab-ci.yml").exists() == (answers["ci"] == "gitlab"), answers
        assert not [path for path in folder.rglob("*") if "{{" in path.name]


def test_every_package_s_readme_shows_a_schedule_that_can_be_read(packages: Packages) -> None:
    for _, folder in packages:
        text = (folder / "README.md").read_text()
        (schedule,) = re.findall(r"-d '(\{.*?\n\})'", text, re.DOTALL)
        assert json.loads(schedule)["trigger"] == {"type": "cron", "minute": "0", "hour": "2"}


@pytest.fixture(scope="module")
def sections(trees: Packages, installed: Path) -> dict[str, Path]:
    """The registry file that each README's command writes, by the package; its catalog left out."""
    found = {}
    for _, folder in diagonal(trees):
        page = (folder / "README.md").read_text()
        (command,) = re.findall(
            r"^\.venv/bin/(catalogzero catalog install .*)$", page, re.MULTILINE
        )
        written = shlex.split(command.replace('--catalog "$CATALOG" ', ""))
        done = run(installed.with_name(written[0]), *written[1:], cwd=folder)
        assert done.returncode == 0, done.stderr
        found[folder.name] = folder / "handler_registry.yaml"
    return found


def test_the_readme_s_command_writes_a_section_that_is_valid(
    sections: dict[str, Path], installed: Path, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("not-a-real-key")
    for name, registry in sections.items():
        there = tmp_path / f"{name}.yaml"
        there.write_text(registry.read_text().replace(f"/etc/{name}/api_key", f"{tmp_path}/key"))
        code = (
            "import pathlib, sys; from catalogzero.runtime.launch import make_handler; "
            "print(make_handler(sys.argv[1], registry=pathlib.Path(sys.argv[2])).handler_id)"
        )

        done = run(installed, "-c", code, name, there, cwd=tmp_path)

        assert (done.returncode, done.stdout.strip()) == (0, name), done.stderr


def test_ci_tests_on_every_python_that_a_catalog_serves(packages: Packages) -> None:
    (found,) = {
        tuple(yaml.safe_load(path.read_text())["jobs"]["test"]["strategy"]["matrix"]["python"])
        for _, folder in packages
        for path in folder.glob(".github/workflows/ci.yml")
    }
    ours = SpecifierSet(metadata("catalogzero")["Requires-Python"])

    assert list(found) == [f"3.{minor}" for minor in range(100) if f"3.{minor}" in ours]


HADOLINT = BIN / "hadolint"


@pytest.mark.skipif(not HADOLINT.exists(), reason="needs hadolint")
def test_hadolint_finds_nothing_in_any_dockerfile(packages: Packages) -> None:
    files = [file for _, folder in packages for file in folder.glob("deploy/Dockerfile")]

    done = run(HADOLINT, "--no-color", *files, cwd=packages[0][1].parent)

    assert len(files) >= 6
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_takes_the_unit_that_a_package_s_command_prints(
    sections: dict[str, Path], installed: Path, tmp_path: Path
) -> None:
    for name, registry in sections.items():
        command = (installed.with_name(name), "systemd", "--registry", registry)
        printed = run(*command, "--out", tmp_path, cwd=tmp_path)
        unit = tmp_path / f"{name}.service"

        verified = run("systemd-analyze", "verify", "--man=no", unit, cwd=tmp_path)
        arguments = ("--offline=true", "--threshold=15")
        rated = run("systemd-analyze", "security", *arguments, unit, cwd=tmp_path)

        assert (printed.returncode, verified.returncode, verified.stderr) == (0, 0, "")
        assert rated.returncode == 0, rated.stdout


def test_a_package_builds_wheel_and_sdist_with_everything_in_them(
    packages: Packages, tmp_path: Path
) -> None:
    built = build_package(packages[0][1], tmp_path)
    sums, bill = describe_build(built)
    sdist, wheel = built

    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = packages[0][1].name.replace("p", "pair")
    assert {f"{package}/{name}" for name in ("handler.py", "catalogzero.toml", "py.typed")} <= names
    assert not [name for name in names if name.startswith("tests/")]
    assert sums.read_text().splitlines() == [f"{sha256_of(path)}  {path.name}" for path in built]
    told = json.loads(bill.read_text())
    root = told["metadata"]["component"]
    named = {component["name"]: component for component in told["components"]}
    assert root["hashes"] == [{"alg": "SHA-256", "content": sha256_of(wheel)}]
    assert {"catalogzero", "pydantic", "pyarrow", "pyzmq"} <= named.keys()
    assert not named.keys() & {"pytest", "mypy", "cyclonedx-bom"}
    assert named["pydantic"]["licenses"][0]["license"]["id"] == "MIT"
    assert {link["ref"] for link in told["dependencies"]} == {
        root["bom-ref"],
        *(component["bom-ref"] for component in named.values()),
    }
    assert str(Path.cwd()) not in bill.read_text()
    assert sdist.name.endswith(".tar.gz")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_combinations_are_clean_and_parse(tmp_path: Path) -> None:
    for number, made in enumerate(all_combinations()):
        folder = scaffold({**dict(made), "product_name": f"All {number}"}, tmp_path)
        tomllib.loads((folder / "pyproject.toml").read_text())

    done = run(BIN / "ruff", "check", "--no-cache", ".", cwd=tmp_path)
    formatted = run(BIN / "ruff", "format", "--no-cache", "--check", ".", cwd=tmp_path)

    assert (done.returncode, formatted.returncode) == (0, 0), done.stdout + formatted.stdout

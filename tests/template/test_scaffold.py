"""The package that the template makes: the same tree both ways, whatever the names are."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from catalogzero.entry.manifest import load_manifest
from catalogzero.entry.scaffold import scaffold, template_folder
from catalogzero.errors import ConfigError

Bake = Callable[..., Path]
COOKIECUTTER = Path(sys.executable).parent / "cookiecutter"
CATALOGZERO = Path(sys.executable).parent / "catalogzero"
HADOLINT = Path(sys.executable).parent / "hadolint"
HOSTILE = [
    """O'Neil "Q" & Co""",
    "Ümlaut GmbH",
    "株式会社",
    "P" * 90,
    "word " * 17 + "end",
    "{{ 7*7 }}",
    "{% raw %} x",
    "true",
    "A: b # c",
    "C:\\new\\",
    '"""quoted"""',
    "100% <b>bold</b> $HOME `id`",
    "Emoji 😀 Ltd",
    "null",
    "3M",
]


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".git" not in path.relative_to(folder).parts
    }


@pytest.mark.parametrize(
    "choices",
    [
        ["packaging=both"],
        ["source=sql", "ci=gitlab", "license=MIT", """description=O'Neil "Q" & Co: b # c"""],
        [
            "source=custom",
            "packaging=none",
            "upload_form=simple",
            "ci=none",
            "author_name=株式会社",
        ],
    ],
)
def test_plain_cookiecutter_and_catalogzero_new_give_the_same_tree(
    tmp_path: Path, choices: list[str]
) -> None:
    answers = ["vendor_name=Skylark Analytics", "product_name=Processor", *choices]
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    for folder in (plain, ours):
        folder.mkdir()
    repository, directory = template_folder().parent, template_folder().name

    subprocess.run(
        [COOKIECUTTER, "--no-input", "--directory", directory, repository, *answers],
        cwd=plain,
        env=home,
        check=True,
        timeout=50,
    )
    subprocess.run(
        [CATALOGZERO, "new", ".", "--no-input", *answers],
        cwd=ours,
        env=home,
        check=True,
        timeout=50,
    )

    assert files(plain) == files(ours)
    assert "skylark-processor/src/skylark_processor/handler.py" in files(ours)


def test_new_leaves_no_replay_file_in_the_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()

    subprocess.run(
        [CATALOGZERO, "new", str(tmp_path), "--no-input"],
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        check=True,
        timeout=50,
    )

    assert not list(home.rglob("*"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["vendr_name=x"],
        ["packaging=vagrant"],
        ["class_name=class"],
        ["vendor_name=a", "vendor_name=b"],
        ["one", "two"],
        ["endpoint=ftp://x"],
    ],
)
def test_new_refuses_bad_answers_with_a_sentence_and_writes_nothing(
    tmp_path: Path, arguments: list[str]
) -> None:
    done = subprocess.run(
        [CATALOGZERO, "new", "--no-input", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert done.returncode == 2
    assert "nothing was written" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not list(tmp_path.iterdir())


def test_the_answers_are_listed_with_the_words_that_they_may_be(rules: ModuleType) -> None:
    done = subprocess.run(
        [CATALOGZERO, "new", "--answers", "--json"], capture_output=True, text=True, check=True
    )
    shown = subprocess.run(
        [CATALOGZERO, "new", "--answers"], capture_output=True, text=True, check=True
    )

    listed = json.loads(done.stdout)
    allowed = {name: tuple(one["allowed"]) for name, one in listed.items() if one["allowed"]}
    assert allowed == rules.CHOICES
    assert {name: words[0] for name, words in allowed.items()}.items() <= {
        (name, one["default"]) for name, one in listed.items()
    }
    for words in allowed.values():
        assert f"one of: {', '.join(words)}\n" in shown.stdout


def test_new_asks_three_questions(tmp_path: Path) -> None:
    done = subprocess.run(
        [CATALOGZERO, "new", "."],
        cwd=tmp_path,
        input="Skylark Analytics\nProcessor\nhttps://api.skylark.example/v2\n",
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert done.returncode == 0
    assert done.stderr.count("]:") == 3
    recorded = json.loads((tmp_path / "skylark-processor/.catalogzero/template.json").read_text())
    assert recorded["answers"]["endpoint"] == "https://api.skylark.example/v2"


def test_plain_cookiecutter_refuses_bad_answers_with_the_same_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [COOKIECUTTER, "--no-input", str(template_folder()), "class_name=class"],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert done.returncode
    assert "class_name is 'class'; give a class name" in done.stderr
    assert not (tmp_path / "acme-processor").exists()


def test_a_folder_that_exists_is_left_alone(bake: Bake) -> None:
    folder = bake()
    before = files(folder)

    with pytest.raises(ConfigError, match="exists already"):
        scaffold({}, folder.parent)

    assert files(folder) == before


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="acme-processor cannot be written: Not a directory"):
        scaffold({}, tmp_path / "file")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stands_as_it_is_in_every_file_that_a_program_reads(
    bake: Bake, name: str
) -> None:
    folder = bake(
        vendor_name=name, product_name=name, description=name, author_name=name, packaging="both"
    )

    (manifest_path,) = folder.glob("src/*/catalogzero.toml")
    manifest = tomllib.loads(manifest_path.read_text("utf-8"))
    assert (manifest["name"], manifest["vendor"]["name"]) == (name, name)
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["description"] == name
    assert project["authors"] == [{"name": name}]
    recorded = json.loads((folder / ".catalogzero/template.json").read_text("utf-8"))
    assert recorded["answers"]["vendor_name"] == name
    for path in (*folder.rglob("*.yaml"), *folder.rglob("*.yml")):
        yaml.safe_load(path.read_text("utf-8"))
    (init,) = folder.glob("src/*/__init__.py")
    said = " ".join((ast.get_docstring(ast.parse(init.read_text("utf-8"))) or "").split())
    assert said == f"{name}: {name}"
    for path in folder.rglob("*.py"):
        ast.parse(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A package of each hostile name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
        return [
            scaffold(
                {
                    "vendor_name": name,
                    "product_name": name,
                    "description": name,
                    "project_slug": f"hostile-{number}",
                    "packaging": "both",
                },
                tmp_path_factory.mktemp("hostile"),
            )
            for number, name in enumerate(HOSTILE)
        ]


@pytest.mark.skipif(not HADOLINT.exists(), reason="needs hadolint")
def test_hadolint_takes_the_dockerfile_of_every_hostile_name(hostile: list[Path]) -> None:
    # hadolint misreads an escaped backslash before the closing quote, which Docker takes.
    files = [
        folder / "deploy" / "Dockerfile"
        for folder, name in zip(hostile, HOSTILE, strict=True)
        if not name.endswith("\\")
    ]

    lint = [str(HADOLINT), "--no-color", *map(str, files)]
    done = subprocess.run(lint, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("slug", ["json", "class", "yaml"])
def test_a_package_named_like_a_module_or_a_keyword_shadows_nothing(bake: Bake, slug: str) -> None:
    folder = bake(project_slug=slug)
    (handler,) = folder.glob("src/*/handler.py")
    package = handler.parent.name

    code = f"import json, yaml, {package}.cli, {package}.handler; json.dumps([]), yaml.safe_load"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(folder / "src")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert f'{slug} = "{package}.cli:main"' in (folder / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_leaves_the_package_clean_for_ruff(bake: Bake, name: str) -> None:
    folder = bake(vendor_name=name, product_name=name, description=name)

    ruff = Path(sys.executable).parent / "ruff"
    checked = subprocess.run(
        [ruff, "check", "--no-cache", "."], cwd=folder, capture_output=True, text=True, check=False
    )
    formatted = subprocess.run(
        [ruff, "format", "--no-cache", "--diff", "."],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )

    assert checked.returncode == 0, checked.stdout
    assert formatted.returncode == 0, formatted.stdout


def test_the_seed_s_names_give_the_seed_s_class_and_settings(bake: Bake) -> None:
    folder = bake(
        vendor_name="Your Company",
        module_path="your_company.cloud_processor_handler",
        class_name="CloudProcessorHandler",
        endpoint="https://api.yourcompany.example/v1/process",
    )

    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    (named,) = project["entry-points"]["catalogzero.handlers"].values()
    assert named == "your_company.cloud_processor_handler:CloudProcessorHandler"
    settings = load_manifest(folder / "src/your_company/catalogzero.toml").config_schema
    endpoint = settings["properties"]["endpoint"]["default"]
    assert endpoint == "https://api.yourcompany.example/v1/process"
    assert (folder / "src/your_company/cloud_processor_handler.py").is_file()


def test_git_history_begins_where_git_knows_who_commits(
    bake: Bake, monkeypatch: pytest.MonkeyPatch
) -> None:
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Some Body")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "somebody@acme.example")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.email")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "somebody@acme.example")

    folder = bake()

    log = subprocess.run(
        ["git", "log", "--format=%s"], cwd=folder, capture_output=True, text=True, check=True
    )
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert log.stdout == "Start from the catalogzero template\n"
    assert not status.stdout


def test_no_git_history_begins_where_git_knows_nobody(bake: Bake) -> None:
    assert not (bake() / ".git").exists()

"""The command line teaches: each command has an example that it takes, and says its options."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from catalogzero.cli.main import COMMANDS, app
from typer.testing import CliRunner

from tests.warm import run_command

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("catalog/*/*.md"), *(ROOT / "docs").rglob("*.md")])
TAUGHT = re.compile(r"^\s*\$?\s*(?:\w+=\S+ )?(catalogzero .+)$", re.MULTILINE)


def commands(found: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with its words."""
    if not hasattr(found, "list_commands"):
        yield path, found
        return
    context = typer.Context(found)
    for name in found.list_commands(context):
        yield from commands(found.get_command(context, name), (*path, name))


ROOT_COMMAND = typer.main.get_command(app)
EVERY = list(commands(ROOT_COMMAND))
NAMES = [" ".join(path) for path, _ in EVERY]


def taken(words: list[str]) -> dict[str, Any]:
    """Read a command line as the command would, and do nothing; a path need not be there.

    Returns:
        The values of options and arguments; none where a path is not there.

    Raises:
        UsageError: An option, argument or command does not exist, or is missing.
    """
    command: Any = ROOT_COMMAND
    context = None
    name, *rest = words
    while hasattr(command, "list_commands"):
        context = command.make_context(name, rest, parent=context)
        name = next((word for word in rest if command.get_command(context, word)), rest[0])
        name, command, rest = command.resolve_command(context, [name, *context.args])
    try:
        return dict(command.make_context(name, rest, parent=context).params)
    except Exception as error:
        if "does not exist" not in str(error):
            raise
        return {}


def lines_of(text: str) -> list[str]:
    """The command lines of a shell block, without what stands behind a pipe."""
    joined = text.replace("\\\n", " ")
    return [re.split(r" [|>&#]|;|\$\(", line)[0] for line in TAUGHT.findall(joined)]


@pytest.mark.parametrize(("path", "command"), EVERY, ids=NAMES)
def test_a_command_has_an_example_that_it_takes(path: tuple[str, ...], command: Any) -> None:
    _, _, example = command.help.partition("Example: ")

    assert example.startswith(" ".join(["catalogzero", *path]))
    taken(shlex.split(re.split(r" [|>]", example)[0]))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_has_the_first_line_of_each_one_s_help(name: str) -> None:
    command = ROOT_COMMAND.get_command(typer.Context(ROOT_COMMAND), name)  # type: ignore[attr-defined]

    assert COMMANDS[name].summary == " ".join(command.help.partition("\n\n")[0].split())


@pytest.mark.parametrize(("path", "command"), EVERY, ids=NAMES)
def test_every_option_and_argument_says_what_it_is(path: tuple[str, ...], command: Any) -> None:
    silent = [
        option.name
        for option in command.params
        if not (option.help or "").strip() or "[" in option.help
    ]

    assert silent == []


PRINTS_NO_ANSWER = {
    "run": "it serves, and logs to standard error; with --once it prints the result, as JSON",
    "call": "what it prints is the result, as JSON",
    "cancel": "what it prints is the answer, as JSON",
    "systemd": "what it prints are files that systemd reads",
    "test": "what it prints is pytest's",
}
"""Commands without --json, each with the reason."""


@pytest.mark.parametrize(("path", "command"), EVERY, ids=NAMES)
def test_a_command_that_prints_has_json_for_scripts(path: tuple[str, ...], command: Any) -> None:
    options = {name for option in command.params for name in option.opts}

    assert ("--json" in options) != (" ".join(path) in PRINTS_NO_ANSWER)


@pytest.mark.parametrize(("path", "command"), EVERY, ids=NAMES)
def test_the_help_names_values_in_words_and_none_of_a_flag(
    path: tuple[str, ...], command: Any
) -> None:
    done = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"})

    assert done.exit_code == 0
    assert re.findall(r" <[a-z_\[\] ]+>", done.output) == []
    flags = re.findall(r"--(?:help|json|yes|all)\b +(?:-h +)?(\S+)", done.output)
    assert [word for word in flags if word.isupper()] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_starts_where_nothing_was_imported_before(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "catalogzero", name, "--help"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert f"catalogzero {name} " in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_line_of_a_page_is_one_that_the_command_takes(page: Path) -> None:
    shown = "".join(
        re.findall(r"^```(?:sh|console)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    )

    for line in lines_of(shown):
        taken(shlex.split(line))


@pytest.mark.parametrize("verb", ["install", "upgrade", "remove"])
def test_the_environment_names_the_registry_file_that_a_catalog_command_writes(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CATALOGZERO_REGISTRY", "/etc/acme/handler_registry.yaml")
    monkeypatch.setenv("CATALOGZERO_CATALOG", "site")

    given = taken(["catalogzero", "catalog", verb, "acme-processor"])

    assert given["registry"] == Path("/etc/acme/handler_registry.yaml")


def run(*words: str, without: str = "", cwd: Path | None = None) -> tuple[int, str]:
    """Exit code and standard error of the command, where a package is not installed."""
    code = "import sys; sys.modules.update(dict.fromkeys(sys.argv.pop(1).split()));"
    code += "from catalogzero.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, without, *words], capture_output=True, text=True, cwd=cwd
    )
    return done.returncode, done.stderr


def said_by(*words: str, cwd: Path | None = None) -> tuple[int, str]:
    """Exit code and standard error of the command, where its start is not what is tested."""
    done = run_command(*words, cwd=cwd)
    return done.returncode, done.stderr


PASSES_ROWS = """
from catalogzero import CloudProcessor

class Rows(CloudProcessor):
    def process(self, batches, params):
        yield from batches
"""


@pytest.mark.parametrize(
    ("words", "without", "extra"),
    [
        (("scheduler", "--port", "0", "--zmq-port", "0"), "sqlalchemy", "scheduler"),
        (("scheduler", "--port", "0", "--zmq-port", "0"), "apscheduler", "scheduler"),
        (("backend", "tenants", "list"), "sqlalchemy", "backend"),
        (("backend", "serve", "--port", "0"), "prometheus_client", "backend"),
        (("new", "--no-input"), "cookiecutter", "vendor"),
        (("build",), "build packaging", "vendor"),
        (("preview", "rows:Rows", "rows.parquet"), "pyarrow", "parquet"),
        (
            ("preview", "rows:Rows", "rows.csv", "--params", '{"format": "parquet"}'),
            "pyarrow",
            "parquet",
        ),
        (("preview", "rows:Rows", "sql:orders"), "sqlalchemy", "sql"),
        (("catalog", "build", "dist", "--out", "site"), "jinja2 packaging", "vendor"),
    ],
)
def test_what_is_not_installed_is_reported_by_its_extra(
    words: tuple[str, ...], without: str, extra: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.py").write_text(PASSES_ROWS)
    (tmp_path / "rows.csv").write_text("a\n1\n")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")

    code, told = run(*words, without=without, cwd=tmp_path)

    assert code == (1 if words[0] == "preview" else 3)
    assert f"pip install --index-url INDEX 'catalogzero[{extra}]'" in told
    assert len(told.splitlines()) == 1


def test_an_entry_that_is_not_installed_needs_a_catalog(tmp_path: Path) -> None:
    code, said = run("catalog", "install", "no-such-entry", cwd=tmp_path)

    assert code == 3
    assert "no-such-entry is not installed here: name its --catalog" in said
    assert not list(tmp_path.iterdir())


def test_a_preview_is_of_a_source_or_of_the_sample(tmp_path: Path) -> None:
    (tmp_path / "author.py").write_text("from catalogzero import CloudProcessor as P\n")
    for both in ((), ("x.csv", "--sample")):
        assert (
            "name a DATA_SOURCE, or --sample" in run("preview", "author:P", *both, cwd=tmp_path)[1]
        )


def test_a_broken_check_is_reported_once_with_the_author_s_line(tmp_path: Path) -> None:
    code = (
        "class P(CloudProcessor):\n  def process(self, b, p):\n    yield [{'a': next(b)['nope']}]\n"
    )
    (tmp_path / "author.py").write_text(f"from catalogzero import CloudProcessor\n{code}")
    (tmp_path / "sample.csv").write_text("a\n1\n")

    done = subprocess.run(
        [sys.executable, "-m", "catalogzero", "test", "author:P", "--check", "process_yields"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )

    assert done.returncode == 1
    assert done.stdout.count("seen:") == 1
    assert "author.py:4" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is full")
def test_an_output_that_takes_no_more_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "catalogzero", "new", "--answers"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert (done.returncode, done.stderr) == (75, "catalogzero: No space left on device\n")


def test_the_version_is_reported() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "catalogzero", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == version("catalogzero")


def test_a_slip_in_a_command_or_a_handler_id_is_answered_with_what_there_is(tmp_path: Path) -> None:
    registry = tmp_path / "handler_registry.yaml"
    assert said_by("runn")[0] == 2
    assert "Did you mean 'run'?" in said_by("runn")[1]

    code, told = said_by("check", "acmee", cwd=tmp_path)
    assert code == 3
    registry.write_text("handlers:\n- {handler_id: acme, module_path: acme, class_name: Acme}\n")
    code, told = said_by("run", "acmee", cwd=tmp_path)
    assert code == 3
    assert "there are: acme" in told
    registry.unlink()
    assert "there is no handler_registry.yaml: name" in said_by("run", "acme", cwd=tmp_path)[1]


def test_a_path_that_cannot_be_written_is_named_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "handler_registry.yaml").write_text("scheduler: none\nhandlers: []\n")
    module = "from catalogzero import Handler\nclass Plain(Handler):\n    pass\n"
    (tmp_path / "plain.py").write_text(module)
    target = ("bundle", "plain:Plain", "--out", str(tmp_path / "plain.py/support.zip"))

    code, told = said_by(*target, cwd=tmp_path)

    assert (code, told) == (3, f"catalogzero: {target[-1]}: Not a directory\n")


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ("process = (", 3, "SyntaxError: '(' was never closed"),
        ("import nowhere_at_all", 3, "No module named 'nowhere_at_all'"),
        ("1 / 0", 3, "ZeroDivisionError: division by zero, at "),
        ("", 3, "is no handler class"),
        ("class P(CloudProcessor): pass", 1, "P has no `process` of its own"),
        ("class P(CloudProcessor):\n  def process(self, b, p): return b[0]", 1, "author.py:3"),
    ],
    ids=["syntax", "import", "raises", "no class", "no process", "process raises"],
)
def test_what_an_author_s_module_does_wrong_is_one_line_that_names_the_place(
    body: str, code: int, told: str, tmp_path: Path
) -> None:
    (tmp_path / "author.py").write_text(f"from catalogzero import CloudProcessor\n{body}\n")
    (tmp_path / "rows.csv").write_text("a\n1\n")

    found, said = said_by("preview", "author:P", "rows.csv", cwd=tmp_path)

    assert (found, len(said.splitlines())) == (code, 1)
    assert told in said


def on_a_terminal(*words: str, columns: int, cwd: Path, **environment: str) -> str:
    """What the command writes to a terminal so wide, both streams."""
    command = [sys.executable, "-m", "catalogzero", *words]
    return on_a_terminal_of(command, columns, cwd, **environment)


def on_a_terminal_of(command: list[str], columns: int, cwd: Path, **environment: str) -> str:
    """The same of any command."""
    ours, theirs = os.openpty()
    variables = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), **environment}
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        child = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=cwd,
            env=variables,
        )
        os.close(theirs)
        written = b""
        with suppress(OSError):  # a terminal whose other end is closed
            while read := terminal.read(1 << 16):
                written += read
        child.wait(30)
    return written.decode()


COLOUR = re.compile(r"\x1b\[(?:\d+;)*3\d")


def test_colours_are_for_terminals_that_want_them(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(
        "from catalogzero import Handler\n\nclass Plain(Handler):\n"
        "    def hello(self) -> str:\n        return 'hello'\n"
    )
    words = ("run", "plain:Plain", "--scheduler", "none", "--once", "hello")

    shown = on_a_terminal(*words, columns=80, cwd=tmp_path, NO_COLOR="")
    plain = on_a_terminal(*words, columns=80, cwd=tmp_path, NO_COLOR="1")
    piped = subprocess.run(
        [sys.executable, "-m", "catalogzero", *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "CATALOGZERO_LOG_FORMAT": "console"},
    )

    assert COLOUR.search(shown)
    assert not COLOUR.search(plain)
    assert "\x1b" not in piped.stderr
    assert piped.stdout == '"hello"\n'


def test_a_table_on_a_narrow_terminal_cuts_nothing(tmp_path: Path) -> None:
    state = tmp_path / "a_folder_whose_name_is_longer_than_the_terminal_is_wide" / "state"
    (tmp_path / "plain.py").write_text(
        "from catalogzero import Handler\nclass Plain(Handler): ...\n"
    )
    environment = {"NO_COLOR": "1", "CATALOGZERO_STATE_DIR": str(state)}

    shown = on_a_terminal("check", "plain:Plain", columns=60, cwd=tmp_path, **environment)

    cells = [line.split("│")[3].strip() for line in shown.splitlines() if line.count("│") > 4]
    assert str(state) in "".join(cells)


UPLOAD_ID = "0123456789abcdef0123456789abcdef"
IDS = f"""
from catalogzero.cli.console import escape_output
from catalogzero.cli.output import print_table
escape_output()
row = ("{UPLOAD_ID}", "held", "a source with a long name " * 4, 1000000)
print_table(("upload_id", "state", "source", "records"), [row])
"""


@pytest.mark.parametrize("columns", [120, 80, 40])
def test_an_id_is_never_cut_nor_folded(columns: int, tmp_path: Path) -> None:
    (tmp_path / "ids.py").write_text(IDS)

    shown = on_a_terminal_of([sys.executable, "ids.py"], columns, tmp_path, NO_COLOR="1")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", shown)

    assert UPLOAD_ID in shown
    assert "…" not in shown
    assert shown.count("long") == 4
    assert max(map(len, shown.splitlines())) <= columns or columns == 40


@pytest.mark.parametrize("module", ["pydantic", "structlog", "typer", "catalogzero.cli.run"])
def test_ctrl_c_while_it_is_imported_ends_it_quietly(module: str, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "catalogzero", "check", "acme"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as child:
        assert child.stderr is not None
        lines = []
        for line in child.stderr:
            lines.append(line)
            if line.split()[-1].startswith(module):
                child.send_signal(signal.SIGINT)
                break
        rest = child.stderr.read()

    assert child.returncode == 130, "".join(lines[-5:]) + rest
    assert "Traceback" not in rest


def test_ctrl_c_later_is_130_too(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(
        "import signal\nfrom catalogzero import Handler\n\nclass Plain(Handler):\n"
        "    def __init__(self, **config):\n        signal.raise_signal(signal.SIGINT)\n"
    )

    code, told = run("describe", "plain:Plain", cwd=tmp_path)
    assert code != 130  # it asks a handler that runs, and makes none
    code, told = run("check", "plain:Plain", cwd=tmp_path)

    assert (code, "Traceback" in told) == (130, False)


WORDS = [
    ("catalogzero ins", {"installation"}),
    ("catalogzero backend te", {"tenants"}),
    ("catalogzero check a", {"acme", "azure"}),
    ("catalogzero check acme --re", {"--registry"}),
    ("catalogzero --reg", set()),
]


@pytest.mark.parametrize(("line", "offered"), WORDS, ids=[line for line, _ in WORDS])
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_options_and_handlers(
    shell: str, line: str, offered: set[str], tmp_path: Path
) -> None:
    (tmp_path / "handler_registry.yaml").write_text(
        "handlers:\n- {handler_id: acme, module_path: a, class_name: A}\n"
        "- {handler_id: azure, module_path: a, class_name: A}\n"
    )
    asked = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }
    code = "import sys; sys.argv[0] = 'catalogzero'; from catalogzero.cli.main import main; main()"
    known = {**os.environ, **asked[shell], "_CATALOGZERO_COMPLETE": f"complete_{shell}"}

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=known
    )

    item = r'"([a-z-]+)"(?=[:)\n])' if shell == "zsh" else r"^([a-z-]+)"
    assert set(re.findall(item, done.stdout, re.MULTILINE)) == offered, done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
def test_bash_completes_by_the_script_that_is_shown(tmp_path: Path) -> None:
    command = f"{sys.executable} -m catalogzero"
    (tmp_path / "catalogzero").write_text(
        "#!/bin/sh\nexec " + sys.executable + " -c \"import sys; sys.argv[0] = 'catalogzero'; "
        'from catalogzero.cli.main import main; main()" "$@"\n'
    )
    (tmp_path / "catalogzero").chmod(0o755)
    script = subprocess.run(
        # Typer asks which shell is its parent; `:` keeps bash from giving it its own place.
        ["bash", "-c", f"'{tmp_path}/catalogzero' --show-completion; :"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (function,) = re.findall(r"complete .* -F (\w+)|complete -o default -F (\w+)", script)
    name = next(filter(None, function))
    lines = [script, "COMP_WORDS=(catalogzero outb); COMP_CWORD=1", f"{name} catalogzero"]
    lines.append('echo "${COMPREPLY[@]}"')
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], capture_output=True, text=True, env=path
    )

    assert done.stdout.split() == ["outbox"], command + done.stderr


def test_a_tab_imports_no_command() -> None:
    code = (
        "import sys; sys.argv[0] = 'catalogzero'\n"
        "from catalogzero.cli.main import main\n"
        "try:\n    main()\nfinally:\n"
        "    print(sorted(one for one in sys.modules if one.startswith('catalogzero.cli.')))"
    )
    known = {"COMP_WORDS": "catalogzero ", "COMP_CWORD": "1", **os.environ}
    known["_CATALOGZERO_COMPLETE"] = "complete_bash"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=known)

    *names, imported = done.stdout.splitlines()
    assert {"run", "state", "backend"} <= set(names)
    assert imported == "['catalogzero.cli.console', 'catalogzero.cli.main']"

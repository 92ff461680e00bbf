"""The tree speaks in the field's words, and one class or module name stands for one thing."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import PurePath

import pytest

from tests.house.test_tree import tracked

SOURCE = "tests/house/test_words.py"
PROSE = re.compile(
    r"\b(?:mend(?:s|ed|ing)?|told|tells?|telling|anew|stanzas?|errands?"
    r"|(?-i:(?<![Tt]here )is none(?! else))|so many)\b",
    re.IGNORECASE,
)
RETIRED_IN_NAMES = {
    *("mend", "mends", "mended", "told", "tell", "tells", "stanza", "stanzas"),
    *("errand", "errands", "pusher"),
}
"""Words that no class, function, module or JSON key has among its words."""

RETIRED_CLASSES = {
    *("StandIn", "Life", "Desk", "Room", "Lane", "Ways", "Asked", "Tally", "HealthPost"),
    *("Pace", "Pusher", "Door", "Apart", "Errand", "Stanza", "Subject"),
}
RETIRED_MODULES = {"scheduler/forms", "scheduler/rows", "life", "desk", "room", "lane", "tally"}
RETIRED_KEYS = {"set_aside"}
KEYS_FOR_ONE_RELEASE = {
    ("sdk/catalogzero/cli/catalog.py", "mend"),  # `lint --json`: scripts read it before `fix`
    ("sdk/catalogzero/cli/check.py", "mend"),  # `check --json`: scripts read it before `fix`
    ("sdk/catalogzero/cloud/settings.py", "set_aside"),  # a value of `on_bad_record`
}
MODULES_FOR_ONE_RELEASE = {"sdk/catalogzero/scheduler/forms.py"}  # imported before `requests`

MODULES_BY_ROLE = {
    "__init__",  # a package has to have one
    "__main__",  # what `python -m` runs
    "api",  # the HTTP API of the service whose folder it lies in
    "handler",  # the class of an entry
    "openapi",  # the description of that API
    "schema",  # the tables of one database, and how each release changed them
    "server",  # how that service is opened and closed
    "settings",  # the settings of one wing
    "store",  # what reads and writes that database
}
"""Module names that stand for the same part in each wing; any other name is used once."""


def words(name: str) -> set[str]:
    """The words of an identifier, in lower case, of snake or camel case."""
    return {found.lower() for found in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def open_files(*suffixes: str) -> Iterator[tuple[str, str]]:
    """The tracked files with such an end, but for this one."""
    for name, text in tracked():
        if name.endswith(suffixes) and name != SOURCE:
            yield name, text


def is_python(name: str) -> bool:
    """Whether it is a module; the template's are not, before they are rendered."""
    return name.endswith(".py") and "{" not in name


def prose(name: str, text: str) -> Iterator[tuple[int, str]]:
    """The lines that a person reads: of Python, comments, docstrings and texts with a space."""
    if not is_python(name):
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_text = token.type == tokenize.STRING and " " in token.string
        if is_text and token.string[:2].lower().startswith(("f", "rf", "fr")):
            is_text = not name.startswith(("tests/", "benchmarks/"))  # names between braces
        if is_text or token.type == tokenize.COMMENT:
            yield from enumerate(token.string.splitlines(), token.start[0])


def names(text: str) -> Iterator[tuple[int, str, ast.AST]]:
    """Each class and function of a module, and each key of its dicts and subscripts."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name, node
        keys = node.keys if isinstance(node, ast.Dict) else []
        for key in [*keys, *([node.slice] if isinstance(node, ast.Subscript) else [])]:
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.lineno, key.value, key


def test_prose_has_none_of_the_retired_words() -> None:
    ends = (".py", ".md", ".js", ".html", ".jinja", ".j2", ".toml", ".yaml", ".yml", "Makefile")
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in open_files(*ends)
        for number, line in prose(name, text)
        if PROSE.search(line)
    ]

    assert found == []


def test_no_class_function_or_key_has_a_retired_word() -> None:
    found = []
    for name, text in open_files(".py"):
        for number, word, node in names(text) if is_python(name) else ():
            is_class = isinstance(node, ast.ClassDef) and word.lstrip("_") in RETIRED_CLASSES
            is_key = word in RETIRED_KEYS and isinstance(node, ast.Constant)
            has_word = words(word) & RETIRED_IN_NAMES if " " not in word else set()
            if (is_class or is_key or has_word) and (name, word) not in KEYS_FOR_ONE_RELEASE:
                found.append(f"{name}:{number}: {word}")

    assert found == []


def test_no_module_has_a_retired_name() -> None:
    found = [
        name
        for name, _ in open_files(".py")
        for path in [PurePath(name).with_suffix("")]
        if words(path.name) & RETIRED_IN_NAMES
        or path.name in RETIRED_MODULES
        or "/".join(path.parts[-2:]) in RETIRED_MODULES
    ]

    assert set(found) == MODULES_FOR_ONE_RELEASE


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("it is told so", True),
        ("adds them anew", True),
        ("the key is none", True),
        ("the value is None", False),
        ("so many rows", True),
        ("where there is none", False),
        ("it is reported", False),
        ("recommended, amended", False),
    ],
)
def test_a_retired_word_is_found_and_a_part_of_another_is_not(line: str, is_found: bool) -> None:
    assert bool(PROSE.search(line)) is is_found


def test_a_class_name_stands_for_one_thing() -> None:
    defined: dict[str, list[str]] = {}
    for name, text in tracked("sdk/catalogzero"):
        for node in ast.parse(text).body if name.endswith(".py") else ():
            if isinstance(node, ast.ClassDef):
                defined.setdefault(node.name.lstrip("_"), []).append(name)

    twice = {name for name, places in defined.items() if len(places) > 1}

    assert twice == set()


def test_a_module_name_stands_for_one_thing() -> None:
    defined: dict[str, list[str]] = {}
    for name, _ in tracked("sdk/catalogzero"):
        # A module of the command line is named after its command, which says what it does.
        if name.endswith(".py") and "/cli/" not in name:
            defined.setdefault(PurePath(name).stem, []).append(name)

    twice = {name for name, places in defined.items() if len(places) > 1}

    assert twice - set(MODULES_BY_ROLE) == set()

"""Makes a vendor's package from the template that comes with catalogzero.

Owns where the template lies, which answers it takes and that they are checked before anything is
written. The rules for the answers are the template's own (`template_answers.py`), so that plain
cookiecutter refuses the same. Never reads or writes cookiecutter's files in the user's home.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

from catalogzero.errors import ConfigError
from catalogzero.wire.messages import JsonObject

_EXTENSION = "template_answers"


def asked(answers: Mapping[str, str]) -> list[str]:
    """The answers that `catalogzero new` asks for; the others have defaults and flags."""
    of_processors = [] if answers.get("kind") == "handler" else ["endpoint"]
    return ["vendor_name", "product_name", *of_processors]


def template_folder() -> Path:
    """The template: inside the installed package, or in the checkout that is installed editable.

    Raises:
        ConfigError: It is in neither place.
    """
    here = Path(__file__).resolve()
    places = (here.parent / "template", here.parents[3] / "template")
    for place in places:
        if (place / "cookiecutter.json").is_file():
            return place
    raise ConfigError(f"the template is missing from this installation: no {places[0]}")


def answer_names(template: Path) -> list[str]:
    """The names of the answers that a template takes, in its order."""
    return [name for name in _document(template) if not name.startswith("_")]


def prompts(template: Path) -> dict[str, str]:
    """What each answer is, in words for a person."""
    return dict(_document(template)["__prompts__"])


def allowed_words(template: Path) -> dict[str, list[str]]:
    """The words of each answer that is one of a few; the first is the default."""
    document = _document(template)
    names = answer_names(template)
    return {name: document[name] for name in names if isinstance(document[name], list)}


def complete(answers: Mapping[str, str], template: Path) -> dict[str, str]:
    """A full set of answers: those given, the others derived or by default.

    Raises:
        ConfigError: An answer is unknown, or one is refused; the message has a sentence for each.
    """
    full = _context(answers, template)
    return {name: str(full[name]) for name in answer_names(template)}


def scaffold(answers: Mapping[str, str], parent: Path, template: Path | None = None) -> Path:
    """Write the package's folder below `parent` and return it; nothing is written on a fault.

    Args:
        answers: Answers by name; those left out are derived or have defaults.
        parent: The folder in which the package's own folder is made.
        template: Another template; the one that comes with catalogzero by default.

    Raises:
        ConfigError: An answer is refused, or the folder exists already or cannot be written.
    """
    from cookiecutter.exceptions import CookiecutterException
    from cookiecutter.generate import generate_files

    template = template or template_folder()
    context = _context(answers, template)
    folder = parent / str(context["project_slug"])
    if folder.exists():
        raise ConfigError(f"{folder} exists already; move it away, or choose another project_slug")
    try:
        with template_rules(template):
            generate_files(template, {"cookiecutter": context}, output_dir=parent)
    except CookiecutterException as error:
        raise ConfigError(f"the template could not be written to {folder}: {error}") from error
    except OSError as error:
        # Half a package is worse than none; the folder was not there before.
        shutil.rmtree(folder, ignore_errors=True)
        why = getattr(error.__cause__ or error, "strerror", None) or str(error)
        raise ConfigError(f"{folder} cannot be written: {why}") from error
    return folder


def _context(answers: Mapping[str, str], template: Path) -> dict[str, object]:
    """Everything that the template's files may name, answers checked."""
    from cookiecutter.generate import generate_context
    from cookiecutter.prompt import prompt_for_config

    names = answer_names(template)
    if unknown := [name for name in answers if name not in names]:
        raise ConfigError(f"no such answer: {', '.join(unknown)}; there are: {', '.join(names)}")
    with template_rules(template) as rules:
        # cookiecutter would end in a traceback
        refuse(rules.choice_faults(answers))
        given = {name: literal(text) for name, text in answers.items()}
        document = generate_context(str(template / "cookiecutter.json"), extra_context=given)
        full = dict(prompt_for_config(document, no_input=True))
        refuse(rules.faults(full))
    places = {"_template": str(template), "_repo_dir": str(template)}
    return {**full, **places, "_output_dir": "", "_checkout": None}


def refuse(sentences: Iterable[str]) -> None:
    """Raise the faults, if there are any, as one error."""
    if found := list(sentences):
        raise ConfigError("\n".join(found))


def literal(text: str) -> str:
    """An answer that Jinja renders to itself, whatever braces are in it."""
    if "{" not in text:
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return "{{ '" + escaped + "' }}"


def _document(template: Path) -> JsonObject:
    """The template's cookiecutter.json."""
    loaded: JsonObject = json.loads((template / "cookiecutter.json").read_text("utf-8"))
    return loaded


@contextlib.contextmanager
def template_rules(template: Path) -> Iterator[ModuleType]:
    """The template's own rules, importable as cookiecutter expects them; forgotten afterwards."""
    kept, compiled = list(sys.path), sys.dont_write_bytecode
    sys.path.insert(0, os.fspath(template))
    sys.dont_write_bytecode = True
    try:
        yield importlib.import_module(_EXTENSION)
    finally:
        sys.path[:], sys.dont_write_bytecode = kept, compiled
        sys.modules.pop(_EXTENSION, None)

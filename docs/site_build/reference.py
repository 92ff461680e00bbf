"""Pages of the reference that are made from the code: its commands, methods, settings, names."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import textwrap
import typing
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import catalogzero
import typer
from catalogzero import CloudProcessor, CloudSettings, Handler
from catalogzero.backend import BackendSettings
from catalogzero.cli.main import COMMANDS, app
from catalogzero.cloud.settings import QuerySource, TapSource
from catalogzero.config.settings import CurveSettings, EgressPolicy, RuntimeSettings
from catalogzero.entry.lint import PUBLIC_MODULES
from catalogzero.runtime.controls import Controls
from catalogzero.runtime.methods import CONTROL_METHODS, Method, control_methods, methods_of
from conductorzero import ConductorZero
from conductorzero.settings import ConductorSettings
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

SDK = Path(catalogzero.__file__).parent
SETTINGS_PAGE = Path(__file__).parents[1] / "reference" / "settings.md"
WIDTH = 88
"""From how many characters on a signature has a line for each parameter."""

_SECTION = re.compile(
    r"^(Args|Attributes|Returns|Yields|Raises):\n((?:    .*\n?|\n)*)", re.MULTILINE
)
_FIELD = re.compile(r"^ {4}([\w*.` ]+?): (.*(?:\n {5,}.*)*)", re.MULTILINE)


def command_line() -> str:
    """Every command with its usage, its options and its example, in the order of `--help`."""
    root = typer.main.get_command(app)
    parts: list[str] = []
    panel = ""
    for path, command in _commands(root):
        if COMMANDS[path[0]].panel != panel:
            panel = COMMANDS[path[0]].panel
            parts.append(f"## {panel}")
        parts.append(_command(path, command))
    return "\n\n".join(parts) + "\n"


def methods() -> str:
    """The control methods of every handler, and the jobs of a processor and of the conductor."""
    parts = ["## Control methods"]
    found = {**control_methods(Controls), **control_methods(Handler)}
    parts += [_method(Method(name, found[name])) for name in sorted(CONTROL_METHODS)]
    classes: tuple[tuple[str, type[Handler]], ...] = (
        ("Jobs of every processor", CloudProcessor),
        ("Jobs of the conductor", ConductorZero),
    )
    for title, cls in classes:
        parts.append(f"## {title}")
        parts += [_method(method) for method in methods_of(cls, Handler).values()]
    return "\n\n".join(parts) + "\n"


def settings() -> str:
    """Every setting with its type, default, environment variable and meaning."""
    models: tuple[tuple[str, str, type[BaseModel]], ...] = (
        ("The runtime", "CATALOGZERO_", RuntimeSettings),
        ("`egress`", "", EgressPolicy),
        ("`curve`", "", CurveSettings),
        ("Every processor", "", CloudSettings),
        ("One of `sources`", "", QuerySource),
        ("One of `taps`", "", TapSource),
        ("The backend", "CATALOGZERO_BACKEND_", BackendSettings),
        ("The conductor", "CONDUCTOR_", ConductorSettings),
    )
    written = dict(re.findall(r"^\| `(\w+)` \|.*\| (.+) \|$", SETTINGS_PAGE.read_text(), re.M))
    parts = []
    for title, prefix, model in models:
        variable = f" Its environment variables begin with `{prefix}`." if prefix else ""
        parts += [f"## {title}", f"{_prose(_first(model))}{variable}"]
        rows = [
            (
                f"`{name}`",
                f"`{_type(field.annotation)}`",
                _default(field),
                field.description or written.get(name, ""),
            )
            for name, field in model.model_fields.items()
        ]
        parts.append(_table(("name", "type", "default", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def python() -> str:
    """Every public name of every public module, with its signature and what it says of itself."""
    parts = []
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(module_name)
        parts += [f"## {module_name}", _prose(inspect.getdoc(module) or "")]
        for name in sorted(module.__all__, key=str.lower):
            if not name.startswith("_"):
                parts.append(_name(module_name, name, getattr(module, name)))
    return "\n\n".join(parts) + "\n"


def _commands(found: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with its words."""
    if not hasattr(found, "list_commands"):
        yield path, found
        return
    context = typer.Context(found)
    for name in found.list_commands(context):
        yield from _commands(found.get_command(context, name), (*path, name))


def _command(path: tuple[str, ...], command: Any) -> str:
    """One command."""
    words = " ".join(path)
    text, _, example = inspect.cleandoc(command.help or "").partition("Example: ")
    context = command.context_class(command, info_name=f"catalogzero {words}")
    usage = " ".join(command.get_usage(context).removeprefix("Usage:").split())
    parts = [f"### {words}", _prose(text.strip()), f"```sh\n{usage}\n```"]
    rows = []
    for option in command.params:
        spellings, _ = option.get_help_record(context) or ("", "")
        if option.param_type_name == "argument":
            spellings = " ".join(option.get_usage_pieces(context))
        shown = f"`{spellings}`"
        rows.append((shown, _option_default(option), option.help or ""))
    if rows:
        parts.append(_table(("option", "default", "meaning"), rows))
    if example:
        parts.append(f"Example:\n\n```sh\n{' '.join(example.split())}\n```")
    return "\n\n".join(parts)


def _option_default(option: Any) -> str:
    """The default of an option, and its environment variable."""
    value = option.default
    if isinstance(value, Enum):
        value = value.value
    hidden = callable(value) or value in (None, False, (), []) or "UNSET" in repr(value).upper()
    parts = [] if hidden else [f"`{value}`"]
    variables = [option.envvar] if isinstance(option.envvar, str) else option.envvar or []
    return ", else ".join([*(f"`{variable}`" for variable in variables), *parts])


def _method(method: Method) -> str:
    """One method as it is called over the wire."""
    about = method.describe()
    said = _SECTION.sub("", about["doc"]).strip()
    flags = [flag for flag in ("isolate", "quiet", "retry_safe") if about.get(flag)]
    parts = [f"### {method.name}", _prose(said)]
    if flags:
        parts.append(f"Options: {', '.join(f'`{flag}`' for flag in flags)}.")
    schema: dict[str, Any] = about["params_schema"]
    required = schema.get("required", [])
    rows = [
        (
            f"`{name}`",
            _json_type(found),
            "required" if name in required else f"`{json.dumps(found.get('default'))}`",
            found.get("description", ""),
        )
        for name, found in schema.get("properties", {}).items()
    ]
    if rows:
        parts.append(_table(("parameter", "type", "default", "meaning"), rows))
    for title, body in _SECTION.findall(about["doc"]):
        if title in ("Returns", "Raises"):
            parts.append(_section(title, body))
    fields = (about["result_schema"] or {}).get("properties", {})
    if fields:
        keys = [(f"`{name}`", _json_type(found)) for name, found in fields.items()]
        parts.append(_table(("key of the result", "type"), keys))
    return "\n\n".join(parts)


def _json_type(schema: Any) -> str:
    """A JSON Schema's type in a word or two."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_json_type(one) for one in schema["anyOf"]))
    if "$ref" in schema:
        return "object"
    return {"null": "null", None: "any"}.get(schema.get("type"), str(schema.get("type")))


def _default(field: Any) -> str:
    """The default of a setting as it is written in a file."""
    if field.is_required():
        return "required"
    if field.default is PydanticUndefined or isinstance(field.default, BaseModel):
        return ""
    if field.default is None:
        return ""
    return f"`{json.dumps(field.default, default=str)}`"


def _type(annotation: Any) -> str:
    """A type hint without its modules."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _type(typing.get_args(annotation)[0])
    text = (
        annotation.__name__
        if isinstance(annotation, type) and not typing.get_args(annotation)
        else str(annotation)
    )
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text)


def _name(module: str, name: str, value: Any) -> str:
    """One public name."""
    parts = [f"### {name}"]
    if inspect.isclass(value):
        parts += _class(name, value)
    elif inspect.isroutine(value):
        parts += [_signature(name, value), _docstring(value)]
    else:
        parts += _assigned(name)
    return "\n\n".join(filter(None, parts))


def _assigned(name: str) -> list[str]:
    """What a module assigns to a name, and the text below that says what it is."""
    assignment = re.compile(rf'^{name}(?:: [^=\n]+)? = (.+)\n(?:"""([^"]+)""")?', re.MULTILINE)
    for path in sorted(SDK.rglob("*.py")):
        if given := assignment.search(path.read_text()):
            return [f"```python\n{name} = {given[1]}\n```", _prose(given[2] or "")]
    return []


def _class(name: str, cls: type) -> list[str]:
    """A class: how it is made, what it is, and its public methods."""
    fields = getattr(cls, "__required_keys__", None)
    if fields is not None:
        keys = [(f"`{key}`", f"`{_type_text(hint)}`") for key, hint in cls.__annotations__.items()]
        return [_docstring(cls), _table(("key", "type"), keys)]
    bases = [base.__name__ for base in cls.__bases__ if base is not object]
    parts = [f"```python\nclass {name}({', '.join(bases)})\n```" if bases else ""]
    own_init = "__init__" in vars(cls) and not issubclass(cls, (BaseModel, BaseException))
    parts += [_signature(name, cls) if own_init else "", _docstring(cls)]
    if own_init:
        parts.append(_docstring(vars(cls)["__init__"]))
    for member, found in vars(cls).items():
        if member.startswith("_") or (issubclass(cls, BaseModel) and member in cls.model_fields):
            continue
        function = inspect.unwrap(getattr(found, "__func__", found))
        if isinstance(found, property):
            parts += [f"#### {name}.{member}", _docstring(found)]
        elif inspect.isfunction(function):
            parts += [f"#### {name}.{member}", _signature(member, function), _docstring(function)]
    return parts


def _type_text(hint: Any) -> str:
    """A hint that may be a text, as the annotations of a module are."""
    text = getattr(hint, "__forward_arg__", None) or (
        hint if isinstance(hint, str) else _type(hint)
    )
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", str(text))


def _signature(name: str, function: Any) -> str:
    """A signature as a block of code; nothing where there is none."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ""
    given = [found for key, found in signature.parameters.items() if key not in ("self", "cls")]
    shown = signature.replace(parameters=given)
    word = "async def " if inspect.iscoroutinefunction(function) else ""
    text = f"{word}{name}{_plain(str(shown))}"
    if len(text) > WIDTH:
        text = f"{word}{name}(\n" + "".join(f"    {_plain(str(one))},\n" for one in given) + ")"
        if signature.return_annotation is not inspect.Signature.empty:
            text += f" -> {_type_text(signature.return_annotation)}"
    return f"```python\n{text}\n```"


def _plain(text: str) -> str:
    """A signature's text without quotes around hints, modules before names, or addresses."""
    text = re.sub(r"(?<=: )'([^']+)'|(?<=-> )'([^']+)'", lambda m: m[1] or m[2], text)
    text = re.sub(r"\b(?:[a-z_]\w*\.)+([A-Z]\w*)", r"\1", text)
    return re.sub(r"<\w+ [^ ]+ at 0x[0-9a-f]+>|<factory>", "…", text)


def _docstring(thing: Any) -> str:
    """A docstring as Markdown, with its sections as lists."""
    text = inspect.cleandoc(thing.__doc__ or "")
    prose = _prose(_SECTION.sub("", text).strip())
    sections = [_section(title, body) for title, body in _SECTION.findall(f"{text}\n")]
    return "\n\n".join([prose, *sections]) if prose else "\n\n".join(sections)


def _section(title: str, body: str) -> str:
    """A section of a docstring."""
    named = _FIELD.findall(body) if title not in ("Returns", "Yields") else []
    if not named:
        return f"**{title}** " + " ".join(textwrap.dedent(body).split())
    lines = [f"- `{name.strip('`')}`: {' '.join(text.split())}" for name, text in named]
    return f"**{title}**\n\n" + "\n".join(lines)


def _prose(text: str) -> str:
    """A docstring's text: paragraphs stay, and code that is indented becomes a block."""
    text = text.replace("<", "&lt;") if "`" not in text else text
    return text.replace("::\n", ":\n")


def _first(model: type) -> str:
    """The first paragraph of a docstring."""
    return " ".join(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].split())


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table in Markdown; a bar within a cell is escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [" ".join(cell.replace("|", "\\|").split()) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)

"""`handler_registry.yaml`: the client's file of handlers, read with its line numbers.

Pure but for reading the file: it says what stands there, and where; nothing is imported or
started. Every fault of the file is told at once, each with file, line and key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalogzero.config.settings import DEFAULT_SCHEDULER, SCHEDULER_FORM, RuntimeSettings
from catalogzero.errors import ConfigError

if TYPE_CHECKING:
    import yaml

DEFAULT_NAME = "handler_registry.yaml"
STANZA_KEYS = frozenset({"handler_id", "module_path", "class_name", "entry", "config"})
RUNTIME_KEYS = frozenset(RuntimeSettings.model_fields) - {"handler_id", "scheduler"}

Place = tuple[str | int, ...]
Lines = dict[Place, int]


@dataclass(frozen=True)
class Stanza:
    """One handler of the file.

    Attributes:
        handler_id: Its name.
        module_path: The module of its class; or `entry` names its catalog entry.
        class_name: The class; may be absent with `entry`.
        config: The entry's own settings, as written.
        runtime: Runtime settings, as written.
    """

    handler_id: str
    module_path: str | None
    class_name: str | None
    entry: str | None
    config: dict[str, Any]
    runtime: dict[str, Any]
    path: Path
    lines: Lines = field(repr=False)

    def where(self, field_name: str) -> str:
        """`file:line: key` of a dotted field beside `config`, else the line of what it is in."""
        path = tuple(int(part) if part.isdigit() else part for part in field_name.split("."))
        while path not in self.lines:
            path = path[:-1]
        return f"{self.path}:{self.lines[path]}: {field_name}"

    def where_in_config(self, field_name: str) -> str:
        """`file:line: config.key` of a dotted field of `config`."""
        return self.where(f"config.{field_name}")


@dataclass(frozen=True)
class Registry:
    """What the file says."""

    path: Path
    scheduler: str
    handlers: list[Stanza]

    def find(self, handler_id: str) -> Stanza:
        """The stanza of a handler.

        Raises:
            ConfigError: There is none; names those that are there.
        """
        for stanza in self.handlers:
            if stanza.handler_id == handler_id:
                return stanza
        known = ", ".join(stanza.handler_id for stanza in self.handlers) or "none"
        raise ConfigError(f"{self.path}: no handler_id {handler_id!r}; there are: {known}")


def load_registry(path: Path) -> Registry:
    """Read a registry file.

    Raises:
        ConfigError: It cannot be read, or is wrong; every fault with its line.
    """
    document, lines, doubled = read_yaml(path, option="--registry")
    if not isinstance(document, dict):
        raise ConfigError(f"{path}:1: a mapping with `handlers:` is expected")
    if "handlers" not in document:
        raise ConfigError(f"{path}:1: `handlers:` is missing{_schedulezero_hint(document)}")
    faults = doubled + [
        f"{path}:{lines[(key,)]}: unknown key `{key}`; known: scheduler, handlers"
        for key in document
        if key not in ("scheduler", "handlers")
    ]
    handlers = document["handlers"] or []
    if not isinstance(handlers, list):
        raise ConfigError(f"{path}:{lines[('handlers',)]}: `handlers` is a list of handlers")
    scheduler = str(document.get("scheduler", DEFAULT_SCHEDULER) or "none")
    if not re.fullmatch(SCHEDULER_FORM, scheduler):
        faults.append(f"{path}:{lines[('scheduler',)]}: `scheduler` is tcp://host:port, or none")
    faults += _faults(path, handlers, lines)
    if faults:
        raise ConfigError("\n".join(faults))
    stanzas = [_stanza(path, n, item, lines) for n, item in enumerate(handlers)]
    return Registry(path, scheduler, stanzas)


def read_yaml(path: Path, *, option: str) -> tuple[Any, Lines, list[str]]:
    """The document, the line of each of its keys, and what is said of keys that stand twice.

    Args:
        path: The file.
        option: That of the command line that names it.

    Raises:
        ConfigError: It cannot be read, or is no YAML.
    """
    import yaml  # a handler that is named without a file never needs it

    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} is not there: name the file with {option}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 (byte {error.start})") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
        found = list(_lines(root)) if root else []
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML: {type(error).__name__}") from None
    lines: Lines = {}
    doubled = []
    for key, line in found:
        if line != lines.setdefault(key, line):
            doubled.append(f"{path}:{line}: `{key[-1]}` stands in line {lines[key]} already")
    return document, lines, doubled


def _lines(node: yaml.Node, at: Place = ()) -> Iterator[tuple[Place, int]]:
    import yaml

    yield at, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*at, str(key.value))
            yield here, key.start_mark.line + 1
            yield from list(_lines(value, here))[1:]
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _lines(item, (*at, number))


def _faults(path: Path, handlers: Iterable[Any], lines: Lines) -> Iterator[str]:
    """What is wrong with the stanzas, as far as the file alone can tell."""
    seen: dict[str, int] = {}
    for number, item in enumerate(handlers):
        line = lines[("handlers", number)]
        if not isinstance(item, dict):
            yield f"{path}:{line}: a handler is a mapping"
            continue
        name = item.get("handler_id")
        if not isinstance(name, str) or not name:
            wrong = "is missing" if name is None else "is a text: put it in quotes"
            yield f"{path}:{line}: `handler_id` {wrong}"
        elif name in seen:
            yield f"{path}:{line}: handler_id {name!r} stands in line {seen[name]} already"
        else:
            seen[name] = line
        if not item.get("entry") and not (item.get("module_path") and item.get("class_name")):
            yield f"{path}:{line}: `entry`, or `module_path` and `class_name`, are missing"
        if not isinstance(item.get("config") or {}, dict):
            yield f"{path}:{lines[('handlers', number, 'config')]}: `config` is a mapping"
        for key in item:
            if key not in STANZA_KEYS | RUNTIME_KEYS:
                at = lines[("handlers", number, str(key))]
                yield f"{path}:{at}: unknown key `{key}`{_meant(str(key))}"


def _stanza(path: Path, number: int, item: dict[str, Any], lines: Lines) -> Stanza:
    return Stanza(
        handler_id=item["handler_id"],
        module_path=item.get("module_path"),
        class_name=item.get("class_name"),
        entry=item.get("entry"),
        config=item.get("config") or {},
        runtime={key: value for key, value in item.items() if key in RUNTIME_KEYS},
        path=path,
        lines={key[2:]: line for key, line in lines.items() if key[:2] == ("handlers", number)},
    )


def _meant(key: str) -> str:
    """A hint for a key that belongs under `config`, or is misspelled."""
    near = difflib.get_close_matches(key, STANZA_KEYS | RUNTIME_KEYS, n=1)
    return f"; did you mean `{near[0]}`?" if near else "; an entry's own settings go in `config:`"


def _schedulezero_hint(document: dict[str, Any]) -> str:
    """ScheduleZero's server writes a file of this name in another shape."""
    if any(isinstance(item, dict) and "address" in item for item in document.values()):
        return (
            ": this is the file that a ScheduleZero server writes for itself; "
            "name your own with --registry"
        )
    return ""

"""`handler_registry.yaml`: the client's file of handlers, read with its line numbers.

Pure but for reading the file: it says what stands there, and where; nothing is imported or
started. Every fault of the file is reported at once, each with file, line and key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from catalogzero.config.settings import DEFAULT_SCHEDULER, RuntimeSettings, Values, scheduler_fault
from catalogzero.config.state_folder import owner_hint
from catalogzero.errors import ConfigError

if TYPE_CHECKING:
    import yaml

DEFAULT_NAME = "handler_registry.yaml"
MAX_BYTES = 16 << 20
MAX_DEPTH = 100
YAML_FIX = "; see this line and the one above: indent by spaces, and quote what is special"
MAX_FAULTS = 100
"""Those that are named; of further ones only how many there are."""
SCHEDULEZERO_HINT = (
    ": this is the file that a ScheduleZero server writes for itself; name your own with --registry"
)
# As deep as a section: what is below it is an entry's own.
CONFIG_AT = ("handlers", 0)
SECTION_KEYS = frozenset({"handler_id", "module_path", "class_name", "entry", "config"})
RUNTIME_KEYS = frozenset(
    RuntimeSettings.model_fields.keys() | RuntimeSettings.former_keys.keys()
) - {"handler_id", "scheduler"}

Place = tuple[str | int, ...]
Lines = dict[Place, int]


@dataclass(frozen=True)
class Section:
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
    config: Values
    runtime: Values
    path: Path
    lines: Lines = field(repr=False, compare=False)

    def where(self, field_name: str) -> str:
        """`file:line: key` of a dotted field beside `config`, else the line of what it is in."""
        place = tuple(int(part) if part.isdigit() else part for part in field_name.split("."))
        return f"{self.path}:{line_of(self.lines, place)}: {field_name}"


@dataclass(frozen=True)
class Registry:
    """What the file says."""

    path: Path
    scheduler: str
    handlers: list[Section]

    def find(self, handler_id: str) -> Section:
        """The section of a handler.

        Raises:
            ConfigError: There is none; names those that are there.
        """
        for section in self.handlers:
            if section.handler_id == handler_id:
                return section
        known = ", ".join(section.handler_id for section in self.handlers) or "none"
        raise ConfigError(f"{self.path}: no handler_id {handler_id!r}; there are: {known}")


def load_registry(path: Path) -> Registry:
    """Read a registry file.

    Raises:
        ConfigError: It cannot be read, or is wrong; every fault with its line.
    """
    registry, faults = read_registry(path)
    if faults:
        raise _error(faults)
    return registry


def read_registry(path: Path) -> tuple[Registry, list[str]]:
    """What a registry file says, without the handlers at fault; and each fault, with its line.

    Raises:
        ConfigError: It cannot be read, or is no registry file at all.
    """
    document, lines, faults = read_yaml(path, option="--registry")
    if not isinstance(document, dict):
        raise ConfigError(f"{path}:1: a mapping with `handlers:` is expected")
    if "handlers" not in document:
        theirs = any(isinstance(item, dict) and "address" in item for item in document.values())
        hint = SCHEDULEZERO_HINT if theirs else ""
        raise ConfigError(f"{path}:1: `handlers:` is missing{hint}")
    faults += [
        f"{path}:{line_of(lines, (key,))}: unknown key `{key}`; known: scheduler, handlers"
        for key in document
        if isinstance(key, str) and key not in ("scheduler", "handlers")
    ]
    handlers = document["handlers"] or []
    if not isinstance(handlers, list):
        where = f"{path}:{line_of(lines, ('handlers',))}"
        fix = "begin each handler with `- handler_id:`"
        raise ConfigError(f"{where}: `handlers` is a list: {fix}")
    scheduler = str(document.get("scheduler", DEFAULT_SCHEDULER) or "none")
    if fault := scheduler_fault(scheduler):
        faults.append(f"{path}:{line_of(lines, ('scheduler',))}: `scheduler`: {fault}")
    wrong = list(faults_of_sections(path, handlers, lines))
    faults += [fault for _, fault in wrong]
    own: list[Lines] = [{} for _ in handlers]
    for place, line in lines.items():
        if len(place) > 1 and place[0] == "handlers":
            own[cast(int, place[1])][place[2:]] = line
    left_out = {number for number, _ in wrong}
    sections = [
        Section(
            handler_id=item["handler_id"],
            module_path=item.get("module_path"),
            class_name=item.get("class_name"),
            entry=item.get("entry"),
            config=item.get("config") or {},
            runtime={key: value for key, value in item.items() if key in RUNTIME_KEYS},
            path=path,
            lines=own[number],
        )
        for number, item in enumerate(handlers)
        if number not in left_out
    ]
    return Registry(path, scheduler, sections), faults


def registry_sections(path: Path) -> list[Any]:
    """The sections of a registry file as they stand there, read in bounds, nothing else looked at.

    For who shows the handlers of a file without serving them, such as a dashboard.

    Raises:
        ConfigError: It cannot be read, is no registry file, or a key in it is at fault.
    """
    document, _, faults = read_yaml(path, option="--registry")
    if faults:
        raise _error(faults)
    sections = document.get("handlers") if isinstance(document, dict) else None
    if not isinstance(sections, list):
        raise ConfigError(f"{path}:1: `handlers:` must be a list of sections")
    return sections


def read_yaml(path: Path, *, option: str) -> tuple[Any, Lines, list[str]]:
    """The document, the line of each of its keys, and what is wrong with its keys, in bounds.

    Args:
        path: The file.
        option: That of the command line that names it.

    Raises:
        ConfigError: It cannot be read, is not YAML, or is past a bound.
    """
    # A handler that is named without a file never needs it.
    import yaml

    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: more than {MAX_BYTES >> 20} MiB")
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} is not there: name the file with {option}") from None
    except PermissionError:
        raise ConfigError(f"{path}: may not be read by this user: {owner_hint(path)}") from None
    except OSError as error:
        fix = f"name a file with {option}"
        raise ConfigError(f"{path}: cannot be read: {error.strerror}: {fix}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8: save the file as UTF-8") from None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        events = count_events(path, yaml.parse(text, Loader=loader))
        root = yaml.compose(text, Loader=loader)
        if root is None:
            return None, {(): 1}, []
        lines: Lines = {}
        faults = list(note_lines(path, root, lines, most=10 * events + 100_000))
        return construct(root), lines, faults
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem}{YAML_FIX}") from None
    except yaml.YAMLError as error:
        at = text.count("\n", 0, getattr(error, "position", 0)) + 1
        reason = getattr(error, "reason", type(error).__name__)
        raise ConfigError(f"{path}:{at}: not YAML: {reason}{YAML_FIX}") from None


def count_events(path: Path, events: Iterator[yaml.Event]) -> int:
    """How many events a file has; refuses deep nesting, which composing it would not survive."""
    import yaml

    count = depth = 0
    for event in events:
        count += 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise ConfigError(f"{path}:{line}: nested more than {MAX_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return count


def note_lines(path: Path, root: yaml.Node, lines: Lines, *, most: int) -> Iterator[str]:
    """Note the line of everything in a file; gives the faults of its keys.

    Raises:
        ConfigError: Its aliases stand for more than `most` values, or nest too deeply.
    """
    import yaml

    nodes: list[tuple[Place, yaml.Node]] = [((), root)]
    while nodes:
        at, node = nodes.pop()
        lines.setdefault(at, node.start_mark.line + 1)
        if len(at) > MAX_DEPTH:
            line = node.start_mark.line + 1
            raise ConfigError(f"{path}:{line}: nested more than {MAX_DEPTH} deep, by aliases")
        if len(nodes) + len(lines) > most:
            line = node.start_mark.line + 1
            raise ConfigError(f"{path}:{line}: aliases stand for too many values: write them out")
        if isinstance(node, yaml.SequenceNode):
            nodes += [((*at, number), item) for number, item in enumerate(node.value)][::-1]
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here, line = (*at, str(key.value)), key.start_mark.line + 1
                if wrong := fault_of_key(key, at):
                    yield f"{path}:{line}: {wrong}"
                elif here in lines:
                    first = f"stands in line {lines[here]} already: take one out"
                    yield f"{path}:{line}: `{key.value}` {first}"
                lines.setdefault(here, line)
                nodes.append((here, value))


def fault_of_key(key: yaml.Node, at: Place) -> str | None:
    """What is wrong with a key: it is a text, and in an entry's own `config` it may be a number."""
    kind = key.tag.rpartition(":")[2]
    if kind in ("str", "merge") or (kind in ("int", "float") and len(at) > len(CONFIG_AT)):
        return None
    if not isinstance(key.value, str):
        return "a key is a text"
    read_as = {"bool": "true or false", "null": "nothing", "timestamp": "a date"}
    shown = {**read_as, "int": "a number", "float": "a number"}.get(kind, "no text")
    return f"the key `{key.value}` is read as {shown}: put it in quotes"


def construct(root: yaml.Node) -> Any:
    """The document of a composed node; a value that has no form is reported with its line."""
    import yaml

    class Constructor(yaml.constructor.SafeConstructor):
        def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (ValueError, OverflowError, LookupError, AttributeError):
                kind = node.tag.rpartition(":")[2]
                problem = f"`{str(node.value)[:40]}` is no {kind}: put it in quotes"
                raise yaml.MarkedYAMLError(None, None, problem, node.start_mark) from None

    return Constructor().construct_document(root)


def _error(faults: list[str]) -> ConfigError:
    """The faults of a file, as one error."""
    more = [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
    return ConfigError("\n".join([*faults[:MAX_FAULTS], *more]))


def line_of(lines: Lines, place: Place) -> int:
    """The line of a place, else of what it is in: a merged key stands elsewhere."""
    while place not in lines:
        place = place[:-1]
    return lines[place]


def faults_of_sections(
    path: Path, handlers: Iterable[Any], lines: Lines
) -> Iterator[tuple[int, str]]:
    """What is wrong with each section, by its number, as far as the file alone can show."""
    seen: dict[str, int] = {}
    ports: dict[tuple[str, str], int] = {}
    for number, item in enumerate(handlers):
        line = lines[("handlers", number)]
        if not isinstance(item, dict):
            yield number, f"{path}:{line}: a handler is a mapping: begin it with `- handler_id:`"
            continue
        name = item.get("handler_id")
        if not isinstance(name, str) or not name:
            missing = "is missing: add it, a name of your own"
            wrong = missing if name is None else "is a text: put it in quotes"
            yield number, f"{path}:{line}: `handler_id` {wrong}"
        elif name in seen:
            first = f"stands in line {seen[name]} already: rename one"
            yield number, f"{path}:{line}: handler_id {name!r} {first}"
        else:
            seen[name] = line
        if not item.get("entry") and not (item.get("module_path") and item.get("class_name")):
            yield (
                number,
                f"{path}:{line}: `entry`, or `module_path` and `class_name`, are missing: add them",
            )
        for key in ("entry", "module_path", "class_name"):
            if not isinstance(item.get(key) or "", str):
                at = line_of(lines, ("handlers", number, key))
                yield number, f"{path}:{at}: `{key}` is a text: put it in quotes"
        if not isinstance(item.get("config") or {}, dict):
            at = line_of(lines, ("handlers", number, "config"))
            fix = "write its settings below it, as `name: value`"
            yield number, f"{path}:{at}: `config` is a mapping: {fix}"
        for key in item:
            if isinstance(key, str) and key not in SECTION_KEYS | RUNTIME_KEYS:
                at = line_of(lines, ("handlers", number, key))
                near = difflib.get_close_matches(key, SECTION_KEYS | RUNTIME_KEYS, n=1)
                own = "an entry's own settings go in `config:`"
                hint = f"did you mean `{near[0]}`?" if near else own
                yield number, f"{path}:{at}: unknown key `{key}`; {hint}"
        port = item.get("port")
        place = (str(item.get("host")), str(port))
        if port and ports.setdefault(place, number) != number:
            at, other = (line_of(lines, ("handlers", n, "port")) for n in (number, ports[place]))
            fault = f"port {port} stands in line {other} already: choose another one"
            yield number, f"{path}:{at}: {fault}"

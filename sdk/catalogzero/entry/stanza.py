"""The stanza of an entry in the client's handler_registry.yaml, its settings explained.

Owns the text that is added to the file; what stands there already is never changed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

import yaml

from catalogzero.config.logs import printable
from catalogzero.config.registry import Stanza, load_registry
from catalogzero.entry.manifest import Manifest
from catalogzero.errors import ConfigError

FIRST_PORT = 5001
_ITEM = re.compile(r"^(\s*)- ", re.MULTILINE)


def stanzas_of(path: Path, entry_id: str) -> list[Stanza]:
    """The stanzas that name an entry; none where there is no file."""
    if not path.is_file():
        return []
    return [stanza for stanza in load_registry(path).handlers if stanza.entry == entry_id]


def add_stanza(path: Path, manifest: Manifest) -> str:
    """Add an entry's stanza to a registry file, made where there is none; its handler_id.

    Raises:
        ConfigError: The file is wrong, or a stanza cannot be added to its form; it is as before.
    """
    existed = path.is_file()
    before = path.read_text("utf-8") if existed else "handlers:\n"
    known = load_registry(path).handlers if existed else []
    names = {stanza.handler_id for stanza in known}
    name = manifest.id.replace("-", "_")
    numbered = (f"{name}_{number}" for number in count(2))
    handler_id = next(free for free in chain([name], numbered) if free not in names)
    ports = {port for stanza in known if isinstance(port := stanza.runtime.get("port"), int)}
    port = next(number for number in range(FIRST_PORT, 65_536) if number not in ports)
    indent = (_ITEM.findall(before) or ["  "])[-1]
    text = stanza_text(manifest, handler_id, port, indent)
    path.write_text(f"{before.rstrip()}\n{text}", "utf-8")
    try:
        *others, added = load_registry(path).handlers
        meant = (handler_id, manifest.id, None, {"port": port}, open_settings(manifest))
        found = (added.handler_id, added.entry, added.module_path, added.runtime, added.config)
        if found != meant or list(map(_content, others)) != list(map(_content, known)):
            raise ConfigError("the file would say more than the stanza")
    except (ConfigError, ValueError) as error:
        if existed:
            path.write_text(before, "utf-8")
        else:
            path.unlink()
        raise ConfigError(f"{path}: add this to its `handlers` by hand:\n{text}") from error
    return handler_id


def stanza_text(manifest: Manifest, handler_id: str, port: int, indent: str = "  ") -> str:
    """The stanza: what must be set stands open, what may be set as comments."""
    head = {"handler_id": handler_id, "entry": manifest.id, "port": port}
    first, *rest = (_dumped(name, value) for name, value in head.items())
    config = (f"  {line}" for line in _config_lines(manifest))
    lines = [f"- {first}", *(f"  {line}" for line in (*rest, "config:", *config))]
    return "".join(f"{indent}{line}\n" for line in lines)


def open_settings(manifest: Manifest) -> dict[str, Any]:
    """What a client must fill in, with the values that stand there first."""
    schema = manifest.config_schema
    named = schema.get("properties", {})
    settings: dict[str, Any] = dict.fromkeys(schema.get("required", ()), "")
    if "api_key_file" in named:
        settings |= {"api_key_file": f"/etc/{manifest.id}/api_key", "data_roots": []}
    return {name: settings[name] for name in named if name in settings}


def _config_lines(manifest: Manifest) -> Iterator[str]:
    """A line for each setting: those that a client must fill in stand open."""
    settings = open_settings(manifest)
    for name, told in manifest.config_schema.get("properties", {}).items():
        meaning = str(told.get("description", ""))
        words = _comment(", ".join(filter(None, [_kind(told), meaning])))
        if name in settings:
            yield f"{_dumped(name, settings[name])}  {words}"
        else:
            default = json.dumps(told.get("default"), ensure_ascii=False)
            yield f"{_comment(f'{name}: {default}')}  {words}"
    if not settings:
        yield "{}"


def _dumped(name: str, value: Any) -> str:
    """One key with its value, as YAML writes them in a line."""
    quote = '"' if value == "" else None
    text = yaml.safe_dump(value, default_style=quote, default_flow_style=True, width=math.inf)
    return f"{name}: {text.removesuffix(chr(10)).removesuffix('...').strip()}"


def _comment(text: str) -> str:
    """A vendor's words as a comment: they end no line, whatever they hold."""
    return f"# {printable(' '.join(text.split()), one_line=True)}"


def _content(stanza: Stanza) -> tuple[Any, ...]:
    """What a stanza says, wherever it stands."""
    return stanza.handler_id, stanza.entry, stanza.module_path, stanza.config, stanza.runtime


def _kind(schema: Mapping[str, Any]) -> str:
    """The kind of value that a schema describes."""
    if "enum" in schema:
        return " | ".join(str(word) for word in schema["enum"])
    parts = [_kind(part) for part in schema.get("anyOf", ()) if part.get("type") != "null"]
    if parts:
        return " or ".join(parts)
    kind = {"password": "secret", "path": "path"}.get(str(schema.get("format")))
    return kind or str(schema.get("type", "any"))


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What a client must know of the settings when an entry changes its version."""
    old, new = before.get("properties", {}), after.get("properties", {})
    required = set(after.get("required", ()))
    words = {name: " (required)" if name in required else "" for name in new}
    added = [f"new setting {name}{words[name]}" for name in new if name not in old]
    gone = [f"setting {name} is gone" for name in old if name not in new]
    both = [name for name in new if name in old and new[name] != old[name]]
    return [*added, *gone, *(f"setting {name} means something else" for name in both)]

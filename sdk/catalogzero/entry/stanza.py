"""The stanza of an entry in the client's handler_registry.yaml, its settings explained.

Owns the text that is added to the file; what stands there already is never changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

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
        load_registry(path).find(handler_id)
    except ConfigError as error:
        if existed:
            path.write_text(before, "utf-8")
        else:
            path.unlink()
        raise ConfigError(f"{path}: add this to its `handlers` by hand:\n{text}") from error
    return handler_id


def stanza_text(manifest: Manifest, handler_id: str, port: int, indent: str = "  ") -> str:
    """The stanza: what must be set stands open, what may be set as comments."""
    lines = [
        f"- handler_id: {handler_id}",
        f"  entry: {manifest.id}",
        f"  port: {port}",
        "  config:",
        *(f"    {line}" for line in _config_lines(manifest)),
    ]
    return "".join(f"{indent}{line}\n" for line in lines)


def _config_lines(manifest: Manifest) -> Iterator[str]:
    """A line for each setting: those that a client must fill in stand open."""
    schema = manifest.config_schema
    open_settings = dict.fromkeys(schema.get("required", ()), '""')
    if "api_key_file" in schema.get("properties", {}):
        open_settings |= {"api_key_file": f"/etc/{manifest.id}/api_key", "data_roots": "[]"}
    for name, told in schema.get("properties", {}).items():
        meaning = " ".join(str(told.get("description", "")).split())
        words = ", ".join(filter(None, [_kind(told), meaning]))
        if name in open_settings:
            yield f"{name}: {open_settings[name]}  # {words}"
        else:
            default = json.dumps(told.get("default"), ensure_ascii=False)
            yield f"# {name}: {default}  # {words}"
    if not open_settings:
        yield "{}"


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

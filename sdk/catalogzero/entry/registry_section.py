"""The section of an entry in the client's handler_registry.yaml, its settings explained.

Owns the text that is added to the file; what stands there already is never changed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from types import MappingProxyType

import yaml

from catalogzero.config.printing import printable
from catalogzero.config.registry import Section, load_registry
from catalogzero.entry.manifest import JsonSchema, Manifest, kind_of
from catalogzero.errors import ConfigError

FIRST_PORT = 5001
_ITEM = re.compile(r"^(\s*)- ", re.MULTILINE)


def sections_of(path: Path, entry_id: str) -> list[Section]:
    """The sections that name an entry; none without a file."""
    known = load_registry(path).handlers if path.is_file() else []
    return [one for one in known if one.entry == entry_id]


def add_section(
    path: Path, manifest: Manifest, given: Mapping[str, object] = MappingProxyType({})
) -> str:
    """Add an entry's section to a registry file, made where there is none; its handler_id.

    Args:
        path: The registry file.
        manifest: The entry's.
        given: Settings that are known already, by name.

    Raises:
        ConfigError: The file is wrong, or a section cannot be added to its form; it is as before.
            Or a setting is unknown, or a secret.
    """
    existed = path.is_file()
    before = path.read_text("utf-8") if existed else "handlers:\n"
    known = load_registry(path).handlers if existed else []
    name, names = manifest.id.replace("-", "_"), {one.handler_id for one in known}
    numbered = (f"{name}_{number}" if number > 1 else name for number in count(1))
    handler_id = next(free for free in numbered if free not in names)
    taken = {one.runtime.get("port") for one in known}
    port = next(number for number in range(FIRST_PORT, 65_536) if number not in taken)
    settings = open_settings(manifest) | _fitted(given, manifest)

    head = {"handler_id": handler_id, "entry": manifest.id, "port": port}
    lines = [_yaml(key, value) for key, value in head.items()] + ["config:"]
    for key, schema in manifest.config_schema.get("properties", {}).items():
        # What must be set stands open, what may be set is a comment.
        meaning = ", ".join(filter(None, [kind_of(schema), str(schema.get("description", ""))]))
        default = json.dumps(schema.get("default"), ensure_ascii=False)
        line = _yaml(key, settings[key]) if key in settings else _comment(f"{key}: {default}")
        lines.append(f"  {line}  {_comment(meaning)}")
    lines += [] if settings else ["  {}"]
    indent = (_ITEM.findall(before) or ["  "])[-1]
    text = "".join(f"{indent}{'  ' if n else '- '}{line}\n" for n, line in enumerate(lines))

    path.write_text(f"{before.rstrip()}\n{text}", "utf-8")
    try:
        # Nothing that a manifest says may write a key of its own: what is parsed is compared.
        wanted = Section(handler_id, None, None, manifest.id, settings, {"port": port}, path, {})
        if load_registry(path).handlers != [*known, wanted]:
            raise ConfigError("the file would say more than the section")
    except (ConfigError, ValueError) as error:
        if existed:
            path.write_text(before, "utf-8")
        else:
            path.unlink()
        raise ConfigError(f"{path}: add this to its `handlers` by hand:\n{text}") from error
    return handler_id


def open_settings(manifest: Manifest) -> dict[str, object]:
    """What a client must fill in, with the values that stand there first."""
    named = manifest.config_schema.get("properties", {})
    settings: dict[str, object] = dict.fromkeys(manifest.config_schema.get("required", ()), "")
    if "api_key_file" in named:
        settings |= {"api_key_file": f"/etc/{manifest.id}/api_key", "data_roots": []}
    return {name: settings[name] for name in named if name in settings}


def _fitted(given: Mapping[str, object], manifest: Manifest) -> dict[str, object]:
    """Settings in the type that the entry's schema names: one text may stand for a list of one."""
    named = manifest.config_schema.get("properties", {})
    fitted = {}
    for name, value in given.items():
        if name not in named:
            known = ", ".join(named)
            raise ConfigError(f"{manifest.id} has no setting {name!r}; it has: {known}")
        if "secret" in kind_of(named[name]):
            raise ConfigError(f"{name} is a secret, and would be seen: use {name}_file")
        kinds = {part.get("type") for part in named[name].get("anyOf", [named[name]])}
        if isinstance(value, str) and "array" in kinds:
            value = [value]
        elif isinstance(value, str) and "string" not in kinds:
            value = yaml.safe_load(value)
        fitted[name] = value
    return fitted


def _yaml(name: str, value: object) -> str:
    """One key with its value, as YAML writes them in a line."""
    quote = '"' if value == "" else None
    text = yaml.safe_dump(value, default_style=quote, default_flow_style=True, width=math.inf)
    return f"{name}: {text.removesuffix(chr(10)).removesuffix('...').strip()}"


def _comment(text: str) -> str:
    """A vendor's words as a comment: they end no line, whatever they hold."""
    return f"# {printable(' '.join(text.split()), one_line=True)}"


def changed_settings(before: JsonSchema, after: JsonSchema) -> list[str]:
    """What a client must know of the settings when an entry changes its version."""
    old, new = before.get("properties", {}), after.get("properties", {})
    required = set(after.get("required", ()))
    added = [f"{name} (required)" if name in required else name for name in new if name not in old]
    changed = [name for name in new if name in old and new[name] != old[name]]
    return [
        *(f"new setting {name}" for name in added),
        *(f"setting {name} is gone" for name in old if name not in new),
        *(f"setting {name} means something else" for name in changed),
    ]

"""What an entry's code can tell of its manifest: methods, streams, configuration, as TOML.

Owns the part of `catalogzero.toml` below the generated mark, and the comparison with the code.
The handler class is imported by the caller; nothing here imports an entry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from catalogzero.cloud.rows.streams import streams_of
from catalogzero.entry.manifest import GENERATED_MARK, MANIFEST_NAME, Manifest
from catalogzero.errors import ConfigError
from catalogzero.runtime.handler import Handler

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def methods_of_class(cls: type[Handler]) -> list[dict[str, Any]]:
    """The methods that a scheduler may call, as the manifest writes them."""
    return [_method(told.describe()) for _, told in sorted(cls.callable_methods().items())]


def streams_of_class(cls: type[Handler]) -> list[dict[str, Any]]:
    """What the class declares of its results, as the manifest writes it."""
    return [without_noise(stream.describe()) for stream in streams_of(cls)]


def config_schema_of_class(cls: type[Handler]) -> dict[str, Any]:
    """The JSON Schema of the class's settings, as the manifest writes it."""
    schema = without_noise(cls.settings_model.model_json_schema())
    return {key: value for key, value in schema.items() if key != "description"}


def _method(told: Mapping[str, Any]) -> dict[str, Any]:
    """One method: the first paragraph of its docs, its flags and schemas."""
    first = " ".join(told["doc"].split("\n\n")[0].split())
    method: dict[str, Any] = {"name": told["name"], "description": first}
    if told["retry_safe"]:
        method["retry_safe"] = True
    if told["timeout_s"] is not None:
        method["timeout_s"] = told["timeout_s"]
    method["params_schema"] = without_noise(told["params_schema"])
    method["result_schema"] = without_noise(told["result_schema"] or {})
    return method


def without_noise(schema: Any, *, named: bool = False) -> Any:
    """A JSON Schema without titles and nulls, which TOML cannot hold.

    Args:
        schema: The schema, or a part of it.
        named: The keys are the author's names, such as those of properties.
    """
    if isinstance(schema, dict):
        kept = {k: v for k, v in schema.items() if v is not None and (named or k != "title")}
        return {
            key: without_noise(value, named=not named and key in ("properties", "$defs"))
            for key, value in kept.items()
        }
    return [without_noise(part) for part in schema] if isinstance(schema, list) else schema


def generated_text(cls: type[Handler]) -> str:
    """The part of the manifest that the code tells, mark included."""
    lines = [GENERATED_MARK]
    for method in methods_of_class(cls):
        lines += ["", "[[methods]]", *(f"{key} = {inline(value)}" for key, value in method.items())]
    for stream in streams_of_class(cls):
        lines += ["", "[[streams]]", *(f"{key} = {inline(value)}" for key, value in stream.items())]
    lines += ["", *_config_lines(config_schema_of_class(cls)), ""]
    return "\n".join(lines)


def _config_lines(schema: Mapping[str, Any]) -> Iterator[str]:
    """The configuration's schema: a line for each setting."""
    tables = ("properties", "$defs")
    yield "[config_schema]"
    for key, value in schema.items():
        if key not in tables:
            yield f"{_key(key)} = {inline(value)}"
    for table in tables:
        if schema.get(table):
            yield f"\n[config_schema.{_key(table)}]"
            yield from (f"{_key(name)} = {inline(value)}" for name, value in schema[table].items())


def inline(value: Any) -> str:
    """A value as inline TOML.

    Raises:
        ConfigError: It holds something that TOML has no word for.
    """
    if isinstance(value, dict):
        parts = ", ".join(f"{_key(key)} = {inline(part)}" for key, part in value.items())
        return f"{{ {parts} }}" if parts else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(inline(part) for part in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise ConfigError(f"a schema holds {value!r}, which cannot be written in a manifest")


def _key(name: str) -> str:
    """A key of TOML, quoted where it must be."""
    return name if _BARE_KEY.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def with_generated(text: str, cls: type[Handler]) -> str:
    """A manifest's text with the part that the code tells written anew."""
    own = text.partition(GENERATED_MARK)[0].rstrip("\n")
    return f"{own}\n\n{generated_text(cls)}"


def differences(manifest: Manifest, cls: type[Handler]) -> Iterator[str]:
    """What the manifest says otherwise than the code, a sentence each."""
    said = {method.name: method for method in manifest.methods}
    told = {method["name"]: method for method in methods_of_class(cls)}
    for name in sorted(said.keys() | told.keys()):
        if name not in told:
            yield f"the manifest names a method {name!r}, which {cls.__name__} has not"
        elif name not in said:
            yield f"{cls.__name__} has a method {name!r}, which the manifest does not name"
        else:
            written, actual = said[name].model_dump(exclude_unset=True), told[name]
            keys = sorted(written.keys() | actual.keys())
            if differing := [key for key in keys if written.get(key) != actual.get(key)]:
                yield f"method {name!r}: {', '.join(differing)} of code and manifest differ"
    outputs = [one.model_dump(exclude_unset=True, by_alias=True) for one in manifest.streams]
    if outputs != streams_of_class(cls):
        yield f"the output schema of {cls.__name__} is described otherwise by the code"
    schema = config_schema_of_class(cls)
    settings, real = manifest.config_schema.get("properties", {}), schema.get("properties", {})
    for name in sorted(settings.keys() | real.keys()):
        if settings.get(name) != real.get(name):
            yield f"setting {name!r} is described otherwise by the code"
    if settings == real and manifest.config_schema != schema:
        yield "config_schema is described otherwise by the code"


def manifest_path(cls: type[Handler]) -> Path:
    """The manifest of the package that a class lives in.

    Raises:
        ConfigError: No package around it has one.
    """
    package = cls.__module__
    while package := package.rpartition(".")[0]:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            path = Path(folder) / MANIFEST_NAME
            if path.is_file():
                return path
    raise ConfigError(
        f"{cls.__module__} lies in no package with a {MANIFEST_NAME}; write one beside the handler"
    )

"""What an entry's code declares of its manifest: methods, streams, configuration, as TOML.

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

from catalogzero.cloud.params import IDENTITY
from catalogzero.cloud.processor import CloudProcessor
from catalogzero.cloud.rows.streams import streams_of
from catalogzero.entry.manifest import (
    GENERATED_MARK,
    MANIFEST_NAME,
    JsonSchema,
    Manifest,
    SourceIdentity,
    resolved,
)
from catalogzero.errors import ConfigError
from catalogzero.runtime.handler import Handler

UPLOAD = "process_and_upload"
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


Table = dict[str, object]
"""A table of the manifest."""


def methods_of_class(cls: type[Handler]) -> list[Table]:
    """The methods that a scheduler may call: the first paragraph of their docs, their schemas."""
    methods = []
    for _, found in sorted(cls.callable_methods().items()):
        described = found.describe()
        first = " ".join(described["doc"].split("\n\n")[0].split())
        method: Table = {"name": described["name"], "description": first}
        if described["retry_safe"]:
            method["retry_safe"] = True
        if described["timeout_s"] is not None:
            method["timeout_s"] = described["timeout_s"]
        method["params_schema"] = without_noise(described["params_schema"])
        method["result_schema"] = without_noise(described["result_schema"] or {})
        methods.append(method)
    return methods


def streams_of_class(cls: type[Handler]) -> list[JsonSchema]:
    """What the class declares of its results, as the manifest writes it."""
    return [without_noise(stream.describe()) for stream in streams_of(cls)]


def identity_of_class(cls: type[Handler]) -> Table | None:
    """What of a processor's class decides what a source is, as the manifest writes it."""
    if not issubclass(cls, CloudProcessor):
        return None
    declared = next((stream.name for stream in cls.streams), None) or cls.stream
    return {"output_version": cls.output_version, **({"stream": declared} if declared else {})}


def identity_changes(manifest: Manifest, cls: type[Handler]) -> Iterator[str]:
    """Which params are, other than the manifest says, part of a source's identity or are not.

    None where another stream or a higher `output_version` says that the results are others.
    """
    said = manifest.identity or SourceIdentity()
    real = SourceIdentity.model_validate(identity_of_class(cls) or {})
    if real.stream != said.stream or real.output_version > said.output_version:
        return
    before = [m.params_schema for m in manifest.methods if m.name == UPLOAD]
    now = [
        method.params_schema for method in cls.callable_methods().values() if method.name == UPLOAD
    ]
    if not before or not now:
        return
    old, new = params_in_identity(before[0]), params_in_identity(now[0])
    # A class that names none takes any, and each is part of the identity.
    for name in sorted((old or {}).keys() | (new or {}).keys()):
        was, is_now = (marks.get(name) if marks is not None else True for marks in (old, new))
        if was is not None and is_now is not None and was != is_now:
            yield f"the param {name!r} is {'now' if is_now else 'no longer'} part of the identity"


def params_in_identity(schema: JsonSchema) -> dict[str, bool] | None:
    """Each param of `process` by name, and whether it is part of a source's identity."""
    found = resolved(schema.get("properties", {}).get("params", {}), schema)
    if "properties" not in found:
        return None
    return {name: part.get(IDENTITY, True) for name, part in found["properties"].items()}


def config_schema_of_class(cls: type[Handler]) -> JsonSchema:
    """The JSON Schema of the class's settings, as the manifest writes it."""
    schema = without_noise(cls.settings_model.model_json_schema())
    return {key: value for key, value in schema.items() if key != "description"}


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


def with_generated(text: str, cls: type[Handler]) -> str:
    """A manifest's text with the part that the code declares written again, mark included."""
    tables = [("methods", method) for method in methods_of_class(cls)]
    tables += [("streams", stream) for stream in streams_of_class(cls)]
    lines = [text.partition(GENERATED_MARK)[0].rstrip("\n"), "", GENERATED_MARK]
    for name, table in tables:
        lines += ["", f"[[{name}]]", *lines_of(table)]
    if identity := identity_of_class(cls):
        lines += ["", "[identity]", *lines_of(identity)]
    schema = config_schema_of_class(cls)
    below = {key: schema.pop(key) for key in ("properties", "$defs") if schema.get(key)}
    lines += ["", "[config_schema]", *lines_of(schema)]
    # As tables of their own: a line for each setting is what a diff can show.
    for key, table in below.items():
        lines += ["", f"[config_schema.{toml_key(key)}]", *lines_of(table)]
    return "\n".join([*lines, ""])


def lines_of(table: Mapping[str, object]) -> list[str]:
    """The keys of a table, a line each."""
    return [f"{toml_key(key)} = {inline(value)}" for key, value in table.items()]


def inline(value: object) -> str:
    """A value as inline TOML.

    Raises:
        ConfigError: It holds something that TOML has no word for.
    """
    if isinstance(value, dict):
        parts = ", ".join(f"{toml_key(key)} = {inline(part)}" for key, part in value.items())
        return f"{{ {parts} }}" if parts else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(inline(part) for part in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise ConfigError(f"a schema holds {value!r}, which cannot be written in a manifest")


def toml_key(name: str) -> str:
    """A key of TOML, quoted where it must be."""
    return name if _BARE_KEY.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def differences(manifest: Manifest, cls: type[Handler]) -> Iterator[str]:
    """What the manifest says otherwise than the code, a sentence each."""
    said = {method.name: method.model_dump(exclude_unset=True) for method in manifest.methods}
    actual = {str(method["name"]): method for method in methods_of_class(cls)}
    for name in sorted(said.keys() | actual.keys()):
        if name not in actual:
            yield f"the manifest names a method {name!r}, which {cls.__name__} has not"
        elif name not in said:
            yield f"{cls.__name__} has a method {name!r}, which the manifest does not name"
        else:
            one, other = said[name], actual[name]
            keys = sorted(one.keys() | other.keys())
            if differing := [key for key in keys if one.get(key) != other.get(key)]:
                yield f"method {name!r}: {', '.join(differing)} of code and manifest differ"
    outputs = [one.model_dump(exclude_unset=True, by_alias=True) for one in manifest.streams]
    if outputs != streams_of_class(cls):
        yield f"the output schema of {cls.__name__} is described otherwise by the code"
    if (manifest.identity and manifest.identity.model_dump(exclude_unset=True)) != (
        identity_of_class(cls)
    ):
        yield f"output_version or stream of {cls.__name__} is described otherwise by the code"
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

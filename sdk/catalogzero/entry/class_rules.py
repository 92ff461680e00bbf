"""What `catalog lint` and the contract suite demand of a handler's class, each rule once.

A rule looks at the class alone: it is neither made nor served.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import cleandoc

from catalogzero.entry import drift
from catalogzero.entry.manifest import load_manifest
from catalogzero.runtime.handler import Handler

Find = Callable[[type[Handler]], Iterator[str]]
_SECRET_NAME = re.compile(r"(^|_)(api_?key|key|token|secret|password|passwd|credentials?)$")


@dataclass(frozen=True)
class ClassRule:
    """One demand on a handler's class.

    Attributes:
        code: Its code in `catalog lint`.
        name: Its name in the contract suite.
        demand: What must be so.
        reason: Why.
        fix: What to do where it is not so.
        find: Yields what is wrong, a sentence each.
    """

    code: str
    name: str
    demand: str
    reason: str
    fix: str
    find: Find


CLASS_RULES: list[ClassRule] = []


def paragraphs(function: Callable[..., object]) -> list[str]:
    """The paragraphs of a docstring, a line each: a rule's and a check's texts stand there."""
    return [" ".join(text.split()) for text in cleandoc(function.__doc__ or "").split("\n\n")]


def _rule(code: str) -> Callable[[Find], Find]:
    """Add a rule; the paragraphs of its docstring are demand, reason and fix."""

    def add(find: Find) -> Find:
        demand, reason, fix = paragraphs(find)
        CLASS_RULES.append(ClassRule(code, find.__name__, demand, reason, fix, find))
        return find

    return add


@_rule("CZ106")
def manifest_matches_the_code(cls: type[Handler]) -> Iterator[str]:
    """The manifest says of methods and settings what the code says.

    What a client reads in the catalog must be what the code does.

    Run catalogzero catalog lint --fix, and fix what it still names.
    """
    manifest = load_manifest(drift.manifest_path(cls))
    if not any(drift.identity_changes(manifest, cls)):  # which no fix may write over
        yield from drift.differences(manifest, cls)


@_rule("CZ119")
def identity_stays(cls: type[Handler]) -> Iterator[str]:
    """The params that are part of a source's identity are those of the release before.

    Other ones make other sources of the same files: their rows would stand twice at the backend.

    Raise output_version, or name another stream, and then run catalogzero catalog lint --fix.
    """
    yield from drift.identity_changes(load_manifest(drift.manifest_path(cls)), cls)


@_rule("CZ111")
def secrets_are_secret_settings(cls: type[Handler]) -> Iterator[str]:
    """Settings with a secret's name are SecretStr.

    A secret in a plain setting shows in logs, errors and describe.

    Annotate the setting as SecretStr.
    """
    for name, field in cls.settings_model.model_fields.items():
        if field.annotation in (str, str | None) and _SECRET_NAME.search(name):
            yield f"the setting {name!r} is plain text"


@_rule("CZ112")
def settings_have_a_prefix(cls: type[Handler]) -> Iterator[str]:
    """The settings have the vendor's own prefix in the environment.

    Each vendor's settings have their own names in the environment.

    Set model_config = SettingsConfigDict(env_prefix='ACME_') in the settings class.
    """
    prefix = str(cls.settings_model.model_config.get("env_prefix") or "")
    if not prefix or prefix.upper().startswith("CATALOGZERO_"):
        yield f"the settings' environment prefix is {prefix!r}"


@_rule("CZ113")
def methods_are_documented(cls: type[Handler]) -> Iterator[str]:
    """Every method has a docstring, and every parameter a type.

    A client reads in the catalog what each method does before it installs.

    Write a docstring for each method, and a type for each parameter.
    """
    for name, method in cls.callable_methods().items():
        description = method.describe()
        if not description["doc"]:
            yield f"method {name!r} has no docstring"
        for parameter, schema in description["params_schema"].get("properties", {}).items():
            if not schema.keys() - {"title", "default", "description"}:
                yield f"parameter {parameter!r} of {name!r} has no type"

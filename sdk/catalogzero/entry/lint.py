"""The rules of `catalogzero catalog lint`: what a package must be before it is published.

Owns the codes, their meaning and their mends (docs/reference/lint.md lists them). A rule looks at
files first; only those about methods and settings import the package.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from catalogzero.entry import drift
from catalogzero.entry.manifest import Manifest
from catalogzero.entry.subject import Subject, handler_class
from catalogzero.errors import ConfigError
from catalogzero.runtime.handler import Handler

Severity = Literal["error", "warning"]
PUBLIC_MODULES = (
    "catalogzero",
    *(f"catalogzero.{name}" for name in ("testing", "compat", "backend", "web", "sql")),
)

_TRIGGERS = {
    "interval": {
        *("weeks", "days", "hours", "minutes", "seconds"),
        *("wall", "start_time", "timezone"),
    },
    "cron": {
        *("year", "month", "day", "week", "day_of_week", "hour", "minute", "second"),
        *("day_or_weekday", "timezone", "start_time", "end_time"),
    },
    "date": {"run_date", "timezone"},
}


@dataclass(frozen=True)
class Rule:
    """One rule: its code, what it demands, and what to do where it is broken."""

    code: str
    demand: str
    mend: str
    severity: Severity = "error"


@dataclass(frozen=True)
class Finding:
    """One place where a rule is broken."""

    rule: Rule
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.rule.code} {self.message}. {self.rule.mend}"


Look = Callable[[Subject], Iterator[tuple[str, str]]]
RULES: dict[str, Rule] = {}
_LOOKS: list[tuple[Rule, Look]] = []


def rule(code: str, severity: Severity = "error") -> Callable[[Look], Look]:
    """Register a rule: the function yields (path, what is wrong) for each place.

    Its docstring is the rule's text: the first paragraph demands, the second says what to do.
    """

    def register(look: Look) -> Look:
        demand, _, mend = cleandoc(look.__doc__ or "").partition("\n\n")
        demand = demand[:1].lower() + demand[1:].removesuffix(".")
        RULES[code] = Rule(code, demand, " ".join(mend.split()), severity)
        _LOOKS.append((RULES[code], look))
        return look

    return register


def lint(subject: Subject) -> list[Finding]:
    """Every broken rule of a package, in the order of the codes."""
    return [Finding(found, path, what) for found, look in _LOOKS for path, what in look(subject)]


def fix(subject: Subject) -> list[Path]:
    """Write what the code can tell into the manifests; the files that changed.

    Raises:
        ConfigError: A handler cannot be imported.
    """
    changed = []
    for entry_id in subject.entries:
        path = subject.manifest_path(entry_id)
        for name in subject.handlers:
            with handler_class(subject, name) as cls:
                before = path.read_text("utf-8") if path.is_file() else ""
                after = drift.with_generated(before, cls)
            if before and after != before:
                path.write_text(after, "utf-8")
                changed.append(path)
    return changed


def _manifests(subject: Subject) -> Iterator[tuple[str, str, Manifest]]:
    """Every manifest that can be read: its entry, its path, itself."""
    for entry_id in subject.entries:
        path = subject.manifest_path(entry_id)
        try:
            yield entry_id, _shown(subject, path), subject.manifest(entry_id)
        except ConfigError:
            continue


def _classes(subject: Subject) -> Iterator[tuple[str, type[Handler]]]:
    """Every handler class that can be imported, with its `module:Class`."""
    for name, reference in subject.handlers.items():
        try:
            with handler_class(subject, name) as cls:
                yield reference, cls
        except ConfigError:
            continue


def _shown(subject: Subject, path: Path) -> str:
    """A path as the vendor knows it: from the package's folder."""
    return path.relative_to(subject.folder).as_posix()


@rule("CZ101")
def _has_entry_points(subject: Subject) -> Iterator[tuple[str, str]]:
    """The package provides an entry and a handler by entry points.

    Add the groups catalogzero.entries (id = package) and catalogzero.handlers (name =
    module:Class) to pyproject.toml.
    """
    for group, points in (("entries", subject.entries), ("handlers", subject.handlers)):
        if not points:
            yield "pyproject.toml", f"no entry point in the group catalogzero.{group}"


@rule("CZ102")
def _has_manifest(subject: Subject) -> Iterator[tuple[str, str]]:
    """Each entry's package has a manifest of the right form.

    Mend the keys named; docs/reference/manifest.md lists them all.
    """
    for entry_id in subject.entries:
        try:
            subject.manifest(entry_id)
        except ConfigError as error:
            yield _shown(subject, subject.manifest_path(entry_id)), str(error)


@rule("CZ103")
def _id_matches(subject: Subject) -> Iterator[tuple[str, str]]:
    """The manifest's id is the entry point's name.

    Make the two the same.
    """
    for entry_id, path, manifest in _manifests(subject):
        if manifest.id != entry_id:
            yield path, f"id is {manifest.id!r}, the entry point {entry_id!r}"


@rule("CZ104")
def _version_matches(subject: Subject) -> Iterator[tuple[str, str]]:
    """Manifest and package have one version.

    Make them the same, or let pyproject.toml read the manifest's (tool.hatch.version).
    """
    for _, path, manifest in _manifests(subject):
        if subject.project.get("version", manifest.version) != manifest.version:
            yield path, f"version is {manifest.version}, the package's {subject.project['version']}"


@rule("CZ105")
def _handlers_import(subject: Subject) -> Iterator[tuple[str, str]]:
    """Each handler can be imported.

    Mend the entry point, or the module.
    """
    for name in subject.handlers:
        try:
            with handler_class(subject, name):
                pass
        except ConfigError as error:
            yield "pyproject.toml", str(error)


@rule("CZ106")
def _no_drift(subject: Subject) -> Iterator[tuple[str, str]]:
    """The manifest says of methods and settings what the code says.

    Run catalogzero catalog lint --fix.
    """
    for _, path, manifest in _manifests(subject):
        for _, cls in _classes(subject):
            for difference in drift.differences(manifest, cls):
                yield path, difference


@rule("CZ107")
def _hosts_named(subject: Subject) -> Iterator[tuple[str, str]]:
    """The hosts that the entry talks to are named.

    Name the endpoint's host in allowed_hosts: clients open their firewalls by it.
    """
    for _, path, manifest in _manifests(subject):
        for _, cls in _classes(subject):
            field = cls.settings_model.model_fields.get("endpoint")
            host = urlsplit(str(field.default)).hostname if field and field.default else None
            if host and host not in manifest.allowed_hosts:
                yield path, f"the endpoint's host {host} is not in allowed_hosts"


@rule("CZ108")
def _data_named(subject: Subject) -> Iterator[tuple[str, str]]:
    """A processor says what data leaves.

    Say in data_collected which data leaves the client's machine, an item a line.
    """
    for _, path, manifest in _manifests(subject):
        if manifest.kind == "processor" and not manifest.data_collected:
            yield path, "data_collected is empty"


@rule("CZ109")
def _schedules_fit(subject: Subject) -> Iterator[tuple[str, str]]:
    """Proposed schedules name methods that exist, with parameters that they take.

    Mend the schedule's method and params.
    """
    for _, path, manifest in _manifests(subject):
        methods = {method.name: method for method in manifest.methods}
        for schedule in manifest.default_schedules:
            if schedule.method not in methods:
                yield path, f"a schedule names {schedule.method!r}, which is no method"
                continue
            schema = methods[schedule.method].params_schema
            for fault in _param_faults(schema, schedule.params):
                yield path, f"the schedule of {schedule.method!r} {fault}"


def _param_faults(schema: dict[str, Any], params: dict[str, Any]) -> Iterator[str]:
    """Parameters that a method does not take, or that it misses."""
    if schema.get("additionalProperties") is False:
        unknown = sorted(params.keys() - schema.get("properties", {}).keys())
        if unknown:
            yield f"gives {', '.join(unknown)}, which it does not take"
    missing = sorted(set(schema.get("required", ())) - params.keys())
    if missing:
        yield f"leaves out {', '.join(missing)}"


@rule("CZ110")
def _triggers_fit(subject: Subject) -> Iterator[tuple[str, str]]:
    """Proposed schedules have triggers that a scheduler takes.

    Use type interval, cron or date, with the keys of docs/reference/manifest.md.
    """
    for _, path, manifest in _manifests(subject):
        for schedule in manifest.default_schedules:
            kind = schedule.trigger.get("type")
            unknown = schedule.trigger.keys() - _TRIGGERS.get(str(kind), set()) - {"type"}
            if kind not in _TRIGGERS:
                yield path, f"the schedule of {schedule.method!r} has a trigger of type {kind!r}"
            elif unknown or len(schedule.trigger) == 1:
                words = ", ".join(sorted(unknown)) or "nothing"
                yield path, f"the {kind} trigger of {schedule.method!r} says {words}"


@rule("CZ111")
def _secrets_are_secret(subject: Subject) -> Iterator[tuple[str, str]]:
    """Secrets are SecretStr.

    Annotate the setting as SecretStr, so that it never shows in a log or an error.
    """
    for reference, cls in _classes(subject):
        for name in drift.plain_secrets_of_class(cls):
            yield reference, f"the setting {name!r} is plain text"


@rule("CZ112")
def _has_prefix(subject: Subject) -> Iterator[tuple[str, str]]:
    """The settings have the vendor's own prefix in the environment.

    Set model_config = SettingsConfigDict(env_prefix='ACME_') in the settings class.
    """
    for reference, cls in _classes(subject):
        prefix = cls.settings_model.model_config.get("env_prefix", "")
        if not prefix or prefix.upper().startswith("CATALOGZERO_"):
            yield reference, f"the settings' environment prefix is {prefix!r}"


@rule("CZ113")
def _methods_documented(subject: Subject) -> Iterator[tuple[str, str]]:
    """Every method says what it does.

    Write a docstring: its first paragraph stands in the catalog.
    """
    for reference, cls in _classes(subject):
        for name, method in cls.callable_methods().items():
            if not method.describe()["doc"]:
                yield reference, f"method {name!r} has no docstring"


@rule("CZ114")
def _depends_on_sdk(subject: Subject) -> Iterator[tuple[str, str]]:
    """The package depends on catalogzero, within a range.

    Write a range such as catalogzero>=0.1,<1 into dependencies.
    """
    needed = [Requirement(text) for text in subject.project.get("dependencies", [])]
    sdk = [need for need in needed if canonicalize_name(need.name) == "catalogzero"]
    if not sdk:
        yield "pyproject.toml", "catalogzero is not among the dependencies"
    elif not any(spec.operator in ("<", "<=", "==", "~=") for spec in sdk[0].specifier):
        yield "pyproject.toml", f"the dependency {sdk[0]} has no upper bound"


@rule("CZ115")
def _public_names(subject: Subject) -> Iterator[tuple[str, str]]:
    """Only catalogzero's public names are used.

    Import from catalogzero, or its testing, compat, backend, web or sql.
    """
    for path in subject.modules():
        for node in ast.walk(_tree(path)):
            for module in _imported_modules(node):
                if module.split(".")[0] == "catalogzero" and module not in PUBLIC_MODULES:
                    yield _shown(subject, path), f"{module} is private"


@rule("CZ116")
def _no_blocking_sleep(subject: Subject) -> Iterator[tuple[str, str]]:
    """No async method blocks the event loop by sleeping.

    Use await self.clock.sleep(…), or a plain method, which runs in a thread.
    """
    for path in subject.modules():
        for function in ast.walk(_tree(path)):
            if isinstance(function, ast.AsyncFunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep":
                        where = f"{_shown(subject, path)}:{node.lineno}"
                        yield where, f"time.sleep in the async method {function.name!r}"


@rule("CZ117", "warning")
def _has_papers(subject: Subject) -> Iterator[tuple[str, str]]:
    """The package has a README and a licence.

    Write README.md for the client's operator and LICENSE, and name them in pyproject.toml.
    """
    for name in ("readme", "license"):
        if not subject.project.get(name):
            yield "pyproject.toml", f"{name} is not set"


@rule("CZ118", "warning")
def _vendor_reachable(subject: Subject) -> Iterator[tuple[str, str]]:
    """A client can reach the vendor.

    Set support_email or url under [vendor].
    """
    for _, path, manifest in _manifests(subject):
        if not (manifest.vendor.support_email or manifest.vendor.url):
            yield path, "the vendor has neither support_email nor url"


def _tree(path: Path) -> ast.Module:
    """A file's syntax tree; an empty one where it is no Python."""
    try:
        return ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return ast.Module([], [])


def _imported_modules(node: ast.AST) -> list[str]:
    """The modules that a statement imports from."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []

"""The rules of `catalogzero catalog lint`: what a package must be before it is published.

Owns the codes, their meaning and their fixes (docs/reference/lint.md lists them). A rule reads
files first; only those about methods and settings import the package.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from catalogzero.entry import drift
from catalogzero.entry.class_rules import CLASS_RULES, Find, paragraphs
from catalogzero.entry.package_source import PackageSource
from catalogzero.errors import ConfigError
from catalogzero.runtime.handler import Handler
from catalogzero.scheduler.triggers import parse_trigger

Severity = Literal["error", "warning"]
PUBLIC_MODULES = (
    "catalogzero",
    *(f"catalogzero.{name}" for name in ("testing", "compat", "backend", "web", "sql")),
)
Found = Iterator[tuple[str, str]]
"""Path and fault of each place where a rule is broken."""


@dataclass(frozen=True)
class Rule:
    """One rule: its code, what it demands, and what to do where it is broken."""

    code: str
    demand: str
    fix: str
    severity: Severity = "error"


@dataclass(frozen=True)
class Finding:
    """One place where a rule is broken."""

    rule: Rule
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.rule.code} {self.message}. {self.rule.fix}"


RULES: dict[str, Rule] = {}
_FIND: dict[str, Callable[[PackageSource], Found]] = {}


def _add(
    code: str,
    demand: str,
    fix: str,
    find: Callable[[PackageSource], Found],
    severity: Severity = "error",
) -> None:
    """Add a rule to the list."""
    demand = demand[:1].lower() + demand[1:].removesuffix(".")
    RULES[code], _FIND[code] = Rule(code, demand, fix, severity), find


def _rule(code: str, severity: Severity = "error") -> Callable[..., None]:
    """Add a rule that looks at a package; its docstring's paragraphs are demand and fix."""

    def add(find: Callable[[PackageSource], Found]) -> None:
        demand, fix = paragraphs(find)
        _add(code, demand, fix, find, severity)

    return add


def lint(package: PackageSource) -> list[Finding]:
    """Every broken rule of a package, in the order of the codes."""
    return [
        Finding(RULES[code], path, fault)
        for code in sorted(RULES)
        for path, fault in _FIND[code](package)
    ]


def fix(package: PackageSource) -> list[Path]:
    """Write what the code knows into the manifests; the files that changed.

    Raises:
        ConfigError: A handler cannot be imported.
    """
    changed = []
    for entry_id in package.entries:
        path = package.manifest_path(entry_id)
        for name in package.handlers:
            with package.handler_class(name) as cls:
                before = path.read_text("utf-8") if path.is_file() else ""
                after = drift.with_generated(before, cls)
            if before and after != before:
                path.write_text(after, "utf-8")
                changed.append(path)
    return changed


def _classes(package: PackageSource) -> Iterator[tuple[str, type[Handler]]]:
    """Every handler class that can be imported, with its `module:Class`."""
    for name, reference in package.handlers.items():
        with suppress(ConfigError), package.handler_class(name) as cls:
            yield reference, cls


def _add_class_rules() -> None:
    """Add those that the contract suite demands, too."""
    for rule in CLASS_RULES:

        def find(package: PackageSource, look: Find = rule.find) -> Found:
            for reference, cls in _classes(package):
                with suppress(ConfigError):  # a manifest that cannot be read: CZ102 reports it
                    yield from ((reference, fault) for fault in look(cls))

        _add(rule.code, rule.demand, rule.fix, find)


@_rule("CZ101")
def _has_entry_points(package: PackageSource) -> Found:
    """The package provides an entry and a handler by entry points.

    Add the groups catalogzero.entries (id = package) and catalogzero.handlers (name =
    module:Class) to pyproject.toml.
    """
    for group, points in (("entries", package.entries), ("handlers", package.handlers)):
        if not points:
            yield "pyproject.toml", f"no entry point in the group catalogzero.{group}"


@_rule("CZ102")
def _has_manifest(package: PackageSource) -> Found:
    """Each entry's package has a manifest of the right form.

    Correct the keys named; docs/reference/manifest.md lists them all.
    """
    for entry_id in package.entries:
        try:
            package.manifest(entry_id)
        except ConfigError as error:
            yield package.shown(package.manifest_path(entry_id)), str(error)


@_rule("CZ103")
def _id_matches(package: PackageSource) -> Found:
    """The manifest's id is the entry point's name.

    Make the two the same.
    """
    for entry_id, path, manifest in package.readable_manifests():
        if manifest.id != entry_id:
            yield path, f"id is {manifest.id!r}, the entry point {entry_id!r}"


@_rule("CZ104")
def _version_matches(package: PackageSource) -> Found:
    """Manifest and package have one version.

    Make them the same, or let pyproject.toml read the manifest's (tool.hatch.version).
    """
    own = package.project.version
    for _, path, manifest in package.readable_manifests():
        if own not in (None, manifest.version):
            yield path, f"version is {manifest.version}, the package's {own}"


@_rule("CZ105")
def _handlers_import(package: PackageSource) -> Found:
    """Each handler can be imported.

    Correct the entry point, or the module.
    """
    for name in package.handlers:
        try:
            with package.handler_class(name):
                pass
        except ConfigError as error:
            yield "pyproject.toml", str(error)


@_rule("CZ107")
def _hosts_named(package: PackageSource) -> Found:
    """The hosts that the entry talks to are named.

    Name the endpoint's host in allowed_hosts: clients open their firewalls by it.
    """
    for _, path, manifest in package.readable_manifests():
        for _, cls in _classes(package):
            field = cls.settings_model.model_fields.get("endpoint")
            host = urlsplit(str(field.default)).hostname if field and field.default else None
            if host and host not in manifest.allowed_hosts:
                yield path, f"the endpoint's host {host} is not in allowed_hosts"


@_rule("CZ108")
def _data_named(package: PackageSource) -> Found:
    """A processor says what data leaves.

    Say in data_collected which data leaves the client's machine, an item a line.
    """
    for _, path, manifest in package.readable_manifests():
        if manifest.kind == "processor" and not manifest.data_collected:
            yield path, "data_collected is empty"


@_rule("CZ109")
def _schedules_fit(package: PackageSource) -> Found:
    """Proposed schedules name methods that exist, with parameters that they take.

    Correct the schedule's method and params.
    """
    for _, path, manifest in package.readable_manifests():
        methods = {method.name: method.params_schema for method in manifest.methods}
        for schedule in manifest.default_schedules:
            if (schema := methods.get(schedule.method)) is None:
                yield path, f"a schedule names {schedule.method!r}, which is not a method"
                continue
            unknown = schedule.params.keys() - schema.get("properties", {}).keys()
            if unknown and schema.get("additionalProperties") is False:
                names = ", ".join(sorted(unknown))
                yield path, f"the schedule of {schedule.method!r} gives {names}, which it lacks"
            if missing := set(schema.get("required", ())) - schedule.params.keys():
                names = ", ".join(sorted(missing))
                yield path, f"the schedule of {schedule.method!r} leaves out {names}"


@_rule("CZ110")
def _triggers_fit(package: PackageSource) -> Found:
    """Proposed schedules have triggers that a scheduler takes.

    Write the trigger as docs/reference/manifest.md shows it.
    """
    for _, path, manifest in package.readable_manifests():
        for schedule in manifest.default_schedules:
            try:
                parse_trigger(schedule.trigger)
            except ValueError as error:
                yield path, f"the trigger of {schedule.method!r}: {error}"


@_rule("CZ114")
def _depends_on_sdk(package: PackageSource) -> Found:
    """The package depends on catalogzero, within a range.

    Write a range such as catalogzero>=0.1,<1 into dependencies.
    """
    needed = map(Requirement, package.project.dependencies)
    sdk = [need for need in needed if canonicalize_name(need.name) == "catalogzero"]
    if not sdk:
        yield "pyproject.toml", "catalogzero is not among the dependencies"
    elif not any(spec.operator in ("<", "<=", "==", "~=") for spec in sdk[0].specifier):
        yield "pyproject.toml", f"the dependency {sdk[0]} has no upper bound"


def _nodes(package: PackageSource) -> Iterator[tuple[str, ast.AST]]:
    """Every node of the syntax of its packages, with the path as shown."""
    folders = {package.package_folder(name) for name in package.entries.values()}
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        with suppress(SyntaxError, UnicodeDecodeError):  # not Python: CZ105 reports it
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                yield package.shown(path), node


@_rule("CZ115")
def _public_names(package: PackageSource) -> Found:
    """Only catalogzero's public names are used.

    Import from catalogzero, or its testing, compat, backend, web or sql.
    """
    for path, node in _nodes(package):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            modules = [str(node.module)]
        for module in modules:
            if module.split(".")[0] == "catalogzero" and module not in PUBLIC_MODULES:
                yield path, f"{module} is private"


@_rule("CZ116")
def _no_blocking_sleep(package: PackageSource) -> Found:
    """No async method blocks the event loop by sleeping.

    Use await self.clock.sleep(…), or a plain method, which runs in a thread.
    """
    for path, function in _nodes(package):
        if isinstance(function, ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep":
                    where = f"{path}:{node.lineno}"
                    yield where, f"time.sleep in the async method {function.name!r}"


@_rule("CZ117", "warning")
def _has_papers(package: PackageSource) -> Found:
    """The package has a README and a licence.

    Write README.md for the client's operator and LICENSE, and name them in pyproject.toml.
    """
    for name in ("readme", "license"):
        if not getattr(package.project, name):
            yield "pyproject.toml", f"{name} is not set"


@_rule("CZ118", "warning")
def _vendor_reachable(package: PackageSource) -> Found:
    """A client can reach the vendor.

    Set support_email or url under [vendor].
    """
    for _, path, manifest in package.readable_manifests():
        if not (manifest.vendor.support_email or manifest.vendor.url):
            yield path, "the vendor has neither support_email nor url"


_add_class_rules()

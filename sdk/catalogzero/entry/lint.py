"""The rules of `catalogzero catalog lint`: what a package must be before it is published.

Owns the codes, their meaning and their fixes (docs/reference/lint.md lists them). A rule reads
files first; only those about methods and settings import the package.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from catalogzero.entry import drift
from catalogzero.entry.class_rules import CLASS_RULES, Find, paragraphs
from catalogzero.entry.manifest import parse_manifest
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
class LintRule:
    """One rule: its code, what it demands, what to do where it is broken, and what finds that."""

    code: str
    demand: str
    fix: str
    severity: Severity
    find: Callable[[PackageSource], Found]


@dataclass(frozen=True)
class LintFinding:
    """One place where a rule is broken."""

    rule: LintRule
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.rule.code} {self.message}. {self.rule.fix}"


RULES: dict[str, LintRule] = {}


def rule(code: str, severity: Severity = "error") -> Callable[..., None]:
    """Add a rule that looks at a package; its docstring's paragraphs are demand and fix."""

    def add(find: Callable[[PackageSource], Found]) -> None:
        demand, fix = paragraphs(find)
        RULES[code] = LintRule(code, without_stop(demand), fix, severity, find)

    return add


def without_stop(sentence: str) -> str:
    """A sentence as a part of another."""
    return sentence[:1].lower() + sentence[1:].removesuffix(".")


def lint(package: PackageSource) -> list[LintFinding]:
    """Every broken rule of a package, in the order of the codes."""
    return [
        LintFinding(RULES[code], path, fault)
        for code in sorted(RULES)
        for path, fault in RULES[code].find(package)
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
                changes: list[str] = []
                with suppress(ConfigError):  # one that cannot be read says nothing to keep
                    changes = list(drift.identity_changes(parse_manifest(before, str(path)), cls))
            # What another identity is held against must stay until the author has decided.
            if before and after != before and not changes:
                path.write_text(after, "utf-8")
                changed.append(path)
    return changed


def classes_of(package: PackageSource) -> Iterator[tuple[str, type[Handler]]]:
    """Every handler class that can be imported, with its `module:Class`."""
    for name, reference in package.handlers.items():
        with suppress(ConfigError), package.handler_class(name) as cls:
            yield reference, cls


def class_faults(look: Find, package: PackageSource) -> Found:
    """What a rule of the contract suite finds at the package's classes."""
    for reference, cls in classes_of(package):
        # One whose manifest cannot be read is CZ102's.
        with suppress(ConfigError):
            yield from ((reference, fault) for fault in look(cls))


for demanded in CLASS_RULES:
    RULES[demanded.code] = LintRule(
        demanded.code,
        without_stop(demanded.demand),
        demanded.fix,
        "error",
        partial(class_faults, demanded.find),
    )


@rule("CZ101")
def has_entry_points(package: PackageSource) -> Found:
    """The package provides an entry and a handler by entry points.

    Add the groups catalogzero.entries (id = package) and catalogzero.handlers (name =
    module:Class) to pyproject.toml.
    """
    for group, points in (("entries", package.entries), ("handlers", package.handlers)):
        if not points:
            yield "pyproject.toml", f"no entry point in the group catalogzero.{group}"


@rule("CZ102")
def has_manifest(package: PackageSource) -> Found:
    """Each entry's package has a manifest of the right form.

    Correct the keys named; docs/reference/manifest.md lists them all.
    """
    for entry_id in package.entries:
        try:
            package.manifest(entry_id)
        except ConfigError as error:
            yield package.shown(package.manifest_path(entry_id)), str(error)


@rule("CZ103")
def id_matches(package: PackageSource) -> Found:
    """The manifest's id is the entry point's name.

    Make the two the same.
    """
    for entry_id, path, manifest in package.readable_manifests():
        if manifest.id != entry_id:
            yield path, f"id is {manifest.id!r}, the entry point {entry_id!r}"


@rule("CZ104")
def version_matches(package: PackageSource) -> Found:
    """Manifest and package have one version.

    Make them the same, or let pyproject.toml read the manifest's (tool.hatch.version).
    """
    own = package.project.version
    for _, path, manifest in package.readable_manifests():
        if own not in (None, manifest.version):
            yield path, f"version is {manifest.version}, the package's {own}"


@rule("CZ105")
def handlers_import(package: PackageSource) -> Found:
    """Each handler can be imported.

    Correct the entry point, or the module.
    """
    for name in package.handlers:
        try:
            with package.handler_class(name):
                pass
        except ConfigError as error:
            yield "pyproject.toml", str(error)


@rule("CZ107")
def hosts_named(package: PackageSource) -> Found:
    """The hosts that the entry talks to are named.

    Name the endpoint's host in allowed_hosts: clients open their firewalls by it.
    """
    for _, path, manifest in package.readable_manifests():
        for _, cls in classes_of(package):
            field = cls.settings_model.model_fields.get("endpoint")
            host = urlsplit(str(field.default)).hostname if field and field.default else None
            if host and host not in manifest.allowed_hosts:
                yield path, f"the endpoint's host {host} is not in allowed_hosts"


@rule("CZ108")
def data_named(package: PackageSource) -> Found:
    """A processor says what data leaves.

    Say in data_collected which data leaves the client's machine, an item a line.
    """
    for _, path, manifest in package.readable_manifests():
        if manifest.kind == "processor" and not manifest.data_collected:
            yield path, "data_collected is empty"


@rule("CZ109")
def schedules_fit(package: PackageSource) -> Found:
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


@rule("CZ110")
def triggers_fit(package: PackageSource) -> Found:
    """Proposed schedules have triggers that a scheduler takes.

    Write the trigger as docs/reference/manifest.md shows it.
    """
    for _, path, manifest in package.readable_manifests():
        for schedule in manifest.default_schedules:
            try:
                parse_trigger(schedule.trigger)
            except ValueError as error:
                yield path, f"the trigger of {schedule.method!r}: {error}"


@rule("CZ114")
def depends_on_sdk(package: PackageSource) -> Found:
    """The package depends on catalogzero, within a range.

    Write a range such as catalogzero>=0.1,<1 into dependencies.
    """
    needed = map(Requirement, package.project.dependencies)
    sdk = [need for need in needed if canonicalize_name(need.name) == "catalogzero"]
    if not sdk:
        yield "pyproject.toml", "catalogzero is not among the dependencies"
    elif not any(spec.operator in ("<", "<=", "==", "~=") for spec in sdk[0].specifier):
        yield "pyproject.toml", f"the dependency {sdk[0]} has no upper bound"


def nodes_of(package: PackageSource) -> Iterator[tuple[str, ast.AST]]:
    """Every node of the syntax of its packages, with the path as shown."""
    folders = {package.package_folder(name) for name in package.entries.values()}
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        # What is not Python is CZ105's.
        with suppress(SyntaxError, UnicodeDecodeError):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                yield package.shown(path), node


@rule("CZ115")
def public_names(package: PackageSource) -> Found:
    """Only catalogzero's public names are used.

    Import from catalogzero, or its testing, compat, backend, web or sql.
    """
    for path, node in nodes_of(package):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            modules = [str(node.module)]
        for module in modules:
            if module.split(".")[0] == "catalogzero" and module not in PUBLIC_MODULES:
                yield path, f"{module} is private"


@rule("CZ116")
def no_blocking_sleep(package: PackageSource) -> Found:
    """No async method blocks the event loop by sleeping.

    Use await self.clock.sleep(…), or a plain method, which runs in a thread.
    """
    for path, function in nodes_of(package):
        if isinstance(function, ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep":
                    where = f"{path}:{node.lineno}"
                    yield where, f"time.sleep in the async method {function.name!r}"


@rule("CZ117", "warning")
def has_papers(package: PackageSource) -> Found:
    """The package has a README and a licence.

    Write README.md for the client's operator and LICENSE, and name them in pyproject.toml.
    """
    for name in ("readme", "license"):
        if not getattr(package.project, name):
            yield "pyproject.toml", f"{name} is not set"


@rule("CZ118", "warning")
def vendor_reachable(package: PackageSource) -> Found:
    """A client can reach the vendor.

    Set support_email or url under [vendor].
    """
    for _, path, manifest in package.readable_manifests():
        if not (manifest.vendor.support_email or manifest.vendor.url):
            yield path, "the vendor has neither support_email nor url"

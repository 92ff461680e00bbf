"""Builds a vendor's package: wheel and sdist, their hashes, and a bill of materials.

Owns what stands in the vendor's `dist/`. The bill of materials (CycloneDX 1.6, JSON) names the
package and everything that it needs, as it is installed here; it has no time and no serial
number, so that the same build gives the same bytes.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from catalogzero.entry.pip import run_tool
from catalogzero.entry.wheels import Wheel, check_entries, read_wheel, requirements_here, sha256_of
from catalogzero.errors import ConfigError


def build_package(folder: Path, out: Path) -> list[Path]:
    """Build the sdist of a package, and the wheel out of that; the paths, wheel last.

    The build backend is the one installed here, so that no index is asked.

    Raises:
        ConfigError: The folder has no pyproject.toml, or what was built cannot be published: it is
            taken away again.
        CatalogZeroError: The build failed; the tool's own words are in the message.
    """
    if not (folder / "pyproject.toml").is_file():
        raise ConfigError(f"{folder.resolve()} has no pyproject.toml: name the package's folder")
    out.mkdir(parents=True, exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(folder)]
    run_tool(build)
    found = [path for path in out.iterdir() if path.suffix in (".gz", ".whl")]
    made = [path for path in found if before.get(path) != path.stat().st_mtime_ns]
    built = sorted(made, key=lambda path: (path.suffix, path.name))
    try:
        check_entries(read_wheel(built[-1]))
    except ConfigError:
        for path in built:
            path.unlink()
        raise
    return built


def describe_build(built: list[Path]) -> list[Path]:
    """Write hashes and bill of materials beside what was built; their paths.

    Args:
        built: Sdist and wheel, wheel last, as `build_package` returns them.
    """
    wheel = read_wheel(built[-1])
    sums = built[-1].with_name(f"{wheel.name}-{wheel.version}.sha256")
    sums.write_text("".join(f"{sha256_of(path)}  {path.name}\n" for path in built), "utf-8")
    bill = built[-1].with_name(f"{wheel.name}-{wheel.version}.cdx.json")
    bill.write_text(json.dumps(bill_of_materials(wheel), indent=2) + "\n", "utf-8")
    return [sums, bill]


def bill_of_materials(wheel: Wheel) -> dict[str, Any]:
    """The wheel and all that it needs, in CycloneDX's words."""
    root = _component(wheel.name, str(wheel.version), wheel.fields.get("License-Expression"))
    root["hashes"] = [{"alg": "SHA-256", "content": wheel.sha256}]
    needed, installed = _closure(wheel)
    components = [
        _component(name, found.version, found.metadata.json.get("license_expression"))
        for name, found in sorted(installed.items())
    ]
    references = {component["name"]: component["bom-ref"] for component in (root, *components)}
    links = [
        {"ref": references[name], "dependsOn": sorted(references[other] for other in others)}
        for name, others in sorted(needed.items())
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": root},
        "components": components,
        "dependencies": links,
    }


def _closure(wheel: Wheel) -> tuple[dict[str, set[str]], dict[str, Distribution]]:
    """What the wheel needs, and what that needs, by name; what is not installed is left out."""
    needed: dict[str, set[str]] = {wheel.name: set()}
    installed: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = {(wheel.name, "")}
    waiting = [(wheel.name, requirement) for requirement in wheel.needs()]
    while waiting:
        parent, requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        try:
            found = installed.get(name) or distribution(name)
        except PackageNotFoundError:
            continue
        installed[name] = found
        needed.setdefault(name, set())
        if name != parent:  # a distribution may require itself, with an extra
            needed[parent].add(name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                further = requirements_here(found.requires, extra)
                waiting += [(name, requirement) for requirement in further]
    installed.pop(wheel.name, None)
    return needed, installed


def _component(name: str, version: str, licence: object) -> dict[str, Any]:
    """One distribution, with the SPDX expression of its licence where its metadata has one."""
    purl = f"pkg:pypi/{name}@{version}"
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
    }
    if isinstance(licence, str) and licence:
        component["licenses"] = [{"expression": licence}]
    return component

"""Builds a vendor's package: wheel and sdist, their hashes, and a bill of materials.

Owns what stands in the vendor's `dist/`. The bill of materials (CycloneDX 1.6, JSON) names the
package and everything that it needs, as it is installed here, each with its licence; it has no time
and no serial number, so that the same build gives the same bytes.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.utils import canonicalize_name

from catalogzero.entry.pip import run_tool
from catalogzero.entry.wheels import Wheel, check_entries, read_wheel, requirements_here, sha256_of
from catalogzero.errors import ConfigError
from catalogzero.wire.messages import JsonObject


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
    # The build says no names: what it made is what is new, or newer than it was.
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


def bill_of_materials(wheel: Wheel) -> JsonObject:
    """The wheel and all that it needs, with licences and what needs what, as cyclonedx-py says.

    That looks at an environment as a whole, so it is shown the metadata of what the wheel needs
    alone.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        for found in closure_of(wheel):
            described = folder / f"{found.name}-{found.version}.dist-info" / "METADATA"
            described.parent.mkdir()
            described.write_text(found.read_text("METADATA") or "", "utf-8")
        project = folder / "pyproject.toml"
        about = {
            "name": wheel.name,
            "version": str(wheel.version),
            "license": wheel.fields.get("License-Expression", ""),
            "dependencies": wheel.fields.get_all("Requires-Dist") or [],
        }
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in about.items() if value]
        project.write_text("".join(["[project]\n", *lines]), "utf-8")
        tool = [sys.executable, "-m", "cyclonedx_py", "environment", "-S", "--no-validate"]
        form = ["--output-reproducible", "--sv", "1.6", "--mc-type", "library"]
        shown = {**os.environ, "PYTHONPATH": str(folder)}
        said = run_tool([*tool, *form, "--pyproject", str(project), sys.executable], env=shown)
    bill: JsonObject = json.loads(said)
    root = bill["metadata"]["component"]
    root["hashes"] = [{"alg": "SHA-256", "content": wheel.sha256}]
    return bill


def closure_of(wheel: Wheel) -> list[Distribution]:
    """What the wheel needs, and what that needs, by name; what is not installed is left out."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = {(wheel.name, "")}
    waiting = list(wheel.needs())
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        try:
            found[name] = found.get(name) or distribution(name)
        except PackageNotFoundError:
            continue
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += requirements_here(found[name].requires, extra)
    found.pop(wheel.name, None)
    return [found[name] for name in sorted(found)]

"""The wheels that one release needs, out of all those of a catalog, with their hashes.

Owns the walk through `Requires-Dist`. Pure: wheels in, text out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from catalogzero.entry.wheels import Wheel


def requirements_text(root: Wheel, wheels: Sequence[Wheel]) -> str:
    """A requirements file of a release and its closure, for `--require-hashes`.

    Each line pins one version with the hashes of all its files in the catalog.
    """
    needed = _closure(root, wheels)
    hashes: dict[tuple[str, str], list[str]] = defaultdict(list)
    for wheel in wheels:
        hashes[wheel.name, str(wheel.version)].append(wheel.sha256)
    lines = [
        " \\\n    ".join(
            [f"{wheel.name}=={wheel.version}"]
            + [f"--hash=sha256:{digest}" for digest in sorted(hashes[name, str(wheel.version)])]
        )
        for name, wheel in sorted(needed.items())
    ]
    return "\n".join([*lines, ""])


def _closure(root: Wheel, wheels: Sequence[Wheel]) -> dict[str, Wheel]:
    """The newest wheel that fits, for every name that the root needs, itself among them."""
    by_name: dict[str, list[Wheel]] = defaultdict(list)
    for wheel in sorted(wheels, key=lambda wheel: wheel.version, reverse=True):
        by_name[wheel.name].append(wheel)
    chosen = {root.name: root}
    seen: set[tuple[str, str]] = set()
    waiting = list(root.needs())
    while waiting:
        requirement = waiting.pop()
        fitting = _choose(requirement, by_name, chosen)
        if fitting is None:
            continue
        chosen[fitting.name] = fitting
        for extra in ("", *requirement.extras):
            if (fitting.name, extra) not in seen:
                seen.add((fitting.name, extra))
                waiting += fitting.needs(extra)
    return chosen


def _choose(
    requirement: Requirement, by_name: Mapping[str, Iterable[Wheel]], chosen: Mapping[str, Wheel]
) -> Wheel | None:
    """The wheel that stands for a requirement: the one chosen before, else the newest that fits."""
    name = canonicalize_name(requirement.name)
    if name in chosen:
        return chosen[name]
    fitting = (w for w in by_name.get(name, ()) if requirement.specifier.contains(w.version, True))
    return next(fitting, None)

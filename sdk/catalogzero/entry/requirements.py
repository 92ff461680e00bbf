"""The wheels that one release needs, out of all those of a catalog, with their hashes.

Owns the walk through `Requires-Dist`. Pure: wheels in, text out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from packaging.utils import canonicalize_name

from catalogzero.entry.wheels import Wheel


def requirements_text(root: Wheel, wheels: Sequence[Wheel]) -> str:
    """A requirements file of a release and its closure, for `--require-hashes`.

    Each line pins one version with the hashes of all its files in the catalog.
    """
    hashes: dict[str, list[str]] = defaultdict(list)
    for wheel in sorted(wheels, key=lambda wheel: wheel.sha256):
        hashes[f"{wheel.name}=={wheel.version}"].append(f"--hash=sha256:{wheel.sha256}")
    pins = [f"{name}=={wheel.version}" for name, wheel in sorted(_closure(root, wheels).items())]
    return "".join(" \\\n    ".join([pin, *hashes[pin]]) + "\n" for pin in pins)


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
        name = canonicalize_name(requirement.name)
        fit = (w for w in by_name[name] if requirement.specifier.contains(w.version, True))
        fitting = chosen.get(name) or next(fit, None)
        if fitting is None:
            continue
        chosen[fitting.name] = fitting
        for extra in ("", *requirement.extras):
            if (fitting.name, extra) not in seen:
                seen.add((fitting.name, extra))
                waiting += fitting.needs(extra)
    return chosen

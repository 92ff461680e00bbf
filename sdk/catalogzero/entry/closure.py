"""The dependency closure of wheels: every wheel that an installation of them needs.

Owns the calls of pip that gather it from the vendor's own index or a folder, the cache in front
of them, and the SDK's own wheel. Wheels are gathered, never installed or imported here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from itertools import product
from pathlib import Path
from urllib.parse import unquote, urlsplit

from catalogzero.entry.pip import pip_command, run_tool
from catalogzero.entry.wheels import Wheel, read_wheel, repack
from catalogzero.errors import CatalogZeroError

SDK = "catalogzero"
_DONE = "complete"


@dataclass(frozen=True)
class Target:
    """A machine that wheels are gathered for; both None: the one that this runs on."""

    python: str | None = None
    """Python version, such as `3.12`."""
    platform: str | None = None
    """Platform tag, such as `manylinux_2_28_x86_64`."""

    def pip_options(self) -> list[str]:
        """What tells pip to gather for that machine."""
        if self == Target():
            return []
        options = ["--only-binary=:all:"]
        if self.python:
            options += ["--python-version", self.python, "--implementation", "cp"]
        if self.platform:
            options += ["--platform", self.platform]
        return options


def targets(pythons: Sequence[str], platforms: Sequence[str]) -> list[Target]:
    """This machine, and every other one that the versions and platforms given make together."""
    others = product((*pythons,) or (None,), (*platforms,) or (None,))
    return list(dict.fromkeys([Target(), *(Target(*other) for other in others)]))


@dataclass(frozen=True)
class Origin:
    """Where dependencies come from; by default the index that the vendor's pip is set up with."""

    find_links: tuple[Path, ...] = ()
    index_url: str | None = None
    no_index: bool = False

    def pip_options(self) -> list[str]:
        """The same in pip's words."""
        options = [word for folder in self.find_links for word in ("--find-links", str(folder))]
        options += ["--index-url", self.index_url] if self.index_url else []
        return options + (["--no-index"] if self.no_index else [])


def gather(
    wheels: Sequence[Wheel],
    *,
    origin: Origin,
    target: Target,
    extras: Mapping[str, Iterable[str]],
    cache: Path,
) -> list[Path]:
    """The wheels that installing these needs, these themselves left out, from the cache or by pip.

    Every wheel given is named to pip by its path, so that no index is asked for its name.

    Args:
        wheels: The catalog's own wheels, the SDK's among them.
        origin: Where the others come from.
        target: For which machine.
        extras: Distribution name → extras that are gathered as well.
        cache: Folder of earlier answers; the same question is never asked twice.

    Raises:
        CatalogZeroError: pip found no set of wheels; its own words are in the message.
    """
    needs = sorted([wheel.name, *(wheel.fields.get_all("Requires-Dist") or ())] for wheel in wheels)
    wanted = {name: sorted(names) for name, names in extras.items()}
    here = [sys.version_info[:2], sys.platform, os.uname().machine]
    question = [needs, wanted, origin.pip_options(), target.pip_options(), here]
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
    folder = cache / digest[:24]
    if not (folder / _DONE).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        named = [word for wheel in wheels for word in _as_pip_names(wheel, extras)]
        _ask_pip(named, folder, origin, target)
        (folder / _DONE).touch()
    own = {wheel.path.name for wheel in wheels}
    return sorted(path for path in folder.glob("*.whl") if path.name not in own)


def _as_pip_names(wheel: Wheel, extras: Mapping[str, Iterable[str]]) -> list[str]:
    """A wheel's path as pip takes it; bare first, so that no index is asked for its name."""
    path = str(wheel.path.resolve())
    names = ",".join(sorted(extras.get(wheel.name, ())))
    return [path, f"{path}[{names}]"] if names else [path]


def _ask_pip(named: list[str], folder: Path, origin: Origin, target: Target) -> None:
    """Gather into a folder: for this machine sources may be built, for another none can be."""
    if target == Target():
        verb = ["wheel", "--wheel-dir", str(folder)]
    else:
        verb = ["download", "--dest", str(folder)]
    words = [*pip_command(), *verb, "--quiet", "--disable-pip-version-check", "--no-input"]
    try:
        run_tool([*words, *origin.pip_options(), *target.pip_options(), *named])
    except CatalogZeroError as error:
        raise CatalogZeroError(
            f"{error}\nWhat an entry needs must be at the index that pip is set up with, or at "
            "the one that you name (--index-url), or in a folder (--find-links)."
        ) from error


def sdk_wheel(folder: Path) -> Path:
    """A wheel of the catalogzero that is installed here, written to a folder.

    An editable installation is built from its checkout; any other is packed again as installed.

    Raises:
        CatalogZeroError: The build failed.
    """
    installed = distribution(SDK)
    place = json.loads(installed.read_text("direct_url.json") or "{}")
    if not place.get("dir_info", {}).get("editable"):
        return repack(installed, folder)
    checkout = Path(unquote(urlsplit(place["url"]).path))
    with tempfile.TemporaryDirectory() as temporary:
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", temporary]
        run_tool(build, cwd=checkout)
        (built,) = Path(temporary).glob("*.whl")
        return Path(shutil.move(built, folder / built.name))


def read_all(paths: Iterable[Path]) -> list[Wheel]:
    """Read wheels, in the order of their names.

    Raises:
        ConfigError: One is no wheel.
    """
    return [read_wheel(path) for path in sorted(paths, key=lambda path: path.name)]

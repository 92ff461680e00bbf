"""What an entry needs, locked for each Python and platform: uv resolves, pip downloads.

Owns the calls of both tools. A lock is for one target and has no markers; every pin is a wheel
with its hash. Wheels are downloaded, never installed, built or imported.
"""

from __future__ import annotations

import os
import re
import sysconfig
from ast import literal_eval
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import metadata
from itertools import zip_longest
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.tags import platform_tags
from packaging.utils import canonicalize_name
from packaging.version import Version
from uv import find_uv_bin

from catalogzero.entry.pip import pip_command, run_tool
from catalogzero.entry.wheels import Wheel, read_wheel
from catalogzero.errors import CatalogZeroError, ConfigError

SDK = "catalogzero"
SDK_EXTRAS = ("parquet", "postgresql", "scheduler", "sql")
"""The SDK's extras that a client may need: every catalog has them."""

VENDOR_EXTRA = "dev"
"""The one extra of an entry that is its vendor's own, and in no catalog."""

_PIN = re.compile(r"([A-Za-z0-9._-]+)==(\S+)((?: \\\n +--hash=sha256:[0-9a-f]{64})+)\n")
_PLATFORM = re.compile(r"(manylinux_2|musllinux_1)_(\d+)_(x86_64|aarch64)")
Key = tuple[str, Version]


@dataclass(frozen=True)
class Origin:
    """Where dependencies come from; by default the index that the vendor's pip is set up with."""

    find_links: tuple[Path, ...] = ()
    index_url: str | None = None
    no_index: bool = False


@dataclass(frozen=True)
class LockTarget:
    """A machine that a lock is for."""

    python: str
    """Python version, such as `3.12`."""
    platform: str = ""
    """Platform tag, such as `manylinux_2_28_x86_64`; empty: the platform that this runs on."""

    @property
    def platform_name(self) -> str:
        """The platform as a catalog names it: `linux_x86_64` for this machine's."""
        ours = next(platform_tags())
        if not ours.startswith("musl"):
            # Any glibc: each wheel's own tag says which it needs.
            ours = sysconfig.get_platform().replace("-", "_")
        return self.platform or ours

    def python_for(self, wheel: Wheel) -> str | None:
        """The first release of this Python that a wheel allows; None where it allows none."""
        allowed = SpecifierSet(wheel.requires_python or "")
        releases = (f"{self.python}.{patch}" for patch in range(100))
        return next((release for release in releases if release in allowed), None)


def targets_for(
    entries: Iterable[Wheel], pythons: Sequence[str], platforms: Sequence[str]
) -> list[LockTarget]:
    """The machines that a catalog serves.

    Args:
        entries: The wheels of its entries.
        pythons: The Python versions named; by default all that an entry and catalogzero allow.
        platforms: The platforms named; by default the one that this runs on.

    Raises:
        ConfigError: A name is invalid, or no entry allows that Python.
    """
    for name in pythons:
        if not re.fullmatch(r"3\.\d{1,2}", name):
            raise ConfigError(f"Python {name!r}: write a version such as 3.12")
    for name in platforms:
        if not _PLATFORM.fullmatch(name):
            raise ConfigError(
                f"platform {name!r}: write it as manylinux_2_28_x86_64 or musllinux_1_2_x86_64"
            )
    ours = SpecifierSet(metadata(SDK)["Requires-Python"])
    known = pythons or [f"3.{minor}" for minor in range(100) if f"3.{minor}" in ours]
    found = []
    for python in dict.fromkeys(known):
        target = LockTarget(python)
        if any(target.python_for(wheel) for wheel in entries):
            found += [LockTarget(python, platform) for platform in dict.fromkeys(platforms or [""])]
        elif pythons:
            raise ConfigError(f"no entry given allows Python {python}: see their requires-python")
    if not found:
        raise ConfigError(f"no entry given allows a Python that catalogzero does ({ours})")
    return found


@dataclass(frozen=True)
class Resolver:
    """What uv and pip are given for one target, beside the requirements.

    Attributes:
        target: For which machine.
        own: A site with the catalog's own wheels, the SDK's and the entries' among them: what it
            has of a name is taken from nowhere else. The tools' input is written here, too.
        origin: Where the others come from.
    """

    target: LockTarget
    own: Path
    origin: Origin

    def compile(self, requirements: str, constraints: str, python: str) -> str:
        """uv's lock of some requirements: pins with all hashes of their releases.

        Raises:
            CatalogZeroError: There is no such set of wheels.
        """
        own, origin = self.own, self.origin
        (own / "requirements.in").write_text(requirements, "utf-8")
        (own / "constraints.txt").write_text(constraints, "utf-8")
        command = [
            *(find_uv_bin(), "pip", "compile", "--quiet", "--only-binary", ":all:"),
            *("--generate-hashes", "--no-header", "--no-annotate", "--no-python-downloads"),
            *("--python-version", python),
            *("--constraints", str(own / "constraints.txt"), str(own / "requirements.in")),
        ]
        if found := _PLATFORM.fullmatch(self.target.platform):
            kind, number, machine = found.groups()
            musl = f"{machine}-unknown-linux-musl"
            platform = musl if kind == "musllinux_1" else f"{machine}-{kind}_{number}"
            command += ["--python-platform", platform]
        index = f"{own.as_uri()}/simple"
        env = {**indexes_of_pip(), **os.environ}
        links = [env.get("UV_FIND_LINKS", ""), *(str(path) for path in origin.find_links)]
        env["UV_FIND_LINKS"] = ",".join(filter(None, links))
        if origin.index_url:
            env["UV_DEFAULT_INDEX"] = origin.index_url
        if env.pop("UV_NO_INDEX", "") or origin.no_index:
            # The flag itself would shut out our own index, too.
            env |= {"UV_DEFAULT_INDEX": index, "UV_INDEX": ""}
        else:
            # Ours is first: what it has of a name, uv takes from no other index.
            env["UV_INDEX"] = f"{index} {env.get('UV_INDEX', '')}".strip()
        lock = run_tool(command, env=env)
        if rest := _PIN.sub("", lock).strip():
            raise CatalogZeroError(f"it needs what no index pins: {rest.splitlines()[0]}")
        return lock

    def compile_entry(self, entry: Wheel, python: str) -> tuple[str, str]:
        """uv's locks of an entry: of what it needs, and with all that its extras need.

        Raises:
            CatalogZeroError: There is no such set of wheels; the tool's words are in the message.
        """
        release = f"{entry.name}=={entry.version}"
        needed = f"{release}\n{SDK}\n"
        extras = [f"{SDK}[{extra}]" for extra in SDK_EXTRAS]
        for extra in entry.fields.get_all("Provides-Extra") or ():
            extras += [f"{entry.name}[{extra}]"] if extra != VENDOR_EXTRA else []
        try:
            # First all of it, so that an extra that is added later fits what is there already.
            full = self.compile(needed + "\n".join(extras), "", python)
            return self.compile(needed, full, python), full
        except CatalogZeroError as error:
            raise CatalogZeroError(
                f"{release} cannot be locked for Python {self.target.python} on "
                f"{self.target.platform_name}: {error}\nWhat an entry needs must be there as "
                "wheels: at the index that pip is set up with, at one that you name (--index-url), "
                "or in a folder (--find-links). An index that pip only adds (extra-index-url) is "
                "not asked: name it in UV_INDEX. --python names the Pythons to serve."
            ) from error

    def download(self, lock: str, folder: Path) -> None:
        """Let pip download the wheels of a lock, each with one of the lock's hashes."""
        path = self.own / "lock.txt"
        path.write_text(lock, "utf-8")
        options = ["--python-version", self.target.python]
        # The pages have hashes, so that another file of a name is no match.
        pages = (page.as_uri() for page in self.own.glob("simple/*/index.html"))
        for links in (*pages, *map(str, self.origin.find_links)):
            options += ["--find-links", links]
        if found := _PLATFORM.fullmatch(self.target.platform):
            kind, number, machine = found.groups()
            least = 5 if kind == "manylinux_2" else 1
            tags = [f"{kind}_{n}_{machine}" for n in range(int(number), least - 1, -1)]
            if kind == "manylinux_2" and int(number) >= 17:
                tags.append(f"manylinux2014_{machine}")
            options += [word for tag in tags for word in ("--platform", tag)]
        options += ["--index-url", self.origin.index_url] if self.origin.index_url else []
        options += ["--no-index"] if self.origin.no_index else []
        run_tool(
            [
                *(*pip_command(), "download", "--quiet", "--no-deps", "--require-hashes"),
                *("--only-binary", ":all:", "--implementation", "cp", "--ignore-requires-python"),
                *("--disable-pip-version-check", "--no-input", "--dest", str(folder)),
                *(*options, "--requirement", str(path)),
            ]
        )


def lock_entries(
    entries: Sequence[Wheel], target: LockTarget, *, own: Path, folder: Path, origin: Origin
) -> dict[Path, str]:
    """Lock every entry that allows the target, and download what the locks name.

    Args:
        entries: The wheels of the entries' releases.
        target: For which machine.
        own: See `Resolver`.
        folder: Where the wheels are downloaded to, those of the extras included.
        origin: Where the others come from.

    Returns:
        The text of each entry's lock by the path of its wheel: `name==version` with the hash of
        the one wheel that this target needs.

    Raises:
        CatalogZeroError: There is no such set of wheels; the tool's own words are in the message.
    """
    folder.mkdir(parents=True)
    ours = {(one.name, one.version): one.sha256 for one in map(read_wheel, own.glob("files/*"))}
    # Of the folders named, only what the catalog has not itself: that comes from nowhere else.
    links = own / f"links-{folder.name}"
    links.mkdir()
    for path in (path for place in origin.find_links for path in place.iterdir()):
        if canonicalize_name(path.name.partition("-")[0]) not in {name for name, _ in ours}:
            (links / path.name).symlink_to(path.resolve())
    resolver = Resolver(target, own, Origin((links,), origin.index_url, origin.no_index))
    pins: dict[Path, list[Key]] = {}
    wanted: dict[str, dict[Version, str]] = defaultdict(dict)
    for entry in entries:
        if (python := target.python_for(entry)) is None:
            continue
        alone, full = resolver.compile_entry(entry, python)
        pins[entry.path] = [(name, Version(version)) for name, version, _ in _PIN.findall(alone)]
        for found in _PIN.finditer(full):
            key = (found[1], Version(found[2]))
            if key in ours and ours[key] not in found[3]:
                raise ConfigError(
                    f"{found[1]}=={found[2]} is the catalog's own, and is found elsewhere with "
                    "other content: take it out of the folders that pip is set up with (find-links)"
                )
            wanted[found[1]].setdefault(key[1], found[0])
    # pip takes one version of a name at a time: those that entries differ in come in turns.
    for together in zip_longest(*(texts.values() for texts in wanted.values()), fillvalue=""):
        resolver.download("".join(together), folder)
    hashes = {(one.name, one.version): one.sha256 for one in map(read_wheel, folder.glob("*.whl"))}
    return {
        path: "".join(
            f"{name}=={version} \\\n    --hash=sha256:{hashes[name, version]}\n"
            for name, version in keys
        )
        for path, keys in pins.items()
    }


@cache
def indexes_of_pip() -> dict[str, str]:
    """The index and the folders that pip is set up with, as uv's settings."""
    listed = run_tool([*pip_command(), "config", "list"]).splitlines()
    found: dict[str, str] = {}
    # A later section beats those before it, as in pip.
    for section in ("global", "download", ":env:"):
        for key, _, value in (line.partition("=") for line in listed):
            if key.startswith(f"{section}."):
                found[key.removeprefix(f"{section}.")] = literal_eval(value)
    names = {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE", "proxy": "ALL_PROXY"}
    settings = {ours: found[name] for name, ours in names.items() if name in found}
    if folders := found.get("find-links"):
        settings["UV_FIND_LINKS"] = ",".join(folders.split())
    if found.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        settings["UV_NO_INDEX"] = "1"
    return settings

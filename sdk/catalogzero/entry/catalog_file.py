"""`catalog.json`: what a catalog offers, as its builder writes it and a client reads it.

Owns the document's model alone; nothing here reads, writes or fetches one.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from catalogzero.entry.manifest import Manifest
from catalogzero.errors import ConfigError

CATALOG_NAME = "catalog.json"
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
WheelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+!-]*\.whl$")]


def normal(name: str) -> str:
    """A distribution's name, normalised (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


class _CatalogPart(BaseModel):
    """A part of the document; keys of a later release are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Lock(_CatalogPart):
    """What a release needs on one kind of machine: pins with hashes, for pip."""

    python: str = Field(pattern=r"^(3\.\d{1,2})?$")
    """Python version, such as `3.12`; empty for a lock of any."""
    platform: str = Field(pattern=r"^[a-z0-9_]*$")
    """Platform tag, such as `manylinux_2_28_x86_64`, or `linux_x86_64` for the builder's own."""
    file: str = Field(pattern=r"^requirements/[A-Za-z0-9][A-Za-z0-9._+!-]*\.txt$")
    """Path below the catalog."""

    def __str__(self) -> str:
        return f"Python {self.python} on {self.platform}" if self.python else "any machine"


class Release(_CatalogPart):
    """One version of an entry."""

    version: str
    file: WheelName
    sha256: Sha256
    requires_python: str | None = None
    locks: list[Lock] = Field(default_factory=list)
    yanked: str | None = None
    """Why it should not be installed any more; None where it may."""

    @model_validator(mode="before")
    @classmethod
    def _read_requirements(cls, data: Any) -> Any:
        """A catalog of 0.1 has one file, `requirements`, whatever Python it is for."""
        if isinstance(data, dict) and "locks" not in data and "requirements" in data:
            lock = {"python": "", "platform": "", "file": data["requirements"]}
            return {**data, "locks": [lock]}
        return data


class Offer(Manifest):
    """One entry: the manifest of its newest release in use, and every release, newest first."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    distribution: str
    releases: list[Release] = Field(min_length=1)

    @property
    def newest(self) -> Release:
        """The newest release that is not yanked; the newest where all are."""
        return next((one for one in self.releases if not one.yanked), self.releases[0])

    def release(self, version: str | None) -> Release:
        """The release of a version; the newest that is not yanked where none is named.

        Raises:
            ConfigError: There is no such release.
        """
        for release in self.releases:
            if release.version == version or (version is None and not release.yanked):
                return release
        known = ", ".join(release.version for release in self.releases)
        raise ConfigError(f"{self.id} has no release {version or 'in use'}; there are: {known}")


class Catalog(_CatalogPart):
    """What `catalog.json` says: the entries, and every wheel with its hash."""

    catalog_version: Literal[1]
    entries: list[Offer]
    files: dict[WheelName, Sha256]

    @model_validator(mode="after")
    def _refuse_doubles(self) -> Self:
        """An id, or a distribution whatever its spelling, is one entry's."""
        for names in ((o.id for o in self.entries), (normal(o.distribution) for o in self.entries)):
            name, times = next(iter(Counter(names).most_common(1)), ("", 0))
            if times > 1:
                raise ValueError(f"two of its entries are {name!r}")
        return self

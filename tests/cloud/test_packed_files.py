"""Packed files as sources: every member of them, in bounded memory, and none past its bounds."""

from __future__ import annotations

import gzip
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from catalogzero.cloud.reading.records import FILE_BOUNDS, BadRecords, ReadOptions
from catalogzero.cloud.reading.sources import Roots
from catalogzero.errors import FailedError
from catalogzero.protocol.codings import Bounds

from tests.protocol.streams import SKIPPABLE, pack, zstd_bomb

CODINGS = {".gz": "gzip", ".zst": "zstd"}
READER = """
import sys
from pathlib import Path
from tests.cloud.test_packed_files import read

def peak_mib():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024

arrow = sys.argv[3] == "arrow"
read(Path(sys.argv[1]), arrow=arrow)  # what the libraries take is no memory of the file's
before, error = peak_mib(), ""
try:
    read(Path(sys.argv[2]), arrow=arrow)
except Exception as failed:
    error = f"{type(failed).__name__}: {failed}"
import orjson
print(orjson.dumps({"error": error, "rise_mib": peak_mib() - before}).decode())
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "exports"
    folder.mkdir()
    return folder


def read(path: Path, *, arrow: bool = False, bounds: Bounds = FILE_BOUNDS) -> list[dict[str, str]]:
    """The rows of a file."""
    options = ReadOptions(arrow=arrow, packed_bounds=bounds)
    [item] = Roots([path.parent]).items(str(path), options)
    with item.open(None, BadRecords("fail", path.parent / "aside")) as reading:
        return [row for rows in reading.batches() for row in (rows.to_pylist() if arrow else rows)]


@pytest.mark.parametrize("arrow", [False, True])
@pytest.mark.parametrize("suffix", CODINGS)
def test_a_file_of_many_members_is_read_to_its_end(root: Path, suffix: str, arrow: bool) -> None:
    lines = [b"n\n", *(b"%d\n" % number for number in range(3_000))]
    members = [pack(line, CODINGS[suffix]) for line in lines]
    padding = b"\0" * 1_000 if suffix == ".gz" else SKIPPABLE * 100
    (root / f"a.csv{suffix}").write_bytes(padding.join([b"".join(members), b""]))

    rows = read(root / f"a.csv{suffix}", arrow=arrow)

    assert rows == [{"n": str(number)} for number in range(3_000)]


def test_a_wide_header_of_a_packed_file_is_seen_whole(root: Path) -> None:
    names = [f"column_{number:06}" for number in range(2_000)]
    text = ",".join(names) + "\n" + ",".join("1" * 2_000) + "\n"
    (root / "a.csv.gz").write_bytes(gzip.compress(text.encode()))

    assert read(root / "a.csv.gz", arrow=True) == [dict.fromkeys(names, "1")]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv.zst", pack(b"n\n", "zstd") + zstd_bomb(1_024), "more than 2000 times its size"),
        ("a.jsonl.zst", zstd_bomb(1_024), "more than 2000 times its size"),
        ("a.csv.zst", zstd_bomb(9, 28), "a window of more than 128 MiB"),
        ("a.csv.zst", pack(b"", "zstd") * 1_001, "more than 1000 zstd frames"),
        ("a.csv.gz", pack(b"", "gzip") * 1_001, "more than 1000 gzip members"),
        ("a.csv.gz", pack(b"n\n" * 9_999, "gzip"), "more than 9999 bytes"),
    ],
)
def test_a_file_over_a_bound_fails_with_its_name_and_the_fix(
    root: Path, name: str, content: bytes, sentence: str
) -> None:
    bounds = replace(FILE_BOUNDS, max_frames=1_000)
    bounds = replace(bounds, max_bytes=9_999) if ".gz" in name else bounds
    (root / name).write_bytes(content)

    with pytest.raises(FailedError, match=rf"exports/{name} is over .* {sentence}.* unpack it"):
        read(root / name, bounds=bounds)


@pytest.mark.parametrize(
    ("name", "content", "most_mib"),
    [
        ("a.csv.zst", zstd_bomb(8_192), 160),
        ("a.jsonl.zst", zstd_bomb(8_192), 160),
        ("a.csv.zst", zstd_bomb(8_192, 27), 160 + 128),
        ("a.csv.zst", pack(b"n\n", "zstd") + pack(b"", "zstd") * 100_000, 64),
        ("a.csv.gz", pack(b"n\n", "gzip") + pack(b"", "gzip") * 50_000, 64),
    ],
)
@pytest.mark.parametrize("batches", ["dict", "arrow"])
def test_memory_is_bounded_whatever_a_file_unpacks_to(
    root: Path, name: str, content: bytes, most_mib: int, batches: str
) -> None:
    """A file of 32 KiB that unpacks to 1 GiB, and megabytes that unpack to nothing."""
    (root / name).write_bytes(content)
    coding, small = CODINGS[Path(name).suffix], root / f"small{name[1:]}"
    small.write_bytes(pack(b"{}\n" if ".jsonl" in name else b"n\n", coding))
    command = [sys.executable, "-c", READER, str(small), str(root / name), batches]

    done = orjson.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    assert bool(done["error"]) == (len(content) < 100_000)
    assert done["rise_mib"] < most_mib

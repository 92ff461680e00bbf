"""Where the pictures of the documentation go: a test's folder, or where `make pictures` says."""

from __future__ import annotations

import os
import struct
from pathlib import Path


def pictures_folder(tmp_path: Path) -> Path:
    """The folder that CATALOGZERO_TEST_PICTURES names; else the test's own."""
    return Path(os.environ.get("CATALOGZERO_TEST_PICTURES") or tmp_path)


def size_of(picture: Path) -> tuple[int, int]:
    """Width and height of a PNG, in pixels."""
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    return width, height

"""Packed streams that a test makes: of many frames, and bombs."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import zstandard

BLOCK_BYTES = 128 << 10
SKIPPABLE = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"


def zstd_bomb(blocks: int, window_log: int = 20) -> bytes:
    """A frame of blocks that stand for 128 KiB of one letter each, four bytes a block."""
    header = b"\x28\xb5\x2f\xfd\x00" + bytes([(window_log - 10) << 3])
    packed = [(BLOCK_BYTES << 3 | 1 << 1).to_bytes(3, "little") + b"x"] * (blocks - 1)
    last = (BLOCK_BYTES << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"x"
    return b"".join([header, *packed, last])


def gzip_bomb(mebibytes: int) -> bytes:
    """One member that stands for that number of mebibytes of one letter."""
    body, checksum = _deflated(mebibytes, zlib.crc32, 0)
    length = (mebibytes << 20).to_bytes(4, "little")
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + body + checksum.to_bytes(4, "little") + length


def deflate_bomb(mebibytes: int) -> bytes:
    """The same as HTTP's `deflate`."""
    body, checksum = _deflated(mebibytes, zlib.adler32, 1)
    return b"\x78\xda" + body + checksum.to_bytes(4, "big")


def _deflated(
    mebibytes: int, check: Callable[[bytes, int], int], checksum: int
) -> tuple[bytes, int]:
    """Mebibytes of one letter and their checksum; one is packed, and stands there as often."""
    mebibyte = b"x" * (1 << 20)
    packer = zlib.compressobj(level=9, wbits=-15)
    block = packer.compress(mebibyte) + packer.flush(zlib.Z_FULL_FLUSH)
    for _ in range(mebibytes):
        checksum = check(mebibyte, checksum)
    return block * mebibytes + packer.flush(), checksum


def pack(content: bytes, coding: str) -> bytes:
    """One frame or member, made by the library alone."""
    return gzip.compress(content, mtime=0) if coding == "gzip" else zstandard.compress(content)

"""Packed streams that a test makes: of many frames, and bombs."""

from __future__ import annotations

import gzip
import zlib

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
    packer = zlib.compressobj(level=9, wbits=31)
    parts = [packer.compress(b"x" * (1 << 20)) for _ in range(mebibytes)]
    return b"".join([*parts, packer.flush()])


def pack(content: bytes, coding: str) -> bytes:
    """One frame or member, made by the library alone."""
    return gzip.compress(content, mtime=0) if coding == "gzip" else zstandard.compress(content)

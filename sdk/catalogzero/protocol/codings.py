"""The content codings: how bytes are packed for the way, and unpacked again.

Owns zstd and gzip, and the order in which a client offers them.
"""

from __future__ import annotations

import gzip

import zstandard

CODINGS = ("zstd", "gzip", "identity")
"""Content codings in the order in which a backend that answers 415 is offered them."""

ZSTD_LEVEL = 1
GZIP_LEVEL = 4


def recode(body: bytes, coding: str, to: str) -> bytes:
    """The same content under another coding: zstd, gzip or identity."""
    if coding == to:
        return body
    plain = decoded(body, coding)
    if to == "gzip":
        return gzip.compress(plain, GZIP_LEVEL, mtime=0)
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(plain) if to == "zstd" else plain


def decoded(body: bytes, coding: str) -> bytes:
    """The content of a body, its coding taken off."""
    if coding == "zstd":
        return zstandard.ZstdDecompressor().decompress(body)
    return gzip.decompress(body) if coding == "gzip" else body

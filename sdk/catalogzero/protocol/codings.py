"""The content codings: how bytes are packed for the way, and unpacked again within bounds.

Owns zstd and gzip, for the bodies of the protocol and for packed files alike. A stream is unpacked
in steps, in time linear in its bytes (docs/decisions/0030-one-streaming-decoder.md).
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import zstandard

CODINGS = ("zstd", "gzip", "identity")
"""Content codings in the order in which a backend that answers 415 is offered them."""

ZSTD_LEVEL = 1
GZIP_LEVEL = 4
ZSTD_STEP_BYTES, GZIP_STEP_BYTES = 512, 8_192
"""Packed bytes that are unpacked at once. Four bytes of zstd can stand for 128 KiB, and one of gzip
for 1,032, so that a step puts out 16 MiB at most."""
MAX_RATIO = 2_000
"""Gzip reaches 1,032; zstd goes above it only with rows that are all but the same."""
RATIO_FREE_BYTES = 64 << 20
"""What may be unpacked before its ratio counts: a chunk of rows that are all the same is valid."""
_WRITE_BYTES = 1 << 15


class UnpackError(Exception):
    """A stream that cannot be unpacked; the message says why."""


class OverBoundsError(UnpackError):
    """A stream that asks for more than its bounds; the message says which, and how much it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much one packed stream may ask for; by default as much as it likes.

    Attributes:
        max_bytes: Bytes once unpacked.
        max_frames: Gzip members or zstd frames, empty and skippable ones too.
        max_ratio: Unpacked bytes to packed ones; counts above `RATIO_FREE_BYTES` unpacked.
        max_window_bytes: What a zstd frame may have its decoder remember; gzip's is 32 KiB.
    """

    max_bytes: float = math.inf
    max_frames: float = math.inf
    max_ratio: float = math.inf
    max_window_bytes: int = 128 << 20


UNBOUNDED = Bounds()


class Decoder(NamedTuple):
    """What starts the decoding of a frame, as `zlib.decompressobj` does, and takes a step of it."""

    start: Callable[[], Any]
    step_bytes: int


def unpack(
    parts: Iterable[bytes], coding: str, bounds: Bounds, decoder: Decoder | None = None
) -> Iterator[bytes]:
    """What a stream of zstd frames or gzip members holds, in pieces of at most 16 MiB.

    Frames may follow one another, and zeros, as padding, a gzip member; no bytes hold nothing.

    Args:
        parts: The packed bytes, cut anywhere.
        coding: `zstd` or `gzip`.
        bounds: At the first step over one of them the stream is given up.
        decoder: Decodes the frames; by default the coding's, within the bounds.

    Raises:
        OverBoundsError: It asks for more than its bounds.
        UnpackError: It is damaged, cut short, or followed by something else.
    """
    start, step = decoder or decoder_of(coding, bounds)
    packed = unpacked = frames = 0
    frame: Any = None
    for part in parts:
        packed += len(part)
        left = memoryview(part)
        while left:
            piece = left[:step]
            # Tapes and some tools pad a gzip member with zeros; gzip(1) passes over them.
            if frame is None and frames and coding == "gzip" and not piece[0]:
                left = left[len(piece) - len(bytes(piece).lstrip(b"\0")) :]
                continue
            if frame is None:
                frame, frames = start(), frames + 1
            try:
                content = frame.decompress(piece)
            except (zlib.error, zstandard.ZstdError) as error:
                raise fault_of(error, coding, bounds) from error
            unpacked += len(content)
            check_bounds(bounds, coding, packed, unpacked, frames)
            # What the frame did not take begins the next one: it is looked at again, not copied.
            left = left[len(piece) - len(frame.unused_data) :]
            if frame.eof:
                frame = None
            if content:
                yield content
    if frame is not None:
        raise UnpackError(f"the {coding} stream has no end")


def decoded(body: bytes, coding: str, bounds: Bounds = UNBOUNDED) -> bytes:
    """The content of a body, its coding taken off; raises as `unpack` does."""
    return body if coding == "identity" else b"".join(unpack([body], coding, bounds))


def encoded(body: bytes, coding: str) -> bytes:
    """A body under a content coding."""
    if coding == "gzip":
        return gzip.compress(body, GZIP_LEVEL, mtime=0)
    return zstandard.compress(body, ZSTD_LEVEL) if coding == "zstd" else body


def recode(body: bytes, coding: str, to: str) -> bytes:
    """The same content under another coding: zstd, gzip or identity."""
    return body if coding == to else encoded(decoded(body, coding), to)


def decoder_of(coding: str, bounds: Bounds) -> Decoder:
    """The decoder of a coding, within bounds."""
    if coding == "gzip":
        return Decoder(lambda: zlib.decompressobj(wbits=31), GZIP_STEP_BYTES)
    context = zstandard.ZstdDecompressor(max_window_size=bounds.max_window_bytes)
    return Decoder(lambda: context.decompressobj(write_size=_WRITE_BYTES), ZSTD_STEP_BYTES)


def check_bounds(bounds: Bounds, coding: str, packed: int, unpacked: int, frames: int) -> None:
    """Raise for the first bound that is passed."""
    if unpacked > bounds.max_bytes:
        raise OverBoundsError(f"more than {bounds.max_bytes} bytes once decompressed")
    if frames > bounds.max_frames:
        what = "gzip members" if coding == "gzip" else "zstd frames"
        raise OverBoundsError(f"more than {bounds.max_frames} {what}")
    if unpacked > RATIO_FREE_BYTES and unpacked > packed * bounds.max_ratio:
        raise OverBoundsError(f"more than {bounds.max_ratio} times its size once decompressed")


def fault_of(error: Exception, coding: str, bounds: Bounds) -> UnpackError:
    """Why a frame cannot be decoded."""
    if "requires too much memory" in str(error):
        size = bounds.max_window_bytes >> 20
        return OverBoundsError(f"a zstd frame asks for a window of more than {size} MiB")
    return UnpackError(f"the {coding} stream is damaged: {error}")

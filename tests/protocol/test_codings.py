"""The one streaming decoder: right on every valid stream, linear, and within its bounds."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import zstandard
from catalogzero.protocol import codings
from catalogzero.protocol.codings import (
    RATIO_FREE_BYTES,
    UNBOUNDED,
    Bounds,
    OverBoundsError,
    UnpackError,
    decoded,
    decoder_of,
    encoded,
    recode,
    unpack,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.streams import SKIPPABLE, gzip_bomb, pack, zstd_bomb

CODINGS = ["gzip", "zstd"]
STEP_OUT_BYTES = 17 << 20
CONTENTS = st.lists(
    st.binary(max_size=60)
    | st.builds(lambda letter, count: letter * count, st.binary(max_size=3), st.integers(0, 90_000))
)


def by_library(stream: bytes, coding: str) -> bytes:
    """What the library makes of a whole stream at once."""
    if coding == "gzip":
        return gzip.decompress(stream)
    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(stream), read_across_frames=True)
    return bytes(reader.read())


@given(st.sampled_from(CODINGS), CONTENTS, st.data())
def test_any_frames_cut_anywhere_give_what_the_library_gives(
    coding: str, contents: list[bytes], data: st.DataObject
) -> None:
    frames = [pack(content, coding) for content in contents]
    filler = b"\0" * 5 if coding == "gzip" else SKIPPABLE
    for index in sorted(data.draw(st.sets(st.integers(1, max(len(frames), 1)))), reverse=True):
        frames.insert(index, filler)
    stream = b"".join(frames) if contents else b""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parts = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    found = b"".join(unpack(parts, coding, UNBOUNDED))

    assert found == b"".join(contents) == (by_library(stream, coding) if stream else b"")


@given(st.sampled_from(CODINGS), CONTENTS, st.data())
def test_a_stream_that_is_cut_short_is_never_taken_for_whole(
    coding: str, contents: list[bytes], data: st.DataObject
) -> None:
    frames = [pack(content, coding) for content in contents]
    stream = b"".join(frames)
    borders = [len(b"".join(frames[:count])) for count in range(len(frames) + 1)]
    cut = data.draw(st.integers(0, len(stream)))

    if cut in borders:
        whole = contents[: max(n for n, border in enumerate(borders) if border == cut)]
        assert decoded(stream[:cut], coding) == b"".join(whole)
    else:
        with pytest.raises(UnpackError, match="has no end"):
            decoded(stream[:cut], coding)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("tail", [b"\0x", b"garbage", b"\x1f\x8bx" + b"y" * 20])
def test_what_follows_a_stream_and_is_no_part_of_it_is_an_error(coding: str, tail: bytes) -> None:
    with pytest.raises(UnpackError, match=r"is damaged|has no end"):
        decoded(pack(b"content", coding) + tail, coding)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_flipped_bit_is_an_error(coding: str) -> None:
    checked = zstandard.ZstdCompressor(write_checksum=True).compress(b"content" * 99)
    packed = bytearray(pack(b"content" * 99, coding) if coding == "gzip" else checked)
    packed[-6] ^= 1

    with pytest.raises(UnpackError, match="damaged"):
        decoded(bytes(packed), coding)


@given(st.sampled_from(codings.CODINGS), st.sampled_from(codings.CODINGS), st.binary())
def test_a_body_is_the_same_under_every_coding(one: str, other: str, content: bytes) -> None:
    assert decoded(recode(encoded(content, one), one, other), other) == content


@dataclass
class Work:
    """What a stream's decoders were given, and what they handed back to be given again."""

    calls: int = 0
    copied: int = 0

    def counting(self, start: Callable[..., Any]) -> Callable[..., Any]:
        """The decoders that `start` makes, each call of them counted."""
        work = self

        class Counted:
            def __init__(self, *given: Any, **named: Any) -> None:
                self._decoder = start(*given, **named)

            def decompress(self, piece: Any) -> bytes:
                work.calls += 1
                work.copied += len(piece)
                content: bytes = self._decoder.decompress(piece)
                work.copied += len(content)
                return content

            @property
            def unused_data(self) -> bytes:
                unused: bytes = self._decoder.unused_data
                work.copied += len(unused)
                return unused

            @property
            def eof(self) -> bool:
                return bool(self._decoder.eof)

        return Counted


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("content", [b"", b"row\n"])
def test_work_grows_with_the_frames_and_not_with_their_square(coding: str, content: bytes) -> None:
    work, real = Work(), decoder_of(coding, UNBOUNDED)
    counted = real._replace(start=work.counting(real.start))
    frame = pack(content, coding)
    costs = []
    for count in (1_000, 100_000):
        work.calls = work.copied = 0
        assert b"".join(unpack([frame * count], coding, UNBOUNDED, counted)) == content * count
        costs.append((work.calls / count, work.copied / (count * len(frame))))

    (few_calls, few_copies), (many_calls, many_copies) = costs
    assert many_calls < 1.1 * few_calls < 2.5
    assert many_copies < 2 * few_copies


@pytest.mark.parametrize("stream", [zstd_bomb(4_096), gzip_bomb(256)], ids=["zstd", "gzip"])
def test_a_step_puts_out_a_bounded_piece(stream: bytes) -> None:
    coding = "zstd" if stream[0] == 0x28 else "gzip"

    pieces = [len(piece) for piece in unpack([stream], coding, UNBOUNDED)]

    assert sum(pieces) >= 256 << 20
    assert max(pieces) <= STEP_OUT_BYTES


BOMB = zstd_bomb(4_096)


@pytest.mark.parametrize(
    ("stream", "coding", "bounds", "sentence"),
    [
        (BOMB, "zstd", Bounds(max_bytes=1 << 20), "more than 1048576 bytes once decompressed"),
        (gzip_bomb(2), "gzip", Bounds(max_bytes=1 << 20), "more than 1048576 bytes"),
        (pack(b"", "zstd") * 11, "zstd", Bounds(max_frames=10), "more than 10 zstd frames"),
        (SKIPPABLE * 11, "zstd", Bounds(max_frames=10), "more than 10 zstd frames"),
        (pack(b"", "gzip") * 11, "gzip", Bounds(max_frames=10), "more than 10 gzip members"),
        (BOMB, "zstd", Bounds(max_ratio=2_000), "more than 2000 times its size"),
        (gzip_bomb(65), "gzip", Bounds(max_ratio=900), "more than 900 times its size"),
        (zstd_bomb(9, 24), "zstd", Bounds(max_window_bytes=8 << 20), "window of more than 8 MiB"),
        (zstd_bomb(9, 28), "zstd", Bounds(), "window of more than 128 MiB"),
    ],
)
def test_each_bound_gives_a_stream_up_at_the_first_step_over_it(
    stream: bytes, coding: str, bounds: Bounds, sentence: str
) -> None:
    sizes: list[int] = []

    with pytest.raises(OverBoundsError, match=sentence):
        sizes.extend(len(piece) for piece in unpack([stream], coding, bounds))

    by_ratio = max(RATIO_FREE_BYTES, len(stream) * bounds.max_ratio)
    assert sum(sizes) <= min(bounds.max_bytes, by_ratio)


@pytest.mark.parametrize(
    ("stream", "coding", "bounds"),
    [
        (pack(b"x" * 1_000, "zstd"), "zstd", Bounds(max_bytes=1_000, max_frames=1, max_ratio=1)),
        (pack(b"", "gzip") * 10, "gzip", Bounds(max_frames=10)),
        (zstd_bomb(512), "zstd", Bounds(max_ratio=2)),
        (zstd_bomb(9, 23), "zstd", Bounds(max_window_bytes=8 << 20)),
        (zstd_bomb(9, 27), "zstd", Bounds()),
    ],
)
def test_what_is_just_within_the_bounds_is_read(stream: bytes, coding: str, bounds: Bounds) -> None:
    assert decoded(stream, coding, bounds) == by_library(stream, coding)

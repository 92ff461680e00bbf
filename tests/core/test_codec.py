"""The wire's codec refuses what docs/decisions/0001 says that it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from catalogzero.errors import BadRequestError
from catalogzero.wire.messages import MAX_DEPTH, decode_call, encode_json


def call_with(value: bytes) -> bytes:
    """A call whose only parameter is this JSON text."""
    return b'{"method": "m", "params": {"value": ' + value + b"}}"


@pytest.mark.parametrize(
    "value",
    [
        *(b"NaN", b"Infinity", b"-Infinity", b"1e400"),
        *(b'"\\ud800"', b'"\xff"', b'"\xed\xa0\x80"', b'"\x01"'),
        *(b"[1,]", b"01", b"'a'", b"{a: 1}", b"1 2", b""),
        *(b"[" * 2_000 + b"]" * 2_000, b"[" * 100_000),
    ],
)
def test_what_is_no_strict_json_is_refused(value: bytes) -> None:
    with pytest.raises(BadRequestError):
        decode_call(call_with(value))


def test_a_byte_order_mark_is_refused() -> None:
    with pytest.raises(BadRequestError):
        decode_call(b"\xef\xbb\xbf" + call_with(b"1"))


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b"18446744073709551615", 2**64 - 1),
        (b"1" * 30, 1.1111111111111112e29),
        (b'"\\ud83d\\ude00"', "😀"),
        (b"-0.0", -0.0),
    ],
)
def test_what_is_read_is_read_so(value: bytes, read: Any) -> None:
    assert decode_call(call_with(value)).params["value"] == pytest.approx(read)


def test_a_call_nests_so_deep_and_no_deeper_and_can_then_be_written_again() -> None:
    room = MAX_DEPTH - 2  # the call itself, and its params
    deepest = b"[" * room + b"]" * room
    assert encode_json({"result": decode_call(call_with(deepest)).params})
    with pytest.raises(BadRequestError, match="levels deep"):
        decode_call(call_with(b"[" + deepest + b"]"))
    wide = b"[" + b"[]," * 5_000 + b"[]]"
    assert len(decode_call(call_with(wide)).params["value"]) == 5_001


@pytest.mark.parametrize(
    ("value", "text"),
    [(float("nan"), b"null"), (float("inf"), b"null"), ({1: 2}, b'{"1":2}'), ((1,), b"[1]")],
)
def test_what_json_lacks_is_written_as_its_nearest(value: Any, text: bytes) -> None:
    assert encode_json(value) == text


@pytest.mark.parametrize("value", [object(), b"bytes", "\ud800"])
def test_what_has_no_json_form_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError):
        encode_json(value)

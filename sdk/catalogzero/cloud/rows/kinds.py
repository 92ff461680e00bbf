"""Arrow types: which one values share, and how a value goes into one without loss.

Needs the extra `parquet`; see `tables`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import pyarrow as pa

from catalogzero.cloud.rows.values import (
    UnfitError,
    is_interval,
    nanosecond_of,
    plain,
    text_of,
)

_US = timedelta(microseconds=1)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """A type without dictionaries, views and large offsets, at every depth."""
    types = pa.types
    if types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if kind in (pa.large_string(), pa.string_view()):
        return pa.string()
    if kind in (pa.large_binary(), pa.binary_view()) or types.is_fixed_size_binary(kind):
        return pa.binary()
    if types.is_struct(kind):
        return pa.struct([field.with_type(plain_type(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if is_list(kind):
        return pa.list_(kind.value_field.with_type(plain_type(kind.value_type)))
    return kind


def is_list(kind: pa.DataType) -> bool:
    """Whether it is a list of any layout."""
    types = pa.types
    looks = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    views = (types.is_list_view, types.is_large_list_view)
    return any(look(kind) for look in (*looks, *views))


def offset_text(seconds: int) -> str:
    """A zone's offset as ISO 8601 writes it."""
    minutes, rest = divmod(abs(seconds), 60)
    text = f"{'-' if seconds < 0 else '+'}{minutes // 60:02}:{minutes % 60:02}"
    return f"{text}:{rest:02}" if rest else text


_KINDS = {
    type(None): pa.null(),
    bool: pa.bool_(),
    float: pa.float64(),
    str: pa.string(),
    UUID: pa.string(),
    bytes: pa.binary(),
    date: pa.date32(),
    timedelta: pa.duration("us"),
}


def kind_of(values: Sequence[Any]) -> pa.DataType:
    """The type that values share; the type of the first of them where they share none."""
    found = pa.null()
    for value in sample_of(values):
        found = joined(found, _KINDS.get(type(value)) or kind_of_value(value)) or found
    return found


def sample_of(values: Sequence[Any]) -> Sequence[Any]:
    """As few of some values as say the type of all, where they are of one kind, or null."""
    kinds = set(map(type, values)) - {type(None)}
    if len(kinds) != 1:
        return values if kinds else ()
    [kind], real = kinds, [value for value in values if value is not None]
    if kind in _KINDS:
        return real[:1]
    if kind is int:
        return [min(real), max(real)]
    if kind is datetime:
        return list({value.tzinfo: value for value in real}.values())
    if kind is Decimal and (finite := [value for value in real if value.is_finite()]):
        return [max(finite, key=abs), min(finite, key=exponent)]
    return real[:1] if kind is Decimal else real


def exponent(value: Decimal) -> int:
    """The exponent of a finite decimal."""
    return int(value.as_tuple().exponent)


def kind_of_value(value: Any) -> pa.DataType:
    """The type of one value.

    Raises:
        UnfitError: Arrow has none for it.
    """
    value = plain(value)
    # Of numpy, an enum or a dataclass, it may have become a kind of the table.
    if type(value) in _KINDS:
        return _KINDS[type(value)]
    if isinstance(value, int):
        small = -(1 << 63) <= value < 1 << 63
        return pa.int64() if small else decimal_type(Decimal(value))
    if isinstance(value, Decimal):
        # Any type will do for NaN: `is_scalar` refuses the value later, with its column.
        return decimal_type(value) if value.is_finite() else pa.decimal128(1, 0)
    unit = "us" if nanosecond_of(value) is None else "ns"
    if isinstance(value, datetime):
        return pa.timestamp(unit, None if value.tzinfo is None else zone_of(value))
    if isinstance(value, time):
        return pa.time64(unit) if value.tzinfo is None else pa.string()
    if isinstance(value, timedelta):
        return pa.duration(unit)
    if isinstance(value, bytearray | memoryview):
        return pa.binary()
    if isinstance(value, str) or is_interval(value):
        return pa.string()
    if isinstance(value, Mapping):
        return pa.struct([(str(name), kind_of_value(part)) for name, part in value.items()])
    if isinstance(value, list | tuple | set | frozenset):
        return pa.list_(kind_of(list(value)))
    return pa.null()


def decimal_type(value: Decimal) -> pa.DataType:
    """The type that holds a decimal's digits."""
    return decimal_of(max(value.adjusted() + 1, 1), max(0, -exponent(value)))


def decimal_of(whole: int, scale: int) -> pa.DataType:
    """The type of a number of digits before and after the point, with room for more before it."""
    if whole + scale <= 38:
        return pa.decimal128(38, scale)
    return pa.decimal256(76, min(scale, 76))


def zone_of(value: datetime) -> str:
    """The name of an aware moment's zone, or its offset."""
    if name := getattr(value.tzinfo, "key", None):
        return str(name)
    seconds = round(cast("timedelta", value.utcoffset()).total_seconds())
    return "UTC" if seconds == 0 else offset_text(seconds)


def joined(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both as they are; None where no type does.

    Dates and times beside texts (`infinity`) make a column of texts.
    """
    types = pa.types
    if one == other or types.is_null(other):
        return one
    if types.is_null(one):
        return other
    if is_number(one) and is_number(other):
        return joined_numbers(one, other)
    if types.is_timestamp(one) and types.is_timestamp(other) and bool(one.tz) == bool(other.tz):
        unit = max(one.unit, other.unit, key=("s", "ms", "us", "ns").index)
        return pa.timestamp(unit, one.tz if one.tz == other.tz else "UTC")
    if types.is_duration(one) and types.is_duration(other):
        return pa.duration("ns" if "ns" in (one.unit, other.unit) else "us")
    if types.is_time(one) and types.is_time(other):
        return pa.time64("ns" if "ns" in (one.unit, other.unit) else "us")
    if types.is_list(one) and types.is_list(other):
        inner = joined(one.value_type, other.value_type)
        return inner and pa.list_(inner)
    if types.is_struct(one) and types.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            if (kind := joined(fields.get(field.name, pa.null()), field.type)) is None:
                return None
            fields[field.name] = kind
        return pa.struct(list(fields.items()))
    if {types.is_string(one), types.is_string(other)} == {True, False}:
        time_like = other if types.is_string(one) else one
        return pa.string() if types.is_temporal(time_like) else None
    return None


def is_number(kind: pa.DataType) -> bool:
    """Whether it is a number of any kind."""
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))


def joined_numbers(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type of both kinds of numbers: a float for floats, a decimal for decimals."""
    types = pa.types
    if types.is_integer(one) and types.is_integer(other):
        same_sign = types.is_signed_integer(one) == types.is_signed_integer(other)
        return max(one, other, key=lambda kind: kind.bit_width) if same_sign else pa.int64()
    decimals = [kind for kind in (one, other) if types.is_decimal(kind)]
    floats = [kind for kind in (one, other) if types.is_floating(kind)]
    if decimals and floats:
        return None
    if floats:
        return max(floats, key=lambda kind: kind.bit_width) if len(floats) == 2 else pa.float64()
    wholes = [k.precision - k.scale for k in decimals] + [19] * (2 - len(decimals))
    return decimal_of(max(wholes), max(kind.scale for kind in decimals))


def only_finer(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether two types differ in their unit or zone alone; the cast checks that nothing is cut."""
    types = pa.types
    if types.is_timestamp(one) and types.is_timestamp(other):
        return bool(one.tz) == bool(other.tz)
    alike = (types.is_time, types.is_duration, types.is_date, types.is_list, types.is_struct)
    return any(look(one) and look(other) for look in (*alike, types.is_map))


_SCALARS: tuple[tuple[Callable[[Any], bool], tuple[type, ...]], ...] = (
    (pa.types.is_integer, (int,)),
    (pa.types.is_floating, (float, int)),
    (pa.types.is_string, (str,)),
    (pa.types.is_boolean, (bool,)),
    (pa.types.is_date, (date,)),
    (pa.types.is_binary, (bytes, bytearray, memoryview)),
    (pa.types.is_decimal, (Decimal, int)),
)
"""The kinds of values that pyarrow takes into a type as they are, or refuses."""


def array_of(values: list[Any], kind: pa.DataType) -> pa.Array:
    """The array of some values.

    Raises:
        UnfitError: One is of another kind; others of `_UNFIT` likewise.
    """
    kinds = set(map(type, values)) - {type(None)}
    for look, direct in _SCALARS:
        if look(kind):
            # By exact type: to Python a bool is a whole number, and a moment a date.
            if not kinds <= {*direct}:
                values = [fitted(value, kind) for value in values]
            return pa.array(values, kind)
    if kinds == {datetime} and pa.types.is_timestamp(kind) and kind.unit in ("us", "ns"):
        zoned = {value.tzinfo is not None for value in values if value is not None}
        if zoned == {kind.tz is not None}:
            return pa.array(values, kind)
    return pa.array([fitted(value, kind) for value in values], kind)


def fitted(value: Any, kind: pa.DataType) -> Any:
    """A value as pyarrow takes it into a type without loss.

    Raises:
        UnfitError: It is of another kind.
    """
    if value is None:
        return None
    value, types = plain(value), pa.types
    if value is None:
        return None
    if types.is_string(kind):
        if isinstance(value, str):
            return value
        if isinstance(value, date | time | timedelta | UUID) or is_interval(value):
            return text_of(value)
    elif types.is_timestamp(kind):
        if isinstance(value, datetime) and (value.tzinfo is None) == (kind.tz is None):
            zero = datetime(1970, 1, 1, tzinfo=None if value.tzinfo is None else UTC)
            # Python's own difference: a subclass, such as pandas', gives one of another kind.
            return whole_units(datetime.__sub__(value, zero), nanosecond_of(value), kind)
    elif types.is_time(kind):
        if isinstance(value, time) and value.tzinfo is None:
            since = datetime.combine(date.min, value) - datetime.min  # noqa: DTZ901  # a span
            return whole_units(since, nanosecond_of(value), kind)
    elif types.is_duration(kind):
        if isinstance(value, timedelta):
            return whole_units(value, nanosecond_of(value), kind)
    elif types.is_struct(kind):
        if isinstance(value, Mapping):
            fields = {field.name: field.type for field in kind}
            if extra := sorted(str(name) for name in value.keys() - fields.keys()):
                raise UnfitError(f"the schema has no key {extra[0]} in it")
            return {name: fitted(value.get(name), part) for name, part in fields.items()}
    elif types.is_map(kind):
        pairs = value.items() if isinstance(value, Mapping) else value
        if isinstance(value, Mapping | list):
            return [(fitted(k, kind.key_type), fitted(v, kind.item_type)) for k, v in pairs]
    elif is_list(kind):
        if isinstance(value, list | tuple | set | frozenset):
            return [fitted(part, kind.value_type) for part in value]
    elif is_scalar(value, kind):
        return value
    name = type(value).__name__
    if isinstance(value, datetime | time):
        name += f" {'without' if value.tzinfo is None else 'with'} a zone"
    raise UnfitError(f"it is a {name}, and the column is {kind}")


def is_scalar(value: Any, kind: pa.DataType) -> bool:
    """Whether a value that is no text, time or nest is of a type's kind."""
    if isinstance(value, bool):
        return bool(pa.types.is_boolean(kind))
    if isinstance(value, datetime) or (isinstance(value, Decimal) and not value.is_finite()):
        return False
    return any(look(kind) and isinstance(value, direct) for look, direct in _SCALARS)


def whole_units(since: timedelta, nanoseconds: int | None, kind: pa.DataType) -> int:
    """A span in a type's unit.

    Raises:
        UnfitError: The unit is too coarse for it.
    """
    count = (since // _US) * 1000 + (nanoseconds or 0)
    units, rest = divmod(count, {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[kind.unit])
    if rest:
        raise UnfitError(f"it has more digits than {kind}")
    return units

"""What one value of a record becomes in text: JSON in NDJSON, a cell in CSV.

A kind of value has one form, whatever its value is (docs/reference/values.md). What a format cannot
hold raises `UnfitError`. Needs neither pyarrow nor numpy, and takes the values of both.
"""

from __future__ import annotations

import base64
import csv
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import repeat
from operator import countOf, methodcaller
from types import SimpleNamespace
from typing import Any, TypeAlias
from uuid import UUID

import orjson

from catalogzero.errors import FailedError

Row: TypeAlias = dict[str, Any]
"""One record: each column's value, of any Python type until it is encoded."""

_LINE = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_APPEND_NEWLINE
_NULLS = (b":null", b",null", b"[null")
_VALUES = methodcaller("values")
_INTS = range(-(1 << 63), 1 << 64)
_MOST_ZEROS = 1_000
_EMPTY = "\ue000"
"""Stands for an empty text while a line of CSV is written; a character that texts hardly hold."""

_US = timedelta(microseconds=1)
_WHOLE = frozenset(
    (type(None), str, bool, int, bytes, datetime, date, time, timedelta, Decimal, UUID)
)
_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
NOT_UTF8 = "the text holds half of a surrogate pair, which is not UTF-8"
NO_JSON = "NaN and infinities have no form in JSON"
SHOWN_NAMES = 20
"""The most names that a message or a list shows."""


class UnfitError(ValueError):
    """A value that a format or a schema cannot hold; the text says why, without the value.

    Attributes:
        column: The column that it stands in, where that is known.
    """

    def __init__(self, why: str, column: str | None = None) -> None:
        super().__init__(why)
        self.column = column


Refuse: TypeAlias = Callable[[int, UnfitError, Any], None]
"""Takes a bad record: its number from 1, why, and the record itself."""


def fail(row: int, error: UnfitError, record: Any) -> None:
    """Refuse a bad record by an error.

    Raises:
        FailedError: Always; it names row and column.
    """
    raise FailedError(where(row, error))


def where(row: int, error: UnfitError) -> str:
    """Row and column of a bad record, and why it is one."""
    column = "" if error.column is None else f", column {error.column}"
    return f"row {row}{column}: {error}"


def refuse_twice(names: Sequence[str], source: str) -> None:
    """Refuse columns of which two have one name, which rows cannot hold apart.

    Raises:
        FailedError: It names them, and the source.
    """
    twice = [repr(name) for name, count in Counter(names).items() if count > 1]
    if twice:
        shown = ", ".join(twice[:SHOWN_NAMES])
        raise FailedError(f"{source}: {shown} stands twice; each column needs a name of its own")


class _Nano:
    """A value of a column that counts nanoseconds."""

    nanosecond = 0
    """What Python's own class has no room for, 0 to 999."""

    def __str__(self) -> str:
        return str(text_of(self))


class NanoDatetime(_Nano, datetime):
    """A datetime of a column that counts nanoseconds."""


class NanoTime(_Nano, time):
    """A time of a column that counts nanoseconds."""


class NanoTimedelta(_Nano, timedelta):
    """A duration of a column that counts nanoseconds."""


def nanosecond_of(value: Any) -> int | None:
    """The nanoseconds below a microsecond, 0 to 999; None of a value that counts microseconds."""
    found: int | None = getattr(value, "nanosecond", None)
    return getattr(value, "nanoseconds", None) if found is None else found


def moment_text(value: datetime | time) -> str:
    """ISO 8601 with six digits of the second, nine where it counts nanoseconds."""
    if isinstance(value, datetime):
        text, end = datetime.isoformat(value, "T", "microseconds"), 26
    else:
        text, end = value.isoformat("microseconds"), 15
    extra = nanosecond_of(value)
    return text if extra is None else f"{text[:end]}{extra:03}{text[end:]}"


def duration_text(value: timedelta) -> str:
    """ISO 8601 in seconds, with six digits of them, nine where it counts nanoseconds."""
    whole, extra = value // _US, nanosecond_of(value)
    return seconds_text(whole, 6) if extra is None else seconds_text(whole * 1000 + extra, 9)


def seconds_text(count: int, digits: int) -> str:
    """An ISO 8601 duration of a number of 10^-digits seconds."""
    seconds, part = divmod(abs(count), 10**digits)
    return f"{'-' if count < 0 else ''}PT{seconds}.{part:0{digits}}S"


def interval_text(months: int, days: int, count: int, digits: int) -> str:
    """An ISO 8601 duration of months, days and `count` 10^-digits seconds, each with its sign."""
    seconds = seconds_text(abs(count), digits).removeprefix("PT")
    return f"P{months}M{days}DT{'-' if count < 0 else ''}{seconds}"


def decimal_text(value: Decimal) -> str:
    """Every digit, without an exponent unless it would be a thousand zeros or more."""
    text = str(value)
    if "E" in text and abs(value.adjusted()) < _MOST_ZEROS:
        return format(value, "f")
    return text


def plain(value: Any) -> Any:
    """A value of numpy, an enum or a dataclass as what it holds; any other as it is."""
    if isinstance(value, Enum):
        return plain(value.value)
    if hasattr(value, "dtype"):
        return of_numpy(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, datetime | timedelta) and value != value:  # pandas' NaT
        return None
    return value


def of_numpy(value: Any) -> Any:
    """A numpy scalar or array in Python's own kinds."""
    if getattr(value, "ndim", 0):
        return [plain(part) for part in value] if value.dtype.kind in "mM" else value.tolist()
    if value.dtype.kind not in "mM":
        found = value.item()
        return found if type(found) is not type(value) else float(found)
    if value != value:  # NaT
        return None
    kind, unit = value.dtype.kind, str(value.dtype)[-4:]
    if unit == "[ns]":
        return nano(int(value.astype("i8")), NanoTimedelta if kind == "m" else NanoDatetime)
    value = value if unit == "8[D]" else value.astype(f"{kind}8[us]")
    found = value.item()
    # Out of range numpy gives a number here; its text is ISO 8601.
    return found if isinstance(found, date | timedelta) else str(value)


def nano(count: int, kind: type[Any]) -> Any:
    """The value of a number of nanoseconds, since 1970 or midnight unless it is a duration."""
    span = timedelta(microseconds=count // 1000)
    made: Any
    if kind is NanoTimedelta:
        made = NanoTimedelta(span.days, span.seconds, span.microseconds)
    elif kind is NanoTime:
        made = NanoTime.fromisoformat((datetime.fromtimestamp(0, UTC) + span).time().isoformat())
    else:
        made = NanoDatetime(1970, 1, 1) + span
    made.nanosecond = count % 1000
    return made


def is_interval(value: Any) -> bool:
    """Whether it counts months, days and nanoseconds, as Arrow's interval does."""
    return hasattr(value, "months") and hasattr(value, "nanoseconds")


def text_of(value: Any) -> str | None:
    """The text of a value that JSON and CSV write alike; None of any other."""
    if isinstance(value, datetime | time):
        return moment_text(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return duration_text(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, UUID):
        return str(value)
    if is_interval(value):
        return interval_text(value.months, value.days, value.nanoseconds, 9)
    return None


def json_value(value: Any) -> Any:
    """JSON's own kind for a value that orjson does not know, or writes in several forms.

    Raises:
        UnfitError: JSON has no form for it.
    """
    if type(value) is datetime:
        return value.isoformat("T", "microseconds")
    if isinstance(value, Decimal):
        number = str(value)
        if "E" in number or "N" in number or "y" in number:
            if not value.is_finite():
                raise UnfitError(NO_JSON)
            number = decimal_text(value)
        return orjson.Fragment(number)
    found = plain(value)
    if found is None or found is not value:
        return exact_json(found)
    text = text_of(value)
    return exact_json(value) if text is None else text


def exact_json(value: Any) -> Any:
    """A value, at every depth, as what orjson writes whole.

    Raises:
        UnfitError: JSON has no form for a part of it.
    """
    if value is None or isinstance(value, bool | orjson.Fragment):
        return value
    if isinstance(value, str) and not isinstance(value, Enum):
        return valid_text(value)
    if isinstance(value, int) and not isinstance(value, Enum):
        return int(value) if value in _INTS else orjson.Fragment(format(Decimal(value), "f"))
    if isinstance(value, float) and not isinstance(value, Enum):
        if not math.isfinite(value):
            raise UnfitError(NO_JSON)
        return float(value)
    if isinstance(value, Mapping):
        made = {key_text(name): exact_json(part) for name, part in value.items()}
        if len(made) < len(value):
            raise UnfitError("two of its names are the same text")
        return made
    if isinstance(value, list | tuple | set | frozenset) and not is_interval(value):
        return [exact_json(part) for part in value]
    if isinstance(value, UnfitError):
        raise value
    if isinstance(value, Decimal) or text_of(value) is not None or plain(value) is not value:
        return json_value(value)
    raise UnfitError(f"a {type(value).__name__} has no form in JSON: convert it in `process`")


def key_text(name: Any) -> str:
    """The text of a name."""
    if isinstance(name, str):
        return valid_text(name)
    found = exact_json(name)
    return found if isinstance(found, str) else orjson.dumps(found).decode()


def valid_text(text: str) -> str:
    """A text that UTF-8 can hold."""
    if not is_valid(text):
        raise UnfitError(NOT_UTF8)
    return str(text)


def is_valid(text: Any) -> bool:
    """Whether UTF-8 can hold a text."""
    try:
        str(text).encode()
    except UnicodeEncodeError:
        return False
    return True


def may_hold_nan(values: Iterable[Any]) -> bool:
    """Whether NaN or an infinity, which orjson writes as null, may be among them."""
    for value in values:
        kind = type(value)
        if kind is float:
            if value - value != 0.0:
                return True
        elif kind is dict:
            if may_hold_nan(value.values()):
                return True
        elif kind is list:
            if may_hold_nan(value):
                return True
        elif kind not in _WHOLE:
            return True
    return False


def json_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """One line of JSON for each row; a line ends at LF, and holds no line end.

    Raises:
        UnfitError: Of a row that JSON cannot hold; which one is found by asking for each alone.
    """
    try:
        text = b"".join(map(orjson.dumps, rows, repeat(json_value), repeat(_LINE)))
    except TypeError:
        # orjson does not say which row it was: each is written alone, the one at fault by values.
        whole = len(rows) == 1
        return b"".join(json_line(row) if whole else json_lines([row]) for row in rows)
    # Before a null stands one of these; more than there are None: one may have been a NaN.
    if b"null" in text and sum(map(text.count, _NULLS)) != count_of_none(rows):
        lines = text.splitlines(keepends=True)
        for number, line in enumerate(lines):
            if b"null" in line and may_hold_nan(rows[number].values()):
                lines[number] = json_line(rows[number])
        return b"".join(lines)
    return text


def count_of_none(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many values of some rows are None; -1 where one does not compare, as arrays do not."""
    try:
        return sum(map(countOf, map(_VALUES, rows), repeat(None)))
    except (TypeError, ValueError):
        return -1


def json_line(row: Mapping[str, Any]) -> bytes:
    """The line of a row, value by value."""
    cells: Row = {}
    for name, value in row.items():
        text = str(name)
        try:
            text = key_text(name)
            if text in cells:
                raise UnfitError("two columns have this name")
            cells[text] = exact_json(value)
        except (RecursionError, TypeError, ValueError) as error:
            why = "it nests too deep" if isinstance(error, RecursionError) else str(error)
            raise UnfitError(why, text) from error
    try:
        return orjson.dumps(cells, option=_LINE)
    except TypeError as error:
        raise UnfitError("it nests too deep") from error


def csv_cell(value: Any) -> Any:
    """The text of a cell; None for null.

    Raises:
        UnfitError: It nests a value that JSON has no form for.
    """
    kind = type(value)
    if kind is bool:
        return "true" if value else "false"
    if kind is datetime:
        return value.isoformat("T", "microseconds")
    value = value if kind is str or kind is int or kind is float else plain(value)
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else _NOT_FINITE[str(float(value))]
    if isinstance(value, Decimal):
        return "NaN" if value.is_nan() else decimal_text(value)
    try:
        found = exact_json(value)
        return found if found is None or type(found) is str else orjson.dumps(found).decode()
    except (RecursionError, orjson.JSONEncodeError) as error:
        raise UnfitError("it nests too deep") from error


# `writerow` returns what its file's `write` returns: here the line itself.
_LINE_OF: Callable[[Iterable[Any]], str] = csv.writer(SimpleNamespace(write=str)).writerow


def csv_lines(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """One line of CSV for each row: null is an empty cell, an empty text is a quoted one.

    Raises:
        UnfitError: Of a row that cannot be written; see `json_lines`.
    """
    columns = [csv_cells(name, list(map(methodcaller("get", name), rows))) for name in names]
    marked = [
        [_EMPTY if cell == "" else cell for cell in column] if "" in column else column
        for column in columns
    ]
    lines = list(map(_LINE_OF, zip(*marked, strict=True)))
    text = "".join(lines)
    if text.count(_EMPTY) == sum(map(countOf, columns, repeat(""))):
        if text.count("\n") == len(lines):
            text = text.replace("\r\n", "\n")
        else:  # some stand in cells
            text = "".join([f"{line[:-2]}\n" for line in lines])
        with suppress(UnicodeEncodeError):
            return text.replace(_EMPTY, '""').encode()
    return b"".join(csv_line(names, cells) for cells in zip(*columns, strict=True))


def csv_cells(name: str, values: list[Any]) -> list[Any]:
    """A column's cells: texts, None, and numbers that the writer writes as we do."""
    kinds = set(map(type, values)) - {type(None), str}
    if not kinds:
        return values
    numbers = [value for value in values if type(value) in kinds]
    # The writer calls `str`, which takes no whole number of some thousand digits.
    if kinds == {int} and max(map(abs, numbers)) in _INTS:
        return values
    # NaN and infinities stay in a sum; one that overflows costs the longer way, and no more.
    if kinds == {float} and math.isfinite(sum(numbers)):
        return values
    try:
        return [value if value is None else csv_cell(value) for value in values]
    except UnfitError as error:
        raise UnfitError(str(error), name) from error


def csv_header(names: Sequence[str]) -> bytes:
    """The line of column names."""
    return csv_line(names, list(names))


def csv_line(names: Sequence[str], cells: Sequence[Any]) -> bytes:
    """The line of some cells, an empty text among them in quotes."""
    if len(cells) == 1 and cells[0] is None:
        return b'""\n'  # an empty line is no record to most readers
    # The writer quotes an empty text only where it is a line's one cell, so each is written alone.
    texts = ("" if cell is None else _LINE_OF([cell])[:-2] for cell in cells)
    try:
        return (",".join(texts) + "\n").encode()
    except UnicodeEncodeError as error:
        broken = [name for name, cell in zip(names, cells, strict=True) if not is_valid(cell)]
        raise UnfitError(NOT_UTF8, broken[0]) from error


def fingerprint(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Bytes that differ where the rows differ, whatever they hold."""
    try:
        return json_lines(rows)
    except UnfitError:
        return repr(rows).encode("utf-8", "surrogatepass")


def fingerprints(rows: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """The fingerprint of each row alone."""
    try:
        return json_lines(rows).splitlines(keepends=True)
    except UnfitError:
        return [fingerprint([row]) for row in rows]

"""Dates, times and intervals that PostgreSQL has and Python has not, read as ISO 8601 texts.

`infinity`, years past 9999, intervals with months. Any other value is read in the driver's own
way. Needs psycopg.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from psycopg import Connection, Error
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format

from catalogzero.cloud.rows.values import interval_text

_TYPES = ("date", "timestamp", "timestamptz", "interval")
_MOMENT = re.compile(r"(\d+-\d\d-\d\d) (\d\d:\d\d:\d\d)(?:\.(\d+))?([+-]\d\d)?(:\d\d)?(.*)")
_INTERVAL = re.compile(
    r"(?:(-?\d+) years? ?)?(?:([+-]?\d+) mons? ?)?(?:([+-]?\d+) days? ?)?"
    r"(?:([+-]?)(\d+):(\d\d):(\d\d)(?:\.(\d+))?)?"
)


def load_as_text(connection: Connection[Any]) -> None:
    """Have a connection read as text what Python cannot hold."""
    adapters = connection.adapters
    for name in _TYPES:
        oid = adapters.types[name].oid
        if (own := adapters.get_loader(oid, Format.TEXT)) is not None:
            adapters.register_loader(oid, text_loader(own))


def text_loader(own: Any) -> type[Loader]:
    """A loader that gives the text where the driver's own has no value for it."""

    class OrText(Loader):
        def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
            super().__init__(oid, context)
            self._load = own(oid, context).load

        def load(self, data: Buffer) -> Any:
            text = bytes(data)
            if b"mon" not in text and b"year" not in text:
                with suppress(Error):
                    return self._load(data)
            return iso_text(text.decode())

    return OrText


def iso_text(text: str) -> str:
    """PostgreSQL's text of a moment or an interval in the form that all others of its column have.

    Whatever else it writes, such as `infinity`, stays as it is.
    """
    if found := _MOMENT.fullmatch(text):
        day, clock, part, hours, minutes, era = found.groups()
        offset = f"{hours}{minutes or ':00'}" if hours else ""
        return f"{day}T{clock}.{(part or '').ljust(6, '0')}{offset}{era}"
    found = _INTERVAL.fullmatch(text)
    if found is None or not text:
        return text
    years, months, days = (int(part or 0) for part in found.groups()[:3])
    sign, hours, minutes, seconds, part = found.groups()[3:]
    whole = int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)
    count = whole * 10**6 + int((part or "").ljust(6, "0"))
    return interval_text(12 * years + months, days, -count if sign == "-" else count, 6)

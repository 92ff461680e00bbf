"""When triggers are due, by looking at every minute and its seconds.

It shares no code with what it checks. Clocks change at whole minutes.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
RANGES = {
    "second": (0, 59),
    "minute": (0, 59),
    "hour": (0, 23),
    "day": (1, 31),
    "month": (1, 12),
    "day_of_week": (0, 6),
}


def interval_ticks(
    length: timedelta, first: datetime, start: datetime, end: datetime
) -> list[datetime]:
    """Every tick of (start, end] of an interval."""
    found, tick = [], first
    while tick <= end:
        if tick > start:
            found.append(tick)
        tick += length
    return found


def cron_ticks(
    fields: Mapping[str, str], zone_name: str, start: datetime, end: datetime
) -> list[datetime]:
    """Every tick of (start, end]: wall times that match, those that are skipped at its end."""
    zone = ZoneInfo(zone_name)
    sets = _complete(fields)
    every_hour = "hour" not in fields and bool({"minute", "second"} & fields.keys())
    every_hour = every_hour or fields.get("hour") == "*"
    found: list[datetime] = []
    for moment, wall, skipped in _minutes(zone, start, end):
        second_pass = wall.fold == 1 and not every_hour
        if _matches(wall, sets) and not second_pass:
            found += [moment + second * SECOND for second in sorted(sets["second"])]
        if any(_matches(wall, sets) for wall in skipped) and moment not in found:
            found.append(moment)
    return sorted(moment for moment in found if start < moment <= end)


def _minutes(
    zone: ZoneInfo, start: datetime, end: datetime
) -> Iterator[tuple[datetime, datetime, list[datetime]]]:
    """Each whole minute, its wall time, and the wall times that were skipped just before it."""
    moment = start.replace(second=0, microsecond=0)
    before = (moment - MINUTE).astimezone(zone).replace(tzinfo=None)
    while moment <= end:
        wall = moment.astimezone(zone)
        naive = wall.replace(tzinfo=None)
        leap = (naive - before) // MINUTE
        yield moment, wall, [before + n * MINUTE for n in range(1, leap)]
        before, moment = naive, moment + MINUTE


def _matches(wall: datetime, sets: Mapping[str, frozenset[int]]) -> bool:
    """Whether a minute on the wall is one of the trigger's."""
    if wall.minute not in sets["minute"] or wall.hour not in sets["hour"]:
        return False
    if wall.month not in sets["month"] or wall.isoweekday() % 7 not in sets["day_of_week"]:
        return False
    days = calendar.monthrange(wall.year, wall.month)[1]
    return wall.day in sets["day"] or (0 in sets["day"] and wall.day == days)


def _complete(fields: Mapping[str, str]) -> dict[str, frozenset[int]]:
    """The values of each field; those less significant than the last named are their least."""
    order = ("month", "day", "day_of_week", "hour", "minute", "second")
    last = max(order.index(name) for name in fields)
    sets = {}
    for place, name in enumerate(order):
        absent = "*" if place < last or name == "day_of_week" else str(RANGES[name][0])
        sets[name] = _values(name, fields.get(name, absent))
    return sets


@lru_cache
def _values(name: str, text: str) -> frozenset[int]:
    """The values that an expression stands for; 0 among days is the last of the month."""
    low, high = RANGES[name]
    values: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        if span == "last":
            values.add(0)
            continue
        first, _, last = span.partition("-")
        begin = low if span == "*" else _value(name, first)
        end = high if span == "*" or (step and not last) else _value(name, last or first)
        values.update(range(begin, end + 1, int(step or 1)))
    return frozenset(values)


def _value(name: str, text: str) -> int:
    """A number, or the name of a month or day."""
    if text.isdigit():
        return int(text)
    return MONTHS.index(text) + 1 if name == "month" else DAYS.index(text)

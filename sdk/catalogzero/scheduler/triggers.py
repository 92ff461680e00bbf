"""When a schedule is due: interval, cron and date triggers as ScheduleZero's API spells them.

The calendar and time zone arithmetic is that of APScheduler 3.11's trigger classes. What differs
here: an interval fires first at its start (its days are 24 hours; with `wall`, days on the
clock); numbered weekdays are cron's (0 and 7 are Sunday), as
in ScheduleZero; and clock changes have one rule. Wall times that the clock skips fire once, at
the moment it springs forward. In the hour that comes twice, a trigger with `hour: *` (or none)
fires in both passes, any other in the first only, so a nightly job runs once a night.

All fields of a cron trigger must match, as in ScheduleZero; with `day_or_weekday`, `day` and
`day_of_week` are alternatives, as in crontab(5).

A trigger is a pure function of time: it reads no clock and keeps no state.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Protocol, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import orjson
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger
from tzlocal import get_localzone_name

from catalogzero.scheduler.trigger_forms import CRON_FIELDS, INTERVAL_UNITS, KEYS, weekday_names
from catalogzero.wire.messages import JsonObject

MIN_INTERVAL_S = 0.1
MAX_INTERVAL_S = 100 * 366 * 86_400.0
MOMENT = timedelta(microseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HORIZON = datetime(2200, 1, 1, tzinfo=UTC)
"""No cron trigger fires later: a search for one that never fires ends here."""

_NUMBERS = r"\*(/[0-9]+)?|[0-9]+(-[0-9]+)?(/[0-9]+)?"
_ITEMS = {
    "month": rf"{_NUMBERS}|[a-z]{{3}}(-[a-z]{{3}})?",
    "day": rf"{_NUMBERS}|last|(1st|2nd|3rd|4th|5th|last) +[a-z]{{3}}",
}
"""The whole of an item in a field's list: the library ignores what follows a name it knows."""


class Calendar(Protocol):
    """What is used of APScheduler's trigger classes."""

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        """The first time at or after `now`."""


@dataclass(frozen=True, slots=True)
class DateTicks:
    """One moment."""

    moment: datetime

    def next_after(self, moment: datetime) -> datetime | None:
        """The first tick later than `moment`, in UTC; None when it never fires again."""
        return self.moment if self.moment > moment else None


@dataclass(frozen=True, slots=True)
class WallTicks:
    """Wall times of a zone: those that match cron's fields, or come every given length of time.

    Elapsed time, which no clock change touches, is wall time in UTC.

    The library searches a calendar without clock changes, which are then put in here: its own
    search through a zone loses days on which the clock changes. `every_hour` is true where the
    hour is left open: it is `*`, or unnamed and more significant than a named field.
    """

    zone: ZoneInfo
    calendar: Calendar
    every_hour: bool

    def next_after(self, moment: datetime) -> datetime | None:
        """See `DateTicks.next_after`."""
        local = moment.astimezone(self.zone)
        ahead = self._first(local.replace(tzinfo=None), moment, local.fold)
        second_pass = second_pass_of(local, self.zone) if self.every_hour else None
        if second_pass is None:
            return ahead
        wall = second_pass.astimezone(self.zone).replace(tzinfo=None)
        again = self._first(wall - MOMENT, second_pass - MOMENT, 1)
        return min((found for found in (ahead, again) if found), default=None)

    def _first(self, wall: datetime, moment: datetime, fold: int) -> datetime | None:
        """The first tick later than `moment` whose wall time is later than `wall`."""
        while True:
            found = self.calendar.get_next_fire_time(None, wall.replace(tzinfo=UTC) + MOMENT)
            if found is None:
                return None
            wall = found.replace(tzinfo=None)
            tick = moment_of(wall, self.zone, fold if self.every_hour else 0)
            if tick > moment:
                return tick


Trigger: TypeAlias = DateTicks | WallTicks
"""The ticks of a schedule."""


def parse_trigger(config: Any) -> JsonObject:
    """The trigger as it is stored: complete, with its zone named, checked to be one.

    An interval that names no `start_time` gets that of its creation (see `Store.add_schedule`).

    Args:
        config: `{"type": "interval" | "cron" | "date", …}` as a client sent it.

    Raises:
        ValueError: Not a trigger; says which field and why.
    """
    if not isinstance(config, Mapping):
        raise ValueError("a trigger is an object with a 'type'")
    kind = str(config.get("type", "")).lower()
    if kind not in _READERS:
        raise ValueError(f"Unsupported trigger type: '{kind}'. Use 'date', 'interval', or 'cron'.")
    unknown = sorted(set(config) - KEYS[kind] - {"type"})
    if unknown:
        raise ValueError(f"{kind} takes no {', '.join(map(repr, unknown))}")
    stored = {"type": kind, **_READERS[kind]({k: v for k, v in config.items() if v is not None})}
    make_trigger(stored)
    return stored


def make_trigger(stored: Mapping[str, Any]) -> Trigger:
    """The trigger of a stored config (see `parse_trigger`)."""
    return cached_trigger(orjson.dumps(stored, option=orjson.OPT_SORT_KEYS))


def describe_trigger(stored: Mapping[str, Any]) -> str:
    """One line for people, such as `cron[hour='2', minute='0'] Europe/Berlin`."""
    if stored["type"] == "date":
        return f"date[{stored['run_date']}]"
    if stored["type"] == "interval":
        wall = f" wall {stored['timezone']}" if stored.get("wall") else ""
        return f"interval[{interval_length(stored)}]{wall}"
    named = [name for name in CRON_FIELDS if name in stored]
    shown = [name for name in named if stored[name] != "*" or name == named[-1]]
    fields = ", ".join(f"{name}='{stored[name]}'" for name in shown)
    either = "; day or weekday" if stored.get("day_or_weekday") else ""
    return f"cron[{fields}{either}] {stored['timezone']}"


def parse_moment(value: Any, field: str, zone: str | None = None) -> datetime:
    """A moment: ISO 8601 (without offset: in `zone`, else the machine's) or Unix seconds.

    Raises:
        ValueError: Neither.
    """
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            moment = from_iso(value)
            return (moment if moment.tzinfo else moment.replace(tzinfo=find_zone(zone))).astimezone(
                UTC
            )
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"'{field}': {error}") from None
    raise ValueError(f"'{field}' must be ISO string or Unix timestamp, got {type(value).__name__}")


def from_iso(text: str) -> datetime:
    """The moment of an ISO 8601 text."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not ISO 8601, such as 2026-03-29T02:30") from None


def read_interval(config: JsonObject) -> JsonObject:
    """An interval's stored form."""
    stored: JsonObject = {
        unit: read_number(config[unit], unit) for unit in INTERVAL_UNITS if unit in config
    }
    seconds = interval_length(stored).total_seconds()
    if not MIN_INTERVAL_S <= seconds <= MAX_INTERVAL_S:
        raise ValueError(f"the interval must be {MIN_INTERVAL_S} s or more, and under a century")
    zone = find_zone(config.get("timezone")).key
    if read_flag(config, "wall"):
        if seconds % 86_400:
            raise ValueError("'wall' takes whole days or weeks")
        stored |= {"wall": True, "timezone": zone}
    return stored | read_bounds(config, zone)


def read_cron(config: JsonObject) -> JsonObject:
    """A cron trigger's stored form."""
    named = [name for name in CRON_FIELDS if name in config]
    if not named:
        raise ValueError(f"cron needs at least one of {', '.join(CRON_FIELDS)}")
    stored: JsonObject = {name: cron_field(name, str(config[name])) for name in named}
    both = all(not str(config.get(name, "*")).strip().startswith("*") for name in _DAYS)
    if read_flag(config, "day_or_weekday") and both:
        stored["day_or_weekday"] = True
    stored["timezone"] = find_zone(config.get("timezone")).key
    return stored | read_bounds(config, stored["timezone"])


def read_date(config: JsonObject) -> JsonObject:
    """A date trigger's stored form."""
    value = config.get("run_date", config.get("run_time"))
    if value is None:
        raise ValueError("'run_date' is required for date trigger")
    return {"run_date": parse_moment(value, "run_date", config.get("timezone")).isoformat()}


_DAYS = ("day", "day_of_week")
_READERS = {"interval": read_interval, "cron": read_cron, "date": read_date}


def read_bounds(config: Mapping[str, Any], zone: str | None) -> dict[str, str]:
    """The trigger's own start and end, where it names them, by either library's spelling."""
    bounds = {}
    for bound in ("start", "end"):
        value = config.get(f"{bound}_time", config.get(f"{bound}_date"))
        if value is not None:
            bounds[f"{bound}_time"] = parse_moment(value, f"{bound}_time", zone).isoformat()
    return bounds


@lru_cache(maxsize=20_000)
def cached_trigger(stored: bytes) -> Trigger:
    """The trigger of a stored config, made once."""
    config = orjson.loads(stored)
    if config["type"] == "date":
        return DateTicks(datetime.fromisoformat(config["run_date"]))
    start = config.get("start_time")
    moment = datetime.fromisoformat(start) if start else None
    if config["type"] == "interval":
        length = {unit: config.get(unit, 0) for unit in INTERVAL_UNITS}
        zone = find_zone(config["timezone"] if config.get("wall") else "UTC")
        begin = (moment or EPOCH).astimezone(zone).replace(tzinfo=UTC)
        steps = IntervalTrigger(**length, start_date=begin, timezone=UTC)
        return WallTicks(zone, steps, every_hour=False)
    zone = find_zone(config["timezone"])
    fields = {name: config[name] for name in CRON_FIELDS if name in config}
    wall_start = moment.astimezone(zone).replace(tzinfo=UTC) if moment else None
    bounds = {"start_date": wall_start, "end_date": HORIZON, "timezone": UTC}
    calendar: Calendar = CronTrigger(**fields, **bounds)
    if config.get("day_or_weekday"):
        days, weekdays = (CronTrigger(**fields | {name: "*"}, **bounds) for name in _DAYS[::-1])
        calendar = OrTrigger([days, weekdays])
    hour = fields.get("hour", "*" if {"minute", "second"} & fields.keys() else "0")
    return WallTicks(zone, calendar, every_hour=hour == "*")


def moment_of(wall: datetime, zone: ZoneInfo, fold: int) -> datetime:
    """The moment of a wall time; of one that the clock skips, when it springs forward."""
    before, after = (wall.replace(tzinfo=zone, fold=pass_).utcoffset() for pass_ in (0, 1))
    if before is None or after is None or before >= after:
        return wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)
    return clock_change(
        (wall - after).replace(tzinfo=UTC), (wall - before).replace(tzinfo=UTC), zone
    )


def second_pass_of(local: datetime, zone: ZoneInfo) -> datetime | None:
    """When the hour that comes twice begins again, at a local time of its first pass."""
    first, second = (local.replace(fold=pass_).utcoffset() for pass_ in (0, 1))
    if local.fold or first is None or second is None or first <= second:
        return None
    moment = local.astimezone(UTC)
    return clock_change(moment, moment + (first - second), zone)


def clock_change(low: datetime, high: datetime, zone: ZoneInfo) -> datetime:
    """The second at which a zone's clock changes, between two moments of which it lies."""
    offset = low.astimezone(zone).utcoffset()
    low, high = low.replace(microsecond=0), high.replace(microsecond=0)
    while high - low > timedelta(seconds=1):
        middle = (low + (high - low) / 2).replace(microsecond=0)
        if middle.astimezone(zone).utcoffset() == offset:
            low = middle
        else:
            high = middle
    return high


def cron_field(name: str, text: str) -> str:
    """A field as it is stored: an item of its list is one of those of `_ITEMS`; weekdays by name.

    Weekday numbers are cron's (0 and 7: Sunday, so is the first of `*/2`); ranges of weekdays may
    go over the week's end.
    """
    items = [item.strip() for item in text.lower().split(",")]
    if name == "day_of_week":
        return ",".join(day for item in items for day in weekday_names(item))
    for item in items:
        if not re.fullmatch(_ITEMS.get(name, _NUMBERS), item):
            raise ValueError(f"'{name}' cannot be {item!r}")
    return ",".join(items)


def find_zone(name: Any) -> ZoneInfo:
    """The zone of that name; without one, the machine's own.

    Raises:
        ValueError: No such zone.
    """
    try:
        return ZoneInfo(str(name or get_localzone_name() or "UTC"))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"no time zone is called {name!r}") from None


def read_flag(config: Mapping[str, Any], name: str) -> bool:
    """A flag, false when absent."""
    value = config.get(name, False)
    if not isinstance(value, bool):
        raise ValueError(f"'{name}' must be true or false")
    return value


def read_number(value: Any, unit: str) -> float:
    """A number, also one written as text (ScheduleZero takes both)."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"'{unit}' must be a number") from None
    if not 0 <= number <= MAX_INTERVAL_S:
        raise ValueError(f"'{unit}' must be a number, 0 or more")
    return number


def interval_length(config: Mapping[str, Any]) -> timedelta:
    """The length of an interval."""
    try:
        return timedelta(**{unit: config[unit] for unit in INTERVAL_UNITS if unit in config})
    except OverflowError:
        raise ValueError("the interval is too long") from None

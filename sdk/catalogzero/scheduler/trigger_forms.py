"""How a trigger is written: its types, their keys, a crontab line, and what it says in words.

Pure and without APScheduler, so that clients, pages and the API's document read the same forms;
`triggers` checks the values and finds the ticks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

INTERVAL_UNITS = ("weeks", "days", "hours", "minutes", "seconds")
CRON_FIELDS = ("year", "month", "day", "week", "day_of_week", "hour", "minute", "second")
CRONTAB_FIELDS = ("minute", "hour", "day", "month", "day_of_week")
"""The fields of a line of crontab(5), in its order."""

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")
MAX_LISTED = 6
"""Of times of a day in words; more are shown as the fields they are written as."""

_WEEKDAY_NAMES = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_BEGINNINGS = {"month": "1", "day": "1", "hour": "0", "minute": "0", "second": "0"}
_BOUNDS = ("start_time", "start_date", "end_time", "end_date", "timezone")
KEYS: Mapping[str, frozenset[str]] = {
    "interval": frozenset({*INTERVAL_UNITS, *_BOUNDS, "wall"}),
    "cron": frozenset({*CRON_FIELDS, *_BOUNDS, "day_or_weekday"}),
    "date": frozenset({"run_date", "run_time", "timezone"}),
}
"""The types of triggers, and the keys that each takes beside `type`."""


def of_crontab(line: str) -> dict[str, object]:
    """The trigger of a crontab line, in which day and weekday are alternatives.

    Raises:
        ValueError: It has not five fields.
    """
    texts = line.split()
    if len(texts) != len(CRONTAB_FIELDS):
        raise ValueError(f"takes five fields: {' '.join(CRONTAB_FIELDS)}")
    fields = dict(zip(CRONTAB_FIELDS, texts, strict=True))
    either = not any(fields[name].startswith("*") for name in ("day", "day_of_week"))
    return {"type": "cron", **fields, **({"day_or_weekday": True} if either else {})}


def weekday_names(item: str) -> list[str]:
    """The names that one item of a `day_of_week` list stands for."""
    if item == "*":
        return [item]
    every = re.fullmatch(r"\*(/[1-6])", item)
    span = f"0-6{every[1]}" if every else item
    match = re.fullmatch(r"([0-7]|[a-z]{3})(?:-([0-7]|[a-z]{3}))?(?:/([1-6]))?", span)
    if not match:
        raise ValueError(f"'day_of_week' cannot be {item!r}")
    first, last, step = match.groups()
    begin = weekday_number(first)
    end = begin if last is None else weekday_number(last)
    if last is None and step:
        end = 6
    if last == "7" or end < begin:
        end += 7
    days = range(begin, min(end, begin + 6) + 1, int(step or 1))
    return [WEEKDAYS[day % 7] for day in days]


def weekday_number(name: str) -> int:
    """0 for Sunday to 6 for Saturday."""
    if name.isdigit():
        return int(name) % 7
    if name not in WEEKDAYS:
        raise ValueError(f"'{name}' is no weekday")
    return WEEKDAYS.index(name)


def trigger_words(trigger: Mapping[str, object], timezone: str | None = None) -> str:
    """When a trigger fires, for people: `every day at 02:00 Europe/Berlin`.

    Args:
        trigger: As a request, a manifest or a stored schedule has it.
        timezone: Its zone, shown where the hour on a clock matters; by default the trigger's own.
    """
    zone = timezone or str(trigger.get("timezone") or "")
    match trigger.get("type"):
        case "interval":
            length = [
                (unit, float(str(trigger[unit]))) for unit in INTERVAL_UNITS if unit in trigger
            ]
            said = " ".join(_counted(count, unit) for unit, count in length if count)
            words = f"every {said.removeprefix('1 ') if len(length) == 1 else said}"
            parts = [words, f"by the clock of {zone}"] if trigger.get("wall") else [words]
        case "date":
            return f"once, {_moment(trigger.get('run_date', trigger.get('run_time')), zone)}"
        case "cron":
            parts = [_cron_words(trigger), zone]
            if begins := trigger.get("start_time", trigger.get("start_date")):
                parts.append(f"from {_moment(begins, zone)}")
        case kind:
            return str(kind)
    if ends := trigger.get("end_time", trigger.get("end_date")):
        parts.append(f"until {_moment(ends, zone)}")
    return " ".join(filter(None, parts))


def _counted(count: float, unit: str) -> str:
    """`30 minutes`, `1 hour`."""
    return f"{count:g} {unit.removesuffix('s') if count == 1 else unit}"


def _moment(value: object, zone: str) -> str:
    """A moment by the clock of a zone: `2026-03-29 02:30 Europe/Berlin`."""
    try:
        if isinstance(value, int | float):
            moment = datetime.fromtimestamp(value, UTC)
        else:
            moment = datetime.fromisoformat(str(value))
        if moment.tzinfo is not None:
            moment = moment.astimezone(ZoneInfo(zone or "UTC"))
    except (ValueError, OverflowError, OSError):  # an unknown zone, too
        return f"{value} {zone}".strip()
    shown = moment.replace(tzinfo=None).isoformat(" ", "minutes")
    return f"{shown} {zone or ('UTC' if moment.tzinfo else '')}".strip()


def _cron_words(trigger: Mapping[str, object]) -> str:
    """Days and times in words; the fields by name where no common form fits."""
    named = [name for name in CRON_FIELDS if name in trigger]
    # As the calendar reads them: what is more significant than a named field is open, what is
    # less significant is at its beginning.
    least = CRON_FIELDS.index(named[-1]) if named else 0
    fields = {
        name: str(trigger[name]).replace(" ", "" if name != "day" else " ").lower()
        if name in trigger
        else ("*" if index < least else _BEGINNINGS.get(name, "*"))
        for index, name in enumerate(CRON_FIELDS)
    }
    days = _day_words(fields, either=bool(trigger.get("day_or_weekday")))
    times = _time_words(fields["hour"], fields["minute"], fields["second"])
    if days is None or times is None or fields["year"] != "*" or fields["week"] != "*":
        shown = (name for name in named if fields[name] != "*" or name == named[-1])
        either = " (day or weekday)" if trigger.get("day_or_weekday") else ""
        return "when " + ", ".join(f"{n.replace('_', ' ')} is {fields[n]}" for n in shown) + either
    if not days and times.startswith("at "):
        return f"every day {times}"
    return f"{days} {times}" if times.startswith("at ") else f"{times} {days}".strip()


def _time_words(hour: str, minute: str, second: str) -> str | None:
    """`at 02:00`, `every 15 minutes`, `every hour at :15`; None where no such form fits."""
    every = {"minute": _step(minute, 60), "hour": _step(hour, 24), "second": _step(second, 60)}
    if hour == minute == "*" and every["second"]:
        return f"every {_counted(every['second'], 'seconds').removeprefix('1 ')}"
    hours, minutes = _numbers(hour), _numbers(minute)
    if second != "0":
        return None
    within = re.fullmatch(r"([0-9]+)-([0-9]+)", hour)
    if every["minute"] and (hour == "*" or within):
        said = f"every {_counted(every['minute'], 'minutes').removeprefix('1 ')}"
        return f"{said} from {int(within[1]):02}:00 to {int(within[2]):02}:59" if within else said
    if not minutes:
        return None
    past = _listed(f":{one:02}" for one in minutes)
    if every["hour"]:
        return f"every {_counted(every['hour'], 'hours').removeprefix('1 ')} at {past}"
    if within and len(minutes) == 1:
        first, last = (f"{int(one):02}:{minutes[0]:02}" for one in within.groups())
        return f"every hour from {first} to {last}"
    if not hours or len(hours) * len(minutes) > MAX_LISTED:
        return None
    return "at " + _listed(f"{h:02}:{m:02}" for h in hours for m in minutes)


def _day_words(fields: Mapping[str, str], *, either: bool) -> str | None:
    """`Mon - Fri`, `day 1`; empty for every day, None where no such form fits."""
    try:
        weekdays = [day for part in fields["day_of_week"].split(",") for day in weekday_names(part)]
    except ValueError:
        return None
    week = "" if weekdays == ["*"] else _weekday_words(weekdays)
    day, numbers = fields["day"], _numbers(fields["day"])
    if day == "*":
        month_day = ""
    elif numbers:
        month_day = f"{'days' if len(numbers) > 1 else 'day'} {_listed(map(str, numbers))}"
    elif re.fullmatch(r"last|[a-z0-9]+ +[a-z]{3}", day):
        month_day = "the last day" if day == "last" else f"the {' '.join(day.split())}"
    else:
        return None
    if month_day and fields["month"] == "*":
        month_day += " of the month"
    said = (" or " if either else ", of these only ").join(filter(None, (month_day, week)))
    if fields["month"] == "*":
        return said
    months = [_MONTHS.index(m) + 1 if m in _MONTHS else m for m in fields["month"].split(",")]
    if not all(str(m).isdigit() and 1 <= int(m) <= 12 for m in months):
        return None
    names = _listed(_MONTHS[int(m) - 1].title() for m in months)
    return f"{said or 'every day'} in {names}"


def _weekday_words(days: Sequence[str]) -> str:
    """`Sundays`, `Mon - Fri`, `Tue and Thu`."""
    numbers = sorted({WEEKDAYS.index(day) or 7 for day in days})
    if len(numbers) == 1:
        return f"{_WEEKDAY_NAMES[numbers[0] - 1]}s"
    short = [_WEEKDAY_NAMES[number - 1][:3] for number in numbers]
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{short[0]} - {short[-1]}"
    return _listed(short)


def _step(text: str, whole: int) -> int:
    """The n of `*/n` that divides the whole, 1 of `*`; else 0: it is no even step."""
    match = re.fullmatch(r"\*(?:/([0-9]+))?", text)
    step = int(match[1] or 1) if match else 0
    return step if step and whole % step == 0 else 0


def _numbers(text: str) -> list[int]:
    """The numbers of a list of these alone; else none."""
    parts = text.split(",")
    return [int(part) for part in parts] if all(part.isdigit() for part in parts) else []


def _listed(words: Iterable[str]) -> str:
    """`a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last

"""How a trigger is written: its types, their keys, a crontab line, and what it says in words.

Pure and without APScheduler, so that clients, pages and the API's document read the same forms;
`triggers` checks the values and finds the ticks.
"""

from __future__ import annotations

from collections.abc import Mapping

INTERVAL_UNITS = ("weeks", "days", "hours", "minutes", "seconds")
CRON_FIELDS = ("year", "month", "day", "week", "day_of_week", "hour", "minute", "second")
CRONTAB_FIELDS = ("minute", "hour", "day", "month", "day_of_week")
"""The fields of a line of crontab(5), in its order."""

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


def in_words(trigger: Mapping[str, object]) -> str:
    """When a trigger fires, for people: `every 15 minutes`."""
    fields = {name: value for name, value in trigger.items() if name != "type"}
    if trigger.get("type") == "interval":
        return f"every {', '.join(f'{value} {name}' for name, value in fields.items())}"
    prefix = {"cron": "by cron: ", "date": "once: "}.get(str(trigger.get("type")), "")
    return prefix + ", ".join(f"{name} {value}" for name, value in fields.items())

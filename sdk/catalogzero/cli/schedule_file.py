"""Schedules as a file: what `catalogzero schedule export` writes and `apply` reads."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalogzero.config.registry import Lines, read_yaml
from catalogzero.errors import ConfigError, FailedError
from catalogzero.wire.messages import JsonObject, encode_json

NEEDED = ("job_id", "handler_id", "job_method", "trigger")
DEFAULTS: JsonObject = {
    "job_params": {},
    "overlap": "skip",
    "misfire_grace_s": None,
    "max_attempts": 3,
    "timeout_s": None,
    "jitter_s": 0.0,
    "max_runs": None,
    "end_time": None,
    "partition": False,
    "paused": False,
}
"""What a schedule may have, with what it has where the file says nothing."""


@dataclass(frozen=True)
class Entry:
    """A schedule of the file: its name, the body of its request, and where it stands."""

    job_id: str
    body: JsonObject
    where: str


def read_schedules(path: Path) -> list[Entry]:
    """The schedules of a file.

    Raises:
        ConfigError: It cannot be read, or is wrong; every fault with its line.
    """
    document, lines, faults = read_yaml(path, option="-f")
    listed = document.get("schedules") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ConfigError(f"{path}:1: a mapping with a list `schedules:` is expected")
    faults += [
        f"{path}:{lines[(str(key),)]}: unknown key `{key}`; known: schedules"
        for key in document
        if key != "schedules"
    ]
    seen: dict[str, int] = {}
    for number, item in enumerate(listed):
        faults += faults_of_entry(path, lines, number, item, seen)
    if faults:
        raise ConfigError("\n".join(faults))
    starts = [f"{path}:{lines[('schedules', number)]}" for number in range(len(listed))]
    return [
        Entry(item["job_id"], item, f"{start}: schedule '{item['job_id']}'")
        for start, item in zip(starts, listed, strict=True)
    ]


def exported(one: Mapping[str, Any]) -> JsonObject:
    """A schedule of an API's list as the file has it, without what is so by default.

    Raises:
        FailedError: The API does not show what its trigger is.
    """
    trigger = dict(one.get("trigger_config") or {})
    if not trigger:
        why = one.get("error") or "this server does not show its triggers in full"
        raise FailedError(f"schedule '{one['id']}' cannot be exported: {why}")
    if trigger.get("start_time") == one["created_at"]:
        # Made up by the server: in the file it would make an unchanged schedule look changed.
        del trigger["start_time"]
    fields = {
        "job_id": one["id"],
        "handler_id": one["handler_id"],
        "job_method": one["method_name"],
        "job_params": one["params"],
        "trigger": trigger,
    }
    # A scheduler of an earlier release knows fewer of them.
    more = {name: one[name] for name in DEFAULTS if name != "job_params" and name in one}
    return fields | {name: value for name, value in more.items() if value != DEFAULTS[name]}


def faults_of_entry(
    path: Path, lines: Lines, number: int, item: Any, seen: dict[str, int]
) -> Iterator[str]:
    """What is wrong with one entry, as far as the file alone can show."""
    at = ("schedules", number)
    place = f"{path}:{lines[at]}"
    if not isinstance(item, dict):
        yield f"{place}: a schedule is a mapping"
        return
    name = item.get("job_id")
    title = f"schedule '{name}'" if name else f"schedule {number + 1}"
    for key in NEEDED:
        if item.get(key) in (None, ""):
            yield f"{place}: {title}: `{key}` is missing"
    known = (*NEEDED, *DEFAULTS)
    for key in item:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(known)}"
            yield f"{path}:{lines[(*at, str(key))]}: {title}: unknown key `{key}`; {hint}"
    try:
        encode_json(item)
    except TypeError as error:
        yield f"{place}: {title}: {error}"
    if isinstance(name, str) and lines[at] != seen.setdefault(name, lines[at]):
        yield f"{place}: {title} stands in line {seen[name]} already"
    elif name and not isinstance(name, str):
        yield f"{place}: {title}: `job_id` is a text: put it in quotes"

"""The same requests for a ScheduleZero server and for ours, and what of the answers is compared.

`python -m tests.system.side_by_side HTTP_URL` asks a real server, at which `plain_site` is
registered as `site`, and prints its answers, as `schedulezero_answers.json` keeps them.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from tests.scheduler.toys import until

Record = dict[str, Any]

ABSENT = object()
HOURLY = {"type": "interval", "hours": 1}
NIGHTLY = {"type": "cron", "hour": 2}
MAX_TEXT = 100
MEASURED = (
    *("duration_ms", "avg_duration_ms", "success_rate", "lifetime_executions"),
    *("buffer_size", "buffer_utilization"),
)
STATUS = r"status|body\.\w+(\.\w+)?"
BOTH = ("schedule", "run_now")
NO_OBJECT = (
    *("no body", "not JSON", "null", "an empty object", "an empty list", "not UTF-8", "a list"),
    *("a text", "as text/plain", "as application/x-www-form-urlencoded"),
)


@dataclass(frozen=True)
class Difference:
    """A documented one: where in an answer it shows, and in which cases."""

    where: str
    cases: tuple[str, ...]


DIFFERENCES = {
    "absent fields": Difference(STATUS, (
        *(f"{path}: {what}" for path in BOTH for what in
          ("no job_params", "null handler_id", "null method", "null params")),
    )),
    "spellings": Difference(STATUS, tuple(f"{path}: the documents' spelling" for path in BOTH)),
    "names": Difference(STATUS, (
        *(f"{path}: {what}" for path in BOTH for what in
          ("empty handler_id", "number as handler_id", "list as handler_id")),
        *(f"{path}: {what}" for path in BOTH for what in ("empty method", "number as method")),
        *(f"job_id: {what}" for what in
          ("a number", "true", "a list", "of two lines", "of 2,000 characters")),
    )),
    "bodies": Difference(STATUS, (
        *(f"schedule: body {what}" for what in NO_OBJECT),
        *(f"run_now: body {what}" for what in ("a list", "a text")),
    )),
    "invalid triggers": Difference(STATUS, tuple(f"trigger: {what}" for what in (
        "a text", "a list", "a number", "null type", "number as type",
        "interval without units", "interval of 0", "negative interval", "interval of no number",
        "interval of null", "interval with an unknown unit", "interval that ended",
        "interval with a bad start_time", "cron on weekday 8", "cron of words",
        "cron of a list of numbers", "cron with an unknown field", "cron in no zone",
        "date of words", "date of a list", "date far away",
    ))),
    "refused triggers": Difference(STATUS, tuple(f"trigger: {what}" for what in (
        "cron without fields", "cron of MON#1", "cron that never fires", "date of true",
    ))),
    "taken names": Difference(STATUS, (
        "job_id: the same for other params", "job_id: the same for another trigger",
    )),
    "unknown schedules": Difference(STATUS, (
        "schedules: removed again", "schedules: an unknown one removed",
    )),
    "trigger texts": Difference(r"body\.schedules\.\d+\.trigger", (
        "schedules: listed", "schedules: with an unknown query",
        "schedules: none is left of those removed",
    )),
    "changed schedules": Difference(STATUS, ("schedules: one put",)),
    "not a number": Difference(r"body\.(records\.\d+\.)?result\.(mean|most)", (
        "run: not_a_number", "executions: all", "executions: many",
    )),
    "cut results": Difference(r"body\.records\.\d+\.result\.(truncated|bytes|begins|rows)", (
        "executions: all", "executions: many",
    )),
    "filters": Difference(r"body\.(count|records)", (
        "executions: of a few of a status", "executions: of a handler and a job",
        "executions: of a method",
    )),
    "limits": Difference(STATUS, (
        *(f"executions: {what}" for what in
          ("limit 0", "limit -1", "limit of words", "empty limit", "limit 1.5", "two limits")),
        *(f"executions/errors: {what}" for what in ("limit 0", "limit of words")),
        "schedules: with a limit of words",
    )),
    "clearing": Difference(STATUS, (
        "executions/clear: before the runs", "executions/clear: posted to",
    )),
    "really asked": Difference(r"body\.handlers\.\d+\.status", ("handlers: listed",)),
    "paths": Difference(r"status|body(\.error\.\w+)?", (
        "schedules: removed without a name", "executions/clear: got", "executions/other: unknown",
        "health: asked for its head", "health: with a slash", "readme: read", "unknown: got",
        "unknown: posted to",
    )),
    "configuration": Difference(r"body\.(instance_name|description|version)", ("config: read",)),
    "origins": Difference(r"status|body", (
        "options: of a schedule", "options: from another origin",
    )),
    "portal": Difference(STATUS, ("portal: read",)),
}  # fmt: skip
"""The differences that `docs/reference/scheduler-api.md` explains."""


AT_ONCE = (
    *("type in capitals", "interval of hours", "interval of all units", "interval as text"),
    *("interval of half a minute", "interval with end_time", "date in the past", "date of true"),
)
"""Triggers that fire when they are made: each is waited for.

Two calls at once of one handler end a real server: they share a socket.
"""


@dataclass(frozen=True)
class Case:
    """One request."""

    name: str
    verb: str
    path: str
    body: Any = ABSENT
    raw: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    fires: bool = False


def posts(path: str, **fields: Any) -> Record:
    """The body of a call of `add`, with other fields; ABSENT leaves one out."""
    body = {
        "handler_id": "site",
        "job_method": "add",
        "job_params": {"left": 2, "right": 40},
        **({"trigger": NIGHTLY} if path == "schedule" else {}),
        **fields,
    }
    return {name: value for name, value in body.items() if value is not ABSENT}


def bodies(path: str) -> Iterator[Case]:
    """What both POSTs take and refuse."""
    place = f"/api/{path}"
    ours = ABSENT if path == "run_now" else f"{path}-{{}}"

    def case(name: str, **fields: Any) -> Case:
        if ours is not ABSENT:
            fields = {"job_id": f"call {name}", **fields}
        return Case(f"{path}: {name}", "POST", place, posts(path, **fields))

    yield case("good")
    yield case("no handler_id", handler_id=ABSENT)
    yield case("no job_method", job_method=ABSENT)
    yield case("no job_params", job_params=ABSENT)
    yield case("nothing but one unknown field", handler_id=ABSENT, job_method=ABSENT, x=1)
    yield case("an unknown field", mood="good")
    yield case("unknown handler", handler_id="nobody")
    yield case("empty handler_id", handler_id="")
    yield case("null handler_id", handler_id=None)
    yield case("number as handler_id", handler_id=7)
    yield case("list as handler_id", handler_id=["site"])
    yield case("unknown method", job_method="dig")
    yield case("private method", job_method="__init__")
    yield case("method of the base", job_method="run")
    yield case("empty method", job_method="")
    yield case("null method", job_method=None)
    yield case("number as method", job_method=7)
    yield case("list as params", job_params=[1])
    yield case("text as params", job_params="x")
    yield case("null params", job_params=None)
    yield case("number as params", job_params=3)
    yield case("empty params", job_method="echo", job_params={})
    yield case("params of every kind", job_method="echo", job_params={
        "a": None, "b": [1, {"c": "größer"}], "d": 1.5, "e": True, "f": 2**70,
    })  # fmt: skip
    yield case("many params", job_method="echo", job_params={f"p{n}": "x" * 60 for n in range(7)})
    yield case("the documents' spelling", job_method=ABSENT, method_name="add")
    for name, raw in (
        ("no body", b""),
        ("not JSON", b"{"),
        ("null", b"null"),
        ("an empty object", b"{}"),
        ("an empty list", b"[]"),
        ("not UTF-8", b'{"a": "\xff"}'),
    ):
        yield Case(f"{path}: body {name}", "POST", place, raw=raw)
    yield Case(f"{path}: body a list", "POST", place, raw=b"[1]")
    yield Case(f"{path}: body a text", "POST", place, raw=b'"text"')
    text = json.dumps(posts(path)).encode()
    forms = ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8")
    for form in forms:
        declared = {"Content-Type": form}
        yield Case(f"{path}: body as {form}", "POST", place, raw=text, headers=declared)


def triggers() -> Iterator[Case]:
    """Triggers, good and bad."""

    def case(name: str, trigger: Any) -> Case:
        body = posts("schedule", trigger=trigger, job_id=f"trigger {name}")
        return Case(f"trigger: {name}", "POST", "/api/schedule", body, fires=name in AT_ONCE)

    def every(**fields: Any) -> Record:
        return {"type": "interval", **fields}

    def cron(**fields: Any) -> Record:
        return {"type": "cron", **fields}

    def once(**fields: Any) -> Record:
        return {"type": "date", **fields}

    yield case("absent", ABSENT)
    yield case("null", None)
    yield case("empty", {})
    yield case("a text", "hourly")
    yield case("a list", [1])
    yield case("a number", 5)
    yield case("no type", {"hours": 1})
    yield case("null type", {"type": None})
    yield case("number as type", {"type": 7})
    yield case("unknown type", {"type": "weekly"})
    yield case("type in capitals", {"type": "INTERVAL", "hours": 1})
    yield case("interval of hours", every(hours=1))
    yield case("interval of all units", every(weeks=1, days=2, hours=3, minutes=4, seconds=5))
    yield case("interval as text", every(seconds="3600"))
    yield case("interval of half a minute", every(minutes=0.5, hours=1))
    yield case("interval without units", every())
    yield case("interval of 0", every(seconds=0))
    yield case("negative interval", every(hours=-1))
    yield case("interval of no number", every(hours="many"))
    yield case("interval of null", every(hours=None))
    yield case("interval with an unknown unit", every(years=1))
    yield case("interval with start_time", every(hours=1, start_time="2030-01-01T00:00:00+00:00"))
    yield case("interval with end_time", every(hours=1, end_time="2030-01-01T00:00:00+00:00"))
    yield case("interval that ended", every(hours=1, end_time="2001-01-01T00:00:00+00:00"))
    yield case("interval with a bad start_time", every(hours=1, start_time="soon"))
    yield case("cron without fields", cron())
    yield case("cron at an hour", cron(hour=2))
    yield case("cron as texts", cron(hour="2", minute="30"))
    yield case("cron of steps", cron(minute="*/15"))
    yield case("cron of a list and a range", cron(hour="1,3-5", day_of_week="mon-fri"))
    yield case("cron on a weekday's number", cron(hour=2, day_of_week=0))
    yield case("cron on weekday 7", cron(hour=2, day_of_week=7))
    yield case("cron on weekday 8", cron(hour=2, day_of_week=8))
    yield case("cron on the last day", cron(hour=2, day="last"))
    yield case("cron on the first Monday", cron(hour=2, day="1st mon"))
    yield case("cron in a month by name", cron(month="jan", day=1))
    yield case("cron at 24", cron(hour=24))
    yield case("cron of words", cron(hour="often"))
    yield case("cron of MON#1", cron(hour=2, day_of_week="MON#1"))
    yield case("cron of a list of numbers", cron(hour=[1, 2]))
    yield case("cron with an unknown field", cron(hours=2))
    yield case("cron that never fires", cron(month=2, day=30))
    yield case("cron in a zone", cron(hour=2, timezone="Europe/Berlin"))
    yield case("cron in no zone", cron(hour=2, timezone="Europe/Atlantis"))
    yield case("date in ISO 8601", once(run_date="2040-01-01T00:00:00+00:00"))
    yield case("date with Z", once(run_date="2040-01-01T00:00:00Z"))
    yield case("date without time", once(run_date="2040-01-01"))
    yield case("date in Unix seconds", once(run_date=2208988800))
    yield case("date in the past", once(run_date="2001-01-01T00:00:00+00:00"))
    yield case("date without run_date", once())
    yield case("date of words", once(run_date="tomorrow"))
    yield case("date of a list", once(run_date=[1]))
    yield case("date of true", once(run_date=True))
    yield case("date far away", once(run_date=1e18))


def names() -> Iterator[Case]:
    """The schedule's own name."""

    def case(name: str, job_id: Any, **fields: Any) -> Case:
        body = posts("schedule", job_id=job_id, **fields)
        return Case(f"job_id: {name}", "POST", "/api/schedule", body)

    yield case("given", "nightly")
    yield case("the same again", "nightly")
    yield case("the same for other params", "nightly", job_params={"left": 1, "right": 1})
    yield case("the same for another trigger", "nightly", trigger=HOURLY)
    yield case("absent", ABSENT)
    yield case("null", None)
    yield case("empty", "")
    yield case("a number", 7)
    yield case("true", True)
    yield case("a list", ["a"])
    yield case("with a slash", "a/b")
    yield case("of other letters", "größer 日本")
    yield case("of 200 characters", "n" * 200)


def schedules() -> Iterator[Case]:
    """The list of schedules, and how they go."""
    place = "/api/schedules"
    yield Case("schedules: listed", "GET", place)
    yield Case("schedules: with an unknown query", "GET", f"{place}?mood=good")
    yield Case("schedules: with a limit of words", "GET", f"{place}?limit=many")
    yield Case("schedules: posted to", "POST", place, body={})
    yield Case("schedules: one removed", "DELETE", f"{place}/nightly")
    yield Case("schedules: removed again", "DELETE", f"{place}/nightly")
    yield Case("schedules: an unknown one removed", "DELETE", f"{place}/nothing")
    yield Case("schedules: removed by letters", "DELETE", f"{place}/{quote('größer 日本')}")
    yield Case("schedules: removed by an escaped slash", "DELETE", f"{place}/a%2Fb")
    yield Case("schedules: removed without a name", "DELETE", f"{place}/")
    yield Case("schedules: one got", "GET", f"{place}/nightly")
    yield Case("schedules: one put", "PUT", f"{place}/nightly", body={})
    yield Case("schedules: none is left of those removed", "GET", place)
    for name, job_id in (("two lines", "a\nb"), ("2,000 characters", "n" * 2_000)):
        body = posts("schedule", job_id=job_id)
        yield Case(f"job_id: of {name}", "POST", "/api/schedule", body)


def runs() -> Iterator[Case]:
    """Calls by the kind of their result; `job_id`s and times are made up by the server."""

    def case(method: str, **fields: Any) -> Case:
        fields = {"job_params": {}, **fields}
        body = posts("run_now", job_method=method, **fields)
        return Case(f"run: {method}", "POST", "/api/run_now", body)

    for method in ("words", "text", "nothing", "number", "long_integer", "not_a_number"):
        yield case(method)
    for method in ("order", "large", "ping", "refuse", "fail", "unwritable"):
        yield case(method)
    yield Case("run: with trigger and job_id beside", "POST", "/api/run_now",
               posts("run_now", trigger=NIGHTLY, job_id="mine"))  # fmt: skip


def executions() -> Iterator[Case]:
    """The log of what ran: that of `runs`, after it was emptied."""
    place = "/api/executions"

    def case(name: str, query: str, of: str = "") -> Case:
        return Case(f"executions{of}: {name}", "GET", f"{place}{of}{query}")

    yield case("all", "")
    yield case("a few", "?limit=2")
    yield case("many", "?limit=5000")
    yield case("limit 0", "?limit=0")
    yield case("limit -1", "?limit=-1")
    yield case("limit of words", "?limit=many")
    yield case("empty limit", "?limit=")
    yield case("limit 1.5", "?limit=1.5")
    yield case("two limits", "?limit=1&limit=2")
    yield case("of a handler", "?handler_id=site&limit=3")
    yield case("of an unknown handler", "?handler_id=nobody")
    yield case("of an empty handler", "?handler_id=&limit=1")
    yield case("of an unknown job", "?job_id=nothing")
    yield case("of a status", "?status=error")
    yield case("of a few of a status", "?status=error&limit=2")
    yield case("of an unknown status", "?status=great")
    yield case("of a handler and a status", "?handler_id=site&status=error")
    yield case("of a handler and a job", "?handler_id=site&job_id=nothing")
    yield case("of a method", "?method_name=large")
    yield case("with an unknown query", "?mood=good&limit=1")
    yield Case("executions: posted to", "POST", place, body={})
    yield case("all", "", of="/errors")
    yield case("a few", "?limit=1", of="/errors")
    yield case("many", "?limit=5000", of="/errors")
    yield case("limit 0", "?limit=0", of="/errors")
    yield case("limit of words", "?limit=many", of="/errors")
    yield case("read", "", of="/stats")
    yield Case("executions/clear: got", "GET", f"{place}/clear")
    yield Case("executions/clear: posted to", "POST", f"{place}/clear")
    yield Case("executions/clear: nothing is left", "GET", place)
    yield Case("executions/stats: of nothing", "GET", f"{place}/stats")
    yield Case("executions/other: unknown", "GET", f"{place}/other/thing")


def others() -> Iterator[Case]:
    """Everything else."""
    yield Case("handlers: listed", "GET", "/api/handlers")
    yield Case("handlers: posted to", "POST", "/api/handlers", body={})
    yield Case("health: read", "GET", "/api/health")
    yield Case("health: asked for its head", "HEAD", "/api/health")
    yield Case("health: with a slash", "GET", "/api/health/")
    yield Case("config: read", "GET", "/api/config")
    yield Case("schedule: got", "GET", "/api/schedule")
    yield Case("run_now: got", "GET", "/api/run_now")
    yield Case("run_now: put", "PUT", "/api/run_now", body=posts("run_now"))
    yield Case("options: of a schedule", "OPTIONS", "/api/schedule")
    origin = {"Origin": "https://portal.example", "Access-Control-Request-Method": "POST"}
    yield Case("options: from another origin", "OPTIONS", "/api/schedule", headers=origin)
    yield Case("portal: read", "GET", "/api/portal/config")
    yield Case("readme: read", "GET", "/api/readme")
    yield Case("unknown: got", "GET", "/api/nothing")
    yield Case("unknown: posted to", "POST", "/api/nothing", body={})


def all_cases() -> list[Case]:
    """The whole table, in its order: what a request leaves behind, a later one meets."""
    first = [*names(), *schedules(), *bodies("schedule"), *triggers(), *bodies("run_now")]
    emptied = Case("executions/clear: before the runs", "POST", "/api/executions/clear")
    return [*first, emptied, *runs(), *executions(), *others()]


async def ask_all(url: str) -> dict[str, Record]:
    """Every case's answer, normalised; schedules that are there are removed first."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as api:
        for one in (await api.get("/api/schedules")).json()["schedules"]:
            await api.delete(f"/api/schedules/{quote(one['id'], safe='')}")
        return {case.name: await _ask(api, case) for case in all_cases()}


async def _ask(api: httpx.AsyncClient, case: Case) -> Record:
    headers, content = {**case.headers}, case.raw
    if case.body is not ABSENT:
        content = json.dumps(case.body).encode()
    if content is not None:
        headers = {"Content-Type": "application/json", **headers}
    answer = await api.request(case.verb, case.path, content=content, headers=headers)
    if case.fires and answer.is_success:
        await _ran(api, case.body["job_id"])
    try:
        told = json.loads(answer.content)
    except ValueError:
        told = f"{len(answer.content) and 'no'} JSON" if answer.content else ""
    return {"status": answer.status_code, "body": normal(told)}


async def _ran(api: httpx.AsyncClient, job_id: str) -> None:
    """Wait until a schedule has run."""

    async def ended() -> bool:
        records = (await api.get("/api/executions", params={"job_id": job_id})).json()["records"]
        return any(one["completed_at"] for one in records)

    await until(ended)


def normal(value: Any, name: str = "") -> Any:
    """A value without what differs at each run: times, made up ids, durations, addresses."""
    if isinstance(value, dict):
        kept = {key: normal(item, key) for key, item in value.items() if key != "traceback"}
        return dict(sorted(kept.items()))
    if isinstance(value, list):
        items = [normal(item) for item in value]
        if name == "methods":
            return sorted(items)
        if name == "handlers":
            return [one for one in items if one["id"] == "site"]
        return sorted(items, key=lambda one: str(one["id"])) if name == "schedules" else items
    if name in MEASURED and value is not None:
        return f"<{name}>"
    if name == "address":
        return "<address>"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+([+-]\d\d:\d\d|Z)?", "<time>", value)
        text = re.sub(r"_\d{10}\.\d+", "_<time>", text)
        return text if len(text) <= MAX_TEXT else f"{text[:40]}… {len(text)} characters"
    return value


def differing(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where ours is another; it may have keys beside theirs, but for a result and an error."""
    place = f"{path}." if path else ""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        closed = path.endswith(("result", "error"))
        names = theirs.keys() | ours.keys() if closed else theirs.keys()
        pairs = [(name, ours.get(name, ABSENT), theirs.get(name, ABSENT)) for name in names]
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        pairs = [(str(n), ours[n], theirs[n]) for n in range(len(ours))]
    else:
        return [] if ours == theirs else [path]
    return [found for name, a, b in pairs for found in differing(a, b, f"{place}{name}")]


def verdict(case: Case, ours: Record, theirs: Record) -> str | None:
    """What is wrong with an answer of ours; None where it is the same, or documented to differ."""
    found = differing(ours, theirs)
    named = {name: one.where for name, one in DIFFERENCES.items() if case.name in one.cases}
    unexplained = [p for p in found if not any(re.fullmatch(at, p) for at in named.values())]
    if unexplained:
        return f"{case.name}: {unexplained} differ: {ours} is not {theirs}"
    gone = [n for n, at in named.items() if not any(re.fullmatch(at, p) for p in found)]
    return f"{case.name}: no longer differs: {gone}" if gone else None


if __name__ == "__main__":
    answers = asyncio.run(ask_all(sys.argv[1]))
    lines = (f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(told, ensure_ascii=False)}"
             for name, told in answers.items())  # fmt: skip
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")

"""`catalogzero schedule`: schedules and executions of any ScheduleZero API, ours or theirs."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple
from urllib.parse import quote

import typer
from typer.core import TyperGroup

from catalogzero.cli.output import JsonFlag, print_answer, print_json, print_rows
from catalogzero.cli.run import json_object
from catalogzero.cli.schedule_file import NEEDED, Entry, exported, read_schedules
from catalogzero.errors import ConfigError, FailedError, UnauthorizedError, UnreachableError
from catalogzero.protocol.outcomes import outcome_of
from catalogzero.scheduler.trigger_forms import of_crontab
from catalogzero.wire.messages import JsonObject, encode_json, parse_json

if TYPE_CHECKING:
    import httpx


class AnyOrder(TyperGroup):
    """Takes its own options behind the subcommand too, where they are often typed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move `--url` and `--token-file`, with their values, to the front."""
        own: list[str] = []
        rest: list[str] = []
        words = iter(args)
        for word in words:
            if word in ("--url", "--token-file"):
                own += [word, *islice(words, 1)]
            else:
                (own if word.startswith(("--url=", "--token-file=")) else rest).append(word)
        return super().parse_args(ctx, [*own, *rest])


app = typer.Typer(no_args_is_help=True, cls=AnyOrder)

CONNECT_TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 64 << 20
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
SCHEDULE_OPTIONS = (
    *("job_id", "timeout_s", "overlap", "misfire_grace_s", "max_attempts"),
    *("jitter_s", "max_runs", "end_time", "partition"),
)
"""The options of `add` that a schedule's body has under the same name."""

Shown = Literal["failed", "waiting", "by_hand"]
DEFAULT_API = "http://127.0.0.1:8888"
SchedulerUrl = Annotated[
    str, typer.Option(help="The scheduler's API.", envvar="CATALOGZERO_SCHEDULER_URL")
]
TokenFile = Annotated[
    Path | None,
    typer.Option(help="Its Bearer token.", envvar="CATALOGZERO_SCHEDULER_TOKEN_FILE"),
]
JobId = Annotated[str, typer.Argument(help="The schedule's job_id.")]
Params = Annotated[str, typer.Option(help="JSON object of the method's params.")]


class ApiAddress(NamedTuple):
    """Where the API is, and what it must be shown."""

    url: str
    token: str | None


class ApiRequest(NamedTuple):
    """One request of the API."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    query: Mapping[str, Any] | None = None


@app.callback()
def schedule(
    context: typer.Context,
    url: SchedulerUrl = DEFAULT_API,
    token_file: TokenFile = None,
) -> None:
    """Schedules and executions, at ours or any other ScheduleZero API."""
    context.obj = api_at(url, token_file)


def api_at(url: str, token_file: Path | None) -> ApiAddress:
    """The API at a URL, with the token of a file.

    Raises:
        ConfigError: The file cannot be read.
    """
    try:
        token = token_file.read_text("utf-8").strip() if token_file else None
    except OSError as error:
        raise ConfigError(f"{token_file}: {error.strerror}") from None
    if not url.startswith(("http://", "https://")):
        raise typer.BadParameter(f"--url {url}: begin it with http://")
    return ApiAddress(url.rstrip("/"), token)


@app.command()
def add(
    context: typer.Context,
    handler_id: Annotated[str, typer.Argument(help="The handler to call.")],
    method: Annotated[str, typer.Argument(help="Its method.")],
    params: Params = "{}",
    every: Annotated[str | None, typer.Option(help="An interval: 30s, 5m, 2h, 1d, 1w.")] = None,
    cron: Annotated[str | None, typer.Option(help="Five crontab fields: '0 2 * * *'.")] = None,
    at: Annotated[str | None, typer.Option(help="One moment: ISO 8601.")] = None,
    timezone: Annotated[
        str | None,
        typer.Option(help="Of --cron and --at, such as Europe/Berlin; else the scheduler's own."),
    ] = None,
    job_id: Annotated[str | None, typer.Option(help="Its name; else one is made.")] = None,
    timeout_s: Annotated[
        float | None, typer.Option(help="Cancel a run after this number of seconds.")
    ] = None,
    overlap: Annotated[
        str | None, typer.Option(help="While a run goes on: skip (the default), queue, parallel.")
    ] = None,
    misfire_grace_s: Annotated[
        float | None,
        typer.Option(help="Run a tick at most this number of seconds late; else however late."),
    ] = None,
    max_attempts: Annotated[
        int | None, typer.Option(help="Attempts of a retry_safe method; else 3.")
    ] = None,
    jitter_s: Annotated[
        float | None, typer.Option(help="Delay each tick by up to this number of seconds.")
    ] = None,
    max_runs: Annotated[int | None, typer.Option(help="End after this number of runs.")] = None,
    end_time: Annotated[str | None, typer.Option(help="End at this moment: ISO 8601.")] = None,
    partition: Annotated[
        bool | None,
        typer.Option("--partition", help="A run of its own for each item of the data_source."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Add a schedule.

    A --cron with both fires on the day of the month or on the day of the week,
    as in crontab(5): '0 0 13 * 5' is every 13th and every Friday.

    Example: catalogzero schedule add acme process_and_upload --cron '0 2 * * *'
    --params '{"data_source": "/data/exports"}'
    """
    body = {
        "handler_id": handler_id,
        "job_method": method,
        "job_params": json_object(params, "--params"),
        "trigger": trigger_of(every, cron, at, timezone),
        **_given(context, SCHEDULE_OPTIONS),
    }
    print_answer(_ask(context, "POST", "/api/schedule", body=body), json=json)


@app.command("list")
def list_(context: typer.Context, json: JsonFlag = False) -> None:
    """Every schedule in words, the next one first.

    Example: catalogzero schedule list
    """
    answer = _ask(context, "GET", "/api/schedules")
    rows = []
    for one in answer["schedules"]:
        call = " ".join(map(str, [*(one.get("args") or [])][:2]))
        when = one.get("trigger_words") or one["trigger"]
        next_time = _utc(one["next_fire_time"])
        if one.get("error"):
            next_time = f"stands still: {one['error']}"
        elif one.get("paused"):
            next_time = "paused"
        rows.append((one["id"], when, next_time, call))
    print_rows(answer, ("job_id", "when", "next", "calls"), rows, json=json)


@app.command("next")
def next_(
    context: typer.Context,
    job_id: JobId,
    count: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 5,
    json: JsonFlag = False,
) -> None:
    """The next fire times of a schedule, in UTC and in its zone.

    Example: catalogzero schedule next nightly-export --count 10
    """
    answer = _ask(context, "GET", f"{_place(job_id)}/next", query={"count": count})
    rows = zip(answer["next"], answer["local"], strict=True)
    print_rows(answer, ("UTC", answer["timezone"]), rows, json=json)


@app.command()
def pause(context: typer.Context, job_id: JobId, json: JsonFlag = False) -> None:
    """Let a schedule rest; ticks of the pause are not made up for.

    Example: catalogzero schedule pause nightly-export
    """
    print_answer(_ask(context, "POST", f"{_place(job_id)}/pause"), json=json)


@app.command()
def resume(context: typer.Context, job_id: JobId, json: JsonFlag = False) -> None:
    """Let a paused schedule go on, from its next tick.

    Example: catalogzero schedule resume nightly-export
    """
    print_answer(_ask(context, "POST", f"{_place(job_id)}/resume"), json=json)


@app.command()
def remove(context: typer.Context, job_id: JobId, json: JsonFlag = False) -> None:
    """Remove a schedule; a run that goes on goes on.

    Example: catalogzero schedule remove nightly-export
    """
    print_answer(_ask(context, "DELETE", _place(job_id)), json=json)


@app.command()
def run(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A schedule's job_id; with METHOD, a handler_id.")],
    method: Annotated[str | None, typer.Argument(help="A method of that handler.")] = None,
    params: Params = "{}",
    json: JsonFlag = False,
) -> None:
    """Run now, and wait for the result.

    Example: catalogzero schedule run nightly-export
    """
    if method is None:
        schedules = _ask(context, "GET", "/api/schedules")["schedules"]
        calls = [one for one in schedules if one["id"] == name]
        if not calls:
            raise FailedError(f"no schedule is called '{name}'; see `catalogzero schedule list`")
        handler_id, job_method, fields = calls[0]["args"][:3]
    else:
        handler_id, job_method, fields = name, method, json_object(params, "--params")
    body = {"handler_id": handler_id, "job_method": job_method, "job_params": fields}
    if method is None:  # it stands in the schedule's history
        body["job_id"] = name
        body |= {"partition": True} if calls[0].get("partition") else {}
    answer = _ask(context, "POST", "/api/run_now", body=body)
    print_json(answer if json else answer["result"])


@app.command()
def executions(
    context: typer.Context,
    handler_id: Annotated[str | None, typer.Option(help="Only of this handler.")] = None,
    job_id: Annotated[str | None, typer.Option(help="Only of this schedule.")] = None,
    method_name: Annotated[str | None, typer.Option(help="Only of this method.")] = None,
    status: Annotated[
        str | None, typer.Option(help="Only such: error, missed, lost, retry…")
    ] = None,
    show: Annotated[
        Shown | None,
        typer.Option(help="Only such: failed (or missed), waiting to be sent, by_hand."),
    ] = None,
    parent: Annotated[
        str | None, typer.Option(help="The runs of this partitioned run's items.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="The greatest number to show.")] = 20,
    json: JsonFlag = False,
) -> None:
    """What ran and what it came to, newest first; runs by hand under their schedule.

    A partitioned run is one line; --parent and its id list the runs of its items.
    Each run has a page at the scheduler: /runs/ and the id in the last column.

    Example: catalogzero schedule executions --show failed --limit 10
    """
    names = ("handler_id", "job_id", "method_name", "status", "show", "parent", "limit")
    query = _given(context, names)
    answer = _ask(context, "GET", "/api/executions", query=query)
    rows = []
    for one in answer["records"]:
        came_to = one.get("outcome") or outcome_of(one["status"], one.get("result"), one["error"])
        notes = [name for name in ("waiting", "late") if one.get(name)]
        if one.get("duration_ms") is not None:
            notes.insert(0, f"{one['duration_ms'] / 1_000:.3g} s")
        if "scheduled_at" in one and one["scheduled_at"] is None:
            notes.append("by hand")
        # A failure is said by its error: the word stands before it, as its colour does on a page.
        word = "failed: " if came_to["state"] == "failed" else ""
        words = word + came_to["words"] + (f" ({', '.join(notes)})" if notes else "")
        name = one["job_id"]
        if name.startswith("immediate_"):
            name = f"{one['handler_id']} {one['method_name']}"
        if one.get("item"):
            name = str(one["item"]["name"])
        rows.append((_utc(one["started_at"]), name, words, one["execution_id"]))
    print_rows(answer, ("started", "job_id", "outcome", "run"), rows, json=json)
    if rows and sys.stdout.isatty() and not json:
        typer.echo(f"A run's page: {context.obj.url}/runs/{rows[0][-1]}")


@app.command()
def cancel(
    context: typer.Context,
    execution_id: Annotated[str, typer.Argument(help="A run that goes on; see `executions`.")],
    json: JsonFlag = False,
) -> None:
    """Have a run end before its time.

    Of a partitioned run no further item begins, and those at work are cancelled.

    Example: catalogzero schedule cancel 0b9e3f0e-4b38-4f0a-9d7d-2f8a1f3f2a51
    """
    path = f"/api/executions/{quote(execution_id, safe='')}/cancel"
    print_answer(_ask(context, "POST", path), json=json)


@app.command()
def handlers(context: typer.Context, json: JsonFlag = False) -> None:
    """The handlers that registered, and whether they are there.

    Example: catalogzero schedule handlers
    """
    answer = _ask(context, "GET", "/api/handlers")
    columns = ("handler", "address", "status", "last seen", "why")
    rows = []
    for one in answer["handlers"]:
        seen = _utc(one.get("last_seen_at"))
        rows.append((one["id"], one["address"], one["status"], seen, one.get("error")))
        for each in one.get("instances", ()):
            name, seen = f"{one['id']}/{each['instance_id']}", _utc(each["last_seen_at"])
            load = f"{each['status']}, {each['load']} of {each['places']} places"
            rows.append((name, each["address"], load, seen, each["error"]))
    print_rows(answer, columns, rows, json=json)


@app.command("remove-handler")
def remove_handler(
    context: typer.Context,
    handler_id: Annotated[str, typer.Argument(help="A handler that no schedule names.")],
    json: JsonFlag = False,
) -> None:
    """Forget a handler that is gone for good; one that lives registers again.

    Example: catalogzero schedule remove-handler old-laptop
    """
    path = f"/api/handlers/{quote(handler_id, safe='')}"
    print_answer(_ask(context, "DELETE", path), json=json)


@app.command()
def export(
    context: typer.Context,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write it there, else to the terminal.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Every schedule as a file, to keep in git and `apply` here or elsewhere.

    Example: catalogzero schedule export -o schedules.yaml
    """
    import yaml

    listed = _ask(context, "GET", "/api/schedules")["schedules"]
    listed.sort(key=lambda one: str(one["id"]))
    answer = {"schedules": [exported(one) for one in listed]}
    if json:
        print_json(answer)
        return
    text = yaml.safe_dump(answer, sort_keys=False, allow_unicode=True, width=100)
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, "utf-8")


@app.command()
def apply(
    context: typer.Context,
    file: Annotated[Path, typer.Option("--file", "-f", help="The file; see `export`.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would change.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove every schedule that the file does not name.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Have the schedules be as a file says: add what is new, change what differs.

    The whole file is checked first: where anything is wrong, nothing is changed.
    A changed schedule keeps its history, and its next time where its trigger is
    the same. What the file does not name stays, unless --prune is given.

    Example: catalogzero schedule apply -f schedules.yaml --dry-run
    """
    entries = read_schedules(file)
    listed = _ask(context, "GET", "/api/schedules")["schedules"]
    unnamed = {str(one["id"]) for one in listed} - {entry.job_id for entry in entries}
    if prune and not entries:
        raise FailedError(f"{file} names no schedule: --prune would remove all {len(unnamed)}")
    if _ask(context, "GET", "/api/health").get("implementation") == "catalogzero":
        # First without effect, so that one entry that is refused leaves all as it was.
        shown = put_all(context, entries, dry_run=True)
        if not dry_run:
            shown = put_all(context, entries, dry_run=False)
    else:
        shown = [replace_each(context, entry, listed, dry_run=dry_run) for entry in entries]
    for job_id in sorted(unnamed) if prune else ():
        if not dry_run:
            _ask(context, "DELETE", _place(job_id))
        shown.append({"job_id": job_id, "status": "removed", "changes": {}})
    rows = [(one["job_id"], one["status"], in_one_line(one["changes"])) for one in shown]
    title = "would be" if dry_run else "is now"
    answer = {"dry_run": dry_run, "schedules": shown}
    print_rows(answer, ("job_id", title, "changes"), rows, json=json)


def put_all(context: typer.Context, entries: Sequence[Entry], *, dry_run: bool) -> list[JsonObject]:
    """Have each schedule be as its entry says.

    Raises:
        FailedError: The API says no to some; with the place of each.
    """
    query = {"dry_run": str(dry_run).lower()}
    requests = [ApiRequest("PUT", _place(entry.job_id), entry.body, query) for entry in entries]
    answers = ask_all(context, requests)
    shown = [answer for answer in answers if isinstance(answer, dict)]
    faults = [
        f"{entry.where}: {answer}"
        for entry, answer in zip(entries, answers, strict=True)
        if isinstance(answer, FailedError)
    ]
    if faults:
        done = "nothing was changed" if dry_run else f"the other {len(shown)} are as the file says"
        raise FailedError("\n".join((*faults, done)))
    return shown


def replace_each(
    context: typer.Context, entry: Entry, listed: Sequence[Mapping[str, Any]], *, dry_run: bool
) -> JsonObject:
    """The same at a ScheduleZero server, which changes no schedule and shows no trigger in full.

    Another call is removed and added; one that is there with this call is kept as it is.
    """
    body = {"job_params": {}, **entry.body}
    # That server would pass over them: an option that is lost in silence is worse than a refusal.
    ours = [name for name in body if name not in (*NEEDED, "job_params")]
    if ours:
        raise ConfigError(f"{entry.where}: this server does not know `{'`, `'.join(ours)}`")
    call = [body["handler_id"], body["job_method"], body["job_params"]]
    there = [one["args"][:3] for one in listed if one["id"] == entry.job_id]
    if there == [call]:
        note = {"trigger": {"old": "not shown by this server", "new": body["trigger"]}}
        return {"job_id": entry.job_id, "status": "kept", "changes": note}
    if not dry_run:
        # It has no request that changes a schedule: between these two there is none.
        gone = there and _ask(context, "DELETE", _place(entry.job_id))
        try:
            _ask(context, "POST", "/api/schedule", body=body)
        except FailedError as error:
            hint = "; the earlier one is removed, and none is there now" if gone else ""
            raise FailedError(f"{entry.where}: {error}{hint}") from None
    changes = {"call": {"old": there[0], "new": call}} if there else {}
    status = "changed" if there else "created"
    return {"job_id": entry.job_id, "status": status, "changes": changes}


def in_one_line(changes: Mapping[str, Mapping[str, Any]]) -> str:
    """What changes of a schedule: `name: old -> new` for each part."""
    return "; ".join(
        f"{name}: {encode_json(pair['old']).decode()} -> {encode_json(pair['new']).decode()}"
        for name, pair in changes.items()
    )


def _given(context: typer.Context, names: Iterable[str]) -> JsonObject:
    """The values of a command's own options by name; those that were left out are not in it."""
    return {name: context.params[name] for name in names if context.params[name] is not None}


def trigger_of(
    every: str | None, cron: str | None, at: str | None, timezone: str | None
) -> JsonObject:
    """The trigger that the options name; exactly one of them."""
    if [every, cron, at].count(None) != 2:
        raise typer.BadParameter("name one of --every, --cron and --at")
    if timezone and every:
        raise typer.BadParameter("--every has no use for a --timezone: it counts elapsed time")
    zone = {"timezone": timezone} if timezone else {}
    if at is not None:
        return {"type": "date", "run_date": at, **zone}
    if cron is not None:
        try:
            return {**of_crontab(cron), **zone}
        except ValueError as error:
            raise typer.BadParameter(f"--cron {error}") from error
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", every or "")
    if not match:
        raise typer.BadParameter("--every takes a number and s, m, h, d or w: 30s, 5m")
    return {"type": "interval", UNITS[match[2]]: float(match[1])}


def _utc(moment: str | None) -> str:
    """A moment to the second, with its zone: `2026-03-29 02:30:00 UTC`."""
    if not moment:
        return "-"
    found = datetime.fromisoformat(moment)
    if found.tzinfo is None:  # another server's: it does not say which zone it is of
        return moment
    return f"{found.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _place(job_id: str) -> str:
    """The path of a schedule."""
    return f"/api/schedules/{quote(job_id, safe='')}"


def _ask(
    context: typer.Context,
    method: str,
    path: str,
    *,
    body: Mapping[str, Any] | None = None,
    query: Mapping[str, Any] | None = None,
) -> JsonObject:
    """One request, and its JSON answer.

    Raises:
        UnreachableError: Nobody is there.
        UnauthorizedError: The token is missing or wrong.
        FailedError: The API says no; with its own words.
    """
    (answer,) = ask_all(context, [ApiRequest(method, path, body, query)])
    if isinstance(answer, FailedError):
        raise answer
    return answer


def ask_all(
    context: typer.Context, requests: Sequence[ApiRequest]
) -> list[JsonObject | FailedError]:
    """The JSON answer to each request, in turn, or what the API says no with.

    Raises:
        UnreachableError: Nobody is there.
        UnauthorizedError: The token is missing or wrong.
    """
    import httpx

    api: ApiAddress = context.obj
    try:
        # Only connecting is bounded: `run` waits for its result as long as that takes.
        answers = asyncio.run(answers_of(api, requests, None))
    except httpx.TransportError as error:
        # aiohttp names its default for TLS in the error of plain HTTP, too.
        why = str(error).replace(" ssl:default ", " ")
        fix = "start it (catalogzero scheduler), or name it with --url"
        raise UnreachableError(f"no scheduler answers at {api.url} ({why}): {fix}") from None
    pairs = zip(requests, answers, strict=True)
    return [shown(f"{api.url}{one.path}", answer) for one, answer in pairs]


async def answers_of(
    api: ApiAddress, requests: Sequence[ApiRequest], timeout_s: float | None
) -> list[httpx.Response]:
    """The answer to each request, in turn; `timeout_s` bounds each wait for one.

    Raises:
        httpx.TransportError: Nobody is there.
    """
    import httpx

    from catalogzero.cloud.sending.bounded import BoundedTransport

    headers = {"Authorization": f"Bearer {api.token}"} if api.token else {}
    timeout = httpx.Timeout(timeout_s, connect=min(timeout_s or 60.0, CONNECT_TIMEOUT_S))
    # The API may be another's: whatever it answers is read within bounds.
    door = BoundedTransport(max_answer_bytes=MAX_ANSWER_BYTES)
    async with httpx.AsyncClient(transport=door, headers=headers, timeout=timeout) as client:
        return [
            await client.request(
                one.method,
                f"{api.url}{one.path}",
                content=None if one.body is None else encode_json(one.body),
                headers={} if one.body is None else {"Content-Type": "application/json"},
                params=one.query,
            )
            for one in requests
        ]


def shown(place: str, answer: httpx.Response) -> JsonObject | FailedError:
    """An answer's JSON, or what it says no with.

    Raises:
        UnauthorizedError: The token is missing or wrong.
    """
    try:
        reply = parse_json(answer.content)
    except (ValueError, RecursionError):
        reply = None
    status = answer.status_code
    if status < 400 and isinstance(reply, dict):
        return reply
    explained = reply.get("error") if isinstance(reply, dict) else None
    if isinstance(explained, dict):
        message = str(explained.get("message"))
    else:
        hint = ": this server does not know that request" if status in (404, 405) else ""
        message = f"HTTP {status} from {place}{hint}"
    if status in (401, 403):
        raise UnauthorizedError(message)
    return FailedError(message)

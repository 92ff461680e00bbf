"""`catalogzero schedule`: schedules and executions of any ScheduleZero API, ours or theirs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from urllib.parse import quote

import typer
from typer.core import TyperGroup

from catalogzero.cli.output import JsonFlag, print_answer, print_json, print_rows
from catalogzero.cli.run import json_object
from catalogzero.cli.schedule_file import NEEDED, Entry, exported, read_schedules
from catalogzero.errors import ConfigError, FailedError, UnauthorizedError, UnreachableError
from catalogzero.scheduler.trigger_forms import of_crontab
from catalogzero.wire.messages import encode_json, parse_json

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
    *("jitter_s", "max_runs", "end_time"),
)
"""The options of `add` that a schedule's body has under the same name."""

JobId = Annotated[str, typer.Argument(help="The schedule's job_id.")]
Params = Annotated[str, typer.Option(help="JSON object of the method's params.")]


class Api(NamedTuple):
    """Where the API is, and what it must be shown."""

    url: str
    token: str | None


class Request(NamedTuple):
    """One request of the API."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    query: Mapping[str, Any] | None = None


@app.callback()
def schedule(
    context: typer.Context,
    url: Annotated[
        str, typer.Option(help="The scheduler's API.", envvar="CATALOGZERO_SCHEDULER_URL")
    ] = "http://127.0.0.1:8888",
    token_file: Annotated[
        Path | None,
        typer.Option(help="Its Bearer token.", envvar="CATALOGZERO_SCHEDULER_TOKEN_FILE"),
    ] = None,
) -> None:
    """Schedules and executions, at ours or any other ScheduleZero API."""
    try:
        token = token_file.read_text("utf-8").strip() if token_file else None
    except OSError as error:
        raise ConfigError(f"{token_file}: {error.strerror}") from None
    if not url.startswith(("http://", "https://")):
        raise typer.BadParameter(f"--url {url}: begin it with http://")
    context.obj = Api(url.rstrip("/"), token)


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
        float | None, typer.Option(help="Cancel a run after so many seconds.")
    ] = None,
    overlap: Annotated[
        str | None, typer.Option(help="While a run goes on: skip (the default), queue, parallel.")
    ] = None,
    misfire_grace_s: Annotated[
        float | None,
        typer.Option(help="Run a tick at most so many seconds late; else however late."),
    ] = None,
    max_attempts: Annotated[
        int | None, typer.Option(help="Attempts of a retry_safe method; else 3.")
    ] = None,
    jitter_s: Annotated[
        float | None, typer.Option(help="Delay each tick by up to so many seconds.")
    ] = None,
    max_runs: Annotated[int | None, typer.Option(help="End after so many runs.")] = None,
    end_time: Annotated[str | None, typer.Option(help="End at this moment: ISO 8601.")] = None,
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
        "trigger": _trigger(every, cron, at, timezone),
        **_given(context, SCHEDULE_OPTIONS),
    }
    print_answer(_ask(context, "POST", "/api/schedule", body=body), json=json)


@app.command("list")
def list_(context: typer.Context, json: JsonFlag = False) -> None:
    """Every schedule, the next one first.

    Example: catalogzero schedule list
    """
    answer = _ask(context, "GET", "/api/schedules")
    columns = ("job_id", "handler", "method", "trigger", "next (UTC)", "state")
    print_rows(answer, columns, _schedule_rows(answer), json=json)


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
        calls = [one["args"] for one in schedules if one["id"] == name]
        if not calls:
            raise FailedError(f"no schedule is called '{name}'; see `catalogzero schedule list`")
        handler_id, job_method, fields = calls[0][:3]
    else:
        handler_id, job_method, fields = name, method, json_object(params, "--params")
    body = {"handler_id": handler_id, "job_method": job_method, "job_params": fields}
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
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="At most so many.")] = 20,
    json: JsonFlag = False,
) -> None:
    """What ran, newest first.

    Example: catalogzero schedule executions --status error --limit 10
    """
    query = _given(context, ("handler_id", "job_id", "method_name", "status", "limit"))
    answer = _ask(context, "GET", "/api/executions", query=query)
    columns = ("started (UTC)", "job_id", "handler", "method", "status", "ms", "error")
    print_rows(answer, columns, _execution_rows(answer), json=json)


@app.command()
def handlers(context: typer.Context, json: JsonFlag = False) -> None:
    """The handlers that registered, and whether they are there.

    Example: catalogzero schedule handlers
    """
    answer = _ask(context, "GET", "/api/handlers")
    columns = ("handler", "address", "status", "last seen (UTC)", "why")
    print_rows(answer, columns, _handler_rows(answer), json=json)


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

    answer = {"schedules": exported(_ask(context, "GET", "/api/schedules")["schedules"])}
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
        shown = _put_all(context, entries, dry_run=True)
        if not dry_run:
            shown = _put_all(context, entries, dry_run=False)
    else:
        shown = [_replace(context, entry, listed, dry_run=dry_run) for entry in entries]
    for job_id in sorted(unnamed) if prune else ():
        if not dry_run:
            _ask(context, "DELETE", _place(job_id))
        shown.append({"job_id": job_id, "status": "removed", "changes": {}})
    rows = [(one["job_id"], one["status"], _changes(one["changes"])) for one in shown]
    title = "would be" if dry_run else "is now"
    answer = {"dry_run": dry_run, "schedules": shown}
    print_rows(answer, ("job_id", title, "changes"), rows, json=json)


def _put_all(
    context: typer.Context, entries: Sequence[Entry], *, dry_run: bool
) -> list[dict[str, Any]]:
    """Have each schedule be as its entry says.

    Raises:
        FailedError: The API says no to some; with the place of each.
    """
    query = {"dry_run": str(dry_run).lower()}
    requests = [Request("PUT", _place(entry.job_id), entry.body, query) for entry in entries]
    answers = _ask_all(context, requests)
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


def _replace(
    context: typer.Context, entry: Entry, listed: Sequence[Mapping[str, Any]], *, dry_run: bool
) -> dict[str, Any]:
    """The same at a ScheduleZero server, which changes no schedule and tells no trigger in full.

    Another call is removed and added; one that is there with this call is kept as it is.
    """
    body = {"job_params": {}, **entry.body}
    ours = [name for name in body if name not in (*NEEDED, "job_params")]
    if ours:
        raise ConfigError(f"{entry.where}: this server does not know `{'`, `'.join(ours)}`")
    call = [body["handler_id"], body["job_method"], body["job_params"]]
    there = [one["args"][:3] for one in listed if one["id"] == entry.job_id]
    if there == [call]:
        note = {"trigger": {"old": "not told by this server", "new": body["trigger"]}}
        return {"job_id": entry.job_id, "status": "kept", "changes": note}
    if not dry_run:
        gone = there and _ask(context, "DELETE", _place(entry.job_id))
        try:
            _ask(context, "POST", "/api/schedule", body=body)
        except FailedError as error:
            hint = "; the earlier one is removed, and none is there now" if gone else ""
            raise FailedError(f"{entry.where}: {error}{hint}") from None
    changes = {"call": {"old": there[0], "new": call}} if there else {}
    status = "changed" if there else "created"
    return {"job_id": entry.job_id, "status": status, "changes": changes}


def _changes(changes: Mapping[str, Mapping[str, Any]]) -> str:
    """What changes, in one line."""
    texts = {
        name: [encode_json(pair[end]).decode() for end in ("old", "new")]
        for name, pair in changes.items()
    }
    return "; ".join(f"{name}: {old} -> {new}" for name, (old, new) in texts.items())


def _given(context: typer.Context, names: Iterable[str]) -> dict[str, Any]:
    """The values of a command's own options by name; those that were left out are not in it."""
    return {name: context.params[name] for name in names if context.params[name] is not None}


def _schedule_rows(shown: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    """The lines of `list`."""
    for one in shown["schedules"]:
        handler_id, method = ([*(one.get("args") or []), "", ""])[:2]
        state = "paused" if one.get("paused") else one.get("error") or ""
        next_ = str(one["next_fire_time"] or "-")[:19]
        yield one["id"], handler_id, method, one["trigger"], next_, state


def _execution_rows(shown: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    """The lines of `executions`."""
    for record in shown["records"]:
        call = (record["job_id"], record["handler_id"], record["method_name"])
        flags = [name for name in ("waiting", "late") if record.get(name)]
        status = record["status"] + (f" ({', '.join(flags)})" if flags else "")
        duration_ms = record.get("duration_ms")
        shown_ms = "" if duration_ms is None else round(duration_ms)
        error = (record.get("error") or "")[:80]
        yield str(record["started_at"])[:19], *call, status, shown_ms, error


def _handler_rows(shown: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    """The lines of `handlers`."""
    for one in shown["handlers"]:
        seen = str(one.get("last_seen_at") or "-")[:19]
        yield one["id"], one["address"], one["status"], seen, one.get("error")


def _trigger(
    every: str | None, cron: str | None, at: str | None, timezone: str | None
) -> dict[str, Any]:
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
) -> dict[str, Any]:
    """One request, and its JSON answer.

    Raises:
        UnreachableError: Nobody is there.
        UnauthorizedError: The token is missing or wrong.
        FailedError: The API says no; with its own words.
    """
    (answer,) = _ask_all(context, [Request(method, path, body, query)])
    if isinstance(answer, FailedError):
        raise answer
    return answer


def _ask_all(
    context: typer.Context, requests: Sequence[Request]
) -> list[dict[str, Any] | FailedError]:
    """The JSON answer to each request, in turn, or what the API says no with.

    Raises:
        UnreachableError: Nobody is there.
        UnauthorizedError: The token is missing or wrong.
    """
    import httpx

    from catalogzero.cloud.sending.bounded import BoundedTransport

    api: Api = context.obj
    headers = {"Authorization": f"Bearer {api.token}"} if api.token else {}
    timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)

    async def ask() -> list[httpx.Response]:
        door = BoundedTransport(max_answer_bytes=MAX_ANSWER_BYTES)
        async with httpx.AsyncClient(transport=door, headers=headers, timeout=timeout) as client:
            return [await _send(client, api.url, one) for one in requests]

    try:
        answers = asyncio.run(ask())
    except httpx.TransportError as error:
        why = re.sub(r" ssl:default ", " ", str(error))
        fix = "start it (catalogzero scheduler), or name it with --url"
        raise UnreachableError(f"no scheduler answers at {api.url} ({why}): {fix}") from None
    pairs = zip(requests, answers, strict=True)
    return [_shown(f"{api.url}{one.path}", answer) for one, answer in pairs]


async def _send(client: httpx.AsyncClient, url: str, one: Request) -> httpx.Response:
    content = None if one.body is None else encode_json(one.body)
    headers = {} if content is None else {"Content-Type": "application/json"}
    return await client.request(
        one.method, url + one.path, content=content, headers=headers, params=one.query
    )


def _shown(place: str, answer: httpx.Response) -> dict[str, Any] | FailedError:
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

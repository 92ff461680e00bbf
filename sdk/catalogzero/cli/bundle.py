"""`catalogzero bundle`: a support archive without secrets and without data."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
import yaml
from pydantic import SecretStr

from catalogzero.cli.call import KeyFile, peer_of
from catalogzero.cli.check import check_handler
from catalogzero.cli.outbox import audit_report
from catalogzero.cli.output import JsonFlag, print_json, print_table
from catalogzero.cli.run import RegistryOption
from catalogzero.cli.state import Targets, handlers_of
from catalogzero.cli.systemd import SCHEDULER
from catalogzero.config.logs import SECRET_NAMES, names_a_secret
from catalogzero.config.registry import read_yaml
from catalogzero.config.settings import HIDDEN, Mask, secrets_of_text, shown_url
from catalogzero.errors import CatalogZeroError, ConfigError, FailedError
from catalogzero.runtime.handler import Handler
from catalogzero.runtime.launch import HandlerState, make_handler, registry_path, state_of
from catalogzero.wire.client import HandlerClient
from catalogzero.wire.messages import JsonObject, encode_json

AUDIT_LINES = 200
LOG_LINES = 2_000
RUNS = EXECUTIONS = 200
MAX_ANSWER_BYTES = 32 << 20
LEFT_OUT = "(left out: --with-messages)"
MESSAGES = frozenset(
    [
        "error",
        "message",
        "detail",
        "details",
        "reason",
        "result",
        "traceback",
        "words",
        "params_summary",
        "answer",
        "paused",
        "after",
        "until",
        "found",
    ]
)
"""Keys that may hold a message, a value or a row, in any file of the archive."""
TEXTS = {"audit_end.jsonl": frozenset({"fault"})}
"""Further ones, of one file."""
LOG_KEYS = frozenset(
    [
        "timestamp",
        "level",
        "run_id",
        "request_id",
        "method",
        "handler_id",
        "code",
        "type",
        "status",
        "state",
        "upload_id",
        "installation_id",
        "entry",
        "version",
        "boot_id",
        "execution_id",
        "job_id",
        "request_method",
    ]
)
"""Texts of a log line that hold no message; numbers stay, too."""
UNIT_FACTS = (
    "LoadState,ActiveState,SubState,Result,ExecMainCode,ExecMainStatus,NRestarts,MemoryCurrent,"
    "MemoryPeak,ActiveEnterTimestamp,InactiveEnterTimestamp,UnitFileState,FragmentPath"
)
_TYPE = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Warning)(?=:|$)")
_LITERALS = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|/\*.*?\*/|\b\d[\w.]*""", re.DOTALL
)
_UNSURE = re.compile(r"""['"$\\#]|/\*|\*/""")

LogFiles = Annotated[
    list[Path] | None, typer.Option("--log", help="A log file to take along; may be repeated.")
]
SchedulerUrl = Annotated[
    str, typer.Option(help="The scheduler's API.", envvar="CATALOGZERO_SCHEDULER_URL")
]
SchedulerToken = Annotated[
    Path | None,
    typer.Option(help="Its Bearer token.", envvar="CATALOGZERO_SCHEDULER_TOKEN_FILE"),
]


@dataclass
class Part:
    """One file of the archive: what makes it, and what came of that."""

    name: str
    make: Callable[[], Any]
    value: Any = None
    fault: str | None = "it took too long"
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Make it; in a thread that nobody waits for longer than it may take."""
        try:
            self.value, self.fault = self.make(), None
        except CatalogZeroError as error:
            self.fault = str(error)
        except OSError as error:
            self.fault = f"{error.filename or type(error).__name__}: {error.strerror}"
        except Exception as error:  # noqa: BLE001 - any part may fail; its text may hold a row
            self.fault = type(error).__name__
        self.done.set()


def bundle(
    targets: Targets = None,
    out: Annotated[Path, typer.Option(help="The archive to write.")] = Path("support.zip"),
    registry: RegistryOption = None,
    log: LogFiles = None,
    scheduler_url: SchedulerUrl = "http://127.0.0.1:8888",
    scheduler_token_file: SchedulerToken = None,
    conductor_url: Annotated[
        str, typer.Option(help="The conductor's dashboard.")
    ] = "http://127.0.0.1:5998",
    key_file: KeyFile = None,
    timeout_s: Annotated[
        float, typer.Option(min=0.1, help="Seconds for each part; all are made at once.")
    ] = 20.0,
    with_messages: Annotated[
        bool, typer.Option("--with-messages", help="Also messages and SQL; they may hold rows.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Write what a vendor's support needs, of one handler, several, or all of this machine.

    Versions, settings, checks, outbox, audit log, run history, logs of the units (journalctl) and
    of files named with --log, the units, scheduler and conductor where they answer.

    Secrets are masked; no record of the data is in it, and no message, answer, watermark or
    literal of SQL, as these may hold values: codes, types and counts stay. Of a log the events
    stay that stand in the code. What could not be had is named in summary.json.
    Read it before you send it.

    Example: catalogzero bundle acme --out support.zip
    """
    part_file = out.with_name(f"{out.name}.part")
    try:
        part_file.unlink(missing_ok=True)
        archived = os.open(part_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(out)) from None
    with os.fdopen(archived, "wb") as file:
        names = targets or handlers_of(registry)
        made = [Part(name, partial(make_handler, name, registry=registry)) for name in names]
        run_parts(made, timeout_s)
        parts = [Part("versions.json", versions), *of_registry(registry)]
        for one in made:
            parts += of_handler(one, registry, key_file)
        parts += of_services(scheduler_url, scheduler_token_file, conductor_url)
        parts += [
            Part(f"logs/{number}-{path.name}", partial(log_file, path, with_messages, made))
            for number, path in enumerate(log or (), 1)
        ]
        units = [(one.name, unit_of(one)) for one in made] + [("scheduler", SCHEDULER)]
        for folder, unit in units:
            parts.append(Part(f"{folder}/unit.txt", partial(unit_text, unit)))
            parts.append(Part(f"{folder}/journal.txt", partial(journal, unit, with_messages, made)))
        run_parts(parts, timeout_s)
        masks = [secrets_here(registry), *(one.value.mask for one in made if one.value)]
        summary = write_archive_of(file, parts, masks, with_messages=with_messages)
    part_file.rename(out)
    if json:
        print_json({"archive": str(out), "parts": summary})
    else:
        print_table(("part", "bytes", "left out"), [tuple(one.values()) for one in summary])
        typer.echo(f"{out}: read it before you send it")
    sys.stdout.flush()
    if not all(part.done.is_set() for part in (*made, *parts)):
        os._exit(0)  # a part that hangs would hold up the end


def run_parts(parts: Iterable[Part], timeout_s: float) -> None:
    """Make all parts at once, and wait no longer than one of them may take."""
    parts, end = list(parts), time.monotonic() + timeout_s
    for part in parts:
        # Nobody waits for one that hangs, not even this process's end.
        threading.Thread(target=part.run, daemon=True, name=part.name).start()
    for part in parts:
        part.done.wait(max(0.0, end - time.monotonic()))


def write_archive_of(
    file: Any, parts: list[Part], masks: list[Mask], *, with_messages: bool
) -> list[JsonObject]:
    """Write what was made, masked, and the summary of it; the summary."""

    def hidden(text: str) -> str:
        for mask in masks:
            text = mask(text)
        return text

    summary: list[JsonObject] = []
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in parts:
            text, fault = "", part.fault
            if fault is None:
                value = part.value
                if not with_messages:
                    ending = part.name.rpartition("/")[2]
                    value = without_texts(value, MESSAGES | TEXTS.get(ending, frozenset()))
                text = hidden(written(part.name, value))
                archive.writestr(part.name, text)
            size = len(text.encode()) if fault is None else None
            summary.append({"part": part.name, "bytes": size, "left_out": fault and hidden(fault)})
        about = {"made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "parts": summary}
        archive.writestr("summary.json", written("summary.json", about))
    return summary


# What is in it


def of_registry(registry: Path | None) -> Iterator[Part]:
    """The registry file, where there is one."""
    path = registry_path(registry)
    if path.exists():
        also = ("url", "proxy")  # these hold secrets in places of their own
        shown = partial(masked, "", also=also)
        yield Part("handler_registry.txt", lambda: shown(read_yaml(path, option="--registry")[0]))


def of_handler(made: Part, registry: Path | None, key_file: Path | None) -> Iterator[Part]:
    """What is known of one handler, whether it runs or not, and can be made or not."""
    target, handler = made.name, made.value
    name = target if handler is None else handler.handler_id

    def known() -> Handler:
        if handler is None:
            raise FailedError(f"the handler cannot be made: {made.fault}")
        found: Handler = handler
        return found

    async def checks() -> list[JsonObject]:
        return [asdict(one) for one in await check_handler(known())]

    async def asked(method: str, **params: Any) -> Any:
        address, transport = peer_of(target, registry, key_file, None)
        async with HandlerClient(address, transport=transport) as client:
            return await client.call(method, params, timeout_s=5.0)

    state = partial(state_of, target, registry)
    yield Part(f"{name}/describe.json", lambda: asyncio.run(_described(known())))
    yield Part(f"{name}/checks.json", lambda: asyncio.run(checks()))
    yield Part(f"{name}/outbox.json", lambda: outbox_of(state()))
    yield Part(f"{name}/audit.json", lambda: audit_of(state()))
    yield Part(f"{name}/audit_end.jsonl", lambda: audit_end(state()))
    if ":" not in target:
        yield Part(f"{name}/metrics.json", lambda: asyncio.run(asked("get_metrics")))
        yield Part(f"{name}/runs.json", lambda: asyncio.run(asked("list_runs", limit=RUNS)))


async def _described(handler: Handler) -> JsonObject:
    return await handler.describe()


def of_services(scheduler: str, token_file: Path | None, conductor: str) -> Iterator[Part]:
    """The scheduler and the conductor, where they answer."""
    paths = {
        "health.json": "/api/health",
        "schedules.json": "/api/schedules?limit=500",
        "executions.json": f"/api/executions?limit={EXECUTIONS}",
        "errors.json": f"/api/executions/errors?limit={EXECUTIONS}",
        "handlers.json": "/api/handlers",
    }
    for name, path in paths.items():
        yield Part(f"scheduler/{name}", partial(answered, scheduler, path, token_file))
    yield Part("conductor/fleet.json", partial(answered, conductor, "/api/fleet", None))


def answered(url: str, path: str, token_file: Path | None) -> Any:
    """The JSON answer of a service of this machine."""
    import httpx

    from catalogzero.cloud.sending.bounded import BoundedTransport

    headers = {}
    if token_file:
        headers["Authorization"] = f"Bearer {token_file.read_text('utf-8').strip()}"

    async def ask() -> httpx.Response:
        door = BoundedTransport(max_answer_bytes=MAX_ANSWER_BYTES)
        async with httpx.AsyncClient(transport=door, headers=headers, timeout=10.0) as client:
            return await client.get(f"{url.rstrip('/')}{path}")

    try:
        answer = asyncio.run(ask())
    except httpx.HTTPError:
        raise FailedError(f"nobody answers at {shown_url(url)}") from None
    if answer.status_code != 200:
        raise FailedError(f"{shown_url(url)}{path} answers {answer.status_code}")
    return orjson.loads(answer.content)


def versions() -> JsonObject:
    """Python, system, and every installed distribution."""
    installed = {d.metadata["Name"]: d.version for d in distributions()}
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "installed": dict(sorted(installed.items())),
    }


def outbox_of(state: HandlerState) -> JsonObject:
    """The outbox's list, without a record."""
    from catalogzero.clock import SystemClock
    from catalogzero.cloud.outbox.outbox import Outbox
    from catalogzero.cloud.outbox.stored import SharedStore

    folder, shared = state.folder, SharedStore.of(state.runtime, state.handler_id)
    if shared is None and not (folder / "outbox.sqlite").exists():
        raise FailedError(f"there is no outbox in {folder}")
    with closing(Outbox(folder, SystemClock(), shared, repair=False)) as outbox:
        return {
            "totals": asdict(outbox.store.totals()),
            "paused": outbox.store.pause(),
            "uploads": [asdict(upload) for upload in outbox.store.uploads(limit=500)],
        }


def audit_of(state: HandlerState) -> JsonObject:
    """What a look through the audit log finds."""
    return asdict(audit_report(state)[1])


def audit_end(state: HandlerState) -> list[Any]:
    """The audit log's last entries; what is no JSON is null, as a kill cuts the last line short."""
    entries: list[Any] = []
    with audit_lines(state) as lines:
        for line in deque(lines, AUDIT_LINES):
            entries.append(None)
            with suppress(orjson.JSONDecodeError):
                entries[-1] = orjson.loads(line)
    return entries


@contextmanager
def audit_lines(state: HandlerState) -> Iterator[Iterable[bytes]]:
    """The lines of a handler's audit log, the oldest first."""
    from catalogzero.clock import SystemClock
    from catalogzero.cloud.audit import audit_files
    from catalogzero.cloud.outbox.store import looked_at
    from catalogzero.cloud.outbox.stored import SharedStore
    from catalogzero.cloud.shared_audit import shared_lines

    shared = SharedStore.of(state.runtime, state.handler_id)
    if shared is None:
        with audit_files(state.folder) as files:
            yield (line for file in files for line in file)
        return
    with looked_at(state.folder, SystemClock(), shared) as store:
        yield [] if store is None else shared_lines(store)


def unit_of(made: Part) -> str:
    """The name of a handler's unit."""
    return str(made.name if made.value is None else made.value.handler_id)


def unit_text(unit: str) -> str:
    """A unit as systemd knows it, and how it is."""
    shown = said("systemctl", "cat", "--no-pager", f"{unit}.service")
    facts = said("systemctl", "show", "--no-pager", f"--property={UNIT_FACTS}", f"{unit}.service")

    def variable(found: re.Match[str]) -> str:
        return f"{found[1]}={masked(found[1].lower(), found[2])}"

    lines = [
        re.sub(r"(\w+)=([^\s\"']+)", variable, line.removeprefix("Environment="))
        if line.startswith("Environment=")
        else shown_url(line)
        for line in shown.splitlines()
    ]
    return "\n".join([*lines, "", facts])


def journal(unit: str, with_messages: bool, made: list[Part]) -> str:
    """The end of a unit's log."""
    words = ("--lines", str(LOG_LINES), "--no-pager", "--quiet", "--output", "cat")
    text = said("journalctl", "--unit", f"{unit}.service", *words)
    if not text.strip():
        raise FailedError(f"the journal shows this user no line of {unit}.service")
    return text if with_messages else without_messages(text.splitlines(), made)


def log_file(path: Path, with_messages: bool, made: list[Part]) -> str:
    """The end of a log file."""
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = [line.rstrip("\n") for line in deque(file, LOG_LINES)]
    return "\n".join(lines) if with_messages else without_messages(lines, made)


def said(*command: str) -> str:
    """What a command of the system prints."""
    program = shutil.which(command[0])
    if program is None:
        raise FailedError(f"there is no {command[0]} here")
    done = subprocess.run(  # noqa: S603 - systemd's own
        [program, *command[1:]], capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise FailedError(f"{command[0]} ended with {done.returncode}")
    return done.stdout


# What is left out of it


def without_messages(lines: Iterable[str], made: list[Part]) -> str:
    """Log lines without what may hold a row: events of the code, codes, ids and numbers stay."""
    code = code_of(frozenset(type(one.value).__module__ for one in made if one.value))
    kept: list[str] = []
    skipped = 0
    for line in lines:
        entry = None
        with suppress(orjson.JSONDecodeError):
            entry = orjson.loads(line)
        if isinstance(entry, dict):
            kept.append(orjson.dumps(_line(entry, code)).decode())
        elif found := _TYPE.match(line):
            kept.append(f"{found[0]}: {LEFT_OUT}")
        else:
            skipped += 1
    return "\n".join([*kept, f"{skipped} lines that are no JSON: {LEFT_OUT}", ""])


def _line(entry: JsonObject, code: str) -> JsonObject:
    def shown(name: str, value: Any) -> Any:
        is_text = not isinstance(value, bool | int | float | None)
        if name == "event" and isinstance(value, str):
            # A text that stands in the code is no row; one that was put together may hold one.
            return value if f'"{value}"' in code or f"'{value}'" in code else LEFT_OUT
        return LEFT_OUT if is_text and name not in LOG_KEYS else value

    return {name: shown(name, value) for name, value in entry.items()}


@lru_cache(4)
def code_of(modules: frozenset[str]) -> str:
    """The source of this package, and of some modules: what a constant text is looked up in."""
    files = list(Path(__file__).parents[1].rglob("*.py"))
    files += [
        Path(file) for name in modules if (file := getattr(sys.modules.get(name), "__file__", ""))
    ]
    return "".join(file.read_text("utf-8", errors="replace") for file in files)


def without_literals(sql: str) -> str:
    """SQL with `?` for each literal, and without comments; nothing of it where that is not sure."""
    shown = _LITERALS.sub(lambda found: "" if found[0][0] in "-/" else "?", sql)
    # Dialects differ in how a text ends: where one of their marks is left, a part of one may be.
    return LEFT_OUT if _UNSURE.search(shown) or "\\" in sql or "$" in sql else shown


def without_texts(value: Any, left_out: frozenset[str], name: str = "") -> Any:
    """A value without what is of such a name, at any depth; of an error its type stays."""
    if isinstance(value, str) and name == "query":
        return without_literals(value)
    if name == "paused" and isinstance(value, dict):
        return without_texts(value, left_out)  # its code is no message
    # `last_error`, `errorText`: an author's metrics, or those of another release.
    is_named = name in left_out or (
        isinstance(value, str) and any(word in name.lower() for word in ("error", "message"))
    )
    if value and is_named and not isinstance(value, bool | int | float):
        found = _TYPE.match(value) if isinstance(value, str) else None
        return f"{found[0]}: {LEFT_OUT}" if found else LEFT_OUT
    if isinstance(value, list):
        return [without_texts(one, left_out) for one in value]
    if isinstance(value, dict):
        return {key: without_texts(one, left_out, str(key)) for key, one in value.items()}
    return value


def masked(name: str, value: Any, also: tuple[str, ...] = ()) -> Any:
    """A value without what sounds secret, or as `also`; `_file` keys are kept."""
    if isinstance(value, dict):
        return {key: masked(str(key).lower(), one, also) for key, one in value.items()}
    if isinstance(value, list):
        return [masked(name, one, also) for one in value]
    secret = any(word in name for word in (*SECRET_NAMES, *also))
    if secret and isinstance(value, str) and value and not name.endswith("_file"):
        return HIDDEN
    return shown_url(value) if isinstance(value, str) else value


def secrets_here(registry: Path | None) -> Mask:
    """What masks the secrets of environment and registry file, also where no handler is made."""
    found: list[str] = [value for name, value in os.environ.items() if names_a_secret(name)]
    files: list[Path] = [Path(value) for name, value in os.environ.items() if _is_file(name)]
    path = registry_path(registry)
    if path.exists():
        with suppress(ConfigError):
            for name, value in texts_in("", read_yaml(path, option="--registry")[0]):
                if names_a_secret(name):
                    found.append(value)
                elif _is_file(name):
                    files.append(path.parent / value)
    for file in files:
        with suppress(OSError, UnicodeDecodeError):
            found += secrets_of_text(file.read_text("utf-8"))
    mask = Mask()
    mask.learn([SecretStr(one) for one in found])
    return mask


def _is_file(name: str) -> bool:
    """Whether a key names a file that holds a secret."""
    lower = name.lower()
    words = (*SECRET_NAMES, "key", "url", "config")
    return lower.endswith("_file") and any(word in lower for word in words)


def texts_in(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Each text in a value, with its key."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from texts_in(str(key), one)
    elif isinstance(value, list):
        for one in value:
            yield from texts_in(name, one)
    elif isinstance(value, str):
        yield name, value


def written(name: str, value: Any) -> str:
    """A part of the archive as the text of its file."""
    if isinstance(value, str):
        return value
    # To JSON's own kinds first: YAML would write Python's paths and tuples as such.
    value = masked("", orjson.loads(encode_json(value)))
    if name.endswith(".jsonl"):
        return "".join(orjson.dumps(entry).decode() + "\n" for entry in value)
    if name.endswith(".txt"):
        return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()

"""A client's machine in a folder: a handler in a process of its own, and how an operator looks.

Nothing here replaces a part of the product: the handler is `catalogzero run` on a registry file,
each command is `catalogzero …` in a process, and what is read is what an operator reads.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from inspect import isawaitable
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from catalogzero import CatalogZeroError, HandlerClient

from examples.quickstart.processes import Processes, free_ports
from tests.cloud.reference import ReferenceBackend
from tests.warm import run_command

ROOT = Path(__file__).parents[2]
KEY = "plant-key-5d01c"
PATIENCE_S = 30.0
LOOK_S = 0.05
UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""Before a command of root's: files are closed to it as they are to others."""
NOBODY = 65_534
"""The user and group `nobody`: somebody else on this machine."""

Row = dict[str, Any]


@dataclass(frozen=True)
class CommandEnd:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its standard output, read as JSON."""
        return json.loads(self.out)

    @property
    def text(self) -> str:
        """Everything that it printed."""
        return self.out + self.err

    def hint(self, start: str = "catalogzero ") -> str:
        """The command that it prints with such a start, up to the end of its line or quotes."""
        found = self.text[self.text.index(start) :].splitlines()[0]
        return found.partition("`")[0].partition("  ")[0].strip().rstrip(".,;)")


@dataclass(frozen=True)
class Seen:
    """What an operator sees of a handler in one look at all commands.

    Attributes:
        troubles: What `status` has of it: `what`, and the `next` command.
        findings: What `check` finds, by name: status, found, fix.
        next: The command that `check` ends with.
        listed: What `outbox list` prints.
        metrics: What `get_metrics` answers.
    """

    troubles: list[Row]
    findings: dict[str, Row]
    next: str
    listed: str
    metrics: Row

    @property
    def outbox(self) -> Row:
        """The outbox's figures."""
        return dict(self.metrics["outbox"])

    @property
    def health(self) -> str:
        """How the handler judges itself: ok, degraded or failing."""
        return str(self.metrics["health"]["status"])


class Plant:
    """A client's machine: an async context that ends everything it started.

    Args:
        folder: Where the registry file, the data, the state and the logs are.
        endpoint: The backend's URL.
        class_name: A class of `tests.incidents.processors`.
        runtime: Runtime settings of the handler's section, beside those that the plant sets.
        config: The processor's settings, beside `endpoint`, `api_key_file` and `data_roots`.

    Attributes:
        data: The data root.
        state: The handler's state folder.
        key_file: Holds the API key, `KEY` at first.
        section: The handler's section of the registry file; `write_registry` after a change.
        rows: What was written to the data root, each row once.
        environment: Variables of every process, beside those of the tests.
    """

    def __init__(
        self,
        folder: Path,
        endpoint: str,
        *,
        class_name: str = "Exports",
        runtime: Row | None = None,
        config: Row | None = None,
    ) -> None:
        self.folder, self.data = folder, folder / "exports"
        self.state = folder / "state" / "site"
        self.key_file = folder / "api_key"
        self.registry = folder / "handler_registry.yaml"
        self.rows: list[Row] = []
        self.environment = {"PYTHONPATH": str(ROOT), "HOME": str(folder)}
        self.data.mkdir()
        self.set_key(KEY)
        [port] = free_ports(1)
        self.section: Row = {
            "handler_id": "site",
            "module_path": "tests.incidents.processors",
            "class_name": class_name,
            "port": port,
            "state_dir": str(folder / "state"),
            "installation_id": "site",
            "min_file_age_s": 0,
            "upload_wait_s": 1,
            **(runtime or {}),
            "config": {
                "endpoint": endpoint,
                "api_key_file": str(self.key_file),
                "data_roots": [str(self.data)],
                **(config or {}),
            },
        }
        self.write_registry()
        self.processes = Processes(folder / "logs")
        self._handler: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Plant:
        self.processes.__enter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.client.close()
        await asyncio.to_thread(self.processes.__exit__, None, None, None)

    # What stands on the machine

    def write_registry(self, *more: Row) -> None:
        """Write the registry file: the handler's section, and those of `more` handlers."""
        handlers = [self.section, *more]
        self.registry.touch(0o600)
        self.registry.write_text(yaml.safe_dump({"scheduler": "none", "handlers": handlers}))

    def set_key(self, key: str) -> None:
        """Put another API key into the key file, as who rotates it does: by a rename."""
        fresh = self.key_file.with_suffix(".new")
        fresh.touch(0o600)
        fresh.write_text(f"{key}\n")
        fresh.rename(self.key_file)

    def write(self, name: str, rows: Sequence[Row]) -> Path:
        """A CSV file below the data root."""
        path = self.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0]])
            writer.writeheader()
            writer.writerows(rows)
        self.rows += rows
        return path

    # The handler

    @cached_property
    def client(self) -> HandlerClient:
        """A connection to the handler."""
        return HandlerClient(f"tcp://127.0.0.1:{self.section['port']}")

    @property
    def handler(self) -> subprocess.Popen[bytes]:
        """The process of the handler that was started last."""
        assert self._handler is not None, "start it first"
        return self._handler

    async def start(self, *, answers: bool = True, before: Sequence[str] = ()) -> None:
        """Start the handler, and wait until it `answers`; `before` is a command that runs it."""
        self._handler = self.begin("handler", "run", "site", before=before)
        if answers:
            await until(self.answers, f"the handler answers; its log: {self.log()[-5:]}")

    async def answers(self) -> bool:
        """Whether the handler is there."""
        assert self.handler.poll() is None, f"the handler ended: {self.log()[-5:]}"
        with suppress(CatalogZeroError):
            return bool(await self.client.ping(timeout_s=1.0))
        return False

    async def stop(self) -> int | None:
        """End the handler as systemd does; its exit code."""
        return await asyncio.to_thread(self.processes.stop, "handler")

    def kill(self) -> None:
        """End the handler as a power failure does."""
        self.processes.kill("handler")

    async def restart(self) -> None:
        """Stop the handler, and start it."""
        await self.stop()
        await self.start()

    async def run(self, source: Path | str | None = None, **params: Any) -> Row:
        """One run over a source, by default all of the data root; its result.

        Raises:
            CatalogZeroError: It failed.
        """
        body = {"data_source": str(source or self.data), "params": params}
        return dict(await self.client.call("process_and_upload", body, timeout_s=PATIENCE_S))

    async def refused(self, source: Path | str | None = None, **params: Any) -> CatalogZeroError:
        """The error of a run that has to fail."""
        try:
            result = await self.run(source, **params)
        except CatalogZeroError as error:
            return error
        raise AssertionError(f"the run was expected to fail: {result}")

    # How an operator looks

    def log(self, event: str | None = None, **fields: Any) -> list[Row]:
        """The lines of the handler's JSON log, oldest first: those that have such an event.

        `event` is a part of the line's event, the same in any case; `fields` are equal.
        """
        path = self.processes.logs / "handler.log"
        text = path.read_text(errors="replace") if path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return [
            line
            for line in lines
            if (event or "").lower() in str(line.get("event")).lower()
            and all(line.get(name) == value for name, value in fields.items())
        ]

    async def logged(self, event: str, **fields: Any) -> Row:
        """The first line of the log with such an event, as soon as it is there."""
        await until(
            lambda: self.log(event, **fields),
            lambda: f"the log has a line {event!r} {fields}: {self.log()}",
        )
        return self.log(event, **fields)[0]

    async def command(
        self, *arguments: object, user: int | None = None, said: str = ""
    ) -> CommandEnd:
        """`catalogzero …`, run in the machine's folder, by default as this user.

        Args:
            arguments: The command's.
            user: The number of another user.
            said: What stands on its standard input.
        """
        end = await asyncio.to_thread(
            run_command,
            *map(str, arguments),
            cwd=self.folder,
            environment={**os.environ, **self.environment},
            said=said,
            user=user,
            timeout_s=PATIENCE_S,
        )
        return CommandEnd(end.returncode, end.stdout, end.stderr)

    async def shell(
        self, *command: str, user: int | None = None, said: str | None = None
    ) -> CommandEnd:
        """Any command, run in the machine's folder."""
        as_user = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.DEVNULL if said is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.folder,
            env={**os.environ, **self.environment},
            **as_user,  # type: ignore[arg-type]  # names of Popen's own
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                out, err = await process.communicate(None if said is None else said.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return CommandEnd(process.returncode, out.decode(), err.decode())

    async def follow(self, hint: str) -> CommandEnd:
        """Run a command as it was printed, from the `catalogzero` in it on; it has to succeed."""
        program, *arguments = shlex.split(hint[hint.index("catalogzero ") :])
        assert program == "catalogzero"
        end = await self.command(*arguments)
        assert end.code == 0, f"{hint}: {end.code} {end.text}"
        return end

    async def status(self) -> CommandEnd:
        """`catalogzero status --json` of the registry file."""
        return await self.command("status", "--json")

    async def check(self) -> CommandEnd:
        """`catalogzero check site --json`."""
        return await self.command("check", "site", "--json")

    async def finding(self, name: str) -> Row:
        """What `check` finds under a name: name, status, found, fix."""
        found = (await self.check()).json["findings"]
        [one] = [finding for finding in found if finding["name"] == name]
        return dict(one)

    async def look(self) -> Seen:
        """Look at the running handler with every command."""
        status, check, listed, metrics = await asyncio.gather(
            self.status(), self.check(), self.outbox("list"), self.metrics()
        )
        assert status.code in {0, 1}, status.text
        assert listed.code == 0, listed.text
        return Seen(
            [one for one in status.json["troubles"] if one["of"] == "site"],
            {finding["name"]: finding for finding in check.json["findings"]},
            check.json["next"],
            listed.out,
            metrics,
        )

    async def outbox(self, *arguments: object) -> CommandEnd:
        """`catalogzero outbox <verb> site …`, by default `list --json`."""
        verb, *more = arguments or ("list", "--json")
        return await self.command("outbox", verb, "site", *more)

    async def metrics(self) -> Row:
        """What `get_metrics` answers."""
        return dict(await self.client.call("get_metrics", timeout_s=PATIENCE_S))

    async def health(self, backend: ReferenceBackend) -> Row:
        """The health report that the backend gets, asked for now."""
        had = len(backend.reports)
        await self.client.call("health_report", timeout_s=PATIENCE_S)
        await until(lambda: len(backend.reports) > had, "the backend has a newer report")
        return backend.reports[-1]

    @asynccontextmanager
    async def conductor(self) -> AsyncIterator[Conductor]:
        """A conductor beside the handler, in a process of its own."""
        ports = free_ports(2)
        conductor = Conductor(f"http://127.0.0.1:{ports[1]}")
        config = {
            "handler_registry": json.dumps({"site": self.section["port"]}),
            "dashboard_port": ports[1],
            "interval_s": 1,
        }
        settings = [f"--config={name}={value}" for name, value in config.items()]
        own = ["--handler-id", "conductor", "--port", str(ports[0]), "--scheduler", "none"]
        folder = f"state_dir={self.folder / 'conductor'}"
        self.begin(
            "conductor", "run", "conductorzero:ConductorZero", *own, *settings, "--set", folder
        )
        try:
            await until(conductor.answers, "the dashboard answers")
            yield conductor
        finally:
            await asyncio.to_thread(self.processes.stop, "conductor")

    async def delivered(self, backend: ReferenceBackend, rows: Sequence[Row] | None = None) -> None:
        """Wait until every row is at the backend; then each is there once, and none waits here.

        `rows` are those that were written to the data root, where no others are named.
        """
        wanted = sorted(json.dumps(row, sort_keys=True) for row in as_text(rows or self.rows))

        def there() -> list[str]:
            return sorted(json.dumps(row, sort_keys=True) for row in as_text(backend.rows()))

        async def all_sent() -> bool:
            return there() == wanted and (await self.metrics())["outbox"]["uploads"] == 0

        await until(all_sent, lambda: f"the backend has {wanted}, not {there()}: {self.log()[-9:]}")

    def begin(
        self, name: str, *arguments: str, before: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Start `catalogzero …` with its output in `logs/<name>.log`."""
        command = (*before, sys.executable, "-m", "catalogzero", *arguments)
        return self.processes.start(name, *command, cwd=self.folder, env=self.environment)


class Conductor:
    """The dashboard of a conductor, at its address."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def read(self, path: str) -> str:
        """The text of a page or an API's answer."""
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as answer:
            assert answer.status == 200, f"{path}: {answer.status}"
            return await answer.text()

    async def answers(self) -> bool:
        """Whether the dashboard is there."""
        with suppress(aiohttp.ClientError):
            return bool(await self.read("/api/fleet"))
        return False

    async def fleet(self) -> Row:
        """What `/api/fleet` answers."""
        return dict(json.loads(await self.read("/api/fleet")))

    async def site(self, *, where: Callable[[Row], bool] = lambda row: True) -> Row:
        """The handler's row of `/api/fleet`, once it was asked, and once it is so."""
        row: Row = {}

        async def looked() -> bool:
            nonlocal row
            rows = (await self.fleet())["handlers"]
            [row] = [row for row in rows if row["handler_id"] == "site"]
            return row["state"] != "unknown" and where(row)

        await until(looked, lambda: f"the fleet's row is as expected: {row}")
        return row


def as_text(rows: Sequence[Row]) -> list[Row]:
    """Rows with each value as CSV writes it."""
    return [{name: str(value) for name, value in row.items()} for row in rows]


async def until(
    condition: Callable[[], Any], what: str | Callable[[], str], wait_s: float = PATIENCE_S
) -> Any:
    """What a condition, plain or coroutine, gives as soon as that is true."""
    never = asyncio.Event()
    try:
        async with asyncio.timeout(wait_s):
            while True:
                found = condition()
                found = await found if isawaitable(found) else found
                if found:
                    return found
                with suppress(TimeoutError):
                    await asyncio.wait_for(never.wait(), LOOK_S)
    except TimeoutError:
        shown = what if isinstance(what, str) else what()
        raise AssertionError(f"it never came to this: {shown}") from None

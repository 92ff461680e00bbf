"""One look at everything of ours on this machine; only read, never changed, and no secret needed.

Whoever is away, be it scheduler, conductor, backend or a handler, costs its own line alone.
"""

from __future__ import annotations

import asyncio
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from catalogzero.cli.call import address_of, nats_of
from catalogzero.cli.schedule import ApiAddress, ApiRequest, answers_of, shown
from catalogzero.cli.standing import HandlerStanding, standing_of
from catalogzero.clock import SystemClock
from catalogzero.config.address import Address
from catalogzero.config.certificates import expiring, good_until
from catalogzero.config.registry import Registry, Section, read_registry
from catalogzero.config.service_unit import is_installed
from catalogzero.config.state_folder import owner_of
from catalogzero.errors import CatalogZeroError, ConfigError
from catalogzero.protocol.outcomes import outcome_of
from catalogzero.runtime.control_answers import OutboxFigures
from catalogzero.runtime.health import (
    LOW_DISK_BYTES,
    SECOND_HOST,
    disk_free_bytes,
    judge_health,
)
from catalogzero.runtime.launch import folder_of, is_there, points_of, runtime_of
from catalogzero.version import __version__
from catalogzero.wire.carriers import transport_for
from catalogzero.wire.keys import CurveClient, CurveKeys
from catalogzero.wire.messages import JsonObject
from catalogzero.wire.transport import Transport
from catalogzero.wire.zeromq import ZeroMQ

SCHEDULER_S = 3.0
SCHEDULER_UNIT = "catalogzero-scheduler"
LATE = timedelta(minutes=1)
MOST_SCHEDULES = 500
_CERTIFICATES = ("ca_file", "client_cert_file")


class Trouble(TypedDict):
    """What is wrong, of which part, the one next command, and where a log says more."""

    of: str
    what: str
    next: str
    log: str | None


class HandlerRow(TypedDict):
    """A handler of the registry file: `status` as it says, else what its folder says.

    That is `stopped`, `silent` (its process does not answer), `running`, or `unknown`.
    `installed_version` is that of its entry on the disk, `version` the one that runs.
    """

    handler_id: str
    status: str
    address: str | None
    pid: int | None
    state_dir: str | None
    entry: str | None
    version: str | None
    installed_version: str | None
    sdk_version: str | None
    outbox: JsonObject | OutboxFigures | None
    last_successful_run: JsonObject | None
    last_failed_run: JsonObject | None
    reasons: list[str]


class ScheduleRow(TypedDict):
    """A schedule that is late, stands still, or whose last run did not end well."""

    job_id: str
    handler_id: str
    next: str | None
    outcome: str


class SchedulerRow(TypedDict):
    """The scheduler: `running`, `stopped` or `refused`; of its schedules those in trouble."""

    url: str
    status: str
    schedules: int
    next: str | None
    late: list[ScheduleRow]
    failed: list[ScheduleRow]


class Disk(TypedDict):
    """What is free where state lies."""

    path: str
    free_bytes: int


class Certificate(TypedDict):
    """A certificate of a handler, and when it expires."""

    handler_id: str
    setting: str
    path: str
    expires_at: str | None


class MachineReport(TypedDict):
    """All of it; `ok` is whether there is no trouble."""

    at: str
    version: str
    registry: str
    ok: bool
    handlers: list[HandlerRow]
    scheduler: SchedulerRow
    disks: list[Disk]
    certificates: list[Certificate]
    troubles: list[Trouble]


class Look:
    """A look that is taken once; troubles are noted as they are met.

    Args:
        path: The registry file.
        api: Where the scheduler's API is.
        named: Whether that was said, so that nobody there is a trouble.
        keys: A key pair to call handlers with that are served with keys.
    """

    def __init__(self, path: Path, api: ApiAddress, *, named: bool, keys: CurveKeys | None) -> None:
        self._path, self._api, self._named, self._keys = path, api, named, keys
        self._clock = SystemClock()
        self._option = f" --registry {shlex.quote(str(path))}"
        self.troubles: list[Trouble] = []
        self.is_bad_file = False

    async def take(self) -> MachineReport:
        """Ask all at once."""
        registry = self._registry()
        scheduler, standings = await asyncio.gather(
            self._scheduler(), asyncio.gather(*map(self._standing, registry.handlers))
        )
        handlers = [
            self._handler(section, *found)
            for section, found in zip(registry.handlers, standings, strict=True)
        ]
        return {
            "at": self._clock.now().isoformat(timespec="seconds"),
            "version": __version__,
            "registry": str(self._path),
            "handlers": handlers,
            "scheduler": scheduler,
            "disks": list(self._disks(handlers)),
            "certificates": [c for s in registry.handlers for c in self._certificates(s)],
            "troubles": self.troubles,
            "ok": not self.troubles,
        }

    def _note(self, of: str, what: str, then: str, log: str | None = None) -> None:
        self.troubles.append({"of": of, "what": what, "next": then, "log": log})

    def _registry(self) -> Registry:
        """The registry file, without what is at fault in it."""
        registry, faults = Registry(self._path, "none", []), list[str]()
        try:
            registry, faults = read_registry(self._path)
        except ConfigError as error:
            faults = str(error).splitlines()
        self.is_bad_file = bool(faults)
        again = "name it with --registry" if not is_there(self._path) else "correct that line"
        for fault in faults:
            self._note("registry", fault, f"{again}, then: catalogzero status{self._option}")
        return registry

    async def _standing(self, section: Section) -> tuple[HandlerStanding, str | None, Path | None]:
        """How a section's handler stands, its address, and its state folder."""
        name, address, folder = section.handler_id, None, None
        transport: Transport | None = None
        try:
            folder = folder_of(section)
            address = address_of(section)
        except ConfigError as error:
            if folder is None:
                self._note(name, str(error), f"catalogzero check {name}{self._option}")
        with suppress(CatalogZeroError, OSError, KeyError, TypeError):
            if self._keys and section.runtime.get("curve"):
                key_file = section.path.parent / section.runtime["curve"]["key_file"]
                curve = CurveClient(self._keys, CurveKeys.read(key_file).public)
                transport = ZeroMQ(client_keys=curve)
            if address is not None and (at := Address.parse(address)).is_nats:
                transport = transport_for(at, nats=nats_of(section))
        has_keys = bool(section.runtime.get("curve"))
        asked = None if has_keys and transport is None else address
        found = await standing_of(name, asked, folder, transport)
        if found.status == "silent" and asked is None:
            # Nobody asked it: its lock is all that is known.
            found = replace(found, status="running")
        return found, address, folder

    def _handler(
        self, section: Section, standing: HandlerStanding, address: str | None, folder: Path | None
    ) -> HandlerRow:
        """A handler's row; its troubles are noted."""
        said, name = standing.metrics, section.handler_id
        entry = said.get("entry") or section.entry
        row: HandlerRow = {
            "handler_id": name,
            "status": standing.status,
            "address": address,
            "pid": standing.pid,
            "state_dir": str(folder) if folder else None,
            "entry": entry,
            "version": said.get("version"),
            "installed_version": installed_version(entry),
            "sdk_version": said.get("sdk_version"),
            "outbox": said.get("outbox"),
            "last_successful_run": said.get("last_successful_run"),
            "last_failed_run": said.get("last_failed_run"),
            "reasons": list((said.get("health") or {}).get("reasons", ())),
        }
        if not said and folder is not None:
            self._read_folder(row, folder, section)
        if row["status"] in ("stopped", "silent"):
            state = unit_state(name) if standing.is_unit else ""
            what = "does not answer" if standing.status == "silent" else "is not running"
            then = standing.next_command(self._option)
            if section.entry and not any(points_of(section.entry)):
                what = f"{what}, and its entry {section.entry} is not installed here"
                then = f"catalogzero catalog install {shlex.quote(section.entry)}"
            self._note(name, f"{what}{state}", then, self._log(name, None))
        for reason in row["reasons"]:
            self._note(name, reason, *self._next_for(reason, standing, row))
        self._compare_versions(row, standing)
        return row

    def _read_folder(self, row: HandlerRow, folder: Path, section: Section) -> None:
        """The outbox of a handler that does not say itself, as its folder or its store has it."""
        from catalogzero.cloud.outbox.outbox_figures import figures_in
        from catalogzero.cloud.outbox.stored import SharedStore

        name = row["handler_id"]
        try:
            shared = SharedStore.of(runtime_of(section), name)
            row["outbox"] = figures = figures_in(folder, self._clock, shared)
            row["reasons"] = judge_health(figures, None)["reasons"]
        except PermissionError:
            # Nor can its lock be seen: whether it runs is not known.
            row["status"] = "unknown"
            then = f"sudo -u {owner_of(folder)} catalogzero status{self._option}"
            self._note(name, f"{folder} may not be read by this user", then)
        except CatalogZeroError as error:
            self._note(name, error.message, f"catalogzero check {name}{self._option}")

    def _next_for(
        self, reason: str, standing: HandlerStanding, row: HandlerRow
    ) -> tuple[str, str | None]:
        """The command for a reason of a handler's health, and the log."""
        name, failed = shlex.quote(row["handler_id"]), row["last_failed_run"]
        outbox: Mapping[str, Any] = row["outbox"] or {}
        if reason.startswith("the last run failed") and failed:
            asked = shlex.quote(f'{{"run_id": "{failed["run_id"]}"}}')
            then = f"catalogzero call {name} get_run --params {asked}{self._option}"
            return then, self._log(name, failed["ended_at"])
        if "were refused" in reason:
            return f"catalogzero outbox list {name}{self._option}", None
        if reason == SECOND_HOST:
            return f"catalogzero check {name}{self._option}", self._log(name, None)
        if "disk" in reason:
            return f"df -h {shlex.quote(str(row['state_dir']))}", None
        since = outbox.get("paused_since") or outbox.get("fault_since")
        if standing.answers:
            return standing.next_command(self._option), self._log(name, since)
        return f"catalogzero check {name}{self._option}", self._log(name, since)

    def _compare_versions(self, row: HandlerRow, standing: HandlerStanding) -> None:
        """Whether what runs is what is installed."""
        here = {row["entry"]: row["installed_version"], "catalogzero": __version__}
        runs = {row["entry"]: row["version"], "catalogzero": row["sdk_version"]}
        for package, version in runs.items():
            if version and here[package] and version != here[package]:
                name = row["handler_id"]
                what = f"runs {package} {version}, and {here[package]} is installed"
                by_hand = f"kill {standing.pid}; catalogzero run {name}{self._option}"
                then = f"systemctl restart {name}" if standing.is_unit else by_hand
                self._note(name, what, then)

    def _log(self, unit: str, since: str | None) -> str | None:
        """The line that shows a unit's log around a moment."""
        if not is_installed(unit):
            return None
        begin = "-1h"
        if since:
            moment = datetime.fromisoformat(since) - timedelta(minutes=1)
            begin = f"'{moment:%Y-%m-%d %H:%M:%S} UTC'"
        return f"journalctl -u {unit} --since {begin}"

    async def _scheduler(self) -> SchedulerRow:
        """The scheduler, its schedules, and which of them are late or failed."""
        row: SchedulerRow = {
            "url": self._api.url,
            "status": "stopped",
            "schedules": 0,
            "next": None,
            "late": [],
            "failed": [],
        }
        import httpx

        asked = [ApiRequest("GET", "/api/schedules", query={"limit": MOST_SCHEDULES})]
        start = f"systemctl start {SCHEDULER_UNIT}" if is_installed(SCHEDULER_UNIT) else ""
        try:
            async with asyncio.timeout(SCHEDULER_S):
                (answer,) = await answers_of(self._api, asked, SCHEDULER_S)
            found = shown(self._api.url, answer)
            if isinstance(found, CatalogZeroError):
                raise found
        except (httpx.TransportError, TimeoutError):
            if self._named or start:
                what = f"nobody answers at {self._api.url}"
                then = start or "catalogzero scheduler"
                self._note("scheduler", what, then, self._log(SCHEDULER_UNIT, None))
            return row
        except CatalogZeroError as error:
            row["status"] = "refused"
            if self._named or start:
                then = f"catalogzero schedule --url {self._api.url} --token-file FILE list"
                self._note("scheduler", error.message, then)
            return row
        row["status"] = "running"
        self._judge(row, found.get("schedules") or [])
        return row

    def _judge(self, row: SchedulerRow, schedules: Sequence[JsonObject]) -> None:
        """Which schedules are late or failed; each is a trouble."""
        row["schedules"] = len(schedules)
        times = sorted(str(s["next_fire_time"]) for s in schedules if s.get("next_fire_time"))
        row["next"] = times[0] if times else None
        for one in schedules:
            job_id, last = str(one["id"]), one.get("last_execution") or {}
            handler_id = str(one.get("handler_id") or "")
            due = one.get("next_fire_time")
            shown_row: ScheduleRow = {
                "job_id": job_id,
                "handler_id": handler_id,
                "next": due,
                "outcome": "",
            }
            status, error = str(last.get("status", "")), last.get("error")
            outcome = outcome_of(status, last.get("result"), error) if last else None
            then = f"catalogzero schedule executions --job-id {shlex.quote(job_id)}"
            log = self._log(handler_id, last.get("started_at"))
            if one.get("error"):
                shown_row["outcome"] = f"stands still: {one['error']}"
            elif outcome and outcome["state"] in ("failed", "missed"):
                shown_row["outcome"] = f"{outcome['state']}: {outcome['words']}"
            elif last.get("waiting"):
                shown_row["outcome"] = str(error or "waits for its handler")
                then = f"catalogzero check {shlex.quote(handler_id)}{self._option}"
            elif due and not one.get("paused") and self._is_late(str(due)):
                row["late"].append({**shown_row, "outcome": f"was due at {due}"})
                self._note(f"schedule {job_id}", f"was due at {due}, and has not begun", then, log)
                continue
            else:
                continue
            row["failed"].append(shown_row)
            self._note(f"schedule {job_id}", shown_row["outcome"], then, log)

    def _is_late(self, due: str) -> bool:
        with suppress(ValueError, TypeError):
            return datetime.fromisoformat(due) < self._clock.now() - LATE
        return False

    def _disks(self, handlers: Sequence[HandlerRow]) -> Iterator[Disk]:
        """What is free, once for each file system that state lies on."""
        known = set()
        for row in handlers:
            with suppress(OSError):
                folder = Path(row["state_dir"] or "/")
                while not is_there(folder):
                    folder = folder.parent
                device = folder.stat().st_dev
                if device in known:
                    continue
                known.add(device)
                free = disk_free_bytes(folder)
                yield {"path": str(folder), "free_bytes": free}
                if free < LOW_DISK_BYTES and not any("disk" in one for one in row["reasons"]):
                    what = f"{free >> 20} MiB are free at {folder}"
                    self._note("disk", what, f"df -h {shlex.quote(str(folder))}")

    def _certificates(self, section: Section) -> Iterator[Certificate]:
        """The certificates that a section names, and when they expire."""
        for setting in _CERTIFICATES:
            value = section.config.get(setting)
            if not isinstance(value, str):
                continue
            name, path = section.handler_id, section.path.parent / value
            check = f"catalogzero check {shlex.quote(name)}{self._option}"
            until = None
            try:
                until = good_until(path, any_will_do=setting == "ca_file")
            except PermissionError:
                pass  # it is its handler's to read
            except OSError as error:
                self._note(name, f"{setting} {path}: {error.strerror}", check)
            if until and (left := expiring(setting, path, until, self._clock.now())):
                self._note(name, left.found, left.fix)
            moment = until.isoformat() if until else None
            yield {
                "handler_id": name,
                "setting": setting,
                "path": str(path),
                "expires_at": moment,
            }


def installed_version(entry: str | None) -> str | None:
    """The version of an entry's package here; None where it has no package, or is not installed."""
    return next((one.dist.version for one in points_of(entry or "") if one.dist), None)


def unit_state(unit: str) -> str:
    """How a unit's process ended, in systemd's words, as ` (oom-kill, exit status 9)`."""
    if not Path("/run/systemd/system").exists() or not shutil.which("systemctl"):
        return ""
    asked = ["systemctl", "show", unit, "--property=Result,ExecMainStatus", "--value"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(  # noqa: S603 - systemd's own
            asked, capture_output=True, text=True, timeout=SCHEDULER_S, check=True
        )
        result, _, status = done.stdout.strip().partition("\n")
        if result not in ("", "success"):
            return f" ({result}, exit status {status})"
    return ""

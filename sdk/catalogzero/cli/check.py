"""`catalogzero check`: preflight of a handler, each check within three seconds."""

from __future__ import annotations

import asyncio
import os
import shlex
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from catalogzero.cli.output import JsonFlag, print_json, print_table
from catalogzero.cli.run import RegistryOption, Target
from catalogzero.cli.standing import HandlerStanding, standing_of
from catalogzero.config import key_files
from catalogzero.config.preflight import CHECK_TIMEOUT_S, Check, Finding, run_checks
from catalogzero.config.service_unit import is_installed
from catalogzero.config.settings import DEFAULT_SCHEDULER, CurveSettings
from catalogzero.config.state_folder import owner_hint, read_by_others
from catalogzero.errors import (
    AddressUnavailableError,
    CatalogZeroError,
    ConfigError,
    UnreachableError,
)
from catalogzero.runtime.handler import Handler
from catalogzero.runtime.health import SECOND_HOST
from catalogzero.runtime.launch import make_handler, registry_path
from catalogzero.runtime.registration import second_host_fix
from catalogzero.runtime.service import check_exposure, curve_server, curve_to_scheduler
from catalogzero.wire.carriers import transport_for
from catalogzero.wire.client import HandlerClient
from catalogzero.wire.keys import CurveClient, CurveKeys
from catalogzero.wire.messages import JsonObject
from catalogzero.wire.transport import Transport

OF_ITS_PLACE = {"state_dir", "log_format", "log_level"}
"""Settings that a unit gives by its environment: unlike ones are no fault."""
CREDENTIALS = "/run/credentials/"
ADDRESS_FIX = "name another `host` or `port`, or end the process that has it"
MARKS = {"pass": "✓ pass", "warn": "! warn", "fail": "✗ fail"}


def check(
    target: Target,
    registry: RegistryOption = None,
    unit: Annotated[
        str | None, typer.Option(help="Check as this installed unit's user, with what it may see.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Look at everything that a handler needs before it is started.

    Exit code 0 when nothing failed, 3 when the configuration is wrong, else 1.

    Example: catalogzero check acme --registry /etc/acme/handler_registry.yaml
    """
    if unit:
        from catalogzero.cli.check_unit import check_in_unit

        raise typer.Exit(check_in_unit(unit, target, registry_path(registry), json=json))
    where = f" --registry {shlex.quote(str(registry))}" if registry else ""
    again = f"catalogzero check {shlex.quote(target)}{where}"
    try:
        handler = make_handler(target, registry=registry)
    except ConfigError as error:
        faults = [
            Finding("configuration", "fail", line, f"write it right there, then: {again}")
            for line in str(error).splitlines()
        ]
        show(faults, again, json=json)
        raise typer.Exit(3) from None
    standing, findings = asyncio.run(checked(handler))
    failed = any(finding.status == "fail" for finding in findings)
    then = again.replace(" check ", " run ", 1)
    if standing.status != "stopped" or standing.is_unit:
        then = standing.next_command(where, checked=True)
    show(findings, again if failed else then, json=json)
    raise typer.Exit(1 if failed else 0)


async def check_handler(handler: Handler) -> list[Finding]:
    """Every check of a handler: the runtime's, then those of its class."""
    return (await checked(handler))[1]


async def checked(handler: Handler) -> tuple[HandlerStanding, list[Finding]]:
    """How a handler stands, and every check of it; one that runs is asked itself, too."""
    runtime = handler.runtime
    address, transport = runtime.address, None
    with suppress(ConfigError):  # which a check of its own names
        address = address.called(handler.handler_id)
        keys = CurveKeys.read(runtime.curve.key_file) if runtime.curve else None
        curve = CurveClient(keys, keys.public) if keys else None
        transport = transport_for(address, client_keys=curve, nats=runtime.nats)
    known = str(address.callable_here) if address.port or address.path else None
    standing = HandlerStanding(handler.handler_id, "stopped")
    fault = await bind_fault(handler)
    if known is None or isinstance(fault, AddressUnavailableError) or address.is_nats:
        asked = None if address.is_nats and fault else known
        standing = await standing_of(handler.handler_id, asked, handler.state_dir, transport)
    wide = [path for path in handler._key_files if key_files.read_by_others(path)]
    own = [
        Check("configuration", lambda: "settings are valid", ""),
        Check("methods", partial(methods_can_be_read, handler), "correct what its class says"),
        Check("state folder", partial(state_can_be_written, handler), "set `state_dir`"),
        Check("address", partial(address_is_free, handler, standing, fault), ADDRESS_FIX),
        Check("scheduler", partial(scheduler_answers, handler, standing), "see `scheduler`"),
    ]
    if runtime.curve or wide:
        own.append(Check("keys", partial(keys_are_private, runtime.curve, wide), "see `curve`"))
    if standing.answers and known and (there := await described(known, transport)):
        if state_dir := there.get("runtime", {}).get("state_dir"):
            # Its unit has given it a folder that this user's environment does not name.
            seen = runtime.model_copy(update={"state_dir": Path(state_dir)})
            handler._attach(runtime=seen, handler_id=handler.handler_id)
        fix = f"start {handler.handler_id} again"
        own.append(Check("handler", partial(runs_as_seen_here, handler, there), fix))
    findings = await run_checks([*own, *handler._preflight()])
    if outbox := standing.outbox:
        # It knows its own folder, which may be another than this user's settings name.
        said = outbox_of(outbox)
        # What a damaged file cost is not in its figures: that stays until the file is removed.
        theirs = [one.name == "outbox" and "damaged" not in one.found for one in findings]
        findings = [said if own else one for own, one in zip(theirs, findings, strict=True)]
    return standing, findings


def outbox_of(said: JsonObject) -> Finding:
    """What a running handler says of its outbox."""
    found = f"{said['uploads']} uploads wait, {said['dead']} were refused"
    if reason := said.get("paused") or said.get("fault"):
        kind = "paused" if said.get("paused") else "the last try failed"
        when = f"; next try at {said['next_try_at']}" if said.get("next_try_at") else ""
        fix = "see the lines above, then `catalogzero outbox retry --now`"
        return Finding("outbox", "warn", f"{found}; {kind}: {reason}{when}", fix)
    if said["dead"]:
        return Finding("outbox", "warn", found, "look at `catalogzero outbox list`")
    return Finding("outbox", "pass", found)


async def described(address: str, transport: Transport | None) -> JsonObject:
    """What a running handler says of its settings and releases; empty where it does not answer."""
    with suppress(CatalogZeroError):
        async with HandlerClient(address, transport=transport) as client:
            found = await client.call("describe", timeout_s=CHECK_TIMEOUT_S)
            return found if isinstance(found, dict) else {}
    return {}


async def runs_as_seen_here(handler: Handler, there: JsonObject) -> Finding:
    """Whether the running handler has the settings and the release that are seen from here."""
    here: JsonObject = {**await handler.describe()}
    others = [
        f"{prefix}{name}"
        for part, prefix in (("runtime", ""), ("settings", "config."))
        for name in sorted({*there.get(part, {}), *here[part]} - OF_ITS_PLACE)
        if not alike(there.get(part, {}).get(name), here[part].get(name))
    ]
    name = shlex.quote(handler.handler_id)
    again = f"`systemctl restart {name}`" if is_installed(name) else "start it again"
    for what in ("sdk_version", "version"):
        if there.get(what) != here[what]:
            found = f"it runs {what} {there.get(what)}; installed is {here[what]}"
            return Finding("handler", "warn", found, again)
    if others:
        found = f"it runs with other settings than are seen from here: {', '.join(others)}"
        fix = f"{again} where the file has changed; see its environment with --unit"
        return Finding("handler", "warn", found, fix)
    return Finding("handler", "pass", "it runs with these settings")


def alike(there: Any, here: Any) -> bool:
    """Whether two values of a setting are the same; what systemd handed over lies elsewhere."""
    return bool(there == here) or any(str(one).startswith(CREDENTIALS) for one in (there, here))


def methods_can_be_read(handler: Handler) -> str:
    """Whether the type hints of every method can be read."""
    methods = handler.callable_methods()
    for method in methods.values():
        method.verify()
    return ", ".join(methods) or "none"


def state_can_be_written(handler: Handler) -> Finding:
    """Whether the state folder can be written, or made; nothing is made for it."""
    folder = handler.state_dir
    there = next(one for one in (folder, *folder.absolute().parents) if os.path.lexists(one))
    if not there.is_dir():
        return Finding("state folder", "fail", f"{there} is no folder", "set `state_dir`")
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        fix = "mount it writable again, or set `state_dir`"
        return Finding("state folder", "fail", f"{there} is on a read-only file system", fix)
    if not os.access(there, os.W_OK | os.X_OK):
        fix = f"{owner_hint(there)}; or set `state_dir`"
        return Finding("state folder", "fail", f"{there} may not be written by this user", fix)
    if there != folder:
        return Finding("state folder", "pass", f"{folder}: made at the first start")
    if os.geteuid() == 0 and folder.stat().st_uid != 0:
        name = shlex.quote(handler.handler_id)
        as_unit = f"check as it: catalogzero check {name} --unit {name}"
        fix = as_unit if is_installed(handler.handler_id) else owner_hint(folder)
        found = f"{folder} belongs to another user, who may see less than root"
        return Finding("state folder", "warn", found, fix)
    if wide := read_by_others(folder):
        fix = f"chmod -R go-rwx {shlex.quote(str(folder))}"
        return Finding("state folder", "warn", f"others on this machine can read {wide[0]}", fix)
    return Finding("state folder", "pass", str(folder))


def keys_are_private(curve: CurveSettings | None, wide: list[Path]) -> Finding:
    """Whether what holds a secret is its owner's alone, and the key pair is there."""
    if curve and not curve.key_file.exists():
        text, fix = f"{curve.key_file}: no such file", "make it: `catalogzero keys new`"
        return Finding("keys", "fail", text, fix)
    if wide:
        text = f"others may read {', '.join(str(path) for path in wide)}"
        files = " ".join(shlex.quote(str(path)) for path in wide)
        return Finding("keys", "warn", text, f"chmod 600 {files}")
    return Finding("keys", "pass", str(curve.key_file) if curve else "")


async def bind_fault(handler: Handler) -> ConfigError | None:
    """Why it cannot listen at its address: whether that is free, and its keys are good."""
    runtime = handler.runtime
    try:
        address, keys = runtime.address.called(handler.handler_id), curve_server(runtime)
        transport = transport_for(address, server_keys=keys, nats=runtime.nats)
        await transport.serve(lambda envelope, frame: None).probe(address)
    except ConfigError as error:
        return error
    return None


async def address_is_free(
    handler: Handler, standing: HandlerStanding, fault: ConfigError | None
) -> Finding:
    """Whether the address is allowed, could be bound (`fault` says why not), or is its own."""
    runtime = handler.runtime
    at = runtime.address.called(handler.handler_id)
    where = str(at) if at.port or at.path else f"any free port of {at.host}"
    check_exposure(runtime)
    if standing.status != "stopped":
        # The address is taken: by this very handler, which runs, is no fault.
        state = f"{handler.handler_id} runs at {where} ({standing.status})"
        if standing.status == "silent":
            fix = f"look at its log, then `{standing.next_command()}`"
            return Finding("address", "fail", f"{state}: process {standing.pid}", fix)
        return Finding("address", "warn", state, "stop it before you start another")
    if fault:
        raise fault
    if runtime.exposed:
        fix = f"set `{runtime.encrypted_by}` unless the network is private"
        return Finding("address", "warn", f"{where} is served without encryption", fix)
    return Finding("address", "pass", where)


async def scheduler_answers(handler: Handler, standing: HandlerStanding) -> Finding:
    """Whether a scheduler answers where the handler would register, and takes it if it runs."""
    address = handler.runtime.scheduler
    if not handler.runtime.registers:
        return Finding("scheduler", "pass", "none: it does not register")
    try:
        async with HandlerClient(address, curve=curve_to_scheduler(handler.runtime)) as client:
            await client.request_plain("ping", timeout_s=CHECK_TIMEOUT_S / 2)
    except (UnreachableError, TimeoutError):
        fix = f"start one (`catalogzero scheduler`); the handler registers when {address} is up"
        status: Literal["fail", "warn"] = "warn" if address == DEFAULT_SCHEDULER else "fail"
        return Finding("scheduler", status, f"nobody answers at {address}", fix)
    if SECOND_HOST in (standing.metrics.get("health") or {}).get("reasons", ()):
        return Finding("scheduler", "fail", f"{address}: {SECOND_HOST}", second_host_fix(handler))
    return Finding("scheduler", "pass", address)


def show(findings: list[Finding], next_command: str, *, json: bool) -> None:
    """Print what was found, and the command to go on with."""
    if json:
        # The key beside `fix` is its name of a release before, which goes with the next.
        rows = [{**asdict(f), "mend": f.fix} for f in findings]
        print_json({"findings": rows, "next": next_command})
    else:
        table = [(MARKS[f.status], f.name, f.found, f.fix) for f in findings]
        print_table(("", "check", "found", "fix"), table)
        typer.echo(f"next: {next_command}")

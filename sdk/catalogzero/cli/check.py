"""`catalogzero check`: preflight of a handler, each check within three seconds."""

from __future__ import annotations

import asyncio
import os
import shlex
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from catalogzero.cli.output import JsonFlag, print_json, print_table
from catalogzero.cli.run import RegistryOption
from catalogzero.config import key_files
from catalogzero.config.preflight import CHECK_TIMEOUT_S, Check, Finding, run_checks
from catalogzero.config.settings import DEFAULT_SCHEDULER, CurveSettings
from catalogzero.config.state_folder import make_private, read_by_others
from catalogzero.errors import CatalogZeroError, ConfigError, UnreachableError
from catalogzero.runtime.handler import Handler
from catalogzero.runtime.launch import make_handler
from catalogzero.runtime.service import check_exposure, curve_server, curve_to_scheduler
from catalogzero.wire.client import HandlerClient
from catalogzero.wire.zeromq import ZeroMQ

MARKS = {"pass": "✓ pass", "warn": "! warn", "fail": "✗ fail"}


def check(
    target: Annotated[str, typer.Argument(help="A handler_id, an entry, or module:Class.")],
    registry: RegistryOption = None,
    json: JsonFlag = False,
) -> None:
    """Look at everything that a handler needs before it is started.

    Exit code 0 when nothing failed, 3 when the configuration is wrong, else 1.

    Example: catalogzero check acme --registry /etc/acme/handler_registry.yaml
    """
    where = f" --registry {shlex.quote(str(registry))}" if registry else ""
    again = f"catalogzero check {shlex.quote(target)}{where}"
    try:
        handler = make_handler(target, registry=registry)
    except ConfigError as error:
        fix = "fix what is named"
        faults = [Finding("configuration", "fail", x, fix) for x in str(error).splitlines()]
        _show(faults, again, json=json)
        raise typer.Exit(3) from None
    findings = asyncio.run(check_handler(handler))
    failed = any(finding.status == "fail" for finding in findings)
    _show(findings, again if failed else again.replace(" check ", " run ", 1), json=json)
    raise typer.Exit(1 if failed else 0)


async def check_handler(handler: Handler) -> list[Finding]:
    """Every check of a handler: the runtime's, then those of its class."""
    own = [
        Check("configuration", lambda: "settings are valid"),
        Check("methods", partial(_check_methods, handler)),
        Check("state folder", partial(_check_state, handler)),
        Check("address", partial(_check_address, handler)),
        Check("scheduler", partial(_check_scheduler, handler)),
    ]
    wide = [path for path in handler._key_files if key_files.read_by_others(path)]
    if handler.runtime.curve or wide:
        own.append(Check("keys", partial(_check_keys, handler.runtime.curve, wide)))
    return await run_checks([*own, *handler._preflight()])


def _check_methods(handler: Handler) -> str:
    """Whether the type hints of every method can be read."""
    methods = handler.callable_methods()
    for method in methods.values():
        method.verify()
    return ", ".join(methods) or "none"


def _check_state(handler: Handler) -> Finding:
    """Whether the state folder can be written."""
    folder = handler.state_dir
    try:
        make_private(folder)
    except OSError as error:
        fix = "create it for this user, or set `state_dir`"
        return Finding("state folder", "fail", f"{folder}: {error.strerror}", fix)
    if not os.access(folder, os.W_OK):
        fix = "let this user write it, or set `state_dir`"
        return Finding("state folder", "fail", f"{folder} cannot be written", fix)
    if wide := read_by_others(folder):
        fix = f"chmod -R go-rwx {shlex.quote(str(folder))}"
        return Finding("state folder", "warn", f"others on this machine can read {wide[0]}", fix)
    return Finding("state folder", "pass", str(folder))


def _check_keys(curve: CurveSettings | None, wide: list[Path]) -> Finding:
    """Whether what holds a secret is its owner's alone, and the key pair is there."""
    if curve and not curve.key_file.exists():
        text, fix = f"{curve.key_file}: no such file", "make it: `catalogzero keys new`"
        return Finding("keys", "fail", text, fix)
    if wide:
        text = f"others may read {', '.join(str(path) for path in wide)}"
        return Finding("keys", "warn", text, "chmod 600 it")
    return Finding("keys", "pass", str(curve.key_file) if curve else "")


async def _check_address(handler: Handler) -> Finding:
    """Whether the address is allowed and free, and its keys can be read: by binding it."""
    runtime = handler.runtime
    at = runtime.address
    where = str(at) if at.port or at.path else f"any free port of {at.host}"
    check_exposure(runtime)
    server = ZeroMQ(curve_server(runtime)).serve(lambda envelope, frame: None)
    try:
        server.bind(at)
    except ConfigError:
        if not await _runs_already(handler):
            raise
        fix = "stop it before you start another"
        return Finding("address", "warn", f"{handler.handler_id} runs at {where}", fix)
    finally:
        server.close()
    if runtime.exposed:
        fix = "set `curve` unless the network is private"
        return Finding("address", "warn", f"{where} is served without encryption", fix)
    return Finding("address", "pass", where)


async def _runs_already(handler: Handler) -> bool:
    """Whether what listens at its address is this very handler."""
    runtime = handler.runtime
    try:
        async with HandlerClient(str(runtime.address.callable_here)) as client:
            answer = await client.ping(timeout_s=CHECK_TIMEOUT_S / 3)
    except CatalogZeroError:
        return False
    return answer.get("handler") == handler.handler_id


async def _check_scheduler(handler: Handler) -> Finding:
    """Whether a scheduler answers where the handler would register."""
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
    return Finding("scheduler", "pass", address)


def _show(findings: list[Finding], next_command: str, *, json: bool) -> None:
    if json:
        # `mend` is what the release before called `fix`; it goes with the next one.
        rows = [{**asdict(f), "mend": f.fix} for f in findings]
        print_json({"findings": rows, "next": next_command})
        return
    table = [(MARKS[f.status], f.name, f.found, f.fix) for f in findings]
    print_table(("", "check", "found", "fix"), table)
    typer.echo(f"next: {next_command}")

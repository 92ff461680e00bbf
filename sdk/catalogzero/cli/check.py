"""`catalogzero check`: preflight of a handler, each check within three seconds.

Layer: edge.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated

import typer

from catalogzero.cli.output import JsonFlag, print_json, print_table
from catalogzero.cli.run import RegistryOption
from catalogzero.client import HandlerClient
from catalogzero.errors import ConfigError, UnreachableError
from catalogzero.handler import Handler
from catalogzero.launch import make_handler
from catalogzero.preflight import CHECK_TIMEOUT_S, Check, Finding, run_checks
from catalogzero.service import check_exposure
from catalogzero.settings import DEFAULT_SCHEDULER

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
    try:
        handler = make_handler(target, registry=registry)
    except ConfigError as error:
        _show([Finding("configuration", "fail", str(error), "mend what is named")], "", json=json)
        raise typer.Exit(3) from None
    findings = asyncio.run(check_handler(handler))
    failed = any(finding.status == "fail" for finding in findings)
    where = f" --registry {registry}" if registry else ""
    command = "check" if failed else "run"
    _show(findings, f"catalogzero {command} {target}{where}", json=json)
    raise typer.Exit(1 if failed else 0)


async def check_handler(handler: Handler) -> list[Finding]:
    """Every check of a handler: the runtime's, then those of its class."""
    own = [
        Check("configuration", lambda: "settings are valid"),
        Check("state folder", lambda: _check_state(handler)),
        Check("address", lambda: _check_address(handler)),
        Check("scheduler", _scheduler_check(handler)),
    ]
    return await run_checks([*own, *handler._preflight()])


def _check_state(handler: Handler) -> Finding:
    """Whether the state folder can be written."""
    folder = handler.state_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        mend = "create it for this user, or set `state_dir`"
        return Finding("state folder", "fail", f"{folder}: {error.strerror}", mend)
    if not os.access(folder, os.W_OK):
        mend = "let this user write it, or set `state_dir`"
        return Finding("state folder", "fail", f"{folder} cannot be written", mend)
    return Finding("state folder", "pass", str(folder))


def _check_address(handler: Handler) -> Finding:
    """Whether the port is free and the address allowed."""
    runtime = handler.runtime
    check_exposure(runtime)
    family = socket.AF_INET6 if ":" in runtime.host else socket.AF_INET
    where = f"{runtime.host}:{runtime.port or 'any free port'}"
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((runtime.host, runtime.port))
    except OSError as error:
        mend = "stop what listens there, or set another `port` or `host`"
        return Finding("address", "fail", f"{where}: {error.strerror}", mend)
    if runtime.allow_plaintext and runtime.curve is None and runtime.host != "127.0.0.1":
        mend = "set `curve` unless the network is private"
        return Finding("address", "warn", f"{where} is served without encryption", mend)
    return Finding("address", "pass", where)


def _scheduler_check(handler: Handler) -> Callable[[], Awaitable[Finding]]:
    """Whether a scheduler answers where the handler would register."""
    address = handler.runtime.scheduler

    async def ask() -> Finding:
        if not handler.runtime.registers:
            return Finding("scheduler", "pass", "none: it does not register")
        try:
            async with HandlerClient(address) as client:
                await client.request_plain("ping", timeout_s=CHECK_TIMEOUT_S / 2)
        except (UnreachableError, TimeoutError):
            mend = (
                f"start one (`catalogzero scheduler`); the handler registers when {address} is up"
            )
            asked_for = address != DEFAULT_SCHEDULER
            kind = "fail" if asked_for else "warn"
            return Finding("scheduler", kind, f"nobody answers at {address}", mend)  # type: ignore[arg-type]
        return Finding("scheduler", "pass", address)

    return ask


def _show(findings: list[Finding], next_command: str, *, json: bool) -> None:
    if json:
        print_json({"findings": [asdict(f) for f in findings], "next": next_command or None})
        return
    rows = [(MARKS[f.status], f.name, f.found, f.mend) for f in findings]
    print_table(("", "check", "found", "mend"), rows)
    if next_command:
        typer.echo(f"next: {next_command}")

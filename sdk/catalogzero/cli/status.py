"""`catalogzero status`: one look at everything on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from catalogzero.cli.machine import HandlerRow, Look, MachineReport
from catalogzero.cli.output import JsonFlag, print_json, print_table
from catalogzero.cli.run import RegistryOption
from catalogzero.cli.schedule import DEFAULT_API, SchedulerUrl, TokenFile, api_at
from catalogzero.runtime.launch import registry_path
from catalogzero.wire.keys import CurveKeys

EXIT_TROUBLE, EXIT_BAD_FILE = 1, 2
KeyFile = Annotated[
    Path | None, typer.Option(help="Your CURVE key pair, for handlers that are served with keys.")
]


def status(
    registry: RegistryOption = None,
    url: SchedulerUrl = DEFAULT_API,
    token_file: TokenFile = None,
    key_file: KeyFile = None,
    json: JsonFlag = False,
) -> None:
    """Show how everything on this machine does, and the next command for each trouble.

    Handlers of the registry file, schedules, outboxes, disks, versions, certificates. Nothing is
    changed, woken or sent, and no secret is needed.

    Exit code 0 when all is well, 1 when something is in trouble, 2 when the registry file is wrong.

    Example: catalogzero status --registry /etc/acme/handler_registry.yaml
    """
    keys = CurveKeys.read(key_file) if key_file else None
    api = api_at(url, token_file)
    look = Look(registry_path(registry), api, named=url != DEFAULT_API, keys=keys)
    report = asyncio.run(look.take())
    if json:
        print_json(report)
    else:
        show(report)
    code = EXIT_BAD_FILE if look.is_bad_file else EXIT_TROUBLE
    raise typer.Exit(0 if report["ok"] else code)


def show(report: MachineReport) -> None:
    """Print a report: what is in trouble first said, then shown."""
    parts = sorted({one["of"] for one in report["troubles"]})
    typer.echo(f"in trouble: {', '.join(parts)}" if parts else "all is well")
    if report["handlers"]:
        columns = ("handler", "state", "last run", "outbox", "last upload", "version")
        print_table(columns, map(handler_cells, report["handlers"]))
    for line in other_lines(report):
        typer.echo(line)
    for trouble in report["troubles"]:
        typer.echo(f"\n✗ {trouble['of']}: {trouble['what']}\n  next: {trouble['next']}")
        if trouble["log"]:
            typer.echo(f"  log:  {trouble['log']}")


def handler_cells(row: HandlerRow) -> tuple[str, ...]:
    """A handler's line of the table."""
    outbox = row["outbox"] or {}
    waits = f"{outbox['uploads']} wait" if outbox.get("uploads") else "empty"
    if outbox.get("uploads") and outbox.get("oldest_at"):
        waits += f", since {ago(outbox['oldest_at'])}"
    dead = f"{outbox['dead']} refused" if outbox.get("dead") else ""
    paused = "paused" if outbox.get("paused") else ""
    good, bad = row["last_successful_run"], row["last_failed_run"]
    last = "-"
    if good or bad:
        failed = bad and (not good or bad["ended_at"] > good["ended_at"])
        last = f"failed {ago(bad['ended_at'])}" if failed and bad else ""
        last = last or (f"went well {ago(good['ended_at'])}" if good else "")
    version = row["version"] or row["installed_version"] or "-"
    return (
        row["handler_id"],
        row["status"],
        last,
        ", ".join(filter(None, [waits if outbox else "-", dead, paused])),
        ago(outbox.get("last_upload_at")) if outbox.get("last_upload_at") else "-",
        version,
    )


def other_lines(report: MachineReport) -> Iterator[str]:
    """Scheduler, disks, certificates and release, a line each."""
    found = report["scheduler"]
    if found["status"] == "running":
        counts = f"{found['schedules']} schedules, {len(found['failed'])} failed"
        counts += f", {len(found['late'])} late" if found["late"] else ""
        after = f", next at {found['next']}" if found["next"] else ""
        yield f"scheduler: {counts}{after} ({found['url']})"
    else:
        yield f"scheduler: {found['status']} ({found['url']})"
    for disk in report["disks"]:
        yield f"disk: {disk['free_bytes'] / (1 << 30):.1f} GiB free at {disk['path']}"
    for one in report["certificates"]:
        yield f"certificate: {one['handler_id']} {one['setting']} until {one['expires_at']}"
    yield f"release: catalogzero {report['version']}"


def ago(moment: object) -> str:
    """How long ago a time was, in its two greatest units, as `2 h 5 min ago`."""
    try:
        past = datetime.now(UTC) - datetime.fromisoformat(str(moment))
    except (ValueError, TypeError):
        return "-"
    minutes = max(past, timedelta()) // timedelta(minutes=1)
    if minutes >= 48 * 60:
        return f"{minutes // 1_440} days ago"
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min ago"
    return f"{minutes} min ago"

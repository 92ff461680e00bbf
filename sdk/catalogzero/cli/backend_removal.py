"""`catalogzero backend … remove`: erase a tenant, an installation or a source, with a receipt."""

from __future__ import annotations

from typing import Annotated

import typer

from catalogzero.cli.backend_database import DatabaseOption, backend_settings, now, open_database
from catalogzero.cli.output import JsonFlag, Yes, print_json, print_rows
from catalogzero.clock import SystemClock

installations = typer.Typer(no_args_is_help=True, help="What the backend knows of installations.")
sources = typer.Typer(no_args_is_help=True, help="What the backend knows of sources.")

Tenant = Annotated[str, typer.Argument(help="The tenant's name.")]
Installation = Annotated[str, typer.Argument(help="The installation's id.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")]


@installations.command("list")
def list_installations(
    tenant: Tenant, database: DatabaseOption = None, as_json: JsonFlag = False
) -> None:
    """List a tenant's installations.

    Example: catalogzero backend installations list acme
    """
    from catalogzero.backend.inventory import read_installations

    with open_database(backend_settings(database=database).database) as store:
        found = store.read_now(lambda connection: read_installations(connection, tenant))
    columns = ("installation", "entry", "version", "last seen", "removed")
    rows = [
        (one.installation_id, one.entry, one.version, one.last_seen_at, one.removed_at or "")
        for one in found
    ]
    print_rows({"installations": found}, columns, rows, json=as_json)


@sources.command("list")
def list_sources(
    tenant: Tenant,
    installation_id: Installation,
    database: DatabaseOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List an installation's sources, with the key that `sources remove` takes.

    Example: catalogzero backend sources list acme site-1
    """
    from catalogzero.backend.inventory import read_sources

    with open_database(backend_settings(database=database).database) as store:
        found = store.read_now(lambda at: read_sources(at, tenant, installation_id))
    columns = ("stream", "source", "records", "removed", "source key")
    rows = [
        (one.stream or "", one.source or "", one.records, one.removed_at or "", one.source_key)
        for one in found
    ]
    print_rows({"sources": found}, columns, rows, json=as_json)


def remove_tenant(
    tenant: Tenant,
    database: DatabaseOption = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: JsonFlag = False,
) -> None:
    """Erase a tenant for good: its keys at once, then all that it ever sent.

    The receipt says what was removed. A removal that is cut off is gone on with by the same
    command, or by the backend itself.

    Example: catalogzero backend tenants remove acme --dry-run
    """
    _remove((tenant,), database, dry_run=dry_run, yes=yes, as_json=as_json)


@installations.command("remove")
def remove_installation(
    tenant: Tenant,
    installation_id: Installation,
    database: DatabaseOption = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: JsonFlag = False,
) -> None:
    """Erase what an installation sent and said.

    Its epoch and each source's key and numbers stay, so that it sends nothing of it again by
    itself; a changed file is new content.

    Example: catalogzero backend installations remove acme site-1 --dry-run
    """
    names = (tenant, installation_id)
    _remove(names, database, dry_run=dry_run, yes=yes, as_json=as_json)


@sources.command("remove")
def remove_source(
    tenant: Tenant,
    installation_id: Installation,
    source_key: Annotated[str, typer.Argument(help="As `sources list` shows it.")],
    database: DatabaseOption = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: JsonFlag = False,
) -> None:
    """Erase the rows and names of one source.

    Its key, numbers and watermark stay, so that no client sends it again by itself; a changed
    file is new content.

    Example: catalogzero backend sources remove acme site-1 4f0c… --dry-run
    """
    names = (tenant, installation_id, source_key)
    _remove(names, database, dry_run=dry_run, yes=yes, as_json=as_json)


def _remove(
    names: tuple[str, ...], database: str | None, *, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Show what there is of a tenant's, ask, remove it, and hand out the receipt."""
    from catalogzero.backend.removal import Target, preview, remove

    target, shown = Target(*names), " ".join(names)
    with open_database(backend_settings(database=database).database) as store:
        if dry_run or not yes:
            receipt = store.read_now(lambda connection: preview(connection, target, now()))
        if not dry_run:
            if not yes:
                question = f"remove {counted(receipt.removed)} of {shown} for good?"
                typer.confirm(question, abort=True)
            receipt = remove(store, target, SystemClock())
    if as_json:
        print_json(receipt)
        return
    done = "would be removed" if dry_run else "removed"
    typer.echo(f"{shown}: {done}: {counted(receipt.removed)}")
    if not dry_run:
        count = receipt.transactions
        span = f"from {receipt.began_at} to {receipt.ended_at}"
        typer.echo(f"{span}, in {count} transaction{'' if count == 1 else 's'}")
    if receipt.unfinished_uploads:
        typer.echo(
            f"{receipt.unfinished_uploads} unfinished uploads of {receipt.tenant} are not looked "
            "at: nobody knows yet what they are of, and they go when they are not completed"
        )


def counted(removed: dict[str, int]) -> str:
    """What is not nothing, as a list."""
    found = [f"{count:,} {kind.replace('_', ' ')}" for kind, count in removed.items() if count]
    return ", ".join(found) or "nothing"

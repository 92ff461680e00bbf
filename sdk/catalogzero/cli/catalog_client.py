"""`catalogzero catalog list | show | install | upgrade | remove`: the client's half."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from catalogzero.cli.output import JsonFlag, print_fields, print_json, print_rows
from catalogzero.entry import install as installing
from catalogzero.entry import registry_section as sections
from catalogzero.entry.catalog_file import Offer

CatalogOption = Annotated[
    str,
    typer.Option(
        "--catalog", envvar="CATALOGZERO_CATALOG", help="The catalog's address, or its folder."
    ),
]
PythonOption = Annotated[
    str | None, typer.Option("--python", help="Interpreter of another environment.")
]
RegistryOption = Annotated[
    Path, typer.Option(envvar="CATALOGZERO_REGISTRY", help="The registry file.")
]
EntryArgument = Annotated[str, typer.Argument(help="The entry's id.")]


def list_entries(catalog: CatalogOption, *, as_json: JsonFlag = False) -> None:
    """What a catalog offers.

    Example: catalogzero catalog list --catalog https://catalog.acme.example
    """
    offers = installing.open_catalog(catalog).content.entries
    rows = [(offer.id, offer.version, offer.kind, offer.description) for offer in offers]
    columns = ("id", "version", "kind", "description")
    listed = [dict(zip(columns, row, strict=True)) for row in rows]
    print_rows(listed, columns, rows, json=as_json)


def show(entry_id: EntryArgument, catalog: CatalogOption, *, as_json: JsonFlag = False) -> None:
    """What an entry does, what data leaves, which hosts it talks to.

    Example: catalogzero catalog show acme-processor --catalog https://catalog.acme.example
    """
    offer = installing.open_catalog(catalog).find(entry_id)
    if as_json:
        of_the_catalog = {"distribution", "releases"}
        print_json(offer.model_dump(mode="json", by_alias=True, exclude=of_the_catalog))
        return
    releases = [
        f"{one.version} (yanked: {one.yanked})" if one.yanked else one.version
        for one in offer.releases
    ]
    fields = {
        "name": offer.name,
        "version": offer.version,
        "vendor": offer.vendor.name,
        "description": offer.description,
        "data that leaves": ", ".join(offer.data_collected) or "not said",
        "talks to": ", ".join(offer.allowed_hosts) or "not said",
        "methods": ", ".join(method.name for method in offer.methods) or "not said",
        "served for": ", ".join(str(lock) for lock in offer.newest.locks) or "not said",
        "releases": ", ".join(releases),
    }
    print_fields(fields)


def install(
    entry_id: EntryArgument,
    catalog: CatalogOption,
    *,
    version: Annotated[str | None, typer.Option(help="Which release; default: newest.")] = None,
    python: PythonOption = None,
    registry: RegistryOption = Path("handler_registry.yaml"),
) -> None:
    """Install an entry, hash-checked; add its section to the registry file; check it.

    Example: catalogzero catalog install acme-processor --catalog https://catalog.acme.example
    """
    opened = installing.open_catalog(catalog)
    offer = opened.find(entry_id)
    _warn_of_yank(offer, version)
    change = installing.install(opened, entry_id, version=version, python=python)
    typer.echo("\n".join(change.lines() or ["nothing changed: it was installed already"]))
    manifest = change.manifests[1] or offer
    if known := sections.sections_of(registry, manifest.id):
        handler_id = next(iter(known))
        typer.echo(f"{registry}: handler {handler_id} is there already")
    else:
        handler_id = sections.add_section(registry, manifest)
        typer.echo(f"{registry}: handler {handler_id} added; fill in what is required")
    _check(handler_id, registry, python)


def upgrade(
    entry_id: EntryArgument,
    catalog: CatalogOption,
    *,
    version: Annotated[
        str | None, typer.Option(help="Which release, also an older one; default: newest.")
    ] = None,
    python: PythonOption = None,
    registry: RegistryOption = Path("handler_registry.yaml"),
) -> None:
    """Bring an installed entry to another release; the registry file and the outbox stay.

    Example: catalogzero catalog upgrade acme-processor --catalog https://catalog.acme.example
    """
    opened = installing.open_catalog(catalog)
    _warn_of_yank(opened.find(entry_id), version)
    change = installing.install(opened, entry_id, version=version, python=python)
    before, after = change.manifests
    typer.echo("\n".join(change.lines() or ["nothing changed"]))
    if before and after:
        for line in sections.changed_settings(before.config_schema, after.config_schema):
            typer.echo(line)
    for handler_id in sections.sections_of(registry, entry_id):
        _check(handler_id, registry, python)
    typer.echo("Restart the handler: it goes on with the outbox that it finds.")


def remove(
    entry_id: EntryArgument,
    *,
    python: PythonOption = None,
    registry: RegistryOption = Path("handler_registry.yaml"),
) -> None:
    """Take an entry's package away; its section and its state stay, and are named.

    Example: catalogzero catalog remove acme-processor
    """
    change = installing.remove(entry_id, python=python)
    for line in change.lines():
        typer.echo(line)
    for where in sections.sections_of(registry, entry_id).values():
        typer.echo(f"{where}: still names {entry_id}; take it out")
    typer.echo("The state folder stays: `catalogzero outbox` shows what was not sent.")


def _warn_of_yank(offer: Offer, version: str | None) -> None:
    """Say why a release should not be installed."""
    release = offer.release(version)
    if release.yanked:
        typer.echo(f"warning: {offer.id} {release.version} is yanked: {release.yanked}", err=True)


def _check(handler_id: str, registry: Path, python: str | None) -> None:
    """Run `catalogzero check` in the environment; what is still missing is not a failure here."""
    command = [python or sys.executable, "-m", "catalogzero", "check", handler_id]
    done = subprocess.run([*command, "--registry", str(registry)], check=False)  # noqa: S603 - our own command
    if done.returncode:
        typer.echo(f"Not ready yet: fix what is named, then: catalogzero check {handler_id}")

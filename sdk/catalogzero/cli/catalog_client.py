"""`catalogzero catalog list | show | install | upgrade | remove`: the client's half."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from catalogzero.cli.output import JsonFlag, print_fields, print_json, print_rows
from catalogzero.cli.run import assignments
from catalogzero.entry import install as installing
from catalogzero.entry import registry_section as sections
from catalogzero.entry.catalog_file import Offer
from catalogzero.entry.manifest import Manifest, parse_manifest
from catalogzero.entry.unsent import states_of
from catalogzero.errors import ConfigError
from catalogzero.wire.messages import JsonObject, parse_json

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
    catalog: Annotated[
        str | None,
        typer.Option(
            envvar="CATALOGZERO_CATALOG",
            help="The catalog's address, or its folder; without one, the entry that is installed.",
        ),
    ] = None,
    *,
    version: Annotated[str | None, typer.Option(help="Which release; default: newest.")] = None,
    python: PythonOption = None,
    registry: RegistryOption = Path("handler_registry.yaml"),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the new section."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Install an entry, hash-checked; add its section to the registry file; check it.

    Example: catalogzero catalog install acme-processor --catalog https://catalog.acme.example
    --set endpoint=https://api.acme.example/v1 --set data_roots=/data/exports
    """
    given = assignments(set_ or [], "--set")
    unchanged = "nothing changed: it was installed already"
    if catalog is None:
        manifest, lines = _installed(entry_id, version, python), [unchanged]
    else:
        opened = installing.open_catalog(catalog)
        _, manifest, lines = _install(opened, entry_id, version, python, unchanged)
    if known := sections.sections_of(registry, manifest.id):
        handler_id = known[0].handler_id
        lines.append(f"{registry}: handler {handler_id} is there already, and stays as it is")
    else:
        handler_id = sections.add_section(registry, manifest, given)
        lines.append(f"{registry}: handler {handler_id} added; what is required stands open in it")
    about = {"entry": manifest.id, "version": manifest.version, "added_section": not known}
    _print_change(about, lines, [handler_id], registry, python, as_json=as_json)


def upgrade(
    entry_id: EntryArgument,
    catalog: CatalogOption,
    *,
    version: Annotated[
        str | None, typer.Option(help="Which release, also an older one; default: newest.")
    ] = None,
    python: PythonOption = None,
    registry: RegistryOption = Path("handler_registry.yaml"),
    as_json: JsonFlag = False,
) -> None:
    """Bring an installed entry to another release; the registry file and the outbox stay.

    Example: catalogzero catalog upgrade acme-processor --catalog https://catalog.acme.example
    """
    opened = installing.open_catalog(catalog)
    _stop_at_new_settings(opened.find(entry_id), version, registry, python)
    before, after, lines = _install(opened, entry_id, version, python, "nothing changed")
    if before:
        lines += sections.changed_settings(before.config_schema, after.config_schema)
    known = [section.handler_id for section in sections.sections_of(registry, entry_id)]
    about = {"entry": after.id, "version": after.version}
    _print_change(about, lines, known, registry, python, as_json=as_json)
    if not as_json:
        typer.echo("Restart the handler: it goes on with the outbox that it finds.")


def remove(
    entry_id: EntryArgument,
    *,
    python: PythonOption = None,
    registry: RegistryOption = Path("handler_registry.yaml"),
    discard: Annotated[
        bool, typer.Option("--discard", help="Remove it though rows wait unsent; names them.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Take an entry's package away; its section and its state stay, and are named.

    It refuses while rows wait unsent: without the package, nothing sends them.

    Example: catalogzero catalog remove acme-processor
    """
    states = states_of(registry, entry_id)
    unsent = [f"{one.handler_id}: {line}" for one in states for line in one.unsent]
    if unsent and not discard:
        waiting = "\n  ".join(unsent)
        raise ConfigError(
            f"{entry_id} has uploads that were not sent, and nothing was changed:\n  {waiting}\n"
            "let the handler send them, or give them up with --discard"
        )
    for line in unsent:
        typer.echo(f"not sent: {line}", err=as_json)
    change = installing.remove(entry_id, python=python)
    naming = sections.sections_of(registry, entry_id)
    if as_json:
        answer = {"entry": entry_id, "changes": change.lines(), "unsent": unsent}
        kept = {"sections": [section.where("entry") for section in naming]}
        print_json({**answer, **kept, "state_folders": [str(one.folder) for one in states]})
        return
    for line in change.lines():
        typer.echo(line)
    for section in naming:
        typer.echo(f"{section.where('entry')}: still names {entry_id}; take it out")
    for state in states:
        typer.echo(f"{state.folder}: stays, the state of {state.handler_id}; delete it by hand")


def _stop_at_new_settings(
    offer: Offer, version: str | None, registry: Path, python: str | None
) -> None:
    """Name what a release needs and the registry file does not have, before anything is changed.

    A catalog has the settings of its newest release alone.
    """
    installed = installing.look(offer.id, python)["manifest"]
    if offer.release(version).version != offer.version or not installed:
        return
    before = parse_manifest(installed, offer.id).config_schema.get("properties", {})
    missing = [
        f"{section.where('config')}: write `{name}` into its config"
        for section in sections.sections_of(registry, offer.id)
        for name in offer.config_schema.get("required", ())
        if name not in before and name not in section.config and not _in_environment(name)
    ]
    if missing:
        lines = "\n  ".join(missing)
        raise ConfigError(
            f"{offer.id} {offer.version} needs settings, and nothing was changed:\n  {lines}"
        )


def _in_environment(name: str) -> bool:
    """Whether a variable may give a setting; whose prefix only the class knows."""
    return any(variable.upper().endswith(f"_{name.upper()}") for variable in os.environ)


def _install(
    opened: installing.PublishedCatalog,
    entry_id: str,
    version: str | None,
    python: str | None,
    unchanged: str,
) -> tuple[Manifest | None, Manifest, list[str]]:
    """Install a release; the entry's manifest before and after, and what changed, in words."""
    offer = opened.find(entry_id)
    release = offer.release(version)
    if release.yanked:
        typer.echo(f"warning: {entry_id} {release.version} is yanked: {release.yanked}", err=True)
    change = installing.install(opened, entry_id, version=version, python=python)
    before, after = change.manifests
    return before, after or offer, list(change.lines() or [unchanged])


def _installed(entry_id: str, version: str | None, python: str | None) -> Manifest:
    """The manifest of an entry that is installed, from whatever index.

    Raises:
        ConfigError: It is not, or in another version.
    """
    text = installing.look(entry_id, python)["manifest"]
    found = parse_manifest(text, entry_id) if text else None
    if found is None or version not in (None, found.version):
        release = f" {version}" if version else ""
        raise ConfigError(f"{entry_id}{release} is not installed here: name its --catalog")
    return found


def _print_change(
    about: JsonObject,
    lines: list[str],
    handler_ids: list[str],
    registry: Path,
    python: str | None,
    *,
    as_json: bool,
) -> None:
    """Print what changed, and what `catalogzero check` finds in the environment.

    What is still missing is not a failure here.
    """
    if not as_json:
        typer.echo("\n".join(lines))
    checked: JsonObject = {}
    for handler_id in handler_ids:
        # By that environment's own interpreter: the entry may not be importable here.
        command = [python or sys.executable, "-m", "catalogzero", "check", handler_id]
        command += ["--registry", str(registry), *(["--json"] if as_json else [])]
        stdout = subprocess.PIPE if as_json else None
        done = subprocess.run(command, check=False, stdout=stdout)  # noqa: S603 - our own command
        if as_json:
            checked[handler_id] = parse_json(done.stdout)
        elif done.returncode:
            typer.echo(f"Not ready yet: fix what is named, then: catalogzero check {handler_id}")
    if as_json:
        print_json({**about, "changes": lines, "checks": checked})

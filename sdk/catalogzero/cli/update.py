"""`catalogzero update`: a newer template into a package."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from catalogzero.cli.output import JsonFlag, print_json


def update(
    answers: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Answers to replace.")
    ] = None,
    *,
    folder: Annotated[
        Path, typer.Option(help="The package's folder.", exists=True, file_okay=False)
    ] = Path(),
    check: Annotated[
        bool, typer.Option("--check", help="Only report whether there is a change; exit code 1.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Only print the difference.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Bring a newer template into a package made from it; your own changes stay.

    Example: catalogzero update --diff
    """
    from catalogzero.cli.new import parse
    from catalogzero.entry import update as updating

    _, changes = parse(answers or [])
    look = check or diff
    found = (updating.difference if look else updating.update)(folder, changes=changes)
    for name in found.forgotten:
        typer.echo(f"the template no longer takes the answer {name!r}", err=True)
    if as_json:
        print_json({"updated": bool(found.patch) and not look, **asdict(found)})
    elif diff:
        typer.echo(found.patch, nl=False)
    elif not found.patch:
        typer.echo("up to date")
    elif check:
        typer.echo("the template has changes: catalogzero update --diff shows them")
    else:
        typer.echo("updated; look with git diff HEAD, run make test, commit")
    for path in found.conflicts:
        typer.echo(f"{path}: your change and the template's meet; resolve the marks", err=True)
    raise typer.Exit(1 if found.conflicts or (check and found.patch) else 0)

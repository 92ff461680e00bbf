"""`catalogzero build`: wheel and sdist of a vendor's package.

Layer: edge.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def build(
    folder: Annotated[
        Path, typer.Argument(help="The package's folder.", exists=True, file_okay=False)
    ] = Path(),
    *,
    out: Annotated[Path | None, typer.Option(help="Where to write; default: dist/ of it.")] = None,
) -> None:
    """Build wheel and sdist of an entry, with the tools that are installed here."""
    from catalogzero.entry.packaging import build_package

    for path in build_package(folder, out or folder / "dist"):
        typer.echo(path)

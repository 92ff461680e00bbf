"""`catalogzero build`: a vendor's package, built."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from catalogzero.cli.output import JsonFlag, PackageFolder, print_answer


def build(
    folder: PackageFolder = Path(),
    *,
    out: Annotated[Path | None, typer.Option(help="Where to write; default: dist/ of it.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Build wheel and sdist of an entry, with hashes and a bill of materials (CycloneDX).

    Example: catalogzero build acme-processor --out dist
    """
    from catalogzero.entry.packaging import build_package, describe_build

    built = build_package(folder, out or folder / "dist")
    written = [str(path) for path in (*built, *describe_build(built))]
    print_answer({"written": written}, "\n".join(written), json=as_json)

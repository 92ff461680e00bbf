"""The `catalogzero` command: mounts the nouns, maps errors to exit codes.

Layer: edge.
"""

from __future__ import annotations

import typer

app = typer.Typer(name="catalogzero", no_args_is_help=True, add_completion=False)


def main() -> None:
    """Entry point of the `catalogzero` command."""
    app()

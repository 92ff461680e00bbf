"""`catalogzero keys new`: a CURVE key pair."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from catalogzero.cli.output import JsonFlag, print_answer
from catalogzero.errors import ConfigError
from catalogzero.wire.keys import CurveKeys

app = typer.Typer(no_args_is_help=True, help="Keys for handlers beyond loopback.")


@app.callback()
def keys() -> None:
    """Keys for handlers beyond loopback."""


@app.command()
def new(
    path: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")],
    json: JsonFlag = False,
) -> None:
    """Make a key pair, for a handler (`curve.key_file`) or for a client of one.

    Example: catalogzero keys new /etc/acme/handler.key
    """
    pair = CurveKeys.new()
    try:
        # Private from its first byte, whatever the umask is.
        with open(path, "x", opener=partial(os.open, mode=0o600)) as file:
            file.write(f"public: {pair.public.decode()}\nsecret: {pair.secret.decode()}\n")
    except FileExistsError:
        raise ConfigError(f"{path} exists: a key is never overwritten, name another file") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    public = pair.public.decode()
    text = f"{path} holds the pair; give others the public key only:\n{public}"
    print_answer({"path": str(path), "public": public}, text, json=json)

"""How tools are run, and pip: the vendor's to download wheels, the client's to install them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from catalogzero.errors import CatalogZeroError, ConfigError

_SHOWN_LINES = 12


def pip_command() -> list[str]:
    """How pip is run here: this environment's, else the one that Python itself brings along.

    Raises:
        ConfigError: There is neither.
    """
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    spec = importlib.util.find_spec("ensurepip")
    if spec and spec.origin:
        bundled = sorted((Path(spec.origin).parent / "_bundled").glob("pip-*.whl"))
        if bundled:
            return [sys.executable, f"{bundled[-1]}/pip"]
    raise ConfigError(f"pip is missing: install it with {sys.executable} -m ensurepip")


def only_index() -> dict[str, str]:
    """An environment in which pip knows no index but the one that it is given.

    Settings of the user and the machine that add an index or a folder of files are left out:
    through those a package of the same name could take an entry's place.
    """
    added = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX")
    kept = {name: value for name, value in os.environ.items() if name not in added}
    return {**kept, "PIP_CONFIG_FILE": os.devnull}


def run_tool(
    command: list[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a tool and return its output.

    Raises:
        ConfigError: There is no such command.
        CatalogZeroError: It failed; its last words, warnings left out, are in the message.
    """
    try:
        done = subprocess.run(  # noqa: S603  # fixed commands: Python's own tools and git
            command, cwd=cwd, env=env, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise ConfigError(
            f"{command[0]} cannot be run: {error.strerror}; name one that is there"
        ) from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        kept = [line for line in lines if not line.startswith("WARNING: ")] or lines
        said = "\n".join(kept[-_SHOWN_LINES:])
        name = " ".join(command[:4])
        raise CatalogZeroError(f"{name} … failed (exit status {done.returncode}):\n{said}")
    return done.stdout

"""`catalogzero test`: the contract suite against an entry."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from catalogzero.config.install_hint import package_hint
from catalogzero.errors import ConfigError


def run_contract(
    target: Annotated[str, typer.Argument(help="An installed entry, or module:Class.")],
    *,
    sample: Annotated[
        Path | None,
        typer.Option(
            help="A data file for a processor; default: its package's, else sample.csv here."
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="check=reason: leave a check out.")
    ] = None,
    check: Annotated[str | None, typer.Option(help="Only checks of this name.")] = None,
) -> None:
    """Run the contract suite against an entry: what every handler and processor must do.

    Example: catalogzero test acme-processor --sample sample.csv
    """
    from catalogzero.cloud.processor import CloudProcessor
    from catalogzero.runtime.launch import class_of_entry, load_class, sample_of

    if find_spec("pytest") is None:
        raise ConfigError(f"`catalogzero test` needs pytest: {package_hint('pytest')}")
    module, mark, name = target.partition(":")
    cls = load_class(module, name) if mark else class_of_entry(target)
    if cls is None:
        raise ConfigError(f"{target!r} is no installed entry, and not module:Class")
    excluded = {}
    for text in exclude or ():
        left_out, _, reason = text.partition("=")
        if not reason.strip():
            raise ConfigError(f"--exclude {text!r}: write check=reason")
        excluded[left_out] = reason
    processor = issubclass(cls, CloudProcessor)
    template = Path(__file__).with_name("test_contract.py.txt").read_text("utf-8")
    text = template.format(
        target=target,
        suite="ProcessorContract" if processor else "HandlerContract",
        module=cls.__module__,
        name=cls.__qualname__,
        exclude=excluded,
        sample=str((sample or sample_of(cls) or Path("sample.csv")).absolute())
        if processor
        else None,
    )
    with tempfile.TemporaryDirectory(prefix="contract-") as folder:
        path = Path(folder) / "test_contract.py"
        path.write_text(text, "utf-8")
        # No configuration and no cache of the folder it is run in: the suite is the same anywhere.
        options = ["-q", "-rN", "--rootdir", folder, "-c", "/dev/null", "--import-mode=importlib"]
        chosen = ["-k", check] if check else []
        command = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", *chosen]
        done = subprocess.run([*command, str(path)], check=False)  # noqa: S603 - pytest, our own file
    raise typer.Exit(min(done.returncode, 1))

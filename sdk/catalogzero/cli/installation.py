"""`catalogzero installation`: whose installation a state folder is, after a copy or a move."""

from __future__ import annotations

import typer

from catalogzero.cli.outbox import opened
from catalogzero.cli.output import JsonFlag, Yes, print_answer
from catalogzero.cli.run import RegistryOption, Target
from catalogzero.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True, help="After a state folder was copied, moved or put back: whose is it?"
)


@app.command()
def adopt(target: Target, registry: RegistryOption = None, json: JsonFlag = False) -> None:
    """Take the installation over: from now on this folder sends, and any other one is refused.

    What the backend has is compared first; sources that differ are read again.

    Example: catalogzero installation adopt acme
    """
    with opened(target, registry) as outbox:
        outbox.adopt()
    text = "this folder takes the installation over: at once where the handler runs"
    print_answer({"adopted": target}, text, json=json)


@app.command()
def new(
    target: Target,
    registry: RegistryOption = None,
    yes: Yes = False,
    json: JsonFlag = False,
) -> None:
    """Make this folder an installation of its own: drop what was copied, read all sources again.

    Example: catalogzero installation new acme
    """
    from catalogzero.cloud.outbox.stored import INSTALLATION
    from catalogzero.cloud.processor import CloudProcessor, make_installation_id
    from catalogzero.runtime.launch import make_handler

    handler = make_handler(target, registry=registry)
    if not isinstance(handler, CloudProcessor):
        raise ConfigError(f"{type(handler).__name__} is not a CloudProcessor: it uploads nothing")
    with opened(target, registry) as outbox:
        old, configured = outbox.store.fact(INSTALLATION), handler.runtime.installation_id
        # What the file says would be back at the next start, whatever is written here.
        if configured is not None and old in (None, configured):
            raise ConfigError(
                f"installation_id stands in the registry file ({configured}): write another one "
                "there, then run this again"
            )
        uploads = outbox.store.uploads(("building", "sealed", "completing", "held", "dead"))
        for upload in uploads:
            text = f"{upload.records} records of {upload.source} ({upload.state}) are dropped"
            typer.echo(text, err=json)
        if not yes:
            typer.confirm("drop them, and every mark of what was sent?", abort=True, err=json)
        outbox.forget_all(old or handler.identity().installation_id)
    made = configured or make_installation_id(handler.state_dir)
    answer = {"installation_id": made, "dropped_uploads": len(uploads)}
    text = f"this folder is installation {made} now: restart the handler where it runs"
    print_answer(answer, text, json=json)

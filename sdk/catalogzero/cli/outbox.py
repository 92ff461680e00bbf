"""`catalogzero outbox`: look at what waits to be sent, and act on dead letters.

Works beside a running handler: each act is one transaction on the same file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from catalogzero.cli.output import JsonFlag, print_answer, print_json, print_table
from catalogzero.cli.run import RegistryOption
from catalogzero.errors import ConfigError

if TYPE_CHECKING:
    from catalogzero.cloud.outbox.store import Outbox

app = typer.Typer(no_args_is_help=True, help="What waits to be sent, dead letters, the audit log.")

Target = Annotated[str, typer.Argument(help="A handler_id, an entry, or module:Class.")]
UploadId = Annotated[str, typer.Argument(help="An upload_id, or the start of one.")]
_COLUMNS = ("upload_id", "state", "source", "records", "chunks", "bytes", "created_at", "reason")
_OPEN = ("building", "sealed", "completing", "held", "dead")


@app.command("list")
def list_uploads(
    target: Target,
    registry: RegistryOption = None,
    every: Annotated[bool, typer.Option("--all", help="Ended uploads too.")] = False,
    json: JsonFlag = False,
) -> None:
    """List the uploads that the backend has not completed.

    Example: catalogzero outbox list acme
    """
    with opened(target, registry) as outbox:
        uploads = [asdict(upload) for upload in outbox.uploads(() if every else _OPEN)]
        paused = outbox.fact("paused")
    if json:
        print_json({"uploads": uploads, "paused": paused})
        return
    rows = [{**upload, "reason": (upload["answer"] or {}).get("reason")} for upload in uploads]
    print_table(_COLUMNS, [[row[name] for name in _COLUMNS] for row in rows])
    if paused:
        typer.echo(f"sending is paused: {paused}")


@app.command()
def show(
    target: Target, upload_id: UploadId, registry: RegistryOption = None, json: JsonFlag = False
) -> None:
    """Show one upload, with the backend's answer to a dead letter.

    Example: catalogzero outbox show acme 3f2a
    """
    with opened(target, registry) as outbox:
        upload = asdict(outbox.upload(upload_id))
    print_answer(upload, json=json)


@app.command()
def retry(
    target: Target,
    upload_id: Annotated[str | None, typer.Argument(help="By default every dead letter.")] = None,
    registry: RegistryOption = None,
) -> None:
    """Send dead letters again, from their first chunk.

    Example: catalogzero outbox retry acme
    """
    with opened(target, registry) as outbox:
        found = [outbox.upload(upload_id)] if upload_id else outbox.uploads(("dead",))
        count = sum(outbox.retry(upload.upload_id) for upload in found)
    typer.echo(f"{count} dead letters wait to be sent again")
    if count:
        typer.echo(f"now, where the handler runs: catalogzero call {target} health_report")


@app.command()
def export(
    target: Target,
    upload_id: UploadId,
    out: Annotated[Path, typer.Option(help="Folder to write to; it must not exist yet.")],
    registry: RegistryOption = None,
) -> None:
    """Write an upload's chunks to files, unpacked, with what is known of it.

    Example: catalogzero outbox export acme 3f2a --out upload-3f2a
    """
    from catalogzero.protocol.bodies import CONTENT_TYPES
    from catalogzero.protocol.codings import decoded
    from catalogzero.wire.messages import encode_json

    suffixes = {content_type: name for name, content_type in CONTENT_TYPES.items()}
    with opened(target, registry) as outbox:
        upload = outbox.upload(upload_id)
        out.mkdir(parents=True)
        (out / "upload.json").write_bytes(encode_json(asdict(upload)))
        count = 0
        for chunk in outbox.bodies(upload.upload_id):
            name = f"{chunk.seq:05}.{suffixes.get(chunk.content_type, 'bin')}"
            (out / name).write_bytes(decoded(chunk.body, chunk.coding))
            count += 1
    typer.echo(f"{count} chunks of {upload.upload_id} are in {out}")


@app.command()
def purge(
    target: Target,
    upload_id: UploadId,
    registry: RegistryOption = None,
    skip: Annotated[
        bool,
        typer.Option("--skip", help="Mode append: go on behind a refused range, without its rows."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Give up an upload: its rows are not sent; its source counts as not read.

    With --skip its source counts as read: what comes after the refused range is sent.

    Example: catalogzero outbox purge acme 3f2a
    """
    with opened(target, registry) as outbox:
        upload = outbox.upload(upload_id)
        if upload.state not in {"dead", "held", "sealed", "completing"}:
            raise ConfigError(f"upload {upload.upload_id} is {upload.state}: nothing to give up")
        if not yes:
            question = f"give up {upload.records} records of {upload.source} ({upload.state})?"
            typer.confirm(question, abort=True)
        give_up = outbox.skip if skip else outbox.purge
        records = give_up(upload.upload_id)
    what = f"gave up {records} records of {upload.source}"
    if skip:
        typer.echo(f"{what} above {upload.after!r} up to {upload.until!r}, for good")
    else:
        typer.echo(f"{what}; its next run reads what it still has")


@app.command()
def audit(target: Target, registry: RegistryOption = None, json: JsonFlag = False) -> None:
    """Verify the audit log's chain, and sum up what left; exit code 1 when it is broken.

    Example: catalogzero outbox audit acme
    """
    from catalogzero.cloud.egress import verify_audit

    path = _folder(target, registry) / "audit.jsonl"
    report = verify_audit(path)
    print_answer({"path": str(path), **asdict(report)}, json=json)
    if report.broken_at is not None:
        typer.echo(f"the chain is broken at line {report.broken_at}", err=True)
        sys.exit(1)


def _folder(target: str, registry: Path | None) -> Path:
    """The state folder of a handler."""
    from catalogzero.runtime.launch import make_handler

    return make_handler(target, registry=registry).state_dir


@contextmanager
def opened(target: str, registry: Path | None) -> Iterator[Outbox]:
    """The handler's outbox, opened beside it."""
    from catalogzero.clock import SystemClock
    from catalogzero.cloud.outbox.store import Outbox

    folder = _folder(target, registry)
    if not (folder / "outbox.sqlite").exists():
        raise ConfigError(f"no outbox in {folder}: the handler has not run there yet")
    with closing(Outbox(folder, SystemClock(), repair=False)) as outbox:
        yield outbox

"""`catalogzero outbox`: look at what waits to be sent, and act on dead letters.

Works beside a running handler: each act is one transaction on the same file.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from catalogzero.cli.call import KeyFile, Peer, ServerKey, peer_of
from catalogzero.cli.output import JsonFlag, Yes, print_answer, print_json, print_table
from catalogzero.cli.run import RegistryOption, Target
from catalogzero.errors import ConfigError
from catalogzero.runtime.control_answers import SendingNow
from catalogzero.runtime.launch import HandlerState, state_of
from catalogzero.wire.client import HandlerClient
from catalogzero.wire.messages import JsonObject

if TYPE_CHECKING:
    from catalogzero.cloud.audit import AuditReport
    from catalogzero.cloud.outbox.outbox import Outbox
    from catalogzero.cloud.outbox.stored import SharedStore

app = typer.Typer(no_args_is_help=True, help="What waits to be sent, dead letters, the audit log.")

UploadId = Annotated[str, typer.Argument(help="An upload_id, or the start of one.")]
_COLUMNS = (
    "upload_id",
    "state",
    "source",
    "stream",
    "records",
    "chunks",
    "bytes",
    "created_at",
    "reason",
)
_ANSWER_S = 30.0
_OPEN = ("building", "sealed", "completing", "held", "dead")


@app.command("list")
def list_uploads(
    target: Target,
    registry: RegistryOption = None,
    every: Annotated[bool, typer.Option("--all", help="Ended uploads too.")] = False,
    json: JsonFlag = False,
) -> None:
    """List the uploads that the backend has not completed, and why they wait.

    Changes nothing; of a handler that does not run it shows what that left.

    Example: catalogzero outbox list acme
    """
    from catalogzero.clock import SystemClock
    from catalogzero.cloud.outbox.store import looked_at
    from catalogzero.cloud.outbox.stored import FAULT, Fault
    from catalogzero.config.state_folder import holder_of

    folder, shared = place_of(target, registry)
    with looked_at(folder, SystemClock(), shared) as store:
        if store is None:
            raise ConfigError(f"no outbox in {folder}: the handler has not run there yet")
        uploads = [asdict(upload) for upload in store.uploads(() if every else _OPEN)]
        fault: Fault | None = store.fact(FAULT)
        paused, runs = store.pause(), holder_of(folder) is not None
    if json:
        more = {"paused": paused, "fault": fault, "handler_runs": runs}
        print_json({"uploads": uploads, **more})
        return
    waits, why, next_try_at = "", "", None
    if paused:
        waits, next_try_at = f"paused: {paused['code']}", paused["next_try_at"]
        why = f"sending is paused since {paused['since']}: {paused['reason']}"
    elif fault:
        waits, next_try_at = f"tried again: {fault['code']}", fault["next_try_at"]
        why = f"the backend does not take it since {fault['since']}: {fault['code']}"
    rows = [
        {**one, "reason": (one["answer"] or {}).get("reason") or ("" if one["ended_at"] else waits)}
        for one in uploads
    ]
    print_table(_COLUMNS, [[row[name] for name in _COLUMNS] for row in rows])
    if why:
        typer.echo(why)
        hurry = f"next try {next_try_at}; at once: catalogzero outbox retry {target} --now"
        running = hurry if next_try_at else "nothing is tried before that is done"
        typer.echo(running if runs else "the handler does not run: it is tried at its next start")


@app.command()
def show(
    target: Target, upload_id: UploadId, registry: RegistryOption = None, json: JsonFlag = False
) -> None:
    """Show one upload, with the backend's answer to a dead letter.

    Example: catalogzero outbox show acme 3f2a
    """
    with opened(target, registry) as outbox:
        upload = asdict(outbox.store.upload(upload_id))
    print_answer(upload, json=json)


@app.command()
def retry(
    target: Target,
    upload_id: Annotated[str | None, typer.Argument(help="By default every dead letter.")] = None,
    registry: RegistryOption = None,
    now: Annotated[
        bool, typer.Option("--now", help="Try at once whatever waits, also in a pause.")
    ] = False,
    key_file: KeyFile = None,
    server_key: ServerKey = None,
    json: JsonFlag = False,
) -> None:
    """Send dead letters again, from their first chunk.

    With --now the handler, if it runs, tries at once what waits for its next try: what failed, and
    what a pause holds back. Its dead letters go along.

    Example: catalogzero outbox retry acme --now
    """
    from catalogzero.config.state_folder import holder_of

    folder, _ = place_of(target, registry)
    with opened(target, registry) as outbox:
        found = [outbox.store.upload(upload_id)] if upload_id else outbox.store.uploads(("dead",))
        count = sum(outbox.retry(upload.upload_id) for upload in found)
        totals = outbox.store.totals()
    waiting = f"{totals.uploads} uploads of {totals.records} records"
    answer: JsonObject = {"retried": count, "tried": False}
    lines = [f"{count} dead letters wait to be sent again"]
    if now and holder_of(folder) is not None:
        said = asyncio.run(_send_now(peer_of(target, registry, key_file, server_key)))
        waiting = f"{said['uploads']} uploads of {said['records']} records"
        waited = f"paused: {said['paused']}" if said["paused"] else said["fault"]
        if not said["tried"]:
            raise ConfigError(
                f"{waiting} wait, and are not tried before that is done: {said['paused']}"
            )
        answer["tried"] = True
        lines.append(f"{waiting} are tried now" + (f"; they waited: {waited}" if waited else ""))
    elif now:
        lines.append(f"the handler does not run: {waiting} are sent at its next start")
    elif count:
        lines.append(f"now, where the handler runs: catalogzero outbox retry {target} --now")
    print_answer(answer, "\n".join(lines), json=json)


async def _send_now(peer: Peer) -> SendingNow:
    """Ask the handler to send."""
    async with HandlerClient(peer[0], transport=peer[1]) as client:
        answer: SendingNow = await client.call("send_now", timeout_s=_ANSWER_S)
    return answer


@app.command()
def export(
    target: Target,
    upload_id: UploadId,
    out: Annotated[Path, typer.Option(help="Folder to write to; it must not exist yet.")],
    registry: RegistryOption = None,
    json: JsonFlag = False,
) -> None:
    """Write an upload's chunks to files, unpacked, with what is known of it.

    Example: catalogzero outbox export acme 3f2a --out upload-3f2a
    """
    from catalogzero.protocol.bodies import CONTENT_TYPES
    from catalogzero.protocol.codings import decoded
    from catalogzero.wire.messages import encode_json

    suffixes = {content_type: name for name, content_type in CONTENT_TYPES.items()}
    with opened(target, registry) as outbox:
        upload = outbox.store.upload(upload_id)
        out.mkdir(parents=True)
        (out / "upload.json").write_bytes(encode_json(asdict(upload)))
        count = 0
        for chunk in outbox.store.bodies(upload.upload_id):
            name = f"{chunk.seq:05}.{suffixes.get(chunk.content_type, 'bin')}"
            (out / name).write_bytes(decoded(chunk.body, chunk.coding))
            count += 1
    exported = {"upload_id": upload.upload_id, "chunks": count, "out": str(out)}
    print_answer(exported, f"{count} chunks of {upload.upload_id} are in {out}", json=json)


@app.command()
def purge(
    target: Target,
    upload_id: UploadId,
    registry: RegistryOption = None,
    skip: Annotated[
        bool,
        typer.Option("--skip", help="Mode append: go on behind a refused range, without its rows."),
    ] = False,
    yes: Yes = False,
    json: JsonFlag = False,
) -> None:
    """Give up an upload: its rows are not sent; its source counts as not read.

    With --skip its source counts as read: what comes after the refused range is sent.

    Example: catalogzero outbox purge acme 3f2a
    """
    with opened(target, registry) as outbox:
        upload = outbox.store.upload(upload_id)
        if upload.state not in {"dead", "held", "sealed", "completing"}:
            raise ConfigError(f"upload {upload.upload_id} is {upload.state}: nothing to give up")
        if not yes:
            question = f"give up {upload.records} records of {upload.source} ({upload.state})?"
            typer.confirm(question, abort=True, err=json)
        give_up = outbox.skip if skip else outbox.purge
        records = give_up(upload.upload_id)
    what = f"gave up {records} records of {upload.source}"
    if json:
        print_json({"upload_id": upload.upload_id, "records": records, "skipped": skip})
    elif skip:
        typer.echo(f"{what} above {upload.after!r} up to {upload.until!r}, for good")
    else:
        typer.echo(f"{what}; its next run reads what it still has")


@app.command()
def audit(target: Target, registry: RegistryOption = None, json: JsonFlag = False) -> None:
    """Verify the audit log's chain over all its files, and sum up what left.

    Exit code 1 when it is broken. Of files that rotation deleted, nothing is known any more.

    Example: catalogzero outbox audit acme
    """
    state = state_of(target, registry)
    path, report = audit_report(state)
    print_answer({"path": path, **asdict(report)}, json=json)
    if report.broken_at is not None:
        place = f"line {report.broken_at} of {report.broken_in}"
        typer.echo(f"the chain is broken at {place}", err=True)
        sys.exit(1)


@contextmanager
def opened(target: str, registry: Path | None) -> Iterator[Outbox]:
    """The handler's outbox, opened beside it."""
    from catalogzero.clock import SystemClock
    from catalogzero.cloud.outbox.outbox import Outbox

    # A handler may run on it: to repair it is for who holds the folder.
    folder, shared = place_of(target, registry)
    with closing(Outbox(folder, SystemClock(), shared, repair=False)) as outbox:
        yield outbox


def place_of(target: str, registry: Path | None) -> tuple[Path, SharedStore | None]:
    """The handler's state folder, and the store that its instances share, if they do.

    Raises:
        ConfigError: Neither has an outbox.
    """
    from catalogzero.cloud.outbox.stored import SharedStore

    state = state_of(target, registry)
    shared = SharedStore.of(state.runtime, state.handler_id)
    if shared is None and not (state.folder / "outbox.sqlite").exists():
        raise ConfigError(f"no outbox in {state.folder}: the handler has not run there yet")
    return state.folder, shared


def audit_report(state: HandlerState) -> tuple[str, AuditReport]:
    """Where a handler's audit log is, in its folder or in its store, and what a look finds.

    Raises:
        ConfigError: There is no store yet.
    """
    from catalogzero.clock import SystemClock
    from catalogzero.cloud.audit import NAME, verify_audit
    from catalogzero.cloud.outbox.store import looked_at
    from catalogzero.cloud.outbox.stored import SharedStore
    from catalogzero.cloud.shared_audit import verify_shared_audit

    shared = SharedStore.of(state.runtime, state.handler_id)
    if shared is None:
        return str(state.folder / NAME), verify_audit(state.folder)
    with looked_at(state.folder, SystemClock(), shared) as store:
        if store is None:
            raise ConfigError("the handler has not run on its store yet: it has no audit log")
        return store.base.label, verify_shared_audit(store)

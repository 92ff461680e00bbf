"""`catalogzero backend`: serve the reference backend, and keep its tenants' keys."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, astuple
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from catalogzero.cli import backend_removal
from catalogzero.cli.backend_database import DatabaseOption, backend_settings, now, open_database
from catalogzero.cli.output import JsonFlag, print_answer, print_json, print_rows
from catalogzero.config import key_files
from catalogzero.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from catalogzero.backend.conformance.suite import Report, Result

T = TypeVar("T")
KEY_VARIABLE = "CATALOGZERO_BACKEND_KEY"
UNENCRYPTED = (
    "warning: keys and rows reach {} unencrypted: put a TLS proxy before it, or name "
    "--certificate and --private-key"
)

NO_TENANT = (
    "No tenant yet, so every request is refused. In another terminal:\n"
    "  catalogzero backend tenants add NAME --database {}"
)

app = typer.Typer(no_args_is_help=True, help="The receiver of uploads and health reports.")
tenants = typer.Typer(no_args_is_help=True, help="The backend's tenants and their keys.")
hooks = typer.Typer(no_args_is_help=True, help="Uploads for which the hook failed too often.")
app.add_typer(tenants, name="tenants")
app.add_typer(hooks, name="hooks")
app.add_typer(backend_removal.installations, name="installations")
app.add_typer(backend_removal.sources, name="sources")
tenants.command("remove")(backend_removal.remove_tenant)

KeyFile = Annotated[
    Path | None,
    typer.Option(help="Write the key there, readable by you alone, instead of showing it."),
]
Name = Annotated[str, typer.Argument(help="The tenant's name.")]


def Limit(what: str) -> Any:
    """An option for a part of a tenant's share."""
    return typer.Option(min=0, help=what, show_default=False)


@app.command(context_settings={"auto_envvar_prefix": "CATALOGZERO_BACKEND"})
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8800,
    database: DatabaseOption = None,
    base_path: Annotated[str | None, typer.Option(help="Where the protocol is; else /v1.")] = None,
    operator_token_file: Annotated[
        Path | None, typer.Option(help="Holds the token that opens the fleet page.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate, PEM.")] = None,
    private_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Serve the backend until Ctrl-C.

    Example: catalogzero backend serve --database /var/lib/acme/backend.sqlite
    """
    from catalogzero.backend import server
    from catalogzero.backend.tenants import list_tenants
    from catalogzero.config.address import is_loopback

    settings = backend_settings(
        database=database, base_path=base_path, operator_token_file=operator_token_file
    )
    tls = server.load_tls(certificate, private_key)
    if tls is None and not is_loopback(host):
        typer.echo(UNENCRYPTED.format(host), err=True)
    # Looked at before serving, so that a database that does not open ends it here.
    with open_database(settings.database) as store:
        has_tenants, label = bool(store.read_now(list_tenants)), store.label

    def announce(url: str, endpoint: str) -> None:
        text = f"fleet page  {url}/\nendpoint    {endpoint}   (for handlers)"
        print_answer({"url": url, "endpoint": endpoint, "pid": os.getpid()}, text, json=as_json)
        if not has_tenants:
            typer.echo(NO_TENANT.format(label), err=True)

    serving = server.serve(
        settings,
        host=host,
        port=port,
        tls=tls,
        on_started=lambda at: announce(at.url, at.endpoint),
    )
    asyncio.run(serving)


class Form(StrEnum):
    """The forms of upload."""

    AUTO = "auto"
    CHUNKED = "chunked"
    SIMPLE = "simple"


@app.command()
def verify(
    url: Annotated[str, typer.Argument(help="The backend's endpoint, as a handler names it.")],
    key_file: Annotated[
        Path | None, typer.Option(help=f"Holds a key made for tests; else ${KEY_VARIABLE}.")
    ] = None,
    form: Annotated[Form, typer.Option(help="Which form of upload to check.")] = Form.AUTO,
    ca_file: Annotated[Path | None, typer.Option(help="Authorities to trust, PEM.")] = None,
    only: Annotated[str, typer.Option(help="Only checks whose name holds this.")] = "",
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Seconds for one request.")] = 30.0,
    other_key_file: Annotated[
        Path | None, typer.Option(help="Holds another test tenant's key: are tenants apart?")
    ] = None,
    restart: Annotated[
        str, typer.Option(help="Shell command that kills it (-9) and starts it: is all kept?")
    ] = "",
    rows: Annotated[
        str,
        typer.Option(
            help="Shell command that prints what is visible, as JSON Lines of source and record: "
            "are they the rows that were sent? Names begin with $CATALOGZERO_VERIFY_PREFIX."
        ),
    ] = "",
    latest: Annotated[
        str,
        typer.Option(help="One that prints so the newest row of each key of mode merge."),
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Check that a backend speaks the upload protocol. It writes rows: use a test tenant.

    Example: catalogzero backend verify https://api.acme.example/v1 --key-file test.key
    """
    from catalogzero.backend.conformance import suite

    if not url.startswith(("http://", "https://")):
        raise typer.BadParameter(f"{url!r} is no endpoint such as https://api.acme.example/v1")
    verifying = suite.verify(
        url,
        _test_key(key_file),
        form=form.value,
        timeout_s=timeout_s,
        ca_file=ca_file,
        only=only,
        other_key="" if other_key_file is None else _test_key(other_key_file),
        restart=restart,
        rows=rows,
        latest=latest,
        on_result=(lambda _: None) if as_json else _show_result,
    )
    report = asyncio.run(verifying)
    if as_json:
        print_json({**asdict(report), "passed": report.passed})
    else:
        _show_report(report)
    if not report.passed:
        raise typer.Exit(1)


@app.command()
def restored(database: DatabaseOption = None, as_json: JsonFlag = False) -> None:
    """Say that the database was put back from a backup: clients send what it lacks now.

    Run it after each restore, before the backend is started again.

    Example: catalogzero backend restored --database /var/lib/acme/backend.sqlite
    """
    from catalogzero.backend.generations import renew

    generation = _write(database, renew)
    text = f"generation {generation}: each client compares, and sends what is missing here"
    print_answer({"generation": generation}, text, json=as_json)


@app.command()
def export(
    to: Annotated[
        str,
        typer.Option(help="A folder, or s3://bucket/prefix, gs://…, az://…; keys: environment."),
    ],
    database: DatabaseOption = None,
    follow: Annotated[bool, typer.Option(help="Go on until Ctrl-C.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write each visible upload as a Parquet file, once; the next run goes on where this one ends.

    Files are tenant=/stream=/date=/<job_id>.parquet, a row a record, its JSON in `payload`.
    What was hidden since is named in _hidden/*.json.

    Example: catalogzero backend export --to s3://acme-lake/catalogzero --follow
    """
    from catalogzero.backend import export as exporting

    def show(done: exporting.Exported) -> None:
        counts = {"written": done.written, "hidden": done.hidden, "removed": done.removed}
        text = f"{done.written} uploads written, {done.hidden} hidden, {done.removed} removed"
        print_answer(counts, text, json=as_json)

    store = exporting.open_lake(to)
    with open_database(backend_settings(database=database).database) as source:
        asyncio.run(exporting.run(exporting.Lake(source, store), show, follow=follow))


@app.command()
def label(
    tenant: Annotated[str, typer.Argument(help="The tenant's name.")],
    installation: Annotated[str, typer.Argument(help="Its id, as the fleet page shows it.")],
    labels: Annotated[list[str], typer.Argument(help="NAME=VALUE each; NAME= takes a label away.")],
    database: DatabaseOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Label an installation for the fleet page, which shows labels and finds by them.

    Example: catalogzero backend label acme 436ec312-0fc0 site=Hamburg stage=production
    """
    from catalogzero.backend.installations import set_labels

    changes = {}
    for one in labels:
        name, separator, value = one.partition("=")
        if not (separator and 0 < len(name) <= 40 and len(value) <= 80 and one.isprintable()):
            raise typer.BadParameter(
                f"{one!r} is no label: NAME=VALUE, of at most 40 and 80 characters"
            )
        changes[name] = value
    now = _write(database, lambda at: set_labels(at, tenant, installation, changes))
    answer = {"tenant": tenant, "installation_id": installation, "labels": now}
    text = ", ".join(f"{name}={value}" for name, value in now.items()) or "no labels"
    print_answer(answer, text, json=as_json)


@tenants.command("add")
def add(
    name: Name, database: DatabaseOption = None, key_file: KeyFile = None, as_json: JsonFlag = False
) -> None:
    """Make a tenant and show its key, this once.

    Example: catalogzero backend tenants add acme --key-file acme.key
    """
    from catalogzero.backend.tenants import add_tenant

    _make_key(add_tenant, name, database, key_file, as_json=as_json)


@tenants.command("rotate")
def rotate(
    name: Name, database: DatabaseOption = None, key_file: KeyFile = None, as_json: JsonFlag = False
) -> None:
    """Give a tenant a second key; both work until the old one is revoked.

    Example: catalogzero backend tenants rotate acme --key-file acme-new.key
    """
    from catalogzero.backend.tenants import rotate_key

    _make_key(rotate_key, name, database, key_file, as_json=as_json)


@tenants.command("revoke")
def revoke(
    name: Name,
    key_id: Annotated[str, typer.Argument(help="As `tenants list` shows it.")],
    database: DatabaseOption = None,
    as_json: JsonFlag = False,
) -> None:
    """End one key of a tenant; a running backend refuses it within five seconds.

    Example: catalogzero backend tenants revoke acme 1a2b3c4d
    """
    from catalogzero.backend.tenants import revoke_key

    _write(database, lambda connection: revoke_key(connection, name, key_id, now()))
    text = f"key {key_id} of {name} is revoked"
    print_answer({"tenant": name, "revoked": key_id}, text, json=as_json)


@tenants.command("list")
def list_all(database: DatabaseOption = None, as_json: JsonFlag = False) -> None:
    """List the tenants with the ids of their keys.

    Example: catalogzero backend tenants list
    """
    from catalogzero.backend.tenants import list_tenants

    found = _write(database, list_tenants)
    rows = [(one.name, one.created_at, one.installations, " ".join(one.key_ids)) for one in found]
    columns = ("tenant", "created", "installations", "keys")
    print_rows({"tenants": found}, columns, rows, json=as_json)


@tenants.command("limit")
def limit(
    name: Name,
    database: DatabaseOption = None,
    requests_per_s: Annotated[float | None, Limit("Requests a second, on average.")] = None,
    held_bytes: Annotated[int | None, Limit("Bytes of bodies in memory at once.")] = None,
    chunks: Annotated[int | None, Limit("Large chunks decoded or stored at once.")] = None,
    rows_per_s: Annotated[float | None, Limit("Rows stored a second, on average.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Set a tenant's share of the backend; 0 gives back what the settings say.

    A tenant at its share is answered 429, and sends again later. A running backend goes by it
    within five seconds. Without an option, the share is shown.

    Example: catalogzero backend tenants limit acme --rows-per-s 20000 --chunks 2
    """
    from catalogzero.backend.tenants import set_share

    given = {
        "requests_per_s": requests_per_s,
        "held_bytes": held_bytes,
        "chunks": chunks,
        "rows_per_s": rows_per_s,
    }
    changed = {part: one or None for part, one in given.items() if one is not None}
    share = asdict(_write(database, lambda connection: set_share(connection, name, changed)))
    rows = [(part, "by the settings" if one is None else f"{one:g}") for part, one in share.items()]
    print_rows({"tenant": name, "share": share}, ("of", "at most"), rows, json=as_json)


@hooks.command("list")
def list_hooks(
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None,
    database: DatabaseOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List the uploads for which the hook failed too often: it is not called any more by itself.

    Example: catalogzero backend hooks list
    """
    from catalogzero.backend.delivery import failed_hooks

    found = _write(database, lambda connection: failed_hooks(connection, tenant))
    columns = ("job", "tenant", "stream", "source", "calls", "failed", "error")
    print_rows({"hooks": found}, columns, map(astuple, found), json=as_json)


@hooks.command("retry")
def retry_hooks(
    job_ids: Annotated[list[str] | None, typer.Argument(help="As `hooks list` shows them.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    database: DatabaseOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Have the hook called again, as if for the first time.

    Example: catalogzero backend hooks retry --all
    """
    from catalogzero.backend.delivery import retry_hooks as retry

    if bool(job_ids) == everything:
        raise typer.BadParameter("name the jobs, or --all")
    which = None if everything else job_ids
    count = _write(database, lambda connection: retry(connection, which, now()))
    if not count:
        raise ConfigError("no such dead letter: `catalogzero backend hooks list` shows them")
    text = f"the hook is called again for {count} upload{'' if count == 1 else 's'}"
    print_answer({"retried": count}, text, json=as_json)


def _test_key(key_file: Path | None) -> str:
    """The key to check with, from its file or the environment: never from the command line."""
    if key_file is None:
        key = os.environ.get(KEY_VARIABLE, "")
    else:
        try:
            key = key_file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"key file {key_file} cannot be read: {error}") from None
    if not (key.strip().isascii() and key.strip()):
        raise ConfigError(f"name a file that holds a test key: --key-file, or set {KEY_VARIABLE}")
    return key.strip()


def _show_result(result: Result) -> None:
    """One line for a check, and why for one that did not pass."""
    colour = {"pass": "green", "warn": "yellow", "fail": "red"}[result.outcome]
    outcome = result.outcome if os.environ.get("NO_COLOR") else typer.style(result.outcome, colour)
    typer.echo(f"{outcome}  {result.check}")
    for detail in result.details:
        typer.echo(f"      {detail}")
    if result.outcome == "fail":
        typer.echo(f"      why it matters: {result.why}")


def _show_report(report: Report) -> None:
    """The totals, and what was written where."""
    counts = Counter(result.outcome for result in report.results)
    totals = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("pass", "warn", "fail"))
    typer.echo(f"\n{report.form} form of {report.endpoint}: {totals}")
    typer.echo(f"\nWritten: {report.rows_sent} rows, under names that begin verify-{report.run}.")
    typer.echo("What should be visible of them now, and nothing else:")
    for source, rows in report.visible.items():
        typer.echo(f"  {source}  {rows} rows")
    for absent in report.not_checked:
        typer.echo(f"Not checked: {absent}")


def _write(database: str | None, work: Callable[[Connection], T]) -> T:
    """Run `work` in one transaction of the backend's database."""
    with open_database(backend_settings(database=database).database) as store:
        return store.write_now(work)


def _make_key(
    make: Callable[[Connection, str, str], str],
    name: str,
    database: str | None,
    key_file: Path | None,
    *,
    as_json: bool,
) -> None:
    """Have a tenant's key made; show it once, or write it to a file of its own."""
    with key_files.replacing(key_file) if key_file else nullcontext() as file:
        key = _write(database, lambda connection: make(connection, name, now()))
        if file:
            file.write(f"{key}\n")
    shown = {"key_file": str(key_file)} if key_file else {"key": key}
    text = f"the key of {name} is in {key_file}" if key_file else key
    print_answer({"tenant": name, **shown}, text, json=as_json)
    if not (key_file or as_json):
        typer.echo("This key is shown once; only its hash is stored.", err=True)

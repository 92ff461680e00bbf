"""`catalogzero backend`: serve the reference backend, and keep its tenants' keys."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from catalogzero.cli import backend_removal
from catalogzero.cli.backend_database import DatabaseOption, backend_settings, now
from catalogzero.cli.output import JsonFlag, print_json, print_rows
from catalogzero.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from catalogzero.backend.conformance.suite import Report, Result
    from catalogzero.backend.server import Address
    from catalogzero.backend.settings import BackendSettings

T = TypeVar("T")
KEY_VARIABLE = "CATALOGZERO_BACKEND_KEY"
UNENCRYPTED = (
    "warning: keys and rows reach {} unencrypted: put a TLS proxy before it, or name "
    "--certificate and --private-key"
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
    from catalogzero.config.address import is_loopback

    settings = backend_settings(
        database=database, base_path=base_path, operator_token_file=operator_token_file
    )
    tls = server.load_tls(certificate, private_key)
    if tls is None and not is_loopback(host):
        typer.echo(UNENCRYPTED.format(host), err=True)
    hint = _first_steps(settings)

    announce = partial(_announce, hint=hint, as_json=as_json)
    asyncio.run(server.serve(settings, host=host, port=port, tls=tls, on_started=announce))


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
    as_json: JsonFlag = False,
) -> None:
    """Check that a backend speaks the upload protocol. It writes rows: use a test tenant.

    Example: catalogzero backend verify https://api.acme.example/v1 --key-file test.key
    """
    from dataclasses import asdict

    from catalogzero.backend.conformance import suite

    if not url.startswith(("http://", "https://")):
        raise typer.BadParameter(f"{url!r} is no endpoint such as https://api.acme.example/v1")
    key = _test_key(key_file)
    show = (lambda _: None) if as_json else _show_result
    verifying = suite.verify(
        url,
        key,
        form=form.value,
        timeout_s=timeout_s,
        ca_file=ca_file,
        only=only,
        other_key="" if other_key_file is None else _test_key(other_key_file),
        restart=restart,
        rows=rows,
        on_result=show,
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
    if as_json:
        print_json({"generation": generation})
    else:
        typer.echo(f"generation {generation}: each client compares, and sends what is missing here")


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
    from catalogzero.backend.store import Database

    def show(done: exporting.Exported) -> None:
        if as_json:
            print_json({"written": done.written, "hidden": done.hidden, "removed": done.removed})
        else:
            typer.echo(
                f"{done.written} uploads written, {done.hidden} hidden, {done.removed} removed"
            )

    store = exporting.open_lake(to)
    with closing(Database(backend_settings(database=database).database)) as source:
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
    if as_json:
        print_json({"tenant": tenant, "installation_id": installation, "labels": now})
    else:
        typer.echo(", ".join(f"{name}={value}" for name, value in now.items()) or "no labels")


@tenants.command("add")
def add(
    name: Name, database: DatabaseOption = None, key_file: KeyFile = None, as_json: JsonFlag = False
) -> None:
    """Make a tenant and show its key, this once.

    Example: catalogzero backend tenants add acme --key-file acme.key
    """
    from catalogzero.backend.tenants import add_tenant

    with _writable(key_file):
        key = _write(database, lambda connection: add_tenant(connection, name, now()))
    _hand_over(name, key, key_file, as_json=as_json)


@tenants.command("rotate")
def rotate(
    name: Name, database: DatabaseOption = None, key_file: KeyFile = None, as_json: JsonFlag = False
) -> None:
    """Give a tenant a second key; both work until the old one is revoked.

    Example: catalogzero backend tenants rotate acme --key-file acme-new.key
    """
    from catalogzero.backend.tenants import rotate_key

    with _writable(key_file):
        key = _write(database, lambda connection: rotate_key(connection, name, now()))
    _hand_over(name, key, key_file, as_json=as_json)


@tenants.command("revoke")
def revoke(
    name: Name,
    key_id: Annotated[str, typer.Argument(help="As `tenants list` shows it.")],
    database: DatabaseOption = None,
) -> None:
    """End one key of a tenant; a running backend refuses it within five seconds.

    Example: catalogzero backend tenants revoke acme 1a2b3c4d
    """
    from catalogzero.backend.tenants import revoke_key

    _write(database, lambda connection: revoke_key(connection, name, key_id))
    typer.echo(f"key {key_id} of {name} is revoked")


@tenants.command("list")
def list_all(database: DatabaseOption = None, as_json: JsonFlag = False) -> None:
    """List the tenants with the ids of their keys.

    Example: catalogzero backend tenants list
    """
    from dataclasses import asdict

    from catalogzero.backend.tenants import list_tenants

    found = [asdict(tenant) for tenant in _write(database, list_tenants)]
    rows = [
        (tenant["name"], tenant["created_at"], tenant["installations"], " ".join(tenant["key_ids"]))
        for tenant in found
    ]
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
    from dataclasses import asdict

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
    from dataclasses import asdict

    from catalogzero.backend.delivery import failed_hooks

    found = _write(database, lambda connection: failed_hooks(connection, tenant))
    columns = ("job", "tenant", "stream", "source", "calls", "failed", "error")
    rows = [tuple(asdict(one).values()) for one in found]
    print_rows({"hooks": [asdict(one) for one in found]}, columns, rows, json=as_json)


@hooks.command("retry")
def retry_hooks(
    job_ids: Annotated[list[str] | None, typer.Argument(help="As `hooks list` shows them.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    database: DatabaseOption = None,
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
    typer.echo(f"the hook is called again for {count} upload{'' if count == 1 else 's'}")


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
    from catalogzero.backend.store import Database

    with closing(Database(backend_settings(database=database).database)) as store:
        return store.write_now(work)


def _first_steps(settings: BackendSettings) -> str | None:
    """What to run when there is no tenant yet."""
    from catalogzero.backend.store import Database
    from catalogzero.backend.tenants import list_tenants

    with closing(Database(settings.database)) as store:
        if store.read_now(list_tenants):
            return None
    return (
        "No tenant yet, so every request is refused. In another terminal:\n"
        f"  catalogzero backend tenants add NAME --database {store.label}"
    )


def _announce(address: Address, hint: str | None, *, as_json: bool) -> None:
    """Tell where the backend is, and what is missing."""
    if as_json:
        print_json({"url": address.url, "endpoint": address.endpoint, "pid": os.getpid()})
    else:
        typer.echo(f"fleet page  {address.url}/")
        typer.echo(f"endpoint    {address.endpoint}   (for handlers)")
    if hint:
        typer.echo(hint, err=True)


def _hand_over(name: str, key: str, key_file: Path | None, *, as_json: bool) -> None:
    """Show a key once, or write it to a file of its own."""
    if key_file is not None:
        _write_key(key_file, key)
    if as_json:
        shown = {"key_file": str(key_file)} if key_file else {"key": key}
        print_json({"tenant": name, **shown})
    elif key_file:
        typer.echo(f"the key of {name} is in {key_file}")
    else:
        typer.echo(key)
        typer.echo("This key is shown once; only its hash is stored.", err=True)


@contextmanager
def _writable(path: Path | None) -> Iterator[None]:
    """Refuse before a key is made that could not be written down, and so would be lost."""
    if path is None:
        yield
        return
    part = _part(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        part.unlink(missing_ok=True)
        part.touch(mode=0o600, exist_ok=False)
    except OSError as error:
        raise _no_key_file(path, error) from None
    try:
        yield
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _part(path: Path) -> Path:
    """Where a key is written first: who can read an old file at its place never reads the key."""
    return path.with_name(f"{path.name}.part")


def _no_key_file(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot write the key to {path}: {error.strerror}")


def _write_key(path: Path, key: str) -> None:
    """Write a key to the private file that `_writable` made, in place of one that was there."""
    try:
        _part(path).write_text(key + "\n")
        _part(path).replace(path)
    except OSError as error:
        raise _no_key_file(path, error) from None

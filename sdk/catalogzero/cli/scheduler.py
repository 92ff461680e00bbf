"""`catalogzero scheduler`: the embedded scheduler, in the foreground."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from catalogzero.cli.output import JsonFlag, print_json
from catalogzero.errors import ConfigError

if TYPE_CHECKING:
    from catalogzero.scheduler.server import SchedulerServer


def scheduler(
    host: Annotated[str, typer.Option(help="Address of the API and the page.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port of the API; 0: any free one.")
    ] = 8888,
    zmq_host: Annotated[str, typer.Option(help="Address where handlers register.")] = "127.0.0.1",
    zmq_port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port where they do; 0: any free one.")
    ] = 4242,
    database: Annotated[
        str | None,
        typer.Option(
            help="An SQLite file, or postgresql://… for several schedulers on one store; "
            "by default a file in the state folder.",
        ),
    ] = None,
    database_timeout_s: Annotated[
        float,
        typer.Option(min=0.1, help="Longest wait for the database to answer, in seconds."),
    ] = 10.0,
    token_file: Annotated[
        Path | None, typer.Option(help="Holds the Bearer token; needed beyond loopback.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name under which browsers may open the page; may be repeated."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="An origin whose pages may ask with the token, such as "
            "https://portal.example; needs --token-file; may be repeated."
        ),
    ] = None,
    curve_key_file: Annotated[
        Path | None, typer.Option(help="The scheduler's own key pair (`catalogzero keys new`).")
    ] = None,
    curve_clients_file: Annotated[
        Path | None, typer.Option(help="Public keys of the handlers that may register.")
    ] = None,
    server_keys_file: Annotated[
        Path | None,
        typer.Option(help="Handlers to call over CURVE: a line each, `handler_id: public key`."),
    ] = None,
    allow_plaintext: Annotated[
        bool, typer.Option(help="Register beyond loopback without keys: a private network.")
    ] = False,
    lease_s: Annotated[
        float,
        typer.Option(min=1, help="Seconds for which a dead scheduler holds up its executions."),
    ] = 15.0,
    retention_days: Annotated[
        float,
        typer.Option(
            min=0,
            help="Days for which executions are kept, up to --max-executions of them.",
        ),
    ] = 30,
    max_executions: Annotated[
        int,
        typer.Option(
            min=1,
            help="How many executions are kept, however new the rest is.",
        ),
    ] = 100_000,
    json: JsonFlag = False,
) -> None:
    """Call handlers at set times, with ScheduleZero's API; a page at the same address.

    Every option has an environment variable: CATALOGZERO_SCHEDULER_PORT for --port.
    Those that may be repeated hold a list with spaces between.

    Example: catalogzero scheduler --database sqlite:////var/lib/acme/scheduler.db
    """
    from catalogzero.scheduler.runner import RunnerSettings
    from catalogzero.scheduler.server import SchedulerSettings, run_scheduler
    from catalogzero.wire.zeromq import CurveKeys, CurveServer, read_client_keys, read_server_keys

    keys = CurveKeys.read(curve_key_file) if curve_key_file else None
    curve = None
    if curve_clients_file is not None:
        if keys is None:
            needed = "--curve-key-file: the scheduler's own pair"
            raise ConfigError(f"--curve-clients-file needs {needed}")
        curve = CurveServer(keys, read_client_keys(curve_clients_file))
    settings = SchedulerSettings(
        host=host,
        port=port,
        zmq_host=zmq_host,
        zmq_port=zmq_port,
        database=database,
        database_timeout_s=database_timeout_s,
        token_file=token_file,
        hosts=tuple(allow_host or ()),
        origins=tuple(allow_origin or ()),
        allow_plaintext=allow_plaintext,
        curve=curve,
        client_keys=keys,
        server_keys=read_server_keys(server_keys_file) if server_keys_file else {},
        runner=RunnerSettings(
            lease_s=lease_s, retention_days=retention_days, max_executions=max_executions
        ),
    )
    asyncio.run(run_scheduler(settings, lambda server: _announce(server, as_json=json)))


def _announce(server: SchedulerServer, *, as_json: bool) -> None:
    """One line on standard output: where it listens."""
    if as_json:
        fields = {"url": server.url, "zmq_address": server.zmq_address, "database": server.database}
        print_json({"event": "listening", **fields})
    else:
        typer.echo(
            f"scheduler: {server.url} (API and page), handlers register at {server.zmq_address}, "
            f"database {server.database}; Ctrl-C stops it"
        )

"""`catalogzero scheduler`: the embedded scheduler, in the foreground."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from catalogzero.cli.output import JsonFlag, print_answer
from catalogzero.errors import ConfigError

if TYPE_CHECKING:
    from catalogzero.scheduler.server import SchedulerServer


Port = Annotated[int, typer.Option(min=0, max=65_535, help="Port of the API; 0: any free one.")]
ZmqPort = Annotated[
    int, typer.Option(min=0, max=65_535, help="Port where they do; 0: any free one.")
]
Database = Annotated[
    str | None,
    typer.Option(
        help="An SQLite file, or postgresql://… for several schedulers on one store; "
        "by default a file in the state folder."
    ),
]
DatabaseTimeout = Annotated[
    float, typer.Option(min=0.1, help="Longest wait for the database to answer, in seconds.")
]
Origins = Annotated[
    list[str] | None,
    typer.Option(
        help="An origin whose pages may ask with the token, such as "
        "https://portal.example; needs --token-file; may be repeated."
    ),
]
ServerKeys = Annotated[
    Path | None,
    typer.Option(help="Handlers to call over CURVE: a line each, `handler_id: public key`."),
]
Lease = Annotated[
    float, typer.Option(min=1, help="Seconds for which a dead scheduler holds up its executions.")
]
Retention = Annotated[
    float,
    typer.Option(min=0, help="Days for which executions are kept, up to --max-executions of them."),
]
MaxExecutions = Annotated[
    int, typer.Option(min=1, help="How many executions are kept, however new the rest is.")
]
TokenFile = Annotated[
    Path | None, typer.Option(help="Holds the Bearer token; needed beyond loopback.")
]
Hosts = Annotated[
    list[str] | None,
    typer.Option(help="A name under which browsers may open the page; may be repeated."),
]


def scheduler(
    host: Annotated[str, typer.Option(help="Address of the API and the page.")] = "127.0.0.1",
    port: Port = 8888,
    zmq_host: Annotated[str, typer.Option(help="Address where handlers register.")] = "127.0.0.1",
    zmq_port: ZmqPort = 4242,
    database: Database = None,
    database_timeout_s: DatabaseTimeout = 10.0,
    token_file: TokenFile = None,
    allow_host: Hosts = None,
    allow_origin: Origins = None,
    curve_key_file: Annotated[
        Path | None, typer.Option(help="The scheduler's own key pair (`catalogzero keys new`).")
    ] = None,
    curve_clients_file: Annotated[
        Path | None, typer.Option(help="Public keys of the handlers that may register.")
    ] = None,
    server_keys_file: ServerKeys = None,
    nats_key_file: Annotated[
        Path | None,
        typer.Option(help="NKEY seed or credentials to call handlers behind a NATS server with."),
    ] = None,
    nats_ca_file: Annotated[Path | None, typer.Option(help="CA of that NATS server.")] = None,
    allow_plaintext: Annotated[
        bool, typer.Option(help="Register beyond loopback without keys: a private network.")
    ] = False,
    lease_s: Lease = 15.0,
    retention_days: Retention = 30,
    max_executions: MaxExecutions = 100_000,
    json: JsonFlag = False,
) -> None:
    """Call handlers at set times, with ScheduleZero's API; a page at the same address.

    Every option has an environment variable: CATALOGZERO_SCHEDULER_PORT for --port.
    Those that may be repeated hold a list with spaces between.

    Example: catalogzero scheduler --database sqlite:////var/lib/acme/scheduler.db
    """
    from catalogzero.config.renewal import Renewed
    from catalogzero.config.settings import NatsSettings
    from catalogzero.scheduler.runner import RunnerSettings
    from catalogzero.scheduler.server import SchedulerSettings, run_scheduler
    from catalogzero.wire.keys import CurveKeys, read_server_keys, server_keys_in

    if curve_clients_file and curve_key_file is None:
        raise ConfigError("--curve-clients-file needs --curve-key-file: the scheduler's own pair")
    keys, curve, known = None, None, None
    if curve_key_file:
        keys = Renewed(partial(CurveKeys.read, curve_key_file), curve_key_file)
    if curve_key_file and curve_clients_file:
        curve = server_keys_in(curve_key_file, curve_clients_file)
    if server_keys_file:
        known = Renewed(partial(read_server_keys, server_keys_file), server_keys_file)
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
        server_keys=known or {},
        nats=NatsSettings(key_file=nats_key_file, ca_file=nats_ca_file),
        runner=RunnerSettings(
            lease_s=lease_s, retention_days=retention_days, max_executions=max_executions
        ),
    )
    asyncio.run(run_scheduler(settings, lambda server: announce(server, json=json)))


def announce(server: SchedulerServer, *, json: bool) -> None:
    """One line on standard output: where it listens."""
    fields = {"url": server.url, "zmq_address": server.zmq_address, "database": server.database}
    text = (
        f"scheduler: {server.url} (API and page), handlers register at {server.zmq_address}, "
        f"database {server.database}; Ctrl-C stops it"
    )
    print_answer({"event": "listening", **fields}, text, json=json)

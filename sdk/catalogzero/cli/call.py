"""`catalogzero call`, `ping`, `metrics`, `describe`, `cancel`: ask a handler that runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from catalogzero.cli.output import JsonFlag, print_fields, print_json, print_table
from catalogzero.cli.progress import call_shown
from catalogzero.cli.run import RegistryOption, json_object, known_handlers
from catalogzero.cli.standing import called_here
from catalogzero.config.address import FORMS, Address
from catalogzero.config.registry import Section, load_registry
from catalogzero.config.settings import NatsSettings, config_error
from catalogzero.errors import ConfigError
from catalogzero.runtime.launch import folder_of, registry_path
from catalogzero.wire.carriers import transport_for
from catalogzero.wire.client import HandlerClient
from catalogzero.wire.keys import CurveClient, CurveKeys, public_key
from catalogzero.wire.messages import JsonObject
from catalogzero.wire.transport import Transport

Target = Annotated[
    str,
    typer.Argument(
        help="A handler_id of the registry file, or its address.", autocompletion=known_handlers
    ),
]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for the reply.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        help="Your CURVE key pair, for a handler that is served with keys; or your NATS key."
    ),
]
ServerKey = Annotated[
    str | None, typer.Option(help="The handler's public key; by default its section's.")
]
Show = Callable[[JsonObject], None]
Peer = tuple[str, Transport]
"""Where a handler is, and what carries the calls to it, with the keys."""


def call(
    target: Target,
    method: Annotated[str, typer.Argument(help="A job or control method.")],
    params: Annotated[str, typer.Option(help="JSON object of its params.")] = "{}",
    registry: RegistryOption = None,
    timeout_s: Timeout = 3_600.0,
    key_file: KeyFile = None,
    server_key: ServerKey = None,
) -> None:
    """Call a method and print its result as JSON; a terminal shows how far it is.

    A handler that is away or draining is waited for; one that restarted in the middle of the run
    ends the call.

    Example: catalogzero call acme process_and_upload --params '{"data_source": "/data/exports"}'
    """
    fields = json_object(params, "--params")
    peer = peer_of(target, registry, key_file, server_key)
    print_json(_ask(peer, method, fields, timeout_s))


def question(method: str) -> Callable[[Show], Callable[..., None]]:
    """A command that asks a handler one thing; the function decorated says what, and shows it."""

    def command_of(show: Show) -> Callable[..., None]:
        def command(
            target: Target,
            registry: RegistryOption = None,
            timeout_s: Timeout = 5.0,
            key_file: KeyFile = None,
            server_key: ServerKey = None,
            json: JsonFlag = False,
        ) -> None:
            answer = _ask(peer_of(target, registry, key_file, server_key), method, {}, timeout_s)
            (show if isinstance(answer, dict) and not json else print_json)(answer)

        command.__doc__ = show.__doc__
        return command

    return command_of


@question("ping")
def ping(shown: JsonObject) -> None:
    """Whether a handler answers; it is not woken.

    Example: catalogzero ping acme
    """
    print_fields(shown)


@question("get_metrics")
def metrics(shown: JsonObject) -> None:
    """Memory, CPU, state and runs of a handler; it is not woken.

    Example: catalogzero metrics tcp://127.0.0.1:5001 --json
    """
    print_fields(shown)


@question("describe")
def describe(shown: JsonObject) -> None:
    """What a handler is, and which methods it has.

    Example: catalogzero describe acme
    """
    # A plain handler may have a method `describe` of its own, which answers what it likes.
    if "boot_id" not in shown:
        print_fields(shown)
        return
    print_fields({name: shown[name] for name in ("handler_id", "class", "entry", "version")})
    flags = ("quiet", "retry_safe", "isolate")
    rows = [
        (
            method["name"],
            ", ".join(method["params_schema"].get("properties", {})),
            ", ".join(flag for flag in flags if method[flag]),
            method["doc"].partition("\n")[0],
        )
        for method in shown["methods"]
    ]
    print_table(("method", "params", "flags", "what it does"), rows)


def cancel(
    target: Target,
    run_id: Annotated[str, typer.Argument(help="The run_id, as `list_runs` shows it.")],
    registry: RegistryOption = None,
    timeout_s: Timeout = 5.0,
    key_file: KeyFile = None,
    server_key: ServerKey = None,
) -> None:
    """Stop a run.

    Example: catalogzero cancel acme 8f14e45f-ceea-467f-a9d3-1b2c3d4e5f60
    """
    peer = peer_of(target, registry, key_file, server_key)
    print_json(_ask(peer, "cancel", {"run_id": run_id}, timeout_s))


def address_of(section: Section) -> str:
    """Where the handler of a section of the registry file is called from this machine.

    Behind a NATS server: its process here, where there is one, else any of its name.

    Raises:
        ConfigError: It names no port.
    """
    runtime = section.runtime
    if (transport := str(runtime.get("transport") or "zeromq")) != "zeromq":
        any_of_its_name = str(Address.nats_server(transport).called(section.handler_id))
        folder = None
        with suppress(ConfigError):  # another setting is wrong: its start, and `check`, report it
            folder = folder_of(section)
        return called_here(any_of_its_name, folder) or any_of_its_name
    bound = Address.of(str(runtime.get("host", "127.0.0.1")), runtime.get("port") or 0)
    if bound.path:
        return str(bound)
    if not bound.port:
        raise ConfigError(f"{section.where('port')}: no port: name its address, {FORMS}")
    here = bound.callable_here
    # Bound to every interface or behind a translation, it is reached under what it registers.
    return str(Address(runtime.get("advertise_host") or here.host, here.port))


def nats_of(section: Section) -> NatsSettings:
    """How the NATS server of a section is reached.

    Raises:
        ConfigError: A setting is wrong.
    """
    try:
        return NatsSettings.model_validate(section.runtime.get("nats") or {})
    except ValidationError as error:
        raise config_error(error, where=section.where("nats"), model=NatsSettings) from None


def peer_of(
    target: str, registry: Path | None, key_file: Path | None, server_key: str | None
) -> Peer:
    """The handler that the command line names: by its address, or of the registry file.

    Raises:
        ConfigError: It cannot be found, or a key is missing or no key.
    """
    section = None if "://" in target else load_registry(registry_path(registry)).find(target)
    address = address_of(section) if section else str(Address.parse(target))
    if (at := Address.parse(address)).is_nats:
        ca_file = nats_of(section).ca_file if section else None
        return address, transport_for(at, nats=NatsSettings(key_file=key_file, ca_file=ca_file))
    curve = section.runtime.get("curve") if section else None
    server = public_key(server_key) if server_key else None
    if curve and server is None:
        try:
            server = CurveKeys.read(Path(curve["key_file"])).public
        except ConfigError as error:
            raise ConfigError(f"{error}; or name its public key with --server-key") from None
    if server is None and key_file is None:
        return address, transport_for(at)
    if key_file is None:
        raise ConfigError(f"{target} is served with keys: name your own pair with --key-file")
    if server is None:
        raise ConfigError("--key-file needs --server-key, the handler's public key")
    keys = CurveClient(CurveKeys.read(key_file), server)
    return address, transport_for(at, client_keys=keys)


def _ask(peer: Peer, method: str, params: JsonObject, timeout_s: float) -> Any:
    """One call to a handler."""
    address, transport = peer

    async def ask() -> Any:
        async with HandlerClient(address, transport=transport) as client:
            # These answer at once, and are no runs whose progress could be asked for.
            if method in ("ping", "get_metrics", "describe", "cancel"):
                return await client.call(method, params, timeout_s=timeout_s)
            return await call_shown(client, method, params, timeout_s)

    return asyncio.run(ask())

"""`catalogzero call`, `ping`, `metrics`, `describe`, `cancel`: ask a handler that runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from catalogzero.cli.output import JsonFlag, print_fields, print_json, print_table
from catalogzero.cli.progress import call_shown
from catalogzero.cli.run import RegistryOption, json_object
from catalogzero.config.address import FORMS, Address
from catalogzero.config.registry import load_registry
from catalogzero.errors import ConfigError
from catalogzero.runtime.launch import registry_path
from catalogzero.wire.client import HandlerClient
from catalogzero.wire.zeromq import CurveClient, CurveKeys, public_key

Target = Annotated[str, typer.Argument(help="A handler_id of the registry file, or its address.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for the reply.")]
KeyFile = Annotated[
    Path | None, typer.Option(help="Your CURVE key pair, for a handler that is served with keys.")
]
ServerKey = Annotated[
    str | None, typer.Option(help="The handler's public key; by default its section's.")
]
Show = Callable[[dict[str, Any]], None]
Peer = tuple[str, CurveClient | None]
"""Where a handler is, and the keys to call it with."""


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

    Example: catalogzero call acme process_and_upload --params '{"data_source": "/data/exports"}'
    """
    fields = json_object(params, "--params")
    peer = _peer(target, registry, key_file, server_key)
    print_json(_ask(peer, method, fields, timeout_s))


def _question(method: str) -> Callable[[Show], Callable[..., None]]:
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
            answer = _ask(_peer(target, registry, key_file, server_key), method, {}, timeout_s)
            (show if isinstance(answer, dict) and not json else print_json)(answer)

        command.__doc__ = show.__doc__
        return command

    return command_of


@_question("ping")
def ping(shown: dict[str, Any]) -> None:
    """Whether a handler answers; it is not woken.

    Example: catalogzero ping acme
    """
    print_fields(shown)


@_question("get_metrics")
def metrics(shown: dict[str, Any]) -> None:
    """Memory, CPU, state and runs of a handler; it is not woken.

    Example: catalogzero metrics tcp://127.0.0.1:5001 --json
    """
    print_fields(shown)


@_question("describe")
def describe(shown: dict[str, Any]) -> None:
    """What a handler is, and which methods it has.

    Example: catalogzero describe acme
    """
    if "boot_id" not in shown:  # a plain handler's own
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
    peer = _peer(target, registry, key_file, server_key)
    print_json(_ask(peer, "cancel", {"run_id": run_id}, timeout_s))


def address_of(target: str, registry: Path | None) -> str:
    """The address of a handler: as given, or from the registry file.

    Raises:
        ConfigError: The file does not name it, or names no port.
    """
    if "://" in target:
        return str(Address.parse(target))
    section = load_registry(registry_path(registry)).find(target)
    runtime = section.runtime
    bound = Address.of(str(runtime.get("host", "127.0.0.1")), runtime.get("port") or 0)
    if bound.path:
        return str(bound)
    if not bound.port:
        raise ConfigError(f"{section.where('port')}: no port: name its address, {FORMS}")
    here = bound.callable_here
    return str(Address(runtime.get("advertise_host") or here.host, here.port))


def _peer(
    target: str, registry: Path | None, key_file: Path | None, server_key: str | None
) -> Peer:
    """The handler that the command line names.

    Raises:
        ConfigError: It cannot be found, or a key is missing or no key.
    """
    address = address_of(target, registry)
    server = public_key(server_key) if server_key else _section_key(target, registry)
    if server is None and key_file is None:
        return address, None
    if key_file is None:
        raise ConfigError(f"{target} is served with keys: name your own pair with --key-file")
    if server is None:
        raise ConfigError("--key-file needs --server-key, the handler's public key")
    return address, CurveClient(CurveKeys.read(key_file), server)


def _section_key(target: str, registry: Path | None) -> bytes | None:
    """The public key of a handler of the registry file that is served with keys."""
    if "://" in target:
        return None
    curve = load_registry(registry_path(registry)).find(target).runtime.get("curve")
    try:
        return CurveKeys.read(Path(curve["key_file"])).public if curve else None
    except ConfigError as error:
        raise ConfigError(f"{error}; or name its public key with --server-key") from None


def _ask(peer: Peer, method: str, params: dict[str, Any], timeout_s: float) -> Any:
    """One call to a handler."""
    address, curve = peer

    async def ask() -> Any:
        async with HandlerClient(address, curve=curve) as client:
            if method not in ("ping", "get_metrics", "describe", "cancel"):
                await client.ping(timeout_s=min(5.0, timeout_s))
            return await call_shown(client, method, params, timeout_s)

    return asyncio.run(ask())

"""`catalogzero run`: serve a handler."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from catalogzero.cli.output import print_json
from catalogzero.config.logs import names_a_secret
from catalogzero.config.registry import load_registry
from catalogzero.config.settings import secrets_in
from catalogzero.errors import CatalogZeroError, ConfigError, RunError
from catalogzero.runtime.handler import Handler
from catalogzero.runtime.launch import Flags, make_handler, registry_path
from catalogzero.wire.messages import JsonObject


def known_handlers(ctx: typer.Context, incomplete: str) -> list[str]:
    """The handler_ids of the registry file, for a shell to complete."""
    with suppress(ConfigError, OSError):
        sections = load_registry(registry_path(ctx.params.get("registry"))).handlers
        return [one.handler_id for one in sections if one.handler_id.startswith(incomplete)]
    return []


Target = Annotated[
    str,
    typer.Argument(help="A handler_id, an entry, or module:Class.", autocompletion=known_handlers),
]
RegistryOption = Annotated[
    Path | None,
    typer.Option(
        help="The registry file; else $CATALOGZERO_REGISTRY, else handler_registry.yaml here."
    ),
]
Traceback = Annotated[
    bool, typer.Option("--traceback", help="With --once: where it failed, call by call.")
]

EXIT_INTERRUPTED = 130


def run(
    target: Annotated[
        str | None,
        typer.Argument(
            help="A handler_id of the registry file, an entry, or module:Class.",
            autocompletion=known_handlers,
        ),
    ] = None,
    registry: RegistryOption = None,
    handler_id: Annotated[str | None, typer.Option(help="Its name to schedulers.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to bind, or ipc:///folder/x.sock; else 127.0.0.1.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind; 0: any free one.")] = None,
    transport: Annotated[
        str | None, typer.Option(help="NATS server to be called through, as nats://host:port.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address to register at; none: nowhere.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A runtime setting, name=value.")
    ] = None,
    config: Annotated[
        list[str] | None, typer.Option(help="A setting of the entry's own, name=value.")
    ] = None,
    once: Annotated[
        str | None, typer.Option(metavar="METHOD", help="Run one method here, and end.")
    ] = None,
    params: Annotated[str, typer.Option(help="JSON object of params, with --once.")] = "{}",
    traceback: Traceback = False,
    all_: Annotated[
        bool, typer.Option("--all", help="Every handler of the file, a process each.")
    ] = False,
) -> None:
    """Serve a handler until SIGTERM or Ctrl-C; it then drains and ends.

    Example: catalogzero run acme --registry handler_registry.yaml --set sleep_after_s=5
    """
    if registry is not None:
        # Some handlers read the file themselves, as the conductor does, to watch those in it.
        os.environ["CATALOGZERO_REGISTRY"] = str(registry.absolute())
    from catalogzero.cli.run_all import end_with_all, run_all

    if all_:
        raise typer.Exit(run_all(registry_path(registry)))
    end_with_all()
    if target is None:
        raise typer.BadParameter("name a TARGET, or --all", param_hint="TARGET")
    named = {"handler_id": handler_id, "host": host, "port": port, "transport": transport}
    given = {**named, "scheduler": scheduler}
    runtime = {name: value for name, value in given.items() if value is not None}
    flags = Flags(
        config=assignments(config or [], "--config"),
        runtime={**assignments(set_ or [], "--set"), **runtime},
    )
    handler = make_handler(target, registry=registry, flags=flags)
    refuse_secrets(handler, flags.config)
    code = 0
    if once:
        code = run_once(handler, once, json_object(params, "--params"), traceback=traceback)
    else:
        from catalogzero.cli.main import EXIT_TEMPORARY
        from catalogzero.runtime.service import serve_until_signal

        replaced = asyncio.run(serve_until_signal(handler))
        code = EXIT_TEMPORARY if replaced else 0
    # At once, for a job's thread that ignores its cancellation would hold up an end in good order.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def assignments(pairs: list[str], option: str) -> JsonObject:
    """`name=value` flags as a mapping; a value that is JSON is read as JSON."""
    found: JsonObject = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{pair!r} is not name=value", param_hint=option)
        found[name] = text
        if text[:1] in ("[", "{") or text in ("true", "false", "null"):
            with suppress(ValueError):
                found[name] = json.loads(text)
    return found


def refuse_secrets(handler: Handler, given: Iterable[str]) -> None:
    """Refuse a secret on the command line: every user of the machine sees it there."""
    for name in given:
        value = getattr(getattr(handler, "settings", None), name, None)
        if any(secrets_in(value)) or (names_a_secret(name) and isinstance(value, str)):
            prefix = handler.settings_model.model_config.get("env_prefix", "")
            raise ConfigError(
                f"--config {name}: every user of this machine can read a command line: put the "
                f"secret in a file ({name}_file), the environment ({prefix}{name.upper()}) or a "
                "systemd credential"
            )


def json_object(text: str, option: str) -> JsonObject:
    """A flag that is a JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"no JSON: {error}", param_hint=option) from None
    if not isinstance(value, dict):
        raise typer.BadParameter("a JSON object is expected", param_hint=option)
    return value


def run_once(handler: Handler, method: str, params: JsonObject, *, traceback: bool = False) -> int:
    """Serve on a free port, call one method, print its result; the exit code.

    A `breakpoint()` of the method stops there, on this terminal.
    """
    from catalogzero.cli.progress import call_shown
    from catalogzero.config.logs import take_logs
    from catalogzero.runtime.service import serve
    from catalogzero.wire.client import HandlerClient

    async def call() -> None:
        async with (
            serve(
                handler, host="127.0.0.1", port=0, transport="zeromq", scheduler="none"
            ) as service,
            HandlerClient(service.address) as client,
        ):
            try:
                print_json(await call_shown(client, method, params, 365 * 86_400.0))
            except RunError:
                if traceback:
                    (last,) = (await client.call("list_runs", {"limit": 1}))["runs"]
                    ended = await client.call("get_run", {"run_id": last["run_id"]})
                    typer.echo(ended.get("traceback", ""), err=True, nl=False)
                raise

    take_logs(handler.log, type(handler).__module__)
    try:
        asyncio.run(call())
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except CatalogZeroError as error:
        from catalogzero.cli.main import exit_code

        typer.echo(f"catalogzero: {error}", err=True)
        return exit_code(error)
    return 0

"""`catalogzero run`: serve a handler."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from catalogzero.cli.output import print_json
from catalogzero.config.logs import SECRET_NAMES
from catalogzero.config.registry import load_registry
from catalogzero.config.settings import secrets_in
from catalogzero.errors import CatalogZeroError, ConfigError
from catalogzero.runtime.handler import Handler
from catalogzero.runtime.launch import Flags, make_handler, registry_path

RegistryOption = Annotated[
    Path | None,
    typer.Option(
        help="The registry file; else $CATALOGZERO_REGISTRY, else handler_registry.yaml here."
    ),
]

EXIT_INTERRUPTED = 130
SINGLE_VARIABLES = ("CATALOGZERO_HANDLER_ID", "CATALOGZERO_HOST", "CATALOGZERO_PORT")


def run(
    target: Annotated[
        str | None,
        typer.Argument(help="A handler_id of the registry file, an entry, or module:Class."),
    ] = None,
    registry: RegistryOption = None,
    handler_id: Annotated[str | None, typer.Option(help="Its name to schedulers.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to bind, or ipc:///folder/x.sock; else 127.0.0.1.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind; 0: any free one.")] = None,
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
    all_: Annotated[
        bool, typer.Option("--all", help="Every handler of the file, a process each.")
    ] = False,
) -> None:
    """Serve a handler until SIGTERM or Ctrl-C; it then drains and ends.

    Example: catalogzero run acme --registry handler_registry.yaml --set sleep_after_s=5
    """
    if registry is not None:  # for handlers that read the file themselves, as the conductor does
        os.environ["CATALOGZERO_REGISTRY"] = str(registry.absolute())
    if all_:
        raise typer.Exit(_run_all(registry_path(registry)))
    if target is None:
        raise typer.BadParameter("name a TARGET, or --all", param_hint="TARGET")
    given = {"handler_id": handler_id, "host": host, "port": port, "scheduler": scheduler}
    runtime = {name: value for name, value in given.items() if value is not None}
    flags = Flags(
        config=assignments(config or [], "--config"),
        runtime={**assignments(set_ or [], "--set"), **runtime},
    )
    handler = make_handler(target, registry=registry, flags=flags)
    _refuse_secrets(handler, flags.config)
    if once:
        _once(handler, once, json_object(params, "--params"))
    else:
        from catalogzero.runtime.service import serve_until_signal

        asyncio.run(serve_until_signal(handler))
        _leave(0)


def assignments(pairs: list[str], option: str) -> dict[str, Any]:
    """`name=value` flags as a mapping; a value that is JSON is read as JSON."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{pair!r} is not name=value", param_hint=option)
        found[name] = _value(text)
    return found


def _refuse_secrets(handler: Handler, given: Iterable[str]) -> None:
    """Refuse a secret on the command line: every user of the machine sees it there."""
    for name in given:
        value = getattr(getattr(handler, "settings", None), name, None)
        named = any(word in name for word in SECRET_NAMES) and not name.endswith("_file")
        if any(secrets_in(value)) or (named and isinstance(value, str)):
            prefix = handler.settings_model.model_config.get("env_prefix", "")
            raise ConfigError(
                f"--config {name}: every user of this machine can read a command line: put the "
                f"secret in a file ({name}_file), the environment ({prefix}{name.upper()}) or a "
                "systemd credential"
            )


def json_object(text: str, option: str) -> dict[str, Any]:
    """A flag that is a JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"no JSON: {error}", param_hint=option) from None
    if not isinstance(value, dict):
        raise typer.BadParameter("a JSON object is expected", param_hint=option)
    return value


def _value(text: str) -> Any:
    if text[:1] in ("[", "{") or text in ("true", "false", "null"):
        with suppress(ValueError):
            return json.loads(text)
    return text


def _once(handler: Handler, method: str, params: dict[str, Any]) -> None:
    """Run one method, and end with its exit code."""
    code = 0
    try:
        asyncio.run(_run_once(handler, method, params))
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except CatalogZeroError as error:
        from catalogzero.cli.main import exit_code

        typer.echo(f"catalogzero: {error}", err=True)
        code = exit_code(error)
    _leave(code)


def _leave(code: int) -> None:
    """End now: a job's thread that ignores its cancellation must not hold up the end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def _run_once(handler: Handler, method: str, params: dict[str, Any]) -> None:
    """Serve on a free port, call one method, print its result."""
    from catalogzero.cli.progress import call_shown
    from catalogzero.config.logs import forward_logging
    from catalogzero.runtime.service import serve
    from catalogzero.wire.client import HandlerClient

    forward_logging(handler.log)
    year_s = 365 * 86_400.0
    async with (
        serve(handler, host="127.0.0.1", port=0, scheduler="none") as service,
        HandlerClient(service.address) as client,
    ):
        print_json(await call_shown(client, method, params, year_s))


def _run_all(path: Path) -> int:
    """One process for each handler; the first that fails is told, Ctrl-C ends all."""
    sections = load_registry(path).handlers
    if not sections:
        raise ConfigError(f"{path}: no handlers to run")
    environment = {k: v for k, v in os.environ.items() if k not in SINGLE_VARIABLES}
    base = [sys.executable, "-m", "catalogzero", "run", "--registry", str(path)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    children = [
        # A group each, so that a terminal's Ctrl-C reaches them once, through this process.
        subprocess.Popen([*base, s.handler_id], env=environment, process_group=0)  # noqa: S603 - our own command
        for s in sections
    ]
    try:
        codes = [child.wait() for child in children]
    except KeyboardInterrupt:
        for child in children:
            child.send_signal(signal.SIGTERM)
        codes = [child.wait() for child in children]
    return max((abs(code) for code in codes), default=0)

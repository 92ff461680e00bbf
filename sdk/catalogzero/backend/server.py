"""One backend served by this process, until it is stopped.

What is served is `app.create_app`'s; socket and signals are `catalogzero.web`'s.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from catalogzero.backend.app import create_app
from catalogzero.backend.settings import BackendSettings
from catalogzero.config import sd_notify
from catalogzero.config.renewal import Renewed
from catalogzero.errors import ConfigError
from catalogzero.web import ConnectionLimits, listening, stop_signal

REQUESTS_END_S = 10.0
LIMITS = ConnectionLimits(connections=4_000)
"""A fleet keeps its connections for a while after each report."""
STOP_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class BackendAddress:
    """Where a backend listens: `url` is its root, `endpoint` what a handler's settings name."""

    url: str
    endpoint: str


serving = partial(
    listening,
    host="127.0.0.1",
    port=0,
    limits=LIMITS,
    decompress=False,
    stop_s=REQUESTS_END_S,
)
"""Serves an application as `listening` does, bodies as they were sent."""


async def serve(
    settings: BackendSettings,
    *,
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    on_started: Callable[[BackendAddress], None],
    stop_within_s: float = STOP_WITHIN_S,
) -> None:
    """Serve a backend until SIGINT or SIGTERM, then finish what is under way.

    Raises:
        ConfigError: The database cannot be opened, or the address cannot be bound.
    """
    with stop_signal(stop_within_s) as stop:
        async with serving(create_app(settings), host=host, port=port, tls=tls) as url:
            on_started(BackendAddress(url, url + settings.base_path))
            sd_notify.ready(url)
            await stop.wait()
            sd_notify.notify("STOPPING=1")


def load_tls(certificate: Path | None, private_key: Path | None) -> ssl.SSLContext | None:
    """The server's TLS, none where neither file is named; renewed files hold for new connections.

    Raises:
        ConfigError: One file without the other, or files that cannot be used.
    """
    if certificate is None and private_key is None:
        return None
    if certificate is None or private_key is None:
        raise ConfigError("--certificate and --private-key are given together")

    def load() -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(certificate, private_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"cannot use {certificate} with {private_key}: {error}") from None
        return context

    newest = Renewed(load, certificate, private_key)

    def use_newest(connection: ssl.SSLObject, name: str | None, first: ssl.SSLContext) -> None:
        connection.context = newest()

    # The context that the socket was opened with: called at each hello, whatever name that has.
    context = newest()
    context.sni_callback = use_newest
    return context

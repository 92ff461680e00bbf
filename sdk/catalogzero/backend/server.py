"""One backend served by this process, until it is told to stop.

What is served is `app.create_app`'s; socket and signals are `catalogzero.web`'s.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from catalogzero.backend.app import create_app
from catalogzero.backend.settings import BackendSettings
from catalogzero.errors import ConfigError
from catalogzero.web import Limits, listening, stop_signal

REQUESTS_END_S = 10.0
LIMITS = Limits(connections=4_000)
"""A fleet keeps its connections for a while after each report."""
STOP_WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where a backend listens: `url` is its root, `endpoint` what a handler's settings name."""

    url: str
    endpoint: str


@asynccontextmanager
async def serving(
    app: web.Application,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    limits: Limits = LIMITS,
    stop_s: float = REQUESTS_END_S,
) -> AsyncIterator[str]:
    """Serve an application while the block runs; gives its URL. Port 0 takes a free one.

    Raises:
        ConfigError: The address cannot be bound.
    """
    async with listening(
        app, host, port, tls=tls, limits=limits, decompress=False, stop_s=stop_s
    ) as url:
        yield url


async def serve(
    settings: BackendSettings,
    *,
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    on_started: Callable[[Address], None],
    stop_within_s: float = STOP_WITHIN_S,
) -> None:
    """Serve a backend until SIGINT or SIGTERM, then finish what is under way.

    Raises:
        ConfigError: The database cannot be opened, or the address cannot be bound.
    """
    with stop_signal(stop_within_s) as stop:
        async with serving(create_app(settings), host=host, port=port, tls=tls) as url:
            on_started(Address(url, url + settings.base_path))
            await stop.wait()


def load_tls(certificate: Path | None, private_key: Path | None) -> ssl.SSLContext | None:
    """The server's TLS, none where neither file is named.

    Raises:
        ConfigError: One file without the other, or files that cannot be used.
    """
    if certificate is None and private_key is None:
        return None
    if certificate is None or private_key is None:
        raise ConfigError("--certificate and --private-key are given together")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, private_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use {certificate} with {private_key}: {error}") from None
    return context

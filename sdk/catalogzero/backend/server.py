"""One backend served by this process, until it is told to stop.

Owns the listening socket and the signals; what is served is `app.create_app`'s.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from catalogzero.backend.app import create_app
from catalogzero.backend.settings import BackendSettings
from catalogzero.errors import ConfigError

SHUTDOWN_TIMEOUT_S = 10.0


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
) -> AsyncIterator[str]:
    """Serve an application while the block runs; gives its URL. Port 0 takes a free one.

    Raises:
        ConfigError: The address cannot be bound.
    """
    runner = web.AppRunner(
        app, auto_decompress=False, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
        bound = runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        yield f"{'https' if tls else 'http'}://{shown}:{bound}"
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"cannot listen on {host}:{port}: something listens there already, perhaps another "
                "backend; name another --port"
            ) from None
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    finally:
        await runner.cleanup()


async def serve(
    settings: BackendSettings,
    *,
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    on_started: Callable[[Address], None],
) -> None:
    """Serve a backend until SIGINT or SIGTERM, then finish what is under way.

    Raises:
        ConfigError: The database cannot be opened, or the address cannot be bound.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop.set)
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

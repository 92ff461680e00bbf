"""Serves a catalog's folder over HTTP: for a look, a test, or a network without a web server."""

from __future__ import annotations

import functools
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from catalogzero.errors import ConfigError


class CatalogServer:
    """A web server of one folder, files only; a context manager that closes its socket.

    Args:
        site: The folder that `catalog build` wrote.
        host: Address to bind.
        port: Port to bind; 0 is any free one.

    Raises:
        ConfigError: The folder is no catalog, or the port is taken.
    """

    def __init__(self, site: Path, host: str = "127.0.0.1", port: int = 0) -> None:
        if not (site / "catalog.json").is_file():
            raise ConfigError(f"{site} is no catalog: write one with `catalogzero catalog build`")
        handler = functools.partial(_QuietHandler, directory=str(site))
        try:
            self._server = ThreadingHTTPServer((host, port), handler)
        except OSError as error:
            raise ConfigError(f"{host}:{port} cannot be bound: {error}; choose --port") from error
        self.url = f"http://{host}:{self._server.server_port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.server_close()

    def serve_until_interrupted(self) -> None:
        """Answer requests until Ctrl-C, or until `stop` is called from another thread."""
        try:
            self._server.serve_forever()
        except KeyboardInterrupt:
            return

    def stop(self) -> None:
        """End `serve_until_interrupted` in another thread."""
        self._server.shutdown()


class _QuietHandler(SimpleHTTPRequestHandler):
    """Answers with files and keeps no log."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing about requests."""

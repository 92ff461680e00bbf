"""Serves a catalog's folder over HTTP: for a look, a test, or a network without a web server."""

from __future__ import annotations

import functools
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from catalogzero.errors import ConfigError


class CatalogServer(ThreadingHTTPServer):
    """A web server of one folder, files only; a context manager that closes its socket.

    Args:
        site: The folder that `catalog build` wrote.
        host: Address to bind.
        port: Port to bind; 0 is any free one.

    Raises:
        ConfigError: The folder is not a catalog, or the port is taken.
    """

    def __init__(self, site: Path, host: str = "127.0.0.1", port: int = 0) -> None:
        if not (site / "catalog.json").is_file():
            raise ConfigError(
                f"{site} is not a catalog: write one with `catalogzero catalog build`"
            )
        try:
            super().__init__((host, port), functools.partial(_QuietHandler, directory=str(site)))
        except OSError as error:
            raise ConfigError(f"{host}:{port} cannot be bound: {error}; choose --port") from error
        self.url = f"http://{host}:{self.server_port}"


class _QuietHandler(SimpleHTTPRequestHandler):
    """Answers with files of its folder, wherever links point, and keeps no log."""

    def translate_path(self, path: str) -> str:
        """The file of a path; one that is not there for a link that leads out of the folder."""
        found, folder = Path(super().translate_path(path)), Path(self.directory).resolve()
        # A site that was copied with links in it must not publish what they lead to.
        inside = found.resolve().is_relative_to(folder)
        return super().translate_path(path) if inside else str(folder / "nowhere" / "outside")

    def end_headers(self) -> None:
        """Pages load nothing from elsewhere, scripts neither; no browser guesses a type."""
        policy = (
            "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self';"
            " frame-ancestors 'none'"
        )
        self.send_header("Content-Security-Policy", policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing about requests."""

"""Who may ask the dashboard for what.

Against DNS rebinding: the Host must be a loopback name, or one that the settings list. Against
cross-site requests: an Origin, where there is one, must be this very host. Signals need the
token; beyond loopback everything but the bare pages does.

Layer: catalog entry, imports public names of catalogzero only.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import hdrs, web

from conductorzero.settings import read_token

TOKEN_FILE = "dashboard_token"  # noqa: S105 - the name of a file, no token
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Answering = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Guard:
    """Checks each request before it is answered.

    Args:
        host: Where the dashboard listens; beyond loopback, reading needs the token too.
        hosts: Names beside the loopback ones that a request may be for.
        token: The Bearer token of signals.
    """

    def __init__(self, host: str, hosts: list[str], token: str) -> None:
        names = {name.lower() for name in hosts}
        self._names = LOOPBACK_NAMES | names
        self._token = token.encode()
        self.reading_needs_token = not is_loopback(host)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Answering) -> web.StreamResponse:
        """Refuse what may not be; add the headers that keep a browser strict."""
        refusal = self._refusal(request)
        response = refusal if refusal is not None else await handler(request)
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    def _refusal(self, request: web.Request) -> web.Response | None:
        """Why this request is not answered; None when it is."""
        if host_name(request.host) not in self._names:
            return refuse(421, f"this dashboard is not called {request.host!r}: dashboard_hosts")
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and origin.partition("://")[2] != request.host:
            return refuse(403, "a request from another site")
        if request.headers.get("Sec-Fetch-Site") == "cross-site" and _is_data(request):
            return refuse(403, "a request from another site")
        if self._needs_token(request) and not self._shows_token(request):
            return refuse(401, "the token is missing or wrong")
        return None

    def _needs_token(self, request: web.Request) -> bool:
        """Whether this request needs the token."""
        if request.method not in (hdrs.METH_GET, hdrs.METH_HEAD):
            return True
        return self.reading_needs_token and _is_data(request)

    def _shows_token(self, request: web.Request) -> bool:
        """Whether it carries the token; compared in constant time."""
        kind, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self._token)


def _is_data(request: web.Request) -> bool:
    """Whether a request is for the fleet's data, not for a bare page."""
    return request.path.startswith("/api/") or request.path == "/metrics"


def refuse(status: int, message: str) -> web.Response:
    """An error as JSON."""
    codes = {400: "bad_request", 401: "unauthorized", 403: "forbidden", 404: "not_found"}
    body = {"error": {"code": codes.get(status, "refused"), "message": message}}
    return web.json_response(body, status=status)


def host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def token_of(token_file: Path | None, state_dir: Path) -> tuple[str, Path]:
    """The token for signals, and the file it stands in; made at first use, for its owner only.

    Raises:
        ConfigError: The named file holds no token.
    """
    path = token_file or state_dir / TOKEN_FILE
    if token_file is None and not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(24) + "\n")
    return read_token(path), path

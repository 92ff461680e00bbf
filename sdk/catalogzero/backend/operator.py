"""Who may see the operator's side: the fleet page, and the metrics.

Owns one rule. With an operator token, whoever shows it, as Bearer or as the password of Basic
authentication (so that a browser asks for it). Without one, only a browser on this machine that
reached the backend directly: the peer and the Host header are loopback, and no proxy has passed
the request on.
"""

from __future__ import annotations

import base64
import binascii
import hmac

from aiohttp import web

from catalogzero.backend.settings import BackendSettings
from catalogzero.config.settings import is_loopback
from catalogzero.protocol.problems import Kind, ProblemError

PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")


class OperatorGate:
    """Lets the operator's requests pass."""

    def __init__(self, settings: BackendSettings) -> None:
        token = settings.operator_token
        self._token = None if token is None else token.get_secret_value()

    def check(self, request: web.Request) -> None:
        """Return for the operator alone.

        Raises:
            ProblemError: For anyone else.
        """
        if self._token is None:
            if not _is_local(request):
                raise ProblemError(
                    Kind.FORBIDDEN, "set an operator token to see this from another machine"
                )
            return
        shown = _shown(request.headers.get("Authorization", ""))
        if not hmac.compare_digest(shown.encode(), self._token.encode()):
            raise ProblemError(
                Kind.UNAUTHORIZED,
                "this is the operator's side: send the operator token",
                headers={"WWW-Authenticate": 'Basic realm="catalogzero operator"'},
            )


def _shown(header: str) -> str:
    """The token in an Authorization header, empty where there is none."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _is_local(request: web.Request) -> bool:
    """Whether someone on this machine asks this process directly."""
    if any(name in request.headers for name in PROXY_HEADERS):
        return False
    return is_loopback(request.remote or "") and is_loopback(request.url.host or "")

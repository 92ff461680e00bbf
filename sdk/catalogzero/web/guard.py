"""Who may ask a service for what.

Owns one rule for every service. What changes something, and what reads data, comes from no other
site. Then a request shows the token, or it asks for what needs none and is addressed to a name
that the service goes by, so that no web page can use a browser here to reach it (DNS rebinding).
A token shown is enough under any name: only whoever holds it can have sent it, and machines reach
a service under names that it does not know, behind proxies above all.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from catalogzero.config.address import is_loopback, parse_ip
from catalogzero.config.renewal import current
from catalogzero.web.edge import MORE_HEADERS, HttpError

PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")
READING = (hdrs.METH_GET, hdrs.METH_HEAD)
VARIES: dict[str, str] = {hdrs.VARY: hdrs.ORIGIN}
CORS = {**VARIES, hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: "Allow, Retry-After"}
PREFLIGHT = {
    hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, HEAD, POST, PUT, DELETE",
    hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "Authorization, Content-Type, Idempotency-Key",
    hdrs.ACCESS_CONTROL_MAX_AGE: "600",
}


class Guard:
    """Refuses requests before they are answered.

    Without a token everything is open, to this machine alone: the peer and the Host header are
    loopback, and no proxy passed the request on, unless the Host is one of `hosts`. With a token,
    what changes something needs it always, and data unless `open_reading`; bare pages never do.

    Args:
        token: The service's secret, or what gives that of now; None where there is none.
        hosts: Names beside the loopback ones that the service goes by, without ports.
        origins: Other sites whose pages may ask, with the token always (CORS); for a service that
            has one.
        open_reading: Reading data needs no token.
        by_address: Pages answer under any IP address too: the service listens beyond loopback.
        basic: The token may come as the password of Basic authentication, and browsers are asked
            for it; for services that change nothing, as browsers send it along unasked.
        missing: The sentence of a 401.
        host_status: The status of the answer to a name that is not the service's own.
    """

    def __init__(
        self,
        token: str | Callable[[], str] | None,
        *,
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
        open_reading: bool = False,
        by_address: bool = False,
        basic: bool = False,
        missing: str = "A Bearer token is required.",
        host_status: int = 403,
    ) -> None:
        self._token = token
        self._hosts = {name.strip("[]").lower() for name in hosts}
        self._origins = {origin.lower() for origin in origins} if token is not None else set()
        self._open_reading, self._by_address = open_reading, by_address
        self._basic, self._missing, self._host_status = basic, missing, host_status

    def middleware(self, pages: Collection[str] = ()) -> Middleware:
        """Checks every request.

        Args:
            pages: Paths of routes that show files of the package and no data.
        """

        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            origin = request.headers.get(hdrs.ORIGIN, "")
            if origin in self._origins:
                request[MORE_HEADERS] = {**CORS, hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin}
                asked = hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
                if asked and request.method == hdrs.METH_OPTIONS:
                    # a browser asks what a page may ask; it shows no token then
                    return web.Response(status=204, headers=PREFLIGHT)
            elif self._origins:
                request[MORE_HEADERS] = {**VARIES}
            resource = request.match_info.route.resource
            self.check(request, is_page=resource is not None and resource.canonical in pages)
            return await handler(request)

        return guard

    def check(self, request: web.Request, *, is_page: bool = False) -> None:
        """Return if the request may be answered.

        Args:
            request: Its headers and its peer are looked at.
            is_page: It is for a file of the package, which shows no data.

        Raises:
            HttpError: 401, 403 or `host_status`.
        """
        changes = request.method not in READING
        is_let_in = request.headers.get(hdrs.ORIGIN) in self._origins
        if not is_let_in and is_of_another_site(request, changes=changes, is_page=is_page):
            raise HttpError(403, "Requests from other origins are refused.")
        if self._token is not None:
            token = current(self._token).encode()
            if hmac.compare_digest(shown_token(request, basic=self._basic), token):
                return
            if changes or is_let_in or not (is_page or self._open_reading):
                scheme = "Basic" if self._basic else "Bearer"
                challenge = {"WWW-Authenticate": f'{scheme} realm="catalogzero"'}
                raise HttpError(401, self._missing, headers=challenge)
        self._check_address(request, is_page=is_page)

    def _check_address(self, request: web.Request, *, is_page: bool) -> None:
        """Refuse a request without a token that may not come from where it says."""
        names = {name_in(host) for host in (request.headers.get(hdrs.HOST, ""), request.host)}
        for name in names:
            # an address cannot be rebound: whoever asks under it did go there
            is_own = name in self._hosts or (self._by_address and parse_ip(name) is not None)
            if not is_own and not is_local(name):
                raise HttpError(
                    self._host_status, f"{name!r} is neither loopback nor a host that is allowed."
                )
        if is_page or names <= self._hosts:
            return
        by_proxy = any(header in request.headers for header in PROXY_HEADERS)
        if by_proxy or not is_local(request.remote or ""):
            raise HttpError(403, "From another machine, or through a proxy, this needs a token.")


def shown_token(request: web.Request, *, basic: bool = False) -> bytes:
    """The token in a request's Authorization, as it came; empty where there is none.

    The scheme's case does not matter. With `basic`, a password counts as well.
    """
    given = request.headers.get(hdrs.AUTHORIZATION, "").encode(errors="surrogateescape")
    scheme, _, value = given.partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip()
    if not basic or scheme.lower() != b"basic":
        return b""
    try:
        return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def is_of_another_site(request: web.Request, *, changes: bool, is_page: bool) -> bool:
    """Whether a browser sent this for a page of another origin."""
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None:
        return origin.partition("://")[2].lower() != request.headers.get(hdrs.HOST, "").lower()
    site = request.headers.get("Sec-Fetch-Site", "none")
    if changes:
        return site not in ("none", "same-origin")
    return site == "cross-site" and not is_page


is_local = lru_cache(maxsize=256)(is_loopback)


def name_in(host: str) -> str:
    """The name in a Host header, without its port."""
    inside, is_closed, _ = host.removeprefix("[").partition("]")
    if host.startswith("[") and is_closed:
        return inside.lower()
    return host.partition(":")[0].lower()

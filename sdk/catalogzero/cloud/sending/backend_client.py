"""Pushing: the one door through which anything leaves for the backend.

Every request passes here: the allow-listed host, the key as it is now, the bandwidth limit, an
audit entry before and after. Redirects are never followed. Never decides what an answer means.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import aiohttp
import httpx
import orjson
from structlog.typing import FilteringBoundLogger

from catalogzero.clock import Clock
from catalogzero.cloud.audit import AuditLog
from catalogzero.cloud.egress import Throttle, check_host
from catalogzero.cloud.sending.bounded import AnswerError, BoundedTransport
from catalogzero.cloud.settings import CloudSettings
from catalogzero.cloud.shared_audit import SharedAudit
from catalogzero.config.key_files import read_key
from catalogzero.config.renewal import FileStamp, file_stamp, file_stamps
from catalogzero.config.seldom import Seldom
from catalogzero.config.settings import EgressPolicy, shown_url
from catalogzero.errors import ConfigError, UnreachableError
from catalogzero.protocol.bodies import JSON
from catalogzero.protocol.deciding import MAX_PLAIN_BYTES, MAX_SAID_CHARS, Outcome, RequestKind
from catalogzero.protocol.identities import Identity, url_under
from catalogzero.protocol.problems import PROBLEM_MEDIA_TYPE

SLOWEST_BYTES_PER_S = 4_096
MAX_ANSWER_DEPTH = 200
MASKED = b"**********"
_SLICE_BYTES = 1 << 14
_CONNECT_TIMEOUT_S = 10.0
_AWAY = "backend away"
CERTIFICATE_REFUSED = "certificate_refused"
FAILED_EXCHANGE = (httpx.HTTPError, aiohttp.ClientError, OSError, ValueError)
"""What an exchange raises from which no answer came."""


class ApiKey:
    """The API key: given, or in a file that is read again when it changes."""

    def __init__(self, settings: CloudSettings) -> None:
        self._given, self._file = settings.api_key, settings.api_key_file
        self._seen: FileStamp | None = None
        self._text = ""

    def current(self) -> str:
        """The key as it is now.

        Raises:
            ConfigError: The file cannot be read, is empty, or holds more than one line of ASCII.
        """
        if self._given is not None:
            return checked_key(self._given.get_secret_value(), "api_key")
        if self._file is None:
            raise ConfigError("set api_key_file or api_key")
        try:
            stamp = file_stamp(self._file)
            if stamp != self._seen:
                self._text = checked_key(read_key(self._file), str(self._file))
                self._seen = stamp
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"api_key_file {self._file} cannot be read: {why}") from error
        return self._text

    def changed(self) -> bool:
        """Whether the file is another one than when the key was last read."""
        if self._given is not None or self._file is None:
            return False
        try:
            return file_stamp(self._file) != self._seen
        except OSError:
            return False


class BackendClient:
    """An async context manager that sends requests to one endpoint.

    Attributes:
        settings: The endpoint, and how it is reached.
        identity: Who sends.
        audit: The log of what left.
        clock: For the bandwidth limit, and for whoever sends.
        key: The API key.
        seldom: What of the way to the backend is worth a line.
    """

    def __init__(
        self,
        settings: CloudSettings,
        policy: EgressPolicy,
        identity: Identity,
        audit: AuditLog | SharedAudit,
        clock: Clock,
        log: FilteringBoundLogger,
        seldom: Seldom,
        pace: Throttle | None = None,
    ) -> None:
        self._log, self.seldom = log, seldom
        self.settings, self.identity, self.audit, self.clock = settings, identity, audit, clock
        self._policy, self._pace = policy, pace or Throttle(policy.bytes_per_s, clock)
        self.key = ApiKey(settings)
        self._way: BoundedTransport | None = None
        self._under_way: Counter[BoundedTransport] = Counter()
        self._tls_files: tuple[FileStamp | None, ...] = ()
        self._is_open = False

    async def __aenter__(self) -> Self:
        self._is_open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_open = False
        if self._way is not None:
            await self._way.aclose()
            self._way = None

    def credentials_changed(self) -> bool:
        """Whether the key, or a certificate, is another one on disk than when it was last read."""
        return self.key.changed() or tls_files(self.settings) != self._tls_files

    @asynccontextmanager
    async def _newest(self) -> AsyncIterator[BoundedTransport]:
        """The way for one request, with the certificates that are on disk now.

        Raises:
            ConfigError: They cannot be loaded, and never could.
        """
        if not self._is_open:
            raise RuntimeError("a BackendClient is an async context manager: open it first")
        way, found = self._way, tls_files(self.settings)
        if way is None:
            self._tls_files = found
            way = self._way = transport_to(self.settings)
        elif found != self._tls_files:
            # Files in the middle of being written: what was loaded before serves until the next
            # request.
            before = way
            with suppress(ConfigError):
                way = self._way = transport_to(self.settings)
                self._tls_files = found
            await self._close_replaced(before)
        self._under_way[way] += 1
        try:
            yield way
        finally:
            self._under_way[way] -= 1
            await self._close_replaced(way)

    async def _close_replaced(self, way: BoundedTransport) -> None:
        """Close one that another took the place of, once its last request has ended."""
        if way is not self._way and not self._under_way[way]:
            del self._under_way[way]
            await way.aclose()

    async def push(
        self,
        asked: RequestKind,
        method: str,
        path: tuple[str, ...],
        body: bytes,
        headers: Mapping[str, str],
        *,
        query: Mapping[str, str] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """Send one request, and say what came of it; a failed connection is an outcome.

        Args:
            asked: The kind of request, for the audit log.
            method: The HTTP method.
            path: Path segments below the endpoint.
            body: The bytes that leave.
            headers: Headers beside those that every request carries.
            query: What the URL asks for besides.
            about: What else the audit entry says: upload_id, seq, records.
        """
        url = request_url(self.settings.endpoint, path, query)
        try:
            every = {
                "Authorization": f"Bearer {self.key.current()}",
                "User-Agent": self.identity.user_agent,
                "Accept": f"{JSON}, {PROBLEM_MEDIA_TYPE}",
            }
            check_host(self._policy, url)
            left = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
            shown = request_url(shown_url(self.settings.endpoint), path, query)
            entry = {"request": asked.value, "url": shown, **left, **(about or {})}
            number = await asyncio.to_thread(self.audit.begin, **entry)
        except ConfigError as error:
            return Outcome(fault=str(error), blocked=True)
        except (OSError, UnreachableError) as error:
            return Outcome(fault=f"the audit log cannot be written: {error}")
        outcome = await self._exchange(method, url, body, {**every, **headers})
        self.audit.settle(number, status=outcome.status, fault=outcome.fault)
        self._log_absence(outcome)
        return outcome

    def _log_absence(self, outcome: Outcome) -> None:
        """A line where nobody answers, at first and then now and again, and when somebody does."""
        if outcome.status is not None:
            if times := self.seldom.over(_AWAY):
                self._log.info("backend back", failed_requests=times)
        elif not outcome.blocked and (times := self.seldom.is_due(_AWAY)):
            refused = outcome.code == CERTIFICATE_REFUSED
            event, fix = ("certificate refused", "see ca_file, or whether the certificate expired")
            if not refused:
                event, fix = _AWAY, "see endpoint and proxy: catalogzero check asks it"
            self._log.warning(event, reason=outcome.fault, fix=fix, failed_requests=times)

    async def _exchange(
        self, method: str, url: str, body: bytes, headers: dict[str, str]
    ) -> Outcome:
        """The request and its answer, bounded in time and size; a key that it echoes is masked."""
        secret = headers["Authorization"].removeprefix("Bearer ").encode()
        rate = min(self._pace.bytes_per_s or SLOWEST_BYTES_PER_S, SLOWEST_BYTES_PER_S)
        content: bytes | AsyncIterator[bytes] = body
        if self._pace.bytes_per_s is not None:
            content, headers = (
                paced(body, self._pace),
                {**headers, "Content-Length": str(len(body))},
            )
        # No client around the transport: its cookies, redirects and merged headers, which nothing
        # here has, took as long as the exchange itself.
        asked = {"timeout": timeouts(self.settings).as_dict()}
        request = httpx.Request(method, url, content=content, headers=headers, extensions=asked)
        try:
            async with (
                asyncio.timeout(self.settings.upload_timeout_s + 2 * len(body) / rate),
                self._newest() as way,
                aclosing(await way.handle_async_request(request)) as answer,
            ):
                fault = ""
                try:
                    # An error page may echo the request, and answers are kept in the outbox.
                    body = (await answer.aread()).replace(secret, MASKED)
                except AnswerError as error:
                    body, fault = b"", str(error)
                return answered(answer, body, fault)
        except ConfigError as error:
            return Outcome(fault=str(error), blocked=True)
        except FAILED_EXCHANGE as error:
            return failed_exchange(error)


def answered(answer: httpx.Response, body: bytes, fault: str = "") -> Outcome:
    """The outcome that an answer with this content is."""
    return Outcome(
        status=answer.status_code,
        headers=dict(answer.headers),
        body=shallow_json(body),
        size=len(body),
        text=body[: 2 * MAX_PLAIN_BYTES].decode("utf-8", "replace"),
        fault=fault,
    )


async def paced(body: bytes, pace: Throttle) -> AsyncIterator[bytes]:
    """A body in slices, no faster than the policy allows."""
    for start in range(0, len(body), _SLICE_BYTES):
        part = body[start : start + _SLICE_BYTES]
        await pace.take(len(part))
        yield part


def http_client(settings: CloudSettings) -> httpx.AsyncClient:
    """An HTTP client for the endpoint: TLS verified always, no redirect followed.

    Raises:
        ConfigError: A certificate or key file cannot be loaded.
    """
    transport, timeout = transport_to(settings), timeouts(settings)
    return httpx.AsyncClient(transport=transport, timeout=timeout, follow_redirects=False)


def transport_to(settings: CloudSettings) -> BoundedTransport:
    """The way to the endpoint, without a client; raises as `http_client` does."""
    return BoundedTransport(
        tls_context(settings),
        proxy=proxy_at(settings.proxy.get_secret_value()) if settings.proxy else None,
        connections=settings.upload_concurrency + 2,
    )


def timeouts(settings: CloudSettings) -> httpx.Timeout:
    """How long each step of an exchange may take."""
    return httpx.Timeout(settings.upload_timeout_s, connect=_CONNECT_TIMEOUT_S)


def proxy_at(address: str) -> httpx.Proxy:
    """A proxy; its user and password go in a header of the CONNECT that opens the tunnel."""
    url = httpx.URL(address)
    if not url.userinfo:
        return httpx.Proxy(url)
    token = base64.b64encode(f"{url.username}:{url.password}".encode()).decode()
    headers = {"Proxy-Authorization": f"Basic {token}"}
    return httpx.Proxy(url.copy_with(username=None, password=None), headers=headers)


def tls_context(settings: CloudSettings) -> ssl.SSLContext:
    """The system's authorities, or those of `ca_file` alone; a client certificate where set.

    Raises:
        ConfigError: A file cannot be loaded; names its setting.
    """
    for name, path in certificate_files(settings):
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigError(f"{name} {path} cannot be read: {error.strerror}") from None
    cert, key = settings.client_cert_file, settings.client_key_file
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        raise ConfigError(f"ca_file {settings.ca_file} holds no certificate in PEM") from error
    if cert is None:
        return context

    def no_password() -> str:
        # Else OpenSSL asks at the terminal.
        raise ConfigError(f"client_key_file {key or cert} is encrypted: write it without password")

    try:
        context.load_cert_chain(cert, key, password=no_password)
    except OSError as error:
        why = "are no pair" if "MISMATCH" in str(error) else "hold no certificate and key in PEM"
        both = f"client_cert_file {cert} and client_key_file {key}" if key else f"{cert}"
        raise ConfigError(f"{both} {why}") from error
    return context


def certificate_files(settings: CloudSettings) -> list[tuple[str, Path]]:
    """The settings that name a file of TLS, each with the file."""
    names = ("ca_file", "client_cert_file", "client_key_file")
    return [(name, path) for name in names if (path := getattr(settings, name)) is not None]


def shallow_json(body: bytes) -> Any:
    """The JSON of an answer; None where it is not JSON, or nested deeper than it could be kept."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    level = [value]
    for _ in range(MAX_ANSWER_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    return None


def failed_exchange(error: Exception) -> Outcome:
    """A failed exchange; a proxy's own refusal is an answer."""
    cause = error.__cause__
    if isinstance(cause, aiohttp.ClientHttpProxyError):
        return Outcome(status=cause.status, fault=f"the proxy answered {cause.status}")
    kind = type(error).__name__
    if isinstance(cause, aiohttp.ClientSSLError | aiohttp.ClientConnectorCertificateError):
        kind = CERTIFICATE_REFUSED
    elif isinstance(cause, aiohttp.ClientConnectionError):  # httpx calls a refusal a timeout
        refused = isinstance(cause, aiohttp.ClientConnectorError)
        kind = "not_connected" if refused else "connection_lost"
    shown = f"{kind}: {error}"[:MAX_SAID_CHARS].splitlines()[0]
    return Outcome(fault=shown.rstrip(": "))


def tls_files(settings: CloudSettings) -> tuple[FileStamp | None, ...]:
    """The stamps of the certificate and key files; None for one that cannot be looked at."""
    return file_stamps([path for _, path in certificate_files(settings)])


def request_url(endpoint: str, path: tuple[str, ...], query: Mapping[str, str] | None) -> str:
    """A request's URL below the endpoint, whose own query is kept."""
    url = url_under(endpoint, *path)
    return str(httpx.URL(url).copy_merge_params(dict(query))) if query else url


def checked_key(text: str, where: str) -> str:
    """One line of printable ASCII."""
    key = text.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(f"{where}: an API key is one line of printable ASCII")
    return key

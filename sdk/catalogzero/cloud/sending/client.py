"""Pushing: the one door through which anything leaves for the backend.

Every request passes here: the allow-listed host, the key as it is now, the bandwidth limit, an
audit entry before and after. Redirects are never followed. Never decides what an answer means.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Self

import aiohttp
import httpx
import orjson

from catalogzero.clock import Clock
from catalogzero.cloud.egress import AuditLog, Throttle, check_host
from catalogzero.cloud.sending.bounded import AnswerError, BoundedTransport
from catalogzero.cloud.settings import CloudSettings
from catalogzero.config.key_files import read_key
from catalogzero.config.settings import EgressPolicy, shown_url
from catalogzero.errors import ConfigError
from catalogzero.protocol.bodies import JSON
from catalogzero.protocol.deciding import MAX_PLAIN_BYTES, MAX_SAID_CHARS, Outcome, RequestKind
from catalogzero.protocol.identities import Identity, url_under
from catalogzero.protocol.problems import PROBLEM_MEDIA_TYPE

SLOWEST_BYTES_PER_S = 4_096
MAX_ANSWER_DEPTH = 200
MASKED = b"**********"
_SLICE_BYTES = 1 << 14
_CONNECT_TIMEOUT_S = 10.0


class ApiKey:
    """The API key: given, or in a file that is read again when it changes."""

    def __init__(self, settings: CloudSettings) -> None:
        self._given, self._file = settings.api_key, settings.api_key_file
        self._seen: tuple[int, int, int] | None = None
        self._text = ""

    def current(self) -> str:
        """The key as it is now.

        Raises:
            ConfigError: The file cannot be read, is empty, or holds more than one line of ASCII.
        """
        if self._given is not None:
            return _checked_key(self._given.get_secret_value(), "api_key")
        if self._file is None:
            raise ConfigError("set api_key_file or api_key")
        try:
            stamp = _stamp(self._file)
            if stamp != self._seen:
                self._text = _checked_key(read_key(self._file), str(self._file))
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
            return _stamp(self._file) != self._seen
        except OSError:
            return False


class BackendClient:
    """An async context manager that sends requests to one endpoint."""

    def __init__(
        self,
        settings: CloudSettings,
        policy: EgressPolicy,
        identity: Identity,
        audit: AuditLog,
        clock: Clock,
    ) -> None:
        self._settings, self._policy, self._identity = settings, policy, identity
        self._audit, self._pace = audit, Throttle(policy.bytes_per_s, clock)
        self.key = ApiKey(settings)
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        check_host(self._policy, self._settings.endpoint)
        self._client = http_client(self._settings)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

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
        url = _url(self._settings.endpoint, path, query)
        try:
            every = {
                "Authorization": f"Bearer {self.key.current()}",
                "User-Agent": self._identity.user_agent,
                "Accept": f"{JSON}, {PROBLEM_MEDIA_TYPE}",
            }
            check_host(self._policy, url)
            left = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
            shown = _url(shown_url(self._settings.endpoint), path, query)
            entry = {"request": asked.value, "url": shown, **left, **(about or {})}
            number = await asyncio.to_thread(self._audit.begin, **entry)
        except ConfigError as error:
            return Outcome(fault=str(error), blocked=True)
        except OSError as error:
            return Outcome(fault=f"the audit log cannot be written: {error}")
        outcome = await self._exchange(method, url, body, {**every, **headers})
        self._audit.settle(number, status=outcome.status, fault=outcome.fault)
        return outcome

    async def _exchange(
        self, method: str, url: str, body: bytes, headers: dict[str, str]
    ) -> Outcome:
        """The request and its answer, bounded in time and size; a key that it echoes is masked."""
        if self._client is None:
            raise RuntimeError("a BackendClient is an async context manager: open it first")
        secret = headers["Authorization"].removeprefix("Bearer ").encode()
        rate = min(self._pace.bytes_per_s or SLOWEST_BYTES_PER_S, SLOWEST_BYTES_PER_S)
        content: bytes | AsyncIterator[bytes] = body
        if self._pace.bytes_per_s is not None:
            content, headers = self._paced(body), {**headers, "Content-Length": str(len(body))}
        try:
            async with (
                asyncio.timeout(self._settings.upload_timeout_s + 2 * len(body) / rate),
                self._client.stream(method, url, content=content, headers=headers) as answer,
            ):
                status, heads, fault = answer.status_code, dict(answer.headers), ""
                try:
                    body = (await answer.aread()).replace(secret, MASKED)
                except AnswerError as error:
                    body, fault = b"", str(error)
                text = body[: 2 * MAX_PLAIN_BYTES].decode("utf-8", "replace")
                return Outcome(
                    status=status,
                    headers=heads,
                    body=_json(body),
                    size=len(body),
                    text=text,
                    fault=fault,
                )
        except (httpx.HTTPError, aiohttp.ClientError, OSError, ValueError) as error:
            return _fault(error)

    async def _paced(self, body: bytes) -> AsyncIterator[bytes]:
        """The body in slices, no faster than the policy allows."""
        for start in range(0, len(body), _SLICE_BYTES):
            part = body[start : start + _SLICE_BYTES]
            await self._pace.take(len(part))
            yield part


def http_client(settings: CloudSettings) -> httpx.AsyncClient:
    """An HTTP client for the endpoint: TLS verified always, no redirect followed.

    Raises:
        ConfigError: A certificate or key file cannot be loaded.
    """
    transport = BoundedTransport(
        tls_context(settings),
        proxy=_proxy(settings.proxy.get_secret_value()) if settings.proxy else None,
        connections=settings.upload_concurrency + 2,
    )
    timeout = httpx.Timeout(settings.upload_timeout_s, connect=_CONNECT_TIMEOUT_S)
    return httpx.AsyncClient(transport=transport, timeout=timeout, follow_redirects=False)


def _proxy(address: str) -> httpx.Proxy:
    """A proxy; its user and password go in a header of the CONNECT that opens the tunnel."""
    url = httpx.URL(address)
    if not url.userinfo:
        return httpx.Proxy(url)
    token = base64.b64encode(f"{url.username}:{url.password}".encode()).decode()
    headers = {"Proxy-Authorization": f"Basic {token}"}
    return httpx.Proxy(url.copy_with(username=None, password=None), headers=headers)


def tls_context(settings: CloudSettings) -> ssl.SSLContext:
    """The system's authorities, or those of `ca_file` alone; a client certificate where set."""
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.client_cert_file is not None:
            context.load_cert_chain(settings.client_cert_file, settings.client_key_file)
    except OSError as error:
        raise ConfigError(f"ca_file, client_cert_file or client_key_file: {error}") from error
    return context


def _json(body: bytes) -> Any:
    """The JSON of an answer; None where it is none, or nested deeper than it could be kept."""
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


def _fault(error: Exception) -> Outcome:
    """A failed exchange; a proxy's own refusal is an answer."""
    cause = error.__cause__
    if isinstance(cause, aiohttp.ClientHttpProxyError):
        return Outcome(status=cause.status, fault=f"the proxy answered {cause.status}")
    shown = f"{type(error).__name__}: {error}"[:MAX_SAID_CHARS].splitlines()[0]
    return Outcome(fault=shown.rstrip(": "))


def _stamp(path: Path) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size, found.st_ino


def _url(endpoint: str, path: tuple[str, ...], query: Mapping[str, str] | None) -> str:
    """A request's URL below the endpoint, whose own query is kept."""
    url = url_under(endpoint, *path)
    return str(httpx.URL(url).copy_merge_params(dict(query))) if query else url


def _checked_key(text: str, where: str) -> str:
    """One line of printable ASCII."""
    key = text.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(f"{where}: an API key is one line of printable ASCII")
    return key

"""The HTTP client of all that asks a server: whatever that answers, it is read within bounds.

Asks for answers without a content coding, and unpacks one that has one all the same, never beyond
the bound. No cookie is kept, no redirect followed, nothing of the environment believed. Never
decides what an answer means.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator

import httpx
from aiohttp import ClientSession, DummyCookieJar, TCPConnector
from httpx_aiohttp import AiohttpTransport

from catalogzero.protocol.codings import CODINGS, Bounds, UnpackError, decoded

MAX_ANSWER_BYTES = 1 << 20


class AnswerError(httpx.ReadError):
    """An answer that is too long, or whose content cannot be unpacked; its head was read."""


class BoundedTransport(AiohttpTransport):
    """A transport for `httpx.AsyncClient`.

    Args:
        tls: Whom to trust, and what to show.
        proxy: The way out, where there is one.
        connections: Open at once, at most.
        max_answer_bytes: Of an answer's content, as it came and unpacked.
    """

    def __init__(
        self,
        tls: ssl.SSLContext | None = None,
        *,
        proxy: httpx.Proxy | None = None,
        connections: int = 100,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        tls = tls or ssl.create_default_context()

        def session() -> ClientSession:
            connector = TCPConnector(ssl=tls, limit=connections, keepalive_timeout=5.0)
            return ClientSession(connector=connector, cookie_jar=DummyCookieJar())

        super().__init__(verify=tls, trust_env=False, proxy=proxy, client=session)
        self._max_bytes = max_answer_bytes

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; its answer's content is read by who asked, and raises `AnswerError`."""
        request.headers["Accept-Encoding"] = "identity"
        try:
            answer = await super().handle_async_request(request)
        except AttributeError as error:
            # aiohttp looks for the answer of a connection that closed while the body still left.
            message = "the connection was closed before an answer came"
            raise httpx.ReadError(message, request=request) from error
        coding = answer.headers.pop("Content-Encoding", "identity").strip().lower()
        answer.headers.pop("Set-Cookie", None)
        assert isinstance(answer.stream, httpx.AsyncByteStream)  # noqa: S101 - as the base says
        answer.stream = _Content(answer.stream, coding, self._max_bytes)
        return answer


class _Content(httpx.AsyncByteStream):
    """The content of an answer."""

    def __init__(self, raw: httpx.AsyncByteStream, coding: str, max_bytes: int) -> None:
        self._raw, self._coding, self._max_bytes = raw, coding, max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._coding not in CODINGS:
            raise AnswerError(f"the answer has a coding that nobody asked for: {self._coding[:40]}")
        packed = bytearray()
        async for part in self._raw:
            packed += part
            if len(packed) > self._max_bytes:
                raise AnswerError(f"the answer has more than {self._max_bytes} bytes")
        try:
            yield decoded(bytes(packed), self._coding, Bounds(max_bytes=self._max_bytes))
        except UnpackError as error:
            raise AnswerError(f"the answer cannot be unpacked: {error}") from None

    async def aclose(self) -> None:
        await self._raw.aclose()

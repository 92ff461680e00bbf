"""What stands before a backend: a proxy, a hotel's sign-in page, a TLS listener, or nothing."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from examples.quickstart.processes import free_ports
from tests.cloud.reference import ReferenceBackend

Answer = Callable[[web.Request], web.Response | None]
Reply = Callable[[web.Request, web.StreamResponse], web.StreamResponse]


def unchanged(request: web.Request, reply: web.StreamResponse) -> web.StreamResponse:
    """The backend's own reply."""
    return reply


class Front:
    """An HTTP server before a backend; it can answer in its place, and be away for a while.

    Args:
        backend: Gets each request that `answer` leaves to it.
        tls: The certificate's file, its key beside it as `<stem>.key`; plain HTTP without.
        clients: The authority whose certificates it asks clients for.

    Attributes:
        answer: Answers a request by its head, its body unread; None leaves it to the backend.
        reply: Makes what is sent of the backend's reply.
        url: The endpoint.
    """

    def __init__(
        self, backend: ReferenceBackend, tls: Path | None = None, clients: Path | None = None
    ) -> None:
        self.backend, self.tls, self.clients = backend, tls, clients
        self.answer: Answer = lambda request: None
        self.reply: Reply = unchanged
        [self._port] = free_ports(1)
        scheme, host = ("http", "127.0.0.1") if tls is None else ("https", "localhost")
        self.url = f"{scheme}://{host}:{self._port}/v1"
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Front:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Listen, with the certificate that is in the file now."""
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, auto_decompress=False, shutdown_timeout=1.0)
        await self._runner.setup()
        context = None
        if self.tls is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self.tls, self.tls.with_suffix(".key"))
            if self.clients is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(self.clients)
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=context)
        await site.start()

    async def close(self) -> None:
        """Be away: connections are refused."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def reopen(self) -> None:
        """Close every connection and listen again, as a server that is restarted."""
        await self.close()
        await self.open()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        instead = self.answer(request)
        return instead or self.reply(request, await self.backend.serve(request))


class Authority:
    """A private authority: its certificate `<name>.pem` in a folder, and those that it signs."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.file = folder, folder / f"{name}.pem"
        folder.mkdir(exist_ok=True)
        self._openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", str(self.file.with_suffix(".key")), "-out", str(self.file)),
            *("-subj", f"/CN={name}"),
        )

    def sign(self, name: str, *, days: int = 2) -> Path:
        """A certificate of localhost, good for `days`; of negative days one that has expired."""
        file = self.folder / f"{name}.pem"
        request, key = file.with_suffix(".csr"), file.with_suffix(".key")
        self._openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key)),
            *("-out", str(request), "-subj", f"/CN={name}"),
            *("-addext", "subjectAltName=DNS:localhost"),
        )
        self._openssl(
            *("x509", "-req", "-in", str(request), "-out", str(file), "-days", str(days)),
            *("-CA", str(self.file), "-CAkey", str(self.file.with_suffix(".key"))),
            *("-CAcreateserial", "-copy_extensions", "copy"),
        )
        return file

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def page(status: int, text: str, **headers: str) -> web.Response:
    """A page for people, as proxies and gateways send it."""
    return web.Response(
        status=status,
        text=f"<html><head><title>{text}</title></head><body>{text}</body></html>",
        content_type="text/html",
        headers=headers,
    )

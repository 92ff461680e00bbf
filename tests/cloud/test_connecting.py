"""The way out: a private authority, client certificates, a proxy that asks for a password."""

from __future__ import annotations

import asyncio
import base64
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site, until

CSV = "n,name\n1,one\n2,two\n"
SHORT: dict[str, Any] = {"upload_wait_s": 1}


def self_signed(folder: Path, name: str = "DNS:localhost") -> Path:
    """A new certificate, of localhost unless named; its key is `key.pem` beside it."""
    folder.mkdir(exist_ok=True)
    certificate, key = folder / "ca.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"),
            *("-addext", f"subjectAltName={name}"),
        ],
        check=True,
        capture_output=True,
    )
    return certificate


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for the tests of this module."""
    return self_signed(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def behind_tls(
    certificate: Path, *, asks: bool = False, takes: Path | None = None
) -> AsyncIterator[tuple[ReferenceBackend, str]]:
    """A backend over TLS, and its endpoint; it `asks` for a certificate, that which it `takes`."""
    backend, app = ReferenceBackend(), web.Application()
    app.router.add_route("*", "/{path:.*}", backend.serve)
    runner = web.AppRunner(app, auto_decompress=False)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(takes or certificate)
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield backend, f"https://localhost:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


class Proxy:
    """A forward proxy that asks for a password, and makes tunnels."""

    def __init__(self, password: str) -> None:
        self._token = base64.b64encode(f"site:{password}".encode())
        self.asked: list[str] = []

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, _ = head.decode("latin-1").split(" ", 2)
            self.asked.append(f"{method} {target}")
            if self._token in head and method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                await _join(reader, writer, target)
            else:
                writer.write(b"HTTP/1.1 407 Password\r\nContent-Length: 0\r\n\r\n")
        writer.close()


async def _join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
    """Pass bytes both ways until either side ends."""
    name, _, port = host.partition(":")
    there, onward = await asyncio.open_connection(name, int(port))

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while part := await source.read(1 << 16):
                sink.write(part)
                await sink.drain()
        sink.close()

    await asyncio.gather(pump(reader, onward), pump(there, writer))


async def test_tls_is_verified_against_the_private_authority_alone(
    tmp_path: Path, certificate: Path
) -> None:
    async with behind_tls(certificate) as (backend, url):
        async with Site(url, tmp_path, runtime=SHORT) as site:
            site.write("a.csv", CSV)
            untrusted = await site.run()
        async with Site(url, tmp_path, ca_file=certificate) as site:
            trusted = await site.run(full=True)

    assert (untrusted["status"], trusted["status"]) == ("queued", "uploaded")
    assert len(backend.rows()) == 2


async def test_a_backend_that_asks_for_a_certificate_gets_it(
    tmp_path: Path, certificate: Path
) -> None:
    mine: dict[str, Any] = {
        "client_cert_file": certificate,
        "client_key_file": certificate.with_name("key.pem"),
    }
    async with behind_tls(certificate, asks=True) as (backend, url):
        async with Site(url, tmp_path, ca_file=certificate, runtime=SHORT) as site:
            site.write("a.csv", CSV)
            without = await site.run()
        async with Site(url, tmp_path, ca_file=certificate, **mine) as site:
            shown = await site.run(full=True)

    assert (without["status"], shown["status"]) == ("queued", "uploaded")
    assert len(backend.rows()) == 2


async def test_certificates_that_are_renewed_on_disk_are_taken_with_the_next_connection(
    tmp_path: Path, certificate: Path
) -> None:
    renewed, mine = self_signed(tmp_path / "renewed"), tmp_path / "mine"
    mine.mkdir()
    files: dict[str, Any] = {
        "ca_file": mine / "trusted.pem",
        "client_cert_file": mine / "ca.pem",
        "client_key_file": mine / "key.pem",
    }
    for name in ("ca.pem", "key.pem"):
        shutil.copy(certificate.with_name(name), mine / name)
    shutil.copy(certificate, files["ca_file"])
    async with (
        behind_tls(renewed, asks=True, takes=renewed) as (backend, url),
        Site(url, tmp_path, **files, runtime=SHORT) as site,
    ):
        site.write("a.csv", CSV)
        before = await site.run()
        shutil.copy(renewed, files["ca_file"])
        (mine / "ca.pem").write_text("half of a certifica")
        half = await site.run(full=True)
        for name in ("ca.pem", "key.pem"):
            shutil.copy(renewed.with_name(name), mine / name)
        await until(backend.rows)

    assert (before["status"], half["status"]) == ("queued", "queued")


async def test_everything_goes_through_the_proxy_in_a_tunnel(
    tmp_path: Path, certificate: Path
) -> None:
    async with behind_tls(certificate) as (backend, url), Proxy("right") as proxy:
        through = f"http://site:right@127.0.0.1:{proxy.port}"
        async with Site(url, tmp_path, ca_file=certificate, proxy=through) as site:
            site.write("a.csv", CSV)
            result = await site.run()

    assert result["status"] == "uploaded"
    assert set(proxy.asked) == {f"CONNECT {url.removeprefix('https://').removesuffix('/v1')}"}
    assert len(backend.rows()) == 2


async def test_a_proxy_that_refuses_the_password_pauses_and_never_shows_it(
    tmp_path: Path, certificate: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with behind_tls(certificate) as (_, url), Proxy("right") as proxy:
        through = f"http://site:wrong-marked@127.0.0.1:{proxy.port}"
        async with Site(url, tmp_path, ca_file=certificate, proxy=through) as site:
            site.write("a.csv", CSV)
            result = await site.run()
            await until(lambda: site.outbox.store.fact("paused"))
            reason = str(site.outbox.store.fact("paused"))

    assert result["status"] == "queued"
    assert "407" in reason
    output = capfd.readouterr()
    assert "wrong-marked" not in reason + output.out + output.err
    audit = (tmp_path / "state" / "site" / "audit.jsonl").read_text()
    assert "wrong-marked" not in audit

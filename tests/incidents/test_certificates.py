"""Certificates that expire, are renewed or missing: where it shows, and that they are taken."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.cloud.reference import ReferenceBackend
from tests.incidents.front import Authority, Front
from tests.incidents.plant import Plant, Row, Seen

PAIR = (("cert", "pem"), ("key", "key"))
ROWS: list[Row] = [{"n": n, "name": f"row {n}"} for n in range(1, 4)]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The private authority that signs for a backend and its clients."""
    return Authority(tmp_path_factory.mktemp("tls"), "authority")


@pytest.fixture(scope="module")
def renewed(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that takes its place."""
    return Authority(tmp_path_factory.mktemp("renewed"), "authority")


@asynccontextmanager
async def behind_tls(
    backend: ReferenceBackend,
    folder: Path,
    authority: Authority,
    *,
    days: int = 2,
    clients: Path | None = None,
    config: Row | None = None,
) -> AsyncIterator[tuple[Plant, Front]]:
    """A machine that trusts this authority, and a front whose certificate is good for `days`."""
    ca_file = shutil.copy(authority.file, folder / "ca.pem")
    front = Front(backend, authority.sign("server", days=days), clients)
    settings = {"ca_file": str(ca_file), **(config or {})}
    async with front, Plant(folder, front.url, config=settings) as plant:
        yield plant, front


async def refused(plant: Plant, event: str) -> tuple[Row, Seen]:
    """Export and read rows, which cannot be sent: the line of that, and what an operator sees."""
    plant.write("a.csv", ROWS)
    await plant.start()
    assert (await plant.run())["status"] == "queued"
    line = await plant.logged(event)
    return line, await plant.look()


async def test_a_server_certificate_that_has_expired_is_named(
    backend: ReferenceBackend, tmp_path: Path, authority: Authority
) -> None:
    async with behind_tls(backend, tmp_path, authority, days=-1) as (plant, front):
        line, seen = await refused(plant, "certificate refused")
        front.tls = authority.sign("server")
        await front.reopen()
        await plant.follow("catalogzero outbox retry site --now")
        await plant.delivered(backend)
        await plant.logged("backend back", level="info")

    finding = seen.findings["backend"]
    assert "certificate has expired" in line["reason"]
    assert line["level"] == "warning"
    assert (seen.outbox["fault"], seen.health) == ("certificate_refused", "degraded")
    assert "certificate_refused" in seen.troubles[0]["what"]
    assert seen.troubles[0]["next"].startswith("catalogzero check site")
    assert finding["status"] == "fail"
    assert "certificate has expired" in finding["found"]
    assert "ask the backend's operator" in finding["fix"]


async def test_an_authority_that_was_renewed_is_taken_from_its_file(
    backend: ReferenceBackend, tmp_path: Path, authority: Authority, renewed: Authority
) -> None:
    async with behind_tls(backend, tmp_path, authority) as (plant, front):
        front.tls = renewed.sign("server")
        await front.reopen()
        line, seen = await refused(plant, "certificate refused")
        shutil.copy(renewed.file, tmp_path / "ca.pem")
        await plant.follow("catalogzero outbox retry site --now")
        await plant.delivered(backend)

    finding = seen.findings["backend"]
    assert "unable to get local issuer" in line["reason"]
    assert seen.outbox["fault"] == "certificate_refused"
    assert (finding["status"], "set `ca_file`" in finding["fix"]) == ("fail", True)


async def test_an_authority_s_file_that_is_missing_is_named_and_taken_when_it_is_there(
    backend: ReferenceBackend, tmp_path: Path, authority: Authority
) -> None:
    async with behind_tls(backend, tmp_path, authority) as (plant, _):
        (tmp_path / "ca.pem").unlink()
        line, seen = await refused(plant, "sending is paused")
        shutil.copy(authority.file, tmp_path / "ca.pem")
        await plant.delivered(backend)
        await plant.logged("sending goes on", level="info")

    fault = f"ca_file {tmp_path}/ca.pem cannot be read: No such file or directory"
    finding = seen.findings["certificates"]
    assert line["reason"] == fault
    assert (seen.outbox["paused"], seen.outbox["paused_code"]) == (fault, "blocked_by_setting")
    assert (finding["status"], finding["found"]) == ("fail", fault)
    assert "write the right file there" in finding["fix"]
    assert any(fault in one["what"] for one in seen.troubles)


async def test_a_client_certificate_that_has_expired_is_named_and_the_renewed_one_taken(
    backend: ReferenceBackend, tmp_path: Path, authority: Authority
) -> None:
    def put(certificate: Path) -> None:
        for suffix in (".pem", ".key"):
            shutil.copy(certificate.with_suffix(suffix), tmp_path)

    put(authority.sign("client", days=-1))
    mine = {f"client_{name}_file": str(tmp_path / f"client.{end}") for name, end in PAIR}
    asking = behind_tls(backend, tmp_path, authority, clients=authority.file, config=mine)
    async with asking as (plant, _):
        line, seen = await refused(plant, "backend away")
        put(authority.sign("client"))
        await plant.follow("catalogzero outbox retry site --now")
        await plant.delivered(backend)

    finding = seen.findings["certificates"]
    assert line["level"] == "warning"
    assert finding["status"] == "fail"
    assert f"client_cert_file {tmp_path}/client.pem expired at" in finding["found"]
    assert "have it renewed" in finding["fix"]
    assert any("client_cert_file" in one["what"] for one in seen.troubles)

"""Keys, tokens and certificates that are renewed on the disk hold from the next connection on."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from catalogzero import HandlerClient
from catalogzero.backend import BackendSettings, create_app
from catalogzero.backend.server import load_tls, serving
from catalogzero.config.renewal import Renewed
from catalogzero.errors import CallTimeoutError, UnreachableError
from catalogzero.scheduler.server import SchedulerSettings, serve_scheduler
from catalogzero.testing import serving as serving_handler
from catalogzero.wire.keys import CurveClient, CurveKeys

from tests.cloud.test_connecting import self_signed
from tests.core.support import Bench, until


def written(path: Path, pair: CurveKeys) -> Path:
    """A key file, as `catalogzero keys new` writes it; never half of one."""
    part = path.with_name(f"{path.name}.part")
    part.touch(0o600)
    part.write_text(f"public: {pair.public.decode()}\nsecret: {pair.secret.decode()}\n")
    part.replace(path)
    return path


def allowed(path: Path, *pairs: CurveKeys) -> Path:
    """The file of the clients that may call."""
    path.write_text("".join(f"{pair.public.decode()}\n" for pair in pairs))
    return path


def answers(client: HandlerClient) -> Callable[[], Any]:
    """Whether a handler answers a client."""

    async def look() -> bool:
        try:
            return bool(await client.ping(timeout_s=1))
        except (UnreachableError, CallTimeoutError):
            return False

    return look


async def test_a_client_that_is_written_into_the_file_of_clients_may_call_without_a_restart(
    tmp_path: Path,
) -> None:
    server, first, second = CurveKeys.new(), CurveKeys.new(), CurveKeys.new()
    clients = allowed(tmp_path / "clients", first)
    curve = {"key_file": written(tmp_path / "key", server), "clients_file": clients}
    async with serving_handler(Bench(), curve=curve) as at:
        address = at.service.address
        async with HandlerClient(address, curve=CurveClient(second, server.public)) as client:
            assert not await answers(client)()
            clients.write_text("no key\n")  # in the middle of being written
            async with HandlerClient(address, curve=CurveClient(first, server.public)) as known:
                assert await answers(known)()
            allowed(clients, second)
            await until(answers(client))
            async with HandlerClient(address, curve=CurveClient(first, server.public)) as gone:
                assert not await answers(gone)()


async def test_a_handlers_own_pair_that_is_renewed_is_the_one_that_it_serves_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, mine = CurveKeys.new(), CurveKeys.new(), CurveKeys.new()
    key = written(tmp_path / "key", old)
    curve = {"key_file": key, "clients_file": allowed(tmp_path / "clients", mine)}
    async with serving_handler(Bench(), curve=curve) as at:
        address = at.service.address
        async with HandlerClient(address, curve=CurveClient(mine, old.public)) as client:
            assert await answers(client)()
        async with HandlerClient(address, curve=CurveClient(mine, new.public)) as client:
            assert not await answers(client)()
            written(key, new)
            await until(answers(client))
    assert "keys_renewed" in capsys.readouterr().err


async def test_a_clients_pair_that_is_renewed_is_taken_with_its_next_connection(
    tmp_path: Path,
) -> None:
    server, old, new = CurveKeys.new(), CurveKeys.new(), CurveKeys.new()
    file, clients = written(tmp_path / "mine", old), allowed(tmp_path / "clients", old)
    curve = {"key_file": written(tmp_path / "key", server), "clients_file": clients}
    keys = Renewed(lambda: CurveClient(CurveKeys.read(file), server.public), file)
    async with serving_handler(Bench(), curve=curve) as at:
        port = at.service.port
        client = HandlerClient(at.service.address, curve=keys)
        assert await answers(client)()
        written(file, new)
        assert await answers(client)()  # over the connection that is there
    allowed(clients, new)
    async with serving_handler(Bench(), curve=curve, port=port), client:
        await until(answers(client))


async def test_a_token_that_is_renewed_opens_the_scheduler_and_the_old_one_no_longer(
    tmp_path: Path,
) -> None:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("the-first-token-1234")
    settings = SchedulerSettings(
        port=0, zmq_port=0, database=f"sqlite:///{tmp_path / 's.db'}", token_file=token
    )
    async with serve_scheduler(settings) as server, httpx.AsyncClient(base_url=server.url) as api:

        async def status(shown: str) -> int:
            headers = {"Authorization": f"Bearer {shown}"}
            return (await api.get("/api/schedules", headers=headers)).status_code

        before = await status("the-first-token-1234")
        token.write_text("short")  # not a token: what was read before serves
        still = await status("the-first-token-1234")
        token.write_text("the-second-token-1234")
        after = await status("the-first-token-1234"), await status("the-second-token-1234")
    assert (before, still, after) == (200, 200, (401, 200))


async def test_a_backends_certificate_and_token_are_renewed_while_it_serves(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("served", "first", "second")]
    for folder in folders:
        folder.mkdir()
    served = folders[0]
    first, second = (self_signed(folder) for folder in folders[1:])
    token = tmp_path / "token"

    def install(certificate: Path, text: str) -> None:
        (served / "cert.pem").write_bytes(certificate.read_bytes())
        (served / "key.pem").write_bytes(certificate.with_name("key.pem").read_bytes())
        token.touch(0o600)
        token.write_text(text)

    install(first, "the-first-token-1234")
    database = f"sqlite:///{tmp_path / 'backend.db'}"
    settings = BackendSettings(database=database, operator_token_file=token)
    tls = load_tls(served / "cert.pem", served / "key.pem")
    async with serving(create_app(settings), host="127.0.0.1", port=0, tls=tls) as url:

        async def status(certificate: Path, shown: str) -> int:
            trust = ssl.create_default_context(cafile=certificate)
            async with httpx.AsyncClient(verify=trust) as client:
                at = url.replace("127.0.0.1", "localhost")
                headers = {"Authorization": f"Bearer {shown}"}
                return (await client.get(f"{at}/metrics", headers=headers)).status_code

        before = await status(first, "the-first-token-1234")
        install(second, "the-second-token-1234")
        after = await status(second, "the-second-token-1234")
        old = await status(second, "the-first-token-1234")
        with pytest.raises(httpx.ConnectError):
            await status(first, "the-second-token-1234")
    assert (before, after, old) == (200, 200, 401)

"""A package that is replaced under its handler, and a key that cannot be read at start."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from catalogzero import HandlerClient

from tests.core.support import finished, running, served_address

PACKAGE = """
from pathlib import Path
from catalogzero import Handler, HandlerSettings, job
from pydantic import SecretStr


class DeskSettings(HandlerSettings):
    key: SecretStr | None = None
    key_file: Path | None = None


class Desk(Handler):
    settings_model = DeskSettings

    @job(isolate=True)
    def count(self) -> dict:
        with (self.state_dir / "ran").open("a") as file:
            file.write("x")
        return {"release": RELEASE}
"""
ENVIRONMENT = {"CATALOGZERO_LOG_FORMAT": "json", "CATALOGZERO_SCHEDULER": "none"}


def install(folder: Path, release: str) -> None:
    """What pip leaves of a package."""
    for old in folder.glob("*.dist-info"):
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    (folder / "acmedesk.py").write_text(f"RELEASE = {release!r}\n{PACKAGE}")
    info = folder / f"acmedesk-{release}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acmedesk\nVersion: {release}\n")
    (info / "entry_points.txt").write_text("[catalogzero.handlers]\nacmedesk = acmedesk:Desk\n")


async def test_a_handler_whose_package_was_replaced_refuses_ends_and_loses_no_call(
    tmp_path: Path,
) -> None:
    install(tmp_path, "1.0")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = ("run", "acmedesk", "--port", port)
    given = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path), "CATALOGZERO_STATE_DIR": str(tmp_path)}
    reasons: list[str] = []
    with running(*command, cwd=tmp_path, **given) as process:
        async with HandlerClient(served_address(process)) as client:
            first = await client.call("count")
            await client.call("sleep")
            install(tmp_path, "1.1")
            calling = asyncio.create_task(
                client.run("count", timeout_s=120, on_wait=reasons.append)
            )
            code = await asyncio.to_thread(process.wait, 60)
            with running(*command, cwd=tmp_path, **given):
                second = await calling

    assert first == {"release": "1.0"}
    assert code == 75
    assert reasons[0].startswith("acmedesk 1.0 was replaced by 1.1")
    assert second.result == {"release": "1.1"}
    assert (tmp_path / "desk" / "ran").read_text() == "xx"


def test_a_key_that_cannot_be_read_is_reported_at_start(tmp_path: Path) -> None:
    install(tmp_path, "1.0")
    missing = tmp_path / "no-key"
    command = ("run", "acmedesk", "--config", f"key_file={missing}", "--once", "describe")
    given = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path), "CATALOGZERO_STATE_DIR": str(tmp_path)}

    result = finished(*command, cwd=tmp_path, **given)

    assert result.returncode == os.EX_OK
    assert '"event": "key_not_readable"' in result.stderr
    assert str(missing) in result.stderr

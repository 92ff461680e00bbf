"""`outbox list` says why uploads wait and until when; `outbox retry --now` does not let them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from catalogzero.cli.main import app
from catalogzero.testing import serving
from typer.testing import CliRunner

from tests.cloud.processors import Plain
from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import until


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def registry(backend: ReferenceBackend, tmp_path: Path, port: int) -> Path:
    """A registry file of one handler, `site`."""
    (tmp_path / "a.csv").write_text("n\n1\n2\n")
    path = tmp_path / "handler_registry.yaml"
    path.write_text(
        f"""
scheduler: none
handlers:
  - handler_id: site
    module_path: tests.cloud.processors
    class_name: Plain
    port: {port}
    state_dir: {tmp_path}/state
    config: {{endpoint: "{backend.url}", api_key: test-key, data_roots: ["{tmp_path}"]}}
"""
    )
    return path


async def invoke(*arguments: object) -> str:
    """What a command of the outbox printed."""
    words = ["outbox", *map(str, arguments)]
    result = await asyncio.to_thread(CliRunner().invoke, app, words)
    assert result.exit_code == 0, result.output
    return str(result.output)


async def test_a_pause_is_named_with_its_next_try_and_ended_at_once_by_an_operator(
    backend: ReferenceBackend, registry: Path, tmp_path: Path, port: int
) -> None:
    backend.fault = lambda request: web.Response(status=403)
    processor = Plain(endpoint=backend.url, api_key="test-key", data_roots=[tmp_path])
    runtime: dict[str, Any] = {
        "handler_id": "site",
        "port": port,
        "state_dir": tmp_path / "state",
        "min_file_age_s": 0,
        "upload_wait_s": 1,
    }
    async with serving(processor, **runtime) as service:
        queued = await service.client.call(
            "process_and_upload", {"data_source": str(tmp_path / "a.csv")}
        )
        waiting = await invoke("list", "site", "--registry", registry)
        found = json.loads(await invoke("list", "site", "--registry", registry, "--json"))
        [run] = (await service.client.call("list_runs"))["runs"]
        backend.fault = lambda request: None
        hurried = await invoke("retry", "site", "--registry", registry, "--now")
        await until(lambda: backend.visible)
        arrived = await invoke("list", "site", "--registry", registry, "--all")
        later = run
        async with asyncio.timeout(30):
            while later["outcome"]["state"] == "waiting":
                [later] = (await service.client.call("list_runs"))["runs"]

    assert "paused" not in arrived
    assert queued["status"] == "queued"
    assert run["outcome"]["state"] == "waiting"
    assert later["outcome"] == {"state": "uploaded", "words": "uploaded 2 rows", "rows": 2}
    assert "sending is paused since" in waiting
    assert "paused: http_403" in waiting
    assert found["paused"]["next_try_at"] in waiting
    assert "catalogzero outbox retry site --now" in waiting
    assert "1 uploads of 2 records are tried now; they waited: paused: 403" in hurried


async def test_a_stopped_handler_shows_what_it_left_and_is_not_asked(
    backend: ReferenceBackend, registry: Path, tmp_path: Path, port: int
) -> None:
    backend.fault = lambda request: web.Response(status=500)
    processor = Plain(endpoint=backend.url, api_key="test-key", data_roots=[tmp_path])
    runtime: dict[str, Any] = {
        "handler_id": "site",
        "state_dir": tmp_path / "state",
        "min_file_age_s": 0,
        "upload_wait_s": 1,
    }
    async with serving(processor, **runtime) as service:
        await service.client.call("process_and_upload", {"data_source": str(tmp_path / "a.csv")})
    folder = tmp_path / "state" / "site"
    folder.chmod(0o500)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    listed = await invoke("list", "site", "--registry", registry)
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    folder.chmod(0o700)
    hurried = await invoke("retry", "site", "--registry", registry, "--now")

    assert "tried again: http_500" in listed
    assert "the backend does not take it since" in listed
    assert "the handler does not run: it is tried at its next start" in listed
    assert {name: before[name] for name in before if name in after} == before
    assert "the handler does not run: 1 uploads of 2 records are sent at its next start" in hurried

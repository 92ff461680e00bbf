"""Cloud processors in the first drawing's form, against a backend over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from catalogzero import ConfigError, FailedError
from catalogzero.compat import CloudProcessorHandler
from catalogzero.runtime.launch import make_handler
from catalogzero.testing import serving

from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import until
from tests.compat.cloud_handlers import (
    AcmeHandler,
    DrawnHandler,
    WrappingHandler,
    WrongHandler,
)


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A source that only the author can read."""
    path = tmp_path / "numbers.txt"
    path.write_text("1 2 3")
    return path


def runtime(folder: Path, **more: Any) -> dict[str, Any]:
    return {"state_dir": folder / "state", "min_file_age_s": 0, "early_reply_s": 60, **more}


async def test_an_own_source_is_read_processed_and_uploaded_once(
    backend: ReferenceBackend, numbers: Path
) -> None:
    handler = AcmeHandler("test-key", backend.url)
    call = {"data_source": str(numbers), "params": {"format": "json", "factor": 2}}
    async with serving(handler, **runtime(numbers.parent)) as at:
        first = (await at.client.request_plain("process_and_upload", call, timeout_s=60)).result
        again = (await at.client.request_plain("process_and_upload", call, timeout_s=60)).result
        numbers.write_text("4")  # noqa: ASYNC240 - a few bytes
        changed = await at.client.call("process_and_upload", call)

    assert {"status", "records", "cloud_job_id", "timestamp"} <= set(first)
    assert (first["success"], first["status"], first["records"]) == (True, "uploaded", 3)
    assert (again["status"], changed["status"]) == ("unchanged", "uploaded")
    assert backend.rows() == [{"n": 8}]


async def test_what_the_backend_cannot_take_now_waits_and_arrives_once(
    backend: ReferenceBackend, numbers: Path
) -> None:
    backend.fault = lambda request: web.Response(status=503)
    call = {"data_source": str(numbers), "params": {}}
    settings = runtime(numbers.parent, upload_wait_s=0.1)
    async with serving(AcmeHandler("test-key", backend.url), **settings) as at:
        queued = await at.client.call("process_and_upload", call)
    backend.fault = lambda request: None
    async with serving(AcmeHandler("test-key", backend.url), **settings):
        await until(backend.rows)

    assert queued["status"] == "queued"
    assert backend.rows() == [{"n": 1}, {"n": 2}, {"n": 3}]


async def test_health_is_reported_with_the_first_drawing_s_keys(
    backend: ReferenceBackend, numbers: Path
) -> None:
    handler = AcmeHandler("test-key", backend.url)
    settings = runtime(numbers.parent, installation_id="client-7")
    async with serving(handler, handler_id="acme", **settings) as at:
        answer = await at.client.call("health_report")
        report = backend.reports[0]

    assert answer["status"] == "reported"
    assert answer["metrics"]["handler_id"] == "acme"
    assert report["client_id"] == "client-7"
    assert {"metrics", "timestamp"} <= set(report)


def registry(folder: Path, backend: ReferenceBackend, **config: str) -> Path:
    """The first drawing's section, and the line that is added to it."""
    path = folder / "handler_registry.yaml"
    lines = "".join(f"      {key}: {value}\n" for key, value in config.items())
    path.write_text(
        "scheduler: none\nhandlers:\n  - handler_id: cloud_processor\n"
        "    module_path: tests.compat.cloud_handlers\n    class_name: FileHandler\n"
        f"    port: 0\n    config:\n      api_key: test-key\n      endpoint: {backend.url}\n{lines}"
    )
    return path


async def test_the_registry_s_section_with_data_roots_serves_files(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    data = tmp_path / "exports"
    data.mkdir()
    (data / "a.csv").write_text("n\n1\n2\n")
    handler = make_handler(
        "cloud_processor", registry=registry(tmp_path, backend, data_roots=f"[{data}]")
    )
    async with serving(handler, **runtime(tmp_path)) as at:
        result = await at.client.call("process_and_upload", {"data_source": str(data)})

    assert (result["status"], result["records"]) == ("uploaded", 1)
    assert backend.rows() == [{"total": 3}]


async def test_without_data_roots_or_an_own_source_it_is_refused(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"7: config\.data_roots: set the folders"):
        make_handler("cloud_processor", registry=registry(tmp_path, backend))


async def test_a_setting_that_neither_knows_is_reported_by_name(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"config of FileHandler: .*'data_rots'"):
        make_handler("cloud_processor", registry=registry(tmp_path, backend, data_rots="[/x]"))


def test_plain_http_to_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="plain http is allowed to this machine alone"):
        AcmeHandler("key", "http://api.acme.example/v1")


async def test_a_job_that_extends_the_inherited_one_runs_it(
    backend: ReferenceBackend, numbers: Path
) -> None:
    handler = WrappingHandler("test-key", backend.url)
    call = {"data_source": str(numbers), "params": {}}
    async with serving(handler, **runtime(numbers.parent)) as at:
        result = await at.client.call("process_and_upload", call)
        assert await at.client.call("shape", {"any": "thing"}) == "old"
        described = await at.client.call("describe")

    isolated = {method["name"]: method["isolate"] for method in described["methods"]}
    assert (result["wrapped"], result["records"]) == (True, 3)
    assert isolated == {"process_and_upload": True, "health_report": False, "shape": False}
    assert len(backend.rows()) == 3


async def test_a_result_that_is_no_records_is_an_error_that_says_so(
    backend: ReferenceBackend, numbers: Path
) -> None:
    async with serving(WrongHandler("test-key", backend.url), **runtime(numbers.parent)) as at:
        with pytest.raises(FailedError, match="_process returns records, a list of dicts"):
            await at.client.call("process_and_upload", {"data_source": str(numbers)})


async def test_the_api_key_is_masked_and_the_attributes_are_as_drawn(tmp_path: Path) -> None:
    handler = AcmeHandler("very-secret-key", "https://api.acme.example/v1")

    assert (handler.api_key, handler.endpoint) == ("very-secret-key", "https://api.acme.example/v1")
    async with serving(handler, **runtime(tmp_path)) as at:
        assert "very-secret-key" not in str(await at.client.call("describe"))


async def test_the_drawing_itself_runs_with_only_its_imports_changed(tmp_path: Path) -> None:
    received: list[tuple[str, Any]] = []

    async def take(request: web.Request) -> web.Response:
        received.append((request.path, await request.json()))
        return web.json_response({"job_id": "j-1"})

    app = web.Application()
    app.router.add_post("/{path:.*}", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    source = tmp_path / "rows.json"
    source.write_text('[{"a": 1}, {"a": 2}]')
    endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/process"
    async with serving(DrawnHandler("key", endpoint)) as at:
        call = {"data_source": str(source), "params": {"format": "parquet"}}
        result = (await at.client.request_plain("process_and_upload", call)).result
        health = await at.client.call("health_report")
    await runner.cleanup()

    assert (result["status"], result["records"], result["cloud_job_id"]) == ("uploaded", 2, "j-1")
    assert received[0] == ("/v1/process", [{"a": n, "format": "parquet"} for n in (1, 2)])
    assert received[1][0] == "/v1/process/health"
    assert health["status"] == "reported"


def test_it_is_public() -> None:
    assert CloudProcessorHandler.__doc__

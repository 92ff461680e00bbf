"""`catalogzero check` of a processor: what it says of whatever answers, and of what lies here."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from catalogzero.config.certificates import good_until

from tests.cloud.reference import ReferenceBackend
from tests.cloud.taps import FaultyTap, entry
from tests.core.support import finished
from tests.warm import run_command

NOBODY = 65_534
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def section(folder: Path, endpoint: str, **more: Any) -> dict[str, Any]:
    (folder / "exports").mkdir(exist_ok=True)
    config = {"endpoint": endpoint, "api_key": "key", "data_roots": [str(folder / "exports")]}
    return {
        "handler_id": "site",
        "module_path": "tests.cloud.processors",
        "class_name": "Plain",
        "state_dir": str(folder / "state"),
        **more,
        "config": {**config, **more.get("config", {})},
    }


async def checked(folder: Path, endpoint: str, **more: Any) -> dict[str, dict[str, str]]:
    """The findings of `check`, by name."""
    registry = folder / "handler_registry.yaml"
    handlers = [section(folder, endpoint, **more)]
    registry.write_text(json.dumps({"scheduler": "none", "handlers": handlers}))
    done = await asyncio.to_thread(
        run_command, "check", "site", "--registry", str(registry), "--json"
    )
    assert "Traceback" not in done.stderr
    return {found["name"]: found for found in json.loads(done.stdout)["findings"]}


@asynccontextmanager
async def answering(answer: Answer, **limits: Any) -> AsyncIterator[str]:
    """A server that gives one answer to everything, at an endpoint."""
    app = web.Application(**limits)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


PAGE: dict[str, Any] = {
    "text": "<html><body>Sign in to the guest network</body></html>",
    "content_type": "text/html",
}


@pytest.mark.parametrize(
    ("given", "status", "found", "fix"),
    [
        ({"status": 200, **PAGE}, "fail", "200 with a page", "sign in to this network"),
        ({"status": 404, **PAGE}, "fail", "404", "see the path of `endpoint`"),
        ({"status": 405, **PAGE}, "fail", "405", "see the path of `endpoint`"),
        ({"status": 407}, "fail", "407", "set `proxy` to http://USER:PASSWORD@host:port"),
        ({"status": 413, **PAGE}, "fail", "413", "client_max_body_size"),
        ({"status": 429}, "warn", "429", "larger share"),
        ({"status": 502, **PAGE}, "warn", "502", "uploads wait in the outbox"),
        (
            {"status": 302, "headers": {"Location": "https://login.example/?token=a-long-secret"}},
            "fail",
            "302 to https://login.example/?token=**********",
            "write the address that answers as `endpoint`",
        ),
    ],
    ids=lambda value: str(value.get("status")) if isinstance(value, dict) else None,
)
async def test_an_answer_that_no_upload_backend_gives_is_named_with_its_fix(
    tmp_path: Path, given: dict[str, Any], status: str, found: str, fix: str
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(**given)

    async with answering(answer) as endpoint:
        backend = (await checked(tmp_path, endpoint))["backend"]

    assert backend["status"] == status
    assert found in backend["found"]
    assert fix in backend["fix"]


async def test_a_proxy_s_limit_is_found_before_a_chunk_meets_it_and_nothing_is_stored(
    tmp_path: Path,
) -> None:
    async with ReferenceBackend("key") as backend:
        limit = 1 << 20

        async def behind(request: web.Request) -> web.StreamResponse:
            if (request.content_length or 0) > limit:
                return web.Response(status=413, **PAGE)
            return await backend.serve(request)

        async with answering(behind) as endpoint:
            large = (await checked(tmp_path, endpoint))["backend"]
            small = (await checked(tmp_path, endpoint, chunk_bytes=1 << 19))["backend"]
        stored = backend.bodies

    assert large["status"] == "fail"
    assert "413 to a body of chunk_bytes (4,194,304)" in large["found"]
    assert "lower `chunk_bytes`" in large["fix"]
    assert small["status"] == "pass"
    assert [body for method, _, body in stored if method != "GET"] == []


async def test_a_backend_of_the_simple_form_is_one_at_its_own_path_alone(tmp_path: Path) -> None:
    async def takes_arrays(request: web.Request) -> web.Response:
        if request.path != "/v1":
            return web.Response(status=404, **PAGE)
        await request.read()
        return web.json_response({})

    async with answering(takes_arrays) as endpoint:
        right = (await checked(tmp_path, endpoint))["backend"]
        wrong = (await checked(tmp_path, f"{endpoint}/typo"))["backend"]

    assert (right["status"], right["found"]) == (
        "pass",
        "127.0.0.1 answers, and takes whole arrays",
    )
    assert (wrong["status"], "path of `endpoint`" in wrong["fix"]) == ("fail", True)


def pair(folder: Path, *, days: int = 2) -> tuple[Path, Path]:
    """A certificate and its key."""
    folder.mkdir()
    made = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost")
    files = ("-keyout", str(folder / "key.pem"), "-out", str(folder / "ca.pem"))
    subprocess.run([*made, *files, "-days", str(days)], check=True, capture_output=True)
    return folder / "ca.pem", folder / "key.pem"


async def test_certificates_that_are_missing_no_pair_or_about_to_expire_are_named(
    tmp_path: Path,
) -> None:
    endpoint = "https://127.0.0.1:9/v1"
    (cert, key), (_, other) = pair(tmp_path / "a"), pair(tmp_path / "b")
    (year, _), nowhere = pair(tmp_path / "c", days=365), tmp_path / "nowhere.pem"
    empty = tmp_path / "empty.pem"
    empty.touch()

    async def found(**config: Any) -> tuple[str, str]:
        named = {name: str(path) for name, path in config.items()}
        findings = await checked(tmp_path, endpoint, config=named)
        assert "certificates" not in findings["backend"]["fix"]
        return findings["certificates"]["status"], findings["certificates"]["found"]

    assert await found(ca_file=nowhere) == (
        "fail",
        f"ca_file {nowhere} cannot be read: No such file or directory",
    )
    assert await found(ca_file=empty) == ("fail", f"ca_file {empty} holds no certificate in PEM")
    status, text = await found(client_cert_file=cert, client_key_file=other)
    assert (status, text.endswith("are no pair")) == ("fail", True)
    status, text = await found(client_cert_file=cert, client_key_file=key)
    assert (status, text) == ("warn", f"client_cert_file {cert} expires in 1 days")
    assert (await found(ca_file=year))[0] == "pass"
    until = good_until(cert)
    assert until is not None
    assert timedelta(days=1) < until - datetime.now(UTC) <= timedelta(days=2)


async def test_a_query_s_missing_table_column_and_driver_are_named_and_no_file_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CATALOGZERO_CATALOG", "https://catalog.example")
    there, missing = tmp_path / "shop.db", tmp_path / "typo.db"
    with sqlite3.connect(there) as db:
        db.execute("CREATE TABLE orders (id INTEGER, sold_at TEXT)")
    db.close()
    of_there = {"url": f"sqlite:///{there}", "query": "SELECT * FROM orders"}
    sources = {
        "fine": of_there | {"watermark": "id"},
        "column": of_there | {"watermark": "changed_at"},
        "table": of_there | {"query": "SELECT * FROM order"},
        "file": of_there | {"url": f"sqlite:///{missing}"},
        "driver": of_there | {"url": "mysql+pymysql://shop@127.0.0.1/shop"},
        "server": of_there | {"url": "postgresql://shop:hidden@127.0.0.1:9/shop"},
        "relation": {
            "url": "postgresql://test:test@127.0.0.1:5432/test",
            "query": "SELECT * FROM no_such_table",
        },
    }
    findings = await checked(tmp_path, "http://127.0.0.1:9", config={"sources": sources})
    found = {name: findings[f"query {name}"]["found"] for name in sources}

    assert (findings["query fine"]["status"], found["fine"]) == ("pass", "2 columns")
    assert "no column 'changed_at'" in found["column"]
    assert "id, sold_at" in findings["query column"]["fix"]
    assert "syntax error" in found["table"]
    assert found["file"] == (
        f"there is no SQLite file {missing}: correct the path in the database URL"
    )
    assert not missing.exists()
    assert "pip install --index-url https://catalog.example/simple 'pymysql'" in found["driver"]
    assert findings["query server"]["status"] == findings["query relation"]["status"] == "fail"
    assert "hidden" not in str(findings)


async def test_all_wrong_settings_are_named_at_once_with_file_line_and_no_secret(
    tmp_path: Path,
) -> None:
    registry = tmp_path / "handler_registry.yaml"
    registry.write_text(
        f"""\
scheduler: none
handlers:
  - handler_id: site
    module_path: tests.cloud.processors
    class_name: Plain
    port: many
    chunk_bytes: 1
    config:
      endpoint: http://elsewhere.example
      upload_form: smple
      encodng: utf-8
      data_roots: [{tmp_path}, relative]
"""
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "catalogzero", "check", "site", "--registry", str(registry)),
        stdout=asyncio.subprocess.PIPE,
    )
    shown = (await process.communicate())[0].decode()

    assert process.returncode == 3
    for line, field in (
        (6, "port"),
        (7, "chunk_bytes"),
        (9, "config.endpoint"),
        (10, "config.upload_form"),
        (11, "config.encodng: there is no such key; did you mean `encoding`?"),
        (12, "config.data_roots"),
        (8, "config.api_key_file: set api_key_file"),
    ):
        assert f"{registry}:{line}: {field}" in shown


async def test_check_changes_nothing_in_a_state_folder_and_makes_none(tmp_path: Path) -> None:
    findings = await checked(tmp_path, "http://127.0.0.1:9")

    assert findings["state folder"]["found"].endswith("made at the first start")
    assert not (tmp_path / "state").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a file to another group")
async def test_a_key_that_another_group_may_read_is_named(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("the-key-of-the-test")
    key.chmod(0o640)
    os.chown(key, -1, NOBODY)
    given = {"api_key_file": str(key), "api_key": None}
    findings = await checked(tmp_path, "http://127.0.0.1:9", config=given)

    assert findings["keys"]["fix"] == f"chmod 600 {key}"


@pytest.mark.skipif(os.getuid() != 0, reason="only root may be another user")
def test_a_state_folder_of_another_user_is_named_with_its_owner_and_no_traceback() -> None:
    """As `nobody`, of a folder that is root's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        registry = folder / "handler_registry.yaml"
        one = section(folder, "http://127.0.0.1:9", entry="file-processor")
        del one["module_path"], one["class_name"]
        registry.write_text(json.dumps({"scheduler": "none", "handlers": [one]}))
        registry.chmod(0o644)
        (folder / "state" / "site").mkdir(parents=True, mode=0o700)
        (folder / "state").chmod(0o700)
        (folder / "state" / "site" / "outbox.sqlite").touch()

        def asked(*words: str) -> subprocess.CompletedProcess[str]:
            as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
            command = ("-m", "catalogzero", *words, "--registry", str(registry))
            return subprocess.run(
                [*as_nobody, sys.executable, *command],
                env={**os.environ, "HOME": "/nonexistent"},
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )

        if asked("ping", "--help").returncode:
            pytest.skip("another user cannot read this installation")
        shown = {
            words: asked(*words.split())
            for words in ("check site", "outbox list site", "status", "run site", "bundle site")
        }

    assert all("Traceback" not in done.stdout + done.stderr for done in shown.values())
    for words, done in shown.items():
        assert "sudo -u root" in done.stdout + done.stderr, words
        assert done.returncode == (1 if words in ("check site", "status") else 3), words
    assert "unknown" in shown["status"].stdout


def test_a_data_root_that_cannot_be_read_ends_the_start_with_the_fix(tmp_path: Path) -> None:
    missing = tmp_path / "not mounted"
    registry = tmp_path / "handler_registry.yaml"
    one = section(tmp_path, "http://127.0.0.1:9", config={"data_roots": [str(missing)]})
    registry.write_text(json.dumps({"scheduler": "none", "handlers": [one]}))

    started = finished("run", "site", "--registry", str(registry))

    assert started.returncode == 3
    assert f"data_roots: {missing}: No such file or directory: create it" in started.stderr
    assert "Traceback" not in started.stderr


def test_a_preview_makes_no_database_of_a_name_that_is_none(tmp_path: Path) -> None:
    missing = tmp_path / "typo.db"
    registry = tmp_path / "handler_registry.yaml"
    sources = {"orders": {"url": f"sqlite:///{missing}", "query": "SELECT 1"}}
    one = section(tmp_path, "http://127.0.0.1:9", config={"sources": sources})
    registry.write_text(json.dumps({"scheduler": "none", "handlers": [one]}))

    shown = finished("preview", "site", "sql:orders", "--registry", str(registry))

    assert shown.returncode == 1
    assert f"there is no SQLite file {missing}" in shown.stderr
    assert not missing.exists()


async def test_check_looks_at_a_tap_s_files_without_starting_it(tmp_path: Path) -> None:
    tap = FaultyTap(tmp_path, entry("orders"), entry("countries", "FULL_TABLE"))
    config = {"taps": {"crm": tap.config}}

    ready = await checked(tmp_path, "http://127.0.0.1:9", config=config)
    tap.config_file.chmod(0o644)
    tap.catalog.write_text(json.dumps({"streams": [entry("orders", key_properties=[])]}))
    found = await checked(tmp_path, "http://127.0.0.1:9", config=config, egress={"drop": ["at"]})

    assert ready["tap crm"]["found"] == "orders (merge), countries (replace)"
    assert str(tap.config_file) not in ready["keys"]["found"]
    assert (found["tap crm"]["status"], found["keys"]["status"]) == ("fail", "warn")
    assert "INCREMENTAL without a key" in found["tap crm"]["found"]
    assert str(tap.config_file) in found["keys"]["found"]
    assert "replication key of stream 'orders' may not leave" in found["egress"]["found"]
    assert not tap.seen_file.exists()

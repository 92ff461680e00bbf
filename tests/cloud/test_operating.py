"""What an operator does: preview, outbox, check, bundle; and that no secret shows anywhere."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
import zstandard
from aiohttp import web
from catalogzero.cli.main import app
from catalogzero.cloud.outbox.outbox import Outbox
from catalogzero.errors import ConfigError
from catalogzero.testing import serving
from typer.testing import CliRunner

from tests.cloud.processors import Plain
from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site

CANARY = "canary-key-7f3a9"
CSV = "n,name\n1,one\n2,two\n"


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend(CANARY) as reference:
        yield reference


@pytest.fixture
def registry(backend: ReferenceBackend, tmp_path: Path) -> Path:
    """A registry file of one handler, `site`."""
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "a.csv").write_text(CSV)
    path = tmp_path / "handler_registry.yaml"
    path.write_text(
        f"""
scheduler: none
handlers:
  - handler_id: site
    module_path: tests.cloud.processors
    class_name: Plain
    state_dir: {tmp_path}/state
    installation_id: site
    min_file_age_s: 0
    config:
      endpoint: {backend.url}
      api_key: {CANARY}
      data_roots: [{tmp_path}/exports]
"""
    )
    return path


def invoke(*arguments: object) -> Any:
    """The command, in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def site_of(backend: ReferenceBackend, folder: Path, **more: Any) -> Site:
    return Site(backend.url, folder, api_key=CANARY, **more)


async def test_preview_shows_the_very_bytes_and_sends_nothing(
    backend: ReferenceBackend, registry: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bodies"
    source = tmp_path / "exports" / "a.csv"
    shown = invoke("preview", "site", source, "--registry", registry, "--out", out)

    assert shown.exit_code == 0, shown.output
    assert backend.bodies == []
    assert '{"n":"1","name":"one"}' in shown.output
    assert CANARY not in shown.output
    async with site_of(backend, tmp_path) as site:
        await site.run()
    sent = {body for method, path, body in backend.bodies if "/chunks/" in path}
    assert {path.read_bytes() for path in out.iterdir() if "PUT" in path.name} == sent
    [complete] = [body for _, path, body in backend.bodies if path.endswith("/complete")]
    [preview] = [path.read_bytes() for path in out.iterdir() if "complete" in path.name]
    given = {"source_seq": 0, "installation_epoch": 0}  # by the seal, and by the start
    assert json.loads(preview).keys() == json.loads(complete).keys()
    assert json.loads(preview) | given == json.loads(complete) | given
    again = invoke("preview", "site", source, "--registry", registry)
    assert "0 records, 1 items unchanged" in again.output


def test_preview_says_when_the_key_of_hashes_is_still_to_be_made(
    registry: Path, tmp_path: Path
) -> None:
    section = yaml.safe_load(registry.read_text())
    section["handlers"][0]["egress"] = {"hash": ["name"]}
    registry.write_text(yaml.safe_dump(section))
    source = tmp_path / "exports" / "a.csv"
    source.write_text(CSV)
    first = invoke("preview", "site", source, "--registry", registry).output
    (tmp_path / "state" / "site").mkdir(parents=True)
    (tmp_path / "state" / "site" / "egress.key").write_text("k" * 64)
    second, third = (invoke("preview", "site", source, "--registry", registry) for _ in "ab")

    assert "hashes will be others" in first
    assert "hashes will be others" not in second.output
    names = [re.findall(r'"name":"(\w{64})"', shown.output) for shown in (second, third)]
    assert len(names[0]) == 2
    assert names[0] == names[1]


def test_preview_needs_neither_key_nor_endpoint_nor_registry(tmp_path: Path) -> None:
    (tmp_path / "sample.csv").write_text(CSV)
    made = subprocess.run(
        [
            *(sys.executable, "-m", "catalogzero", "preview", "tests.cloud.processors:Plain"),
            *(str(tmp_path / "sample.csv"), "--json"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "CATALOGZERO_STATE_DIR": str(tmp_path / "state")},
        check=False,
    )

    assert made.returncode == 0, made.stderr
    document = json.loads(made.stdout)
    assert document["requests"][0]["body"] == '{"n":"1","name":"one"}\n{"n":"2","name":"two"}\n'
    assert not (tmp_path / "state").exists()


async def test_a_terminal_shows_how_far_a_run_is_and_a_pipe_does_not(
    backend: ReferenceBackend, registry: Path, tmp_path: Path
) -> None:
    (tmp_path / "exports" / "a.csv").write_text(CSV)
    params = json.dumps({"data_source": str(tmp_path / "exports"), "full": True})
    once = [sys.executable, "-m", "catalogzero", "run", "site", "--registry", str(registry)]
    once += ["--once", "process_and_upload", "--params", params]
    own, its = pty.openpty()
    for ending in (its, asyncio.subprocess.PIPE):
        process = await asyncio.create_subprocess_exec(
            *once, stdout=asyncio.subprocess.PIPE, stderr=ending
        )
        out, err = await process.communicate()
        assert json.loads(out)["status"] == "uploaded"
    os.close(its)
    shown = os.read(own, 1 << 16).decode()
    os.close(own)

    assert "process_and_upload" in shown
    assert "%" in shown
    assert "%" not in err.decode()


async def test_a_run_that_fails_in_one_file_sends_the_others_prints_what_it_did_and_exits_1(
    backend: ReferenceBackend, registry: Path, tmp_path: Path
) -> None:
    data = tmp_path / "exports"
    (data / "bad.csv").write_text("n,name\n1\n")
    params = json.dumps({"data_source": str(data)})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "catalogzero", "run", "site", "--registry", str(registry)),
        *("--once", "process_and_upload", "--params", params),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()

    reported = json.loads(out)
    assert process.returncode == 1
    assert "1 of 2 items failed (1 stored for upload): exports/bad.csv, line 2" in err.decode()
    assert (reported["status"], reported["success"]) == ("failed", False)
    assert (reported["failed"], reported["items"], reported["records"]) == (1, 2, 2)
    assert reported["failures"][0]["source"] == "exports/bad.csv"
    assert backend.rows() == [{"n": "1", "name": "one"}, {"n": "2", "name": "two"}]


async def test_preview_and_check_name_rules_that_matched_nothing_and_another_policy(
    backend: ReferenceBackend, registry: Path, tmp_path: Path
) -> None:
    def reported(egress: dict[str, Any], *more: str) -> tuple[str, dict[str, Any]]:
        section = yaml.safe_load(registry.read_text())
        section["handlers"][0]["egress"] = egress
        registry.write_text(yaml.safe_dump(section))
        source = tmp_path / "exports" / "a.csv"
        shown = invoke("preview", "site", source, "--registry", registry, *more).output
        found = invoke("check", "site", "--registry", registry, "--json").output
        [finding] = [f for f in json.loads(found)["findings"] if f["name"] == "egress"]
        return shown, finding

    typo = {"drop": ["nmae"]}
    before = await asyncio.to_thread(reported, typo, "--full")
    async with site_of(backend, tmp_path, runtime={"egress": typo}) as site:
        await site.run()
    after = await asyncio.to_thread(reported, typo)
    async with site_of(backend, tmp_path, runtime={"egress": {"drop": ["name"]}}) as site:
        await site.run(site.write("b.csv", CSV))
    changed = await asyncio.to_thread(reported, {"drop": ["NAME"]})

    assert "egress.drop: nmae matched no column" in before[0]
    assert (before[1]["status"], after[1]["status"]) == ("warn", "warn")
    assert before[1]["found"] == "in the sources no column matched drop: nmae"
    assert after[1]["found"] == "in the last run no column matched drop: nmae"
    assert "matched no column" not in changed[0]
    assert "1 sources were sent by another egress policy" in changed[0]
    assert changed[1]["found"] == "1 sources were sent by another policy"


async def test_a_dead_letter_can_be_listed_shown_exported_retried_and_purged(
    backend: ReferenceBackend, registry: Path, tmp_path: Path
) -> None:
    def refuse(request: web.Request) -> web.Response | None:
        if request.path.endswith("/complete"):
            return web.json_response({"title": "no such column"}, status=422)
        return None

    backend.fault = refuse
    async with site_of(backend, tmp_path) as site:
        await site.run()
    listed = json.loads(invoke("outbox", "list", "site", "--registry", registry, "--json").output)
    [dead] = listed["uploads"]
    upload_id = dead["upload_id"]
    table = invoke("outbox", "list", "site", "--registry", registry).output
    shown = invoke("outbox", "show", "site", upload_id[:8], "--registry", registry).output
    exported = tmp_path / "exported"
    invoke("outbox", "export", "site", upload_id, "--registry", registry, "--out", exported)

    assert (dead["state"], dead["records"]) == ("dead", 2)
    assert "422 no such column" in table
    assert "no such column" in shown
    assert (
        exported / "00000.ndjson"
    ).read_text() == '{"n":"1","name":"one"}\n{"n":"2","name":"two"}\n'
    assert "1 dead letters" in invoke("outbox", "retry", "site", "--registry", registry).output
    kept = invoke("outbox", "purge", "site", upload_id, "--registry", registry)
    assert kept.exit_code == 1
    purged = invoke("outbox", "purge", "site", upload_id, "--registry", registry, "--yes")
    assert "gave up 2 records of exports/a.csv" in purged.output
    backend.fault = lambda request: None
    async with site_of(backend, tmp_path) as site:
        assert (await site.run())["status"] == "uploaded"


async def test_audit_verifies_and_exits_1_when_the_log_was_changed(
    backend: ReferenceBackend, registry: Path, tmp_path: Path
) -> None:
    async with site_of(backend, tmp_path) as site:
        await site.run()
    path = tmp_path / "state" / "site" / "audit.jsonl"

    assert invoke("outbox", "audit", "site", "--registry", registry).exit_code == 0
    path.write_bytes(path.read_bytes().replace(b'"records":2', b'"records":1'))
    assert invoke("outbox", "audit", "site", "--registry", registry).exit_code == 1


def test_an_outbox_of_a_newer_release_is_left_untouched(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "outbox.sqlite")
    db.execute("PRAGMA user_version=99")
    db.close()
    before = (tmp_path / "outbox.sqlite").read_bytes()

    with pytest.raises(ConfigError, match="newer release"):
        Outbox(tmp_path, Plain(endpoint="https://a.example", api_key="k", data_roots=["/x"]).clock)
    assert (tmp_path / "outbox.sqlite").read_bytes() == before


async def test_a_damaged_outbox_is_quarantined_reported_and_never_deleted(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    state = tmp_path / "state" / "site"
    state.mkdir(parents=True)
    (state / "outbox.sqlite").write_bytes(b"SQLite format 3\0" + b"\xff" * 8192)
    async with site_of(backend, tmp_path) as site:
        site.write("a.csv", CSV)
        assert (await site.run())["status"] == "uploaded"
        await site.engine.report_health({}, {})

    [aside] = state.glob("outbox.damaged-*.sqlite")
    assert aside.read_bytes().endswith(b"\xff" * 100)
    assert backend.reports[0]["status"] == "degraded"
    assert "quarantined" in backend.reports[0]["reasons"][0]


async def test_check_looks_at_backend_key_clock_disk_and_outbox(
    backend: ReferenceBackend, registry: Path
) -> None:
    def checked() -> dict[str, str]:
        found = invoke("check", "site", "--registry", registry, "--json").output
        return {f["name"]: f["status"] for f in json.loads(found)["findings"]}

    fine = await asyncio.to_thread(checked)
    backend.key = "another"
    refused = await asyncio.to_thread(checked)
    await backend.__aexit__()
    away = await asyncio.to_thread(checked)

    assert {fine[name] for name in ("backend", "api key", "clock", "data roots")} == {"pass"}
    assert refused["api key"] == "fail"
    assert (away["backend"], away["api key"]) == ("fail", "warn")


async def test_check_and_preview_say_how_files_are_read_and_what_would_be_refused(
    backend: ReferenceBackend, registry: Path, tmp_path: Path
) -> None:
    def checked() -> dict[str, str]:
        found = invoke("check", "site", "--registry", registry, "--json").output
        [files] = [f for f in json.loads(found)["findings"] if f["name"] == "files"]
        return dict(files)

    fine = await asyncio.to_thread(checked)
    old = tmp_path / "exports" / "old.csv"
    old.write_bytes("n,name\n1,Caf\u00e9\n".encode("cp1252"))
    warned = await asyncio.to_thread(checked)
    refused = invoke("preview", "site", old, "--registry", registry)
    shown = invoke("preview", "site", tmp_path / "exports" / "a.csv", "--registry", registry)

    assert (fine["status"], fine["found"]) == ("pass", "1 looked at: csv utf-8 ,")
    assert warned["status"] == "warn"
    assert "1 of 2 would be refused: exports/old.csv, line 2" in warned["found"]
    assert "`encoding: cp1252`" in warned["found"]
    assert refused.exit_code != 0
    assert "exports/a.csv: csv, utf-8, ','; 2 rows of 2 columns" in shown.output


def test_check_reports_a_missing_key_once_and_a_forbidden_host_by_name(tmp_path: Path) -> None:
    registry = tmp_path / "handler_registry.yaml"
    config = {
        "endpoint": "http://127.0.0.1:9",
        "data_roots": [str(tmp_path)],
        "api_key_file": str(tmp_path / "no_key"),
    }
    section: dict[str, Any] = {
        "handler_id": "site",
        "module_path": __name__,
        "class_name": "Plain",
        "state_dir": str(tmp_path / "state"),
        "config": config,
        "egress": {"hosts": []},
    }
    reported = []
    for _ in range(2):
        registry.write_text(json.dumps({"scheduler": "none", "handlers": [section]}))
        found = json.loads(invoke("check", "site", "--registry", registry, "--json").output)
        reported.append({f["name"]: (f["status"], f["found"]) for f in found["findings"]})
        section.pop("egress", None)

    forbidden, keyless = reported
    assert forbidden["backend"][0] == "fail"
    assert "egress.hosts does not allow 127.0.0.1:9" in forbidden["backend"][1]
    assert keyless["backend"] == ("warn", "not asked: there is no key to ask with")
    why = f"api_key_file {tmp_path / 'no_key'} cannot be read: No such file or directory"
    assert keyless["api key"] == ("fail", why)


async def test_a_marked_key_shows_nowhere_but_in_the_authorization_header(
    backend: ReferenceBackend, registry: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, archive = tmp_path / "exports", tmp_path / "support.zip"
    processor = Plain(endpoint=backend.url, api_key=CANARY, data_roots=[data])
    state = tmp_path / "state"
    async with serving(
        processor, handler_id="site", state_dir=state, min_file_age_s=0, installation_id="site"
    ) as service:
        call = service.client.call
        seen = [
            await call("process_and_upload", {"data_source": str(data)}),
            await call("health_report"),
            await call("describe"),
            await call("get_metrics"),
        ]
        reply = await service.client.request("process_and_upload", {"data_source": CANARY})
        backend.fault = lambda request: web.json_response(
            {"title": "refused", "detail": request.headers["Authorization"]}, status=422
        )
        full = {"data_source": str(data), "full": True}
        seen.append((await service.client.request("process_and_upload", full)).error)
        backend.fault = lambda request: None
        seen.append(await call("health_report"))
        commands = [" ".join(process.cmdline()) for process in psutil.Process().children()]
    await asyncio.to_thread(invoke, "bundle", "site", "--registry", registry, "--out", archive)

    assert CANARY in {h["Authorization"].removeprefix("Bearer ") for h in backend.headers}
    assert CANARY not in json.dumps(seen)
    assert commands
    assert CANARY not in str(commands)
    assert "Bearer **********" in str(seen[4])
    assert reply.error.count(CANARY) == 0
    for headers in backend.headers:
        assert CANARY not in json.dumps({k: v for k, v in headers.items() if k != "Authorization"})
    bodies = [body for _, _, body in backend.bodies]
    plain = [zstandard.decompress(b) if b[:4] == b"\x28\xb5\x2f\xfd" else b for b in bodies]
    files = [path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file()]
    with zipfile.ZipFile(archive) as opened:
        packed = [opened.read(name) for name in opened.namelist()]
    assert len(packed) >= 6
    assert not [blob for blob in (*plain, *files, *packed) if CANARY.encode() in blob]
    output = capfd.readouterr()
    assert CANARY not in output.out + output.err

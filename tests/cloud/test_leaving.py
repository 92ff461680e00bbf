"""What leaves a machine leaves by `process` and the egress policy, or not at all.

Each test marks a value that must stay, lets something fail over it, and then searches every byte
that a backend received: request lines, headers, bodies unpacked.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import zipfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
import zstandard
from aiohttp import web
from catalogzero import Batch, Params
from catalogzero.cli.main import app
from catalogzero.testing import serving
from typer.testing import CliRunner

from tests.cloud.processors import Counter, Plain
from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site, until

CANARY = "kanarek-5e1f"
POSTGRESQL = "postgresql+psycopg://postgres@127.0.0.1:5432/test"

QUERIES = {
    "postgresql": "SELECT CAST('kanarek-5e1f' AS integer) AS n",
    "sqlite": 'SELECT "kanarek-5e1f".n FROM t',
    "filtered": "SELECT n FROM t WHERE n = 'kanarek-5e1f'",
}


class Leaky(Plain):
    """Fails over its rows in the way that a call's params name."""

    cannot_wake = False

    def process(self, batches: Iterable[Any], params: Params) -> Iterator[Batch]:
        for batch in batches:
            for row in batch:
                match params.get("how"):
                    case "raise":
                        raise ValueError(row["secret"])
                    case "key":
                        params[row["secret"]]
                    case "reject":
                        self.reject(row, f"no good: {row['secret']}")
                    case "encode":
                        row["odd"] = type(row["secret"], (), {})()
                    case "columns":
                        row |= {row["secret"]: 1} if row["n"] == "2" else {}
            yield batch

    async def get_metrics(self) -> dict[str, Any]:
        own = {"worst": CANARY, "by_name": {CANARY: 1}, CANARY: 2, "models_loaded": 3}
        return {**await super().get_metrics(), **own}

    def _ensure_resources(self) -> None:
        if self.cannot_wake:
            raise OSError(CANARY)


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data root below a folder whose name must not leave, with a file of two rows."""
    folder = tmp_path / CANARY / "exports"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text(f"n,secret\n1,{CANARY}\n2,{CANARY}\n")
    return folder


def received(backend: ReferenceBackend) -> bytes:
    """Every byte that a backend got, bodies unpacked."""
    parts: list[str | bytes] = [f"{method} {path}" for method, path, _ in backend.bodies]
    parts += [str(headers) for headers in backend.headers]
    for *_, body in backend.bodies:
        packed = body[:4] == b"\x28\xb5\x2f\xfd"
        parts.append(
            zstandard.ZstdDecompressor().decompressobj().decompress(body) if packed else body
        )
    return b"\n".join(part.encode() if isinstance(part, str) else part for part in parts)


def leaky(backend: ReferenceBackend, data: Path, **more: Any) -> Leaky:
    """A processor of that data root."""
    config = {"endpoint": backend.url, "api_key": "test-key", "data_roots": [str(data)], **more}
    return Leaky(**config)


def runtime(data: Path, **egress: Any) -> dict[str, Any]:
    policy = {"drop": ["Secret"], **egress}
    return {"state_dir": data.parent.parent / "state", "min_file_age_s": 0, "egress": policy}


HOWS = ("raise", "key", "reject", "encode", "columns", "torn", "json")


@pytest.mark.parametrize("rule", ["fail", "skip"])
async def test_nothing_of_a_failure_over_a_row_reaches_a_backend(
    backend: ReferenceBackend, data: Path, rule: str
) -> None:
    (data / "a.csv").rename(data / "fine.csv")
    (data / "fine.csv").write_text("n,secret\n3,fine\n")
    rows = f"n,secret\n1,{CANARY}\n2,{CANARY}\n"
    torn = f'n,secret\n1,{CANARY},{CANARY}\n2,"{CANARY}'
    replies = {}
    processor = leaky(backend, data, on_bad_record=rule)
    async with serving(processor, **runtime(data)) as service:
        for how, form in itertools.product(HOWS, ("ndjson", "csv", "parquet")):
            if how == "columns" and form != "csv":
                continue  # a column that process adds leaves, there
            bad = data / ("bad.jsonl" if how == "json" else "bad.csv")
            bad.write_text(torn if how == "torn" else rows)
            call = {"data_source": str(data), "params": {"how": how, "format": form}}
            reply = await service.client.request("process_and_upload", call, timeout_s=60)
            metrics = (await service.client.call("health_report"))["metrics"]
            replies[how, form] = reply
            bad.unlink()
            last = backend.reports[-1]["metrics"]["last_error"]
            assert reply.success or last["run_id"] == reply.run_id
            assert reply.success or last["run_id"] in backend.reports[-1]["reasons"][0]

    assert CANARY.encode() not in received(backend)
    failed = {how for (how, _), reply in replies.items() if not reply.success}
    assert failed >= ({"raise", "key", "torn"} if rule == "skip" else {*HOWS} - {"columns"})
    assert CANARY in replies["raise", "csv"].error
    assert metrics["worst"] == CANARY
    reported = backend.reports[0]["metrics"]
    assert (reported["models_loaded"], set(reported) & {"worst", "by_name"}) == (3, set())
    last = reported["last_error"]
    assert (last["code"], last["type"], last["method"]) == (
        "failed",
        "ValueError",
        "process_and_upload",
    )
    assert last["failed"] in {1, 2}


@pytest.mark.parametrize("server", ["sqlite", "postgresql"])
async def test_nothing_of_a_database_s_error_reaches_a_backend(
    backend: ReferenceBackend, data: Path, server: str
) -> None:
    url, query = POSTGRESQL, QUERIES["postgresql"]
    if server == "sqlite":
        path = data.parent / "shop.sqlite"
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE t (n)")
        url, query = f"sqlite:///{path}", QUERIES["sqlite"]
    processor = leaky(backend, data, sources={"orders": {"url": url, "query": query}})
    async with serving(processor, **runtime(data)) as service:
        reply = await service.client.request(
            "process_and_upload", {"data_source": "sql:orders"}, timeout_s=30
        )
        await service.client.call("health_report")

    assert CANARY in reply.error
    assert CANARY.encode() not in received(backend)
    assert backend.reports[0]["status"] == "failing"


async def test_nothing_of_a_failed_wake_or_a_dead_letter_or_a_key_file_s_path_reaches_a_backend(
    backend: ReferenceBackend, data: Path
) -> None:
    def refuse(request: web.Request) -> web.Response | None:
        if request.path.endswith("/chunks/0"):
            return web.json_response({"detail": f"row 1: {CANARY}"}, status=422)
        return None

    backend.fault = refuse
    key = data.parent / "key"
    key.write_text("test-key")
    processor = leaky(backend, data, api_key=None, api_key_file=str(key))
    call = service_call = {"data_source": str(data)}
    async with serving(processor, **runtime(data)) as service:
        rejected = await service.client.request("process_and_upload", call, timeout_s=30)
        await service.client.call("health_report")
        key.unlink()
        (data / "b.csv").write_text("n\n3\n")
        await service.client.request("process_and_upload", service_call, timeout_s=30)
        await service.client.call("health_report")
        key.write_text("test-key")
        await until(lambda: len(backend.reports) > 1)
        await service.client.call("sleep")
        processor.cannot_wake = True
        woken = await service.client.request("process_and_upload", call, timeout_s=30)
        await service.client.call("health_report")

    assert f"row 1: {CANARY}" in rejected.error
    assert woken.code == "wake_failed"
    assert CANARY in woken.error
    assert CANARY.encode() not in received(backend)
    assert backend.reports[1]["outbox"]["paused"] == "blocked_by_setting"
    assert "wake_failed (OSError)" in str(backend.reports[2]["reasons"])


@pytest.mark.parametrize("hashed", [False, True])
async def test_no_path_leaves_but_a_source_s_own_name_and_with_hash_sources_none(
    backend: ReferenceBackend, data: Path, hashed: bool
) -> None:
    (data / "a.csv").unlink()
    (data / "ward-7").write_text("2")
    outside = data.parent / "elsewhere" / "b.txt"
    nested = {str(data / "ward-7"): [str(outside), {"at": f"file://{outside}"}], "region": "EU"}
    async with Site(
        backend.url,
        data.parent,
        author=Counter,
        runtime={"egress": {"hash_sources": hashed}, "upload_wait_s": 30},
    ) as site:
        result = await site.run(data / "ward-7", params={"lookup": nested, "factor": 2})
        await site.engine.report_health({}, {})

    sent = received(backend)
    assert result["status"] == "uploaded"
    assert CANARY.encode() not in sent
    assert (b"ward-7" in sent) is not hashed
    assert (b"b.txt" in sent) is not hashed
    assert (b'"EU"' in sent) is not hashed
    assert b'"factor":2' in sent


async def test_a_bundle_leaves_messages_answers_watermarks_and_sql_out_unless_asked(
    backend: ReferenceBackend, data: Path, tmp_path: Path
) -> None:
    path = data / "shop.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (n)")
        db.execute("INSERT INTO t VALUES (?)", (CANARY,))
        db.commit()
    sources = {
        "orders": {
            "url_file": str(data / "url"),
            "query": QUERIES["filtered"],
            "watermark": "n",
        }
    }
    (data / "url").write_text(f"sqlite:///{path}")
    section = {
        "handler_id": "site",
        "module_path": "tests.cloud.processors",
        "class_name": "Plain",
        "state_dir": str(tmp_path / "state"),
        "installation_id": "site",
        "config": {
            "endpoint": backend.url,
            "api_key": "test-key",
            "data_roots": [str(data)],
            "sources": sources,
        },
    }
    registry = tmp_path / "handler_registry.yaml"
    registry.write_text(yaml.safe_dump({"scheduler": "none", "handlers": [section]}))
    backend.fault = lambda request: web.Response(status=422, text=f"row 1: {CANARY}")
    (tmp_path / "exports").mkdir()
    async with Site(backend.url, tmp_path, sources=sources) as site:
        assert (await site.run("sql:orders"))["status"] == "rejected"

    def packed(*more: str) -> bytes:
        out = tmp_path / "support.zip"
        words = ["bundle", "site", "--registry", str(registry), "--out", str(out), *more]
        assert CliRunner().invoke(app, words).exit_code == 0
        with zipfile.ZipFile(out) as archive:
            return b"".join(
                archive.read(name).replace(str(data.parent).encode(), b"")
                for name in archive.namelist()
            )

    plain, whole = [await asyncio.to_thread(packed, *more) for more in ([], ["--with-messages"])]
    assert CANARY.encode() not in plain
    assert b"sql:orders" in plain
    for kept in (f"row 1: {CANARY}", QUERIES["filtered"]):
        assert kept.encode() in whole

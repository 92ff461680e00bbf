"""A real client against the backend: a file that is processed, sent, replaced, and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from catalogzero.backend import BackendSettings, create_app
from catalogzero.backend.conformance.suite import verify
from catalogzero.backend.server import serving as served_backend
from catalogzero.testing import serving

from tests.backend.peer import Peer, serve_peer
from tests.backend.test_protocol_page import names_in
from tests.cloud.processors import Doubler
from tests.cloud.site import Site
from tests.cloud.test_keys import Keyed, Table


@pytest.mark.parametrize("form", ["ndjson", "csv", "parquet"])
async def test_a_file_arrives_once_and_its_new_content_replaces_it(
    peer: Peer, tmp_path: Path, form: str
) -> None:
    data = tmp_path / "exports"
    data.mkdir()
    config: dict[str, Any] = {"endpoint": peer.url + "/v1", "api_key": peer.key}
    call = {"data_source": str(data), "params": {"format": form}}
    runtime: dict[str, Any] = {
        "state_dir": tmp_path / "state",
        "min_file_age_s": 0,
        "installation_id": "site-7",
    }
    async with serving(Doubler(**config, data_roots=[str(data)]), **runtime) as service:
        results = []
        for rows in (3, 2):
            (data / "a.csv").write_text("n,name\n" + "".join(f"{n},x\n" for n in range(rows)))
            results.append(await service.client.call("process_and_upload", call))
        reported = await service.client.call("health_report")

    assert [result["status"] for result in results] == ["uploaded", "uploaded"]
    assert [int(row["n"]) for row in peer.visible()] == [0, 2]
    assert reported["status"] == "reported"
    fleet = (await peer.ask("GET", "/fleet.json")).json["installations"]
    (mine,) = [row for row in fleet if row["tenant"] == peer.name]
    assert (mine["installation_id"], mine["state"], mine["backlog"]) == ("site-7", "ok", 0)
    assert mine["last_upload_at"]
    ((report,),) = peer.sql(
        "SELECT health_report FROM installations JOIN tenants USING (tenant_id)"
        " WHERE name = :tenant"
    )
    assert set(json.loads(report)) == names_in("## What a backend hears beside the records")


@pytest.mark.parametrize("form", ["ndjson", "parquet"])
async def test_the_latest_records_are_the_clients_table(
    peer: Peer, tmp_path: Path, form: str
) -> None:
    """Updates, rows that tie or come late, a tombstone, and what only a full run sees."""
    table, found = Table(tmp_path), "SELECT payload FROM latest_records WHERE tenant = :tenant"
    source = {**table.source, "lookback": 5}
    backend: dict[str, Any] = {"api_key": peer.key, "sources": {"orders": source}}
    async with Site(peer.url + "/v1", tmp_path, author=Keyed, **backend) as site:
        for changes in (
            [(1, 10, "a"), (2, 12, "b"), (5, 9, "e")],
            [(3, 12, "tied"), (4, 8, "late")],
            [(2, 12, "updated within the tick"), (1, 20, "updated")],
            [(3, 21, None, 1)],
        ):
            for change in changes:
                table.put(*change)
            await site.run("sql:orders", chunk_format=form)
            rows = [json.loads(payload) for (payload,) in peer.sql(found)]
            assert {row["id"]: row["value"] for row in rows} == table.rows()
        table.change("DELETE FROM orders WHERE id = 5")
        await site.run("sql:orders", chunk_format=form, full=True)
    rows = [json.loads(payload) for (payload,) in peer.sql(found)]
    assert {row["id"]: row["value"] for row in rows} == table.rows()


async def test_a_backend_works_mounted_in_a_service_of_another(database_url: str) -> None:
    service = web.Application()
    settings = BackendSettings(database=database_url, base_path="process/")
    service.add_subapp("/v1", create_app(settings))
    async with serve_peer(database_url) as beside, served_backend(service) as url:
        report = await verify(url + "/v1/process", beside.key, only="complete may come again")
        simple = await verify(url + "/v1/process/", beside.key, form="simple", only="once")
        page = await beside.session.get(url + "/v1/", headers={"Host": "localhost"})

    assert (report.passed, simple.passed) == (True, True)
    assert page.status == 200
    assert {"row": "a"} in beside.visible()

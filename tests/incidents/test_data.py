"""Data that cannot be read, or may not: where it shows, and that the printed fix delivers it."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from catalogzero import CatalogZeroError

from tests.cloud.reference import ReferenceBackend
from tests.incidents.plant import NOBODY, UNPRIVILEGED, Plant, Row

ROWS: list[Row] = [{"n": n, "name": f"row {n}"} for n in range(1, 4)]


async def shows_everywhere(
    plant: Plant, backend: ReferenceBackend, error: CatalogZeroError, fault: str
) -> None:
    """A failed run is where an operator looks: with its sentence here, by its code at the vendor's.

    `fault` is a part of the sentence.
    """
    line = await plant.logged("run_failed", level="warning")
    metrics, status = await plant.metrics(), await plant.status()
    report = await plant.health(backend)
    failed = metrics["last_failed_run"]
    [trouble] = [one for one in status.json["troubles"] if one["what"].startswith("the last run")]
    record = (await plant.follow(trouble["next"])).text

    assert fault in error.message
    assert fault in line["error"]
    assert line["run_id"] == failed["run_id"]
    assert line["method"] == failed["method"] == "process_and_upload"
    assert metrics["health"]["status"] == report["status"] == "failing"
    assert failed["run_id"] in report["reasons"][0]
    assert fault not in json.dumps(report)
    assert status.code == 1
    assert failed["run_id"] in trouble["what"]
    assert fault in record  # what the printed command shows


async def test_a_malformed_row_fails_its_run_until_it_is_set_to_be_quarantined(
    plant: Plant, backend: ReferenceBackend
) -> None:
    (plant.data / "a.csv").write_text("n,name\n1,row 1\n2,row 2,canary-3c1f\n3,row 3\n")
    await plant.start()
    error = await plant.refused()
    await shows_everywhere(plant, backend, error, "exports/a.csv, line 3: 3 fields")
    assert "set on_bad_record to skip or quarantine" in error.message
    plant.section["config"]["on_bad_record"] = "quarantine"
    plant.write_registry()
    await plant.restart()
    result = await plant.run()
    await plant.delivered(backend, [ROWS[0], ROWS[2]])
    [kept] = (plant.state / "bad_records").iterdir()

    assert result["bad_records"] == 1
    assert "canary-3c1f" in kept.read_text()
    assert (await plant.metrics())["health"]["status"] == "ok"


async def test_a_file_that_is_cut_short_is_refused_until_it_is_whole(
    plant: Plant, backend: ReferenceBackend
) -> None:
    whole = gzip.compress(b"n,name\n" + b"".join(b"%d,row %d\n" % (n, n) for n in range(1, 4)))
    (plant.data / "a.csv.gz").write_bytes(whole[:-12])
    await plant.start()
    error = await plant.refused()
    await shows_everywhere(plant, backend, error, "exports/a.csv.gz is damaged or cut short")
    files = await plant.finding("files")
    (plant.data / "a.csv.gz").write_bytes(whole)
    await plant.run()
    await plant.delivered(backend, ROWS)

    assert files["status"] == "warn"
    assert "a.csv.gz" in files["found"]


async def test_a_file_that_is_still_being_written_is_waited_for(
    plant: Plant, backend: ReferenceBackend
) -> None:
    plant.section["min_file_age_s"] = 1
    plant.write_registry()
    await plant.start()
    path = plant.data / "a.csv"
    path.write_text("n,na")
    reading = asyncio.create_task(plant.run())
    text = "me\n" + "".join(f"{row['n']},{row['name']}\n" for row in ROWS)
    for character in text:  # as a slow export writes it
        with path.open("a") as file:
            file.write(character)
        await asyncio.wait([reading], timeout=0.05)
    await reading
    await plant.run()
    await plant.delivered(backend, ROWS)


async def test_a_database_that_is_locked_fails_the_run_and_the_next_one_reads_it(
    plant: Plant, backend: ReferenceBackend, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "shop.db", isolation_level=None)) as shop:
        shop.execute("CREATE TABLE orders (n INTEGER PRIMARY KEY, name TEXT)")
        shop.executemany("INSERT INTO orders VALUES (:n, :name)", ROWS)
        plant.section["config"]["sources"] = {
            "orders": {
                "url": f"sqlite:///{tmp_path}/shop.db",
                "query": "SELECT n, name FROM orders",
                "watermark": "n",
                "answer_timeout_s": 1,
            }
        }
        plant.write_registry()
        await plant.start()
        shop.execute("BEGIN EXCLUSIVE")
        error = await plant.refused("sql:orders")
        await shows_everywhere(plant, backend, error, "sql:orders: database is locked")
        query = await plant.finding("query orders")
        shop.execute("ROLLBACK")
    await plant.run("sql:orders")
    await plant.delivered(backend, ROWS)

    assert query["status"] == "fail"
    assert "sources.orders" in query["fix"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
async def test_a_file_of_another_user_is_named_until_it_may_be_read(
    plant: Plant, backend: ReferenceBackend
) -> None:
    path = plant.write("a.csv", ROWS)
    path.chmod(0o600)
    os.chown(path, NOBODY, NOBODY)
    await plant.start(before=UNPRIVILEGED)
    error = await plant.refused()
    fault = "'a.csv' cannot be opened: Permission denied; let this handler's user read it"
    await shows_everywhere(plant, backend, error, fault)
    own = (sys.executable, "-m", "catalogzero", "check", "site", "--json")
    found = (await plant.shell(*UNPRIVILEGED, *own)).json["findings"]
    path.chmod(0o644)
    await plant.run()
    await plant.delivered(backend)

    [files] = [one for one in found if one["name"] == "files"]
    assert files["status"] == "warn"
    assert "Permission denied" in files["found"]


async def test_data_outside_the_data_roots_is_refused_until_its_folder_is_one(
    plant: Plant, backend: ReferenceBackend, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    path = plant.write("../other/a.csv", ROWS)
    await plant.start()
    error = await plant.refused(other / "a.csv")
    await shows_everywhere(plant, backend, error, "lies outside data_roots")
    assert "add its folder to them" in error.message
    assert backend.rows() == []
    plant.section["config"]["data_roots"] += [str(other)]
    plant.write_registry()
    await plant.restart()
    await plant.run(path)
    await plant.delivered(backend)


async def test_a_link_that_leads_out_of_the_data_roots_is_not_followed(
    plant: Plant, backend: ReferenceBackend, tmp_path: Path
) -> None:
    plant.write("../other/secret.csv", [{"n": 9, "name": "canary-77aa"}])
    plant.rows.clear()
    plant.write("a.csv", ROWS)
    (plant.data / "link.csv").symlink_to(tmp_path / "other" / "secret.csv")
    await plant.start()
    error = await plant.refused()
    files = await plant.finding("files")
    await plant.delivered(backend)

    assert "leads out of them" in error.message
    assert files["status"] == "warn"
    assert "link.csv" in files["found"]

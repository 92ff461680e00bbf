"""One bad page of the outbox: what can be read is sent, what cannot is named, nothing is silent."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog
from catalogzero.clock import SystemClock
from catalogzero.cloud.outbox.outbox import Outbox
from catalogzero.cloud.readiness import preflight
from catalogzero.config.preflight import Finding, run_checks
from catalogzero.config.settings import EgressPolicy, RuntimeSettings
from catalogzero.errors import ConfigError

from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site, until

FILES, PAGE = 6, 4096


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


async def filled(folder: Path) -> Path:
    """A folder whose outbox holds some sealed uploads of several pages each."""
    dice = random.Random(1)  # noqa: S311  # contents
    nobody = {"endpoint": "http://127.0.0.1:9/v1", "runtime": {"upload_wait_s": 0.1}}
    async with Site(**nobody, folder=folder) as site:  # type: ignore[arg-type]
        for number in range(FILES):
            rows = "".join(f"{dice.random()}\n" for _ in range(3_000))
            site.write(f"f{number}.csv", f"n\n{rows}")
        await site.run()
        assert site.outbox.store.totals().uploads == FILES
    path = site.author.state_dir / "outbox.sqlite"
    with closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for source in site.data.iterdir():
        source.unlink()
    return path


def pages_of(path: Path, table: str, kind: str = "%") -> list[int]:
    """The pages of a table, from 1; `leaf` are those that rows begin in."""
    with closing(sqlite3.connect(path)) as file:
        try:
            rows = file.execute(
                "SELECT pageno FROM dbstat WHERE name = ? AND pagetype LIKE ?", (table, kind)
            ).fetchall()
        except sqlite3.OperationalError:
            pytest.skip("this SQLite has no dbstat")
    return [row[0] for row in rows]


def wipe(path: Path, page: int) -> None:
    """Zeros in a page, as after a power cut."""
    content = bytearray(path.read_bytes())
    content[(page - 1) * PAGE : page * PAGE] = bytes(PAGE)
    path.write_bytes(content)


async def sent_after(backend: ReferenceBackend, folder: Path) -> tuple[Site, set[str]]:
    """The sources that arrive from what is left, and the site that sent them."""
    async with Site(backend.url, folder) as site:
        await until(lambda: site.outbox.store.totals().uploads == 0)
        await site.engine.report_health({}, {})
    shown = {
        backend.uploads[name].body["source"] for ids in backend.visible.values() for name in ids
    }
    return site, shown


@pytest.mark.parametrize("share", [0.3, 0.5, 0.66, 0.8])
async def test_all_but_what_lies_in_a_bad_page_is_sent_and_the_rest_is_named(
    backend: ReferenceBackend, tmp_path: Path, share: float
) -> None:
    path = await filled(tmp_path)
    wipe(path, pages_of(path, "chunks")[int(len(pages_of(path, "chunks")) * share)])

    with structlog.testing.capture_logs() as logs:
        site, shown = await sent_after(backend, tmp_path)
    outbox = Outbox(path.parent, SystemClock())
    damage, dead = outbox.store.damage(), outbox.store.uploads(["dead"])
    outbox.close()

    assert len(shown) >= FILES - 1
    lost = {f"exports/f{number}.csv" for number in range(FILES)} - shown
    assert {upload.source for upload in dead} == lost
    if damage is not None:
        assert {one["source"] for one in damage["lost"]} == lost
        assert all(one["chunks"] for one in damage["lost"])
        assert any(entry["event"] == "the outbox was damaged" for entry in logs)
        [reason] = [text for text in backend.reports[-1]["reasons"] if "damaged" in text]
        assert damage["file"] in reason
        assert (path.parent / damage["file"]).exists()
    assert site.outbox.store.base.label == str(path)


async def test_a_bad_page_of_the_uploads_costs_those_alone(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    path = await filled(tmp_path)
    wipe(path, pages_of(path, "uploads")[-1])

    _, shown = await sent_after(backend, tmp_path)
    outbox = Outbox(path.parent, SystemClock())
    damage = outbox.store.damage()
    outbox.close()

    assert damage is not None
    assert len(damage["lost"]) == FILES - len(shown)
    assert all(one["upload_id"] for one in damage["lost"])


async def test_a_body_that_is_not_what_was_stored_is_a_dead_letter_and_the_others_go(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    path = await filled(tmp_path)
    with closing(sqlite3.connect(path)) as file, file:
        [(number, body)] = file.execute("SELECT number, body FROM chunks LIMIT 1").fetchall()
        changed = bytes([body[0] ^ 1]) + body[1:]
        file.execute("UPDATE chunks SET body = ? WHERE number = ?", (changed, number))

    site, shown = await sent_after(backend, tmp_path)
    outbox = Outbox(path.parent, SystemClock())
    [dead] = outbox.store.uploads(["dead"])
    outbox.close()

    assert len(shown) == FILES - 1
    assert "chunk 0" in dead.answer["reason"]
    assert site.data.exists()


async def test_check_names_what_a_damaged_file_cost_until_that_is_removed(tmp_path: Path) -> None:
    path = await filled(tmp_path)
    wipe(path, pages_of(path, "chunks", "leaf")[0])
    folder, clock = path.parent, SystemClock()

    async def check() -> Finding:
        site = Site("http://127.0.0.1:9/v1", tmp_path)
        checks = preflight(
            site.author.settings,
            RuntimeSettings(),
            user_agent="test",
            state_dir=folder,
            clock=clock,
            streams=(),
        )
        [found] = await run_checks([one for one in checks if one.name == "outbox"])
        return found

    with pytest.raises(ConfigError):
        Outbox(folder, clock, repair=False)
    before = await check()
    outbox = Outbox(folder, clock)
    damage = outbox.store.damage()
    outbox.close()
    assert damage is not None
    after = await check()
    (folder / damage["file"]).unlink()
    removed = await check()

    assert before.status == "fail"
    assert "takes over what can be read" in before.fix
    assert after.status == "warn"
    assert all(one["source"] in after.found for one in damage["lost"])
    assert "damaged" not in removed.found


def test_check_says_what_a_lost_state_folder_costs_where_its_key_makes_the_hashes(
    tmp_path: Path,
) -> None:
    site = Site("http://127.0.0.1:9/v1", tmp_path)

    def found(**policy: Any) -> list[Any]:
        checks = preflight(
            site.author.settings,
            RuntimeSettings(egress=EgressPolicy(**policy)),
            user_agent="test",
            state_dir=tmp_path,
            clock=SystemClock(),
            streams=(),
        )
        return [one.act() for one in checks if one.name == "hash key"]

    key = tmp_path / "key"
    [names], [values] = found(hash_sources=True), found(hash=["name"])
    assert names.status == values.status == "warn"
    assert "every source is sent again" in names.found
    assert "hash_key_file" in names.fix
    assert found() == found(hash_sources=True, hash_key_file=key) == []

"""Instances of a processor on one store in PostgreSQL: what is whose, and one epoch for all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from catalogzero.clock import SystemClock
from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox import membership
from catalogzero.cloud.outbox.outbox import Opening, Outbox, Sealing, UploadEndedError
from catalogzero.cloud.outbox.store import looked_at
from catalogzero.cloud.outbox.stored import FAULT, SharedStore
from catalogzero.cloud.shared_audit import SharedAudit, verify_shared_audit
from catalogzero.errors import ConfigError, SourceChangedError, UnreachableError
from catalogzero.protocol.bodies import Known, SourceState

from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site, until
from tests.cloud.stores import stores

pytestmark = [pytest.mark.postgresql, pytest.mark.usefixtures("on_postgresql")]
CSV = "id,name\n1,one\n2,two\n"
Opened = Callable[[str], Outbox]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Opens the outbox as an instance; each has joined."""
    made = list[Outbox]()

    def open_as(instance_id: str) -> Outbox:
        outbox = Outbox(tmp_path, SystemClock(), stores.shared(tmp_path, instance_id))
        made.append(outbox)
        outbox.join()
        return outbox

    yield open_as
    for outbox in made:
        outbox.close()


@pytest.fixture
def lapses(monkeypatch: pytest.MonkeyPatch) -> Callable[[Outbox], None]:
    """Has an instance's lease lapse at once."""

    def lapse(outbox: Outbox) -> None:
        monkeypatch.setattr(membership, "LEASE_S", 0.0)
        outbox.beat("site")
        monkeypatch.undo()

    return lapse


def build(outbox: Outbox, upload_id: str, key: str = "K", mode: str = "replace") -> None:
    """An upload of one row that is building, read where the source stands."""
    base = outbox.store.mark(key).base if mode == "replace" else None
    outbox.begin(Opening(upload_id, key, "src", mode, full=False, params={}, base=base))
    outbox.add(upload_id, Chunk(0, 1, b'{"n":1}\n', "identity", "application/x-ndjson"))


def seal(outbox: Outbox, upload_id: str, key: str = "K", mode: str = "replace") -> None:
    build(outbox, upload_id, key, mode)
    after = outbox.store.mark(key).watermark
    outbox.seal(Sealing(upload_id=upload_id, upload_key=upload_id, after=after, until=upload_id))


def ids(outbox: Outbox, limit: int = 10) -> list[str]:
    """What an instance has to send, after it has taken what is free."""
    return [upload.upload_id for upload in outbox.to_send([], limit, take=True)]


def states(outbox: Outbox) -> dict[str, str]:
    return {upload.upload_id: upload.state for upload in outbox.store.uploads()}


# What is built


def test_what_was_read_before_another_instance_sealed_is_not_sealed(opened: Opened) -> None:
    a, b = opened("a"), opened("b")
    build(a, "old")
    seal(b, "new")
    with pytest.raises(SourceChangedError, match="src"):
        a.seal(Sealing(upload_id="old", upload_key="old"))
    assert a.store.mark("K").upload_id == "new"


def test_only_what_nobody_at_work_builds_is_abandoned(
    opened: Opened, lapses: Callable[[Outbox], None]
) -> None:
    a, b = opened("a"), opened("b")
    build(a, "one")
    b.beat("site")
    before = states(a)
    lapses(a)
    b.beat("site")
    with pytest.raises(UploadEndedError) as caught:
        a.add("one", Chunk(1, 1, b"{}\n", "identity", "application/x-ndjson"))
    assert before == {"one": "building"}
    assert states(b) == {"one": "abandoned"}
    assert caught.value.details == {"lapsed": True}, "its run reads the item again"


def test_an_instance_that_starts_again_ends_what_it_was_building_at_once(opened: Opened) -> None:
    build(opened("a"), "one")
    other = opened("b")
    build(other, "two", "L")
    assert states(opened("a")) == {"one": "abandoned", "two": "building"}


# What is sent


def test_no_two_instances_have_the_same_upload_to_send(opened: Opened) -> None:
    a, b = opened("a"), opened("b")
    for number in range(6):
        seal(a, f"u{number}", f"K{number}")
    mine, theirs = ids(a, 4), ids(b)
    assert mine == ["u0", "u1", "u2", "u3"]
    assert theirs == ["u4", "u5"]
    assert ids(a, 4) == mine


def test_instances_that_take_at_once_take_each_upload_once(opened: Opened) -> None:
    several = [opened(name) for name in "abc"]
    for number in range(60):
        seal(several[0], f"u{number:02}", f"K{number}")
    with ThreadPoolExecutor(3) as pool:
        for _ in range(10):
            list(pool.map(lambda one: ids(one, 20), several))
    taken = [upload for one in several for upload in ids(one, 20)]
    assert sorted(taken) == [f"u{number:02}" for number in range(60)]


def test_what_an_instance_had_to_send_goes_to_another_once_its_lease_has_lapsed(
    opened: Opened, lapses: Callable[[Outbox], None]
) -> None:
    a, b = opened("a"), opened("b")
    seal(a, "one")
    before = ids(a), ids(b)
    lapses(a)
    assert before == (["one"], [])
    assert ids(b) == ["one"]


def test_what_is_released_or_left_goes_to_another(opened: Opened) -> None:
    a, b = opened("a"), opened("b")
    seal(a, "one")
    seal(a, "two", "L")
    taken = ids(a)
    a.release(["two"])
    released = ids(b)
    a.leave()
    assert (taken, released, ids(b)) == (["one", "two"], ["one"], ["one", "two"])


@pytest.mark.parametrize("mode", ["append", "merge"])
def test_of_an_appended_source_one_upload_is_sent_at_a_time_in_sealing_order(
    opened: Opened, mode: str
) -> None:
    a, b = opened("a"), opened("b")
    for name in ("one", "two", "three"):
        seal(a, name, mode=mode)
    seal(b, "other", "L")
    first = ids(b), ids(a)
    b.done("one", "job")
    second = ids(a)
    a.die("two", {"reason": "422"})
    held = ids(a), ids(b)
    a.skip("two")
    assert first == (["one", "other"], [])
    assert second == ["two"]
    assert held == ([], ["other"])
    skipped = [upload.upload_id for upload in a.store.uploads(("sealed",)) if upload.records == 0]
    assert ids(a) == skipped


# One epoch


def known(epoch: int, **sources: SourceState) -> Known:
    return Known(generation="g", epoch=epoch, states=sources)


def test_who_starts_beside_others_takes_no_epoch_and_who_is_alone_does(
    opened: Opened, tmp_path: Path, lapses: Callable[[Outbox], None]
) -> None:
    def starts(name: str) -> tuple[Outbox, bool]:
        outbox = Outbox(tmp_path, SystemClock(), stores.shared(tmp_path, name))
        return outbox, outbox.join()

    with closing(starts("a")[0]) as a:
        unknown = starts("b")
        a.started(known(5), "site", "n")
        joined = starts("c")
        for one in (a, unknown[0], joined[0]):
            lapses(one)
        alone = starts("d")
        for one, _ in (unknown, joined, alone):
            one.close()
    assert unknown[1], "no start was answered yet"
    assert not joined[1]
    assert alone[1]


def test_the_epoch_is_the_stores_at_each_complete(opened: Opened) -> None:
    a, b = opened("a"), opened("b")
    a.started(known(5), "site", "n")
    seal(b, "one")
    first = b.completing("one")
    a.started(known(9), "site", "m")
    assert first == {"installation_epoch": 5}
    assert b.completing("one") == {"installation_epoch": 9}
    assert b.epoch() == 9


def test_a_late_answer_to_an_earlier_start_changes_nothing(opened: Opened) -> None:
    a, b = opened("a"), opened("b")
    seal(a, "one")
    number = a.store.mark("K").base
    b.started(known(9, K=SourceState(source_seq=number)), "site", "m")
    assert a.started(known(5), "site", "n") == []
    assert a.epoch() == 9
    assert a.store.mark("K").upload_id == "one"


def test_a_refused_start_counts_only_while_the_store_has_its_epoch(opened: Opened) -> None:
    a, b = opened("a"), opened("b")
    a.started(known(5), "site", "n")
    said = b.start()["epoch"]
    a.started(known(6), "site", "m")
    assert not b.moved("site", "2026-01-01", said)
    assert not a.moved_text("site")
    assert b.moved("site", "2026-01-01", 6)
    assert "installation adopt site" in a.moved_text("site")


def test_a_store_that_is_put_back_under_its_instances_waits_for_an_operator(
    opened: Opened, tmp_path: Path
) -> None:
    a = opened("a")
    seal(a, "one")
    with psycopg.connect(stores.url_of(tmp_path) or "", autocommit=True) as database:
        database.execute("CREATE TABLE kept AS SELECT * FROM catalogzero_site.members")
        a.beat("site")
        seal(a, "two", "L")
        database.execute("TRUNCATE catalogzero_site.members")
        database.execute("INSERT INTO catalogzero_site.members SELECT * FROM kept")
    due = a.beat("site")
    text, later = a.moved_text("site"), a.beat("site")
    a.adopt()
    a.beat("site")
    assert not due
    assert "put back" in text
    assert "installation adopt site" in text
    assert not later
    assert not a.moved_text("site")


def test_another_life_of_the_database_is_compared(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = opened("a")
    same = a.beat("site")
    monkeypatch.setattr(membership.Membership, "timeline", lambda _: "00000002")
    assert not same
    assert a.beat("site")
    assert not a.beat("site"), "once"


# What is counted for all


def test_the_audit_log_is_one_chain_of_all_instances(opened: Opened, tmp_path: Path) -> None:
    logs = [SharedAudit(opened(name), SystemClock()) for name in "ab"]

    def push(log: SharedAudit) -> int:
        number = log.begin(bytes=10, records=1)
        log.settle(number, status=200)
        return number

    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(push, logs * 20))
    for log in logs:
        log.close()
    outbox = opened("c")
    report = verify_shared_audit(outbox.store)
    assert sorted(numbers) == list(range(1, 41))
    assert (report.pushes, report.bytes, report.unsettled) == (40, 400, [])
    assert report.broken_at is None
    assert report.head == logs[0].head
    outbox.store.execute("UPDATE audit SET line = 'x' WHERE number = 7")
    assert verify_shared_audit(outbox.store).torn == 1
    assert verify_shared_audit(outbox.store).broken_at == 8


def test_of_the_audit_log_the_oldest_lines_go(opened: Opened) -> None:
    outbox = opened("a")
    with closing(SharedAudit(outbox, SystemClock(), max_bytes=1_024, kept_files=1)) as log:
        for _ in range(1_050):
            log.begin(bytes=1)
    report = verify_shared_audit(outbox.store)
    assert report.entries < 100
    assert report.broken_at is None


def test_the_pace_is_that_of_all_instances(opened: Opened) -> None:
    a, b = opened("a").store, opened("b").store
    waits_s = [a.book_pace(100.0), b.book_pace(100.0), a.book_pace(100.0)]
    assert waits_s[0] == 0.0
    assert [round(wait_s, -1) for wait_s in waits_s[1:]] == [100.0, 200.0]


def test_numbers_of_health_reports_are_given_once(opened: Opened) -> None:
    several = [opened(name) for name in "abc"]
    with ThreadPoolExecutor(3) as pool:
        given = list(pool.map(lambda one: one.next_number("health_seq"), several * 10))
    assert sorted(given) == list(range(1, 31))


def test_what_is_wrong_on_an_instances_own_way_is_its_own(opened: Opened) -> None:
    a, b = opened("a"), opened("b")
    a.remember(FAULT, {"code": "not_connected"})
    a.remember("last_success_at", "2026-01-01")
    assert b.store.fact(FAULT) is None
    assert b.store.fact("last_success_at") == "2026-01-01"


# The database


def test_connections_that_are_cut_cost_nothing(opened: Opened, tmp_path: Path) -> None:
    a = opened("a")
    with psycopg.connect(stores.url_of(tmp_path) or "", autocommit=True) as database:
        for number in range(10):
            database.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            seal(a, f"u{number}", f"K{number}")
    assert len(ids(a, 20)) == 10


def test_a_database_that_is_away_is_named_without_its_password(tmp_path: Path) -> None:
    shared = SharedStore("postgresql://acme:s3cret-word@127.0.0.1:1/none", "site", "a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("catalogzero.sql.postgresql.WAIT_S", 0.1)
        with pytest.raises(
            UnreachableError, match=r"state: the database .*127\.0\.0\.1:1"
        ) as caught:
            Outbox(tmp_path, SystemClock(), shared)
    assert "s3cret-word" not in str(caught.value) + repr(shared)


def test_a_store_of_a_newer_release_is_left_alone(opened: Opened, tmp_path: Path) -> None:
    opened("a").store.execute("UPDATE schema_version SET version = 99")
    with pytest.raises(ConfigError, match="newer release"):
        opened("b")


def test_a_look_makes_no_schema(tmp_path: Path) -> None:
    with looked_at(tmp_path, SystemClock(), stores.shared(tmp_path)) as store:
        assert store is None
    with psycopg.connect(stores.url_of(tmp_path) or "") as database:
        found = database.execute("SELECT to_regnamespace('catalogzero_site')").fetchone()
    assert found == (None,)


# Whole engines


def instance(url: str, folder: Path, name: str, **more: Any) -> Site:
    """The engine of one instance; all have one data root."""
    state = {"state_dir": folder / "state", "instance_id": name, "state": stores.url_of(folder)}
    return Site(url, folder, runtime={**state, **more})


async def test_instances_send_each_file_once_and_know_what_the_others_sent(tmp_path: Path) -> None:
    async with ReferenceBackend() as backend:
        async with (
            instance(backend.url, tmp_path, "a") as a,
            instance(backend.url, tmp_path, "b") as b,
        ):
            await until(lambda: a.outbox.epoch() is not None)
            files = [a.write(f"{number}.csv", CSV) for number in range(8)]
            results = [
                result
                for one, other in zip(files[:4], files[4:], strict=True)
                for result in await asyncio.gather(a.run(one), b.run(other))
            ]
            again = [await one.run() for one in (a, b)]
            epoch = backend.epoch
        assert [result["status"] for result in results] == ["uploaded"] * 8
        assert [result["status"] for result in again] == ["unchanged"] * 2
        assert [backend.rows(f"exports/{number}.csv") for number in range(8)] == [
            [{"id": "1", "name": "one"}, {"id": "2", "name": "two"}]
        ] * 8
        assert epoch <= 2, "who came first took one; who came at the same moment, too"


async def test_runs_of_one_file_at_once_leave_its_newest_content(tmp_path: Path) -> None:
    async with (
        ReferenceBackend() as backend,
        instance(backend.url, tmp_path, "a") as a,
        instance(backend.url, tmp_path, "b") as b,
        instance(backend.url, tmp_path, "c") as c,
    ):
        for version in range(10):
            a.write("a.csv", f"id\n{version}\n")
            await asyncio.gather(*(one.run() for one in (a, b, c)))
            assert backend.rows("exports/a.csv") == [{"id": str(version)}]


async def test_another_store_of_the_installation_pauses_all_instances(tmp_path: Path) -> None:
    async with (
        ReferenceBackend() as backend,
        instance(backend.url, tmp_path, "a") as a,
        instance(backend.url, tmp_path, "b") as b,
    ):
        file = a.write("a.csv", CSV)
        await a.run(file)
        backend.start({"epoch": 0, "nonce": "another", "generation": "g1"})
        b.write("a.csv", f"{CSV}3,three\n")
        running = asyncio.create_task(b.run(file))
        await until(lambda: a.outbox.moved_text("site"))
        await until(lambda: a.engine.sender.paused and b.engine.sender.paused)
        a.outbox.adopt()
        await running
        await until(lambda: not (a.engine.sender.paused or b.engine.sender.paused))
        await until(lambda: len(backend.rows("exports/a.csv")) == 3)

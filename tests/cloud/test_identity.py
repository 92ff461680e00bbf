"""One installation, one writer: copies, moves, restores, other modes, and what was refused."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest
from aiohttp import web
from catalogzero import Batch, Params
from catalogzero.clock import SystemClock
from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox.outbox import Opening, Outbox, Sealing
from catalogzero.errors import BadParamsError, ConfigError, FailedError, SourceChangedError
from catalogzero.protocol.bodies import Known, SourceState

from tests.cloud.processors import Counter, Plain
from tests.cloud.reference import MOVED, ReferenceBackend
from tests.cloud.site import Site, until
from tests.cloud.stores import stores

BOTH_STORES = True

CSV = "n\n1\n2\n"
OTHER = "n\n3\n"
OLD = Path(__file__).parent / "data" / "outbox-1.sql"


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    opened = Outbox(tmp_path / "box", SystemClock(), stores.shared(tmp_path / "box"))
    yield opened
    opened.close()


def state(folder: Path, name: str) -> dict[str, Any]:
    return {"state_dir": folder / name}


def build(outbox: Outbox, upload_id: str, mode: str = "replace", **more: Any) -> None:
    """An upload of one row that is building."""
    outbox.begin(Opening(upload_id, "K", "src", mode, full=more.get("full", False), params={}))
    outbox.add(upload_id, Chunk(0, 1, b'{"n":1}\n', "identity", "application/x-ndjson"))


def seal(outbox: Outbox, upload_id: str, mode: str = "replace", **more: Any) -> int:
    """An upload of one row, sealed."""
    full = more.pop("full", False)
    build(outbox, upload_id, mode, full=full)
    if mode == "append" and not full:
        more.setdefault("after", outbox.store.mark("K").watermark)
    [number] = outbox.seal(Sealing(upload_id=upload_id, upload_key=f"key-{upload_id}", **more))
    return number


def reported(outbox: Outbox, generation: str = "g", **state: Any) -> list[str]:
    """A start that is answered so about the one source."""
    states = {"K": SourceState(**state)} if state else {}
    return outbox.started(Known(generation=generation, epoch=1, states=states), "site", "n")


def states(outbox: Outbox) -> dict[str, str]:
    return {upload.upload_id: upload.state for upload in outbox.store.uploads()}


# F5, F6: starts, and a folder whose place was taken


async def test_nothing_is_sent_before_a_start_is_answered_and_runs_do_not_wait_for_it(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    away = [True]

    def no_start(request: web.Request) -> web.Response | None:
        return web.Response(status=503) if away and "/installations/" in request.path else None

    backend.fault = no_start
    async with Site(backend.url, tmp_path, runtime={"upload_wait_s": 0.2}) as site:
        site.write("a.csv", CSV)
        result = await site.run()
        sent = [path for _, path, _ in backend.bodies if "/uploads/" in path]
        away.clear()
        await until(backend.rows)

    assert result["status"] == "queued"
    assert sent == []


async def test_each_start_takes_the_next_epoch_and_complete_carries_it(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    epochs = []
    for text in (CSV, OTHER):
        async with Site(backend.url, tmp_path) as site:
            site.write("a.csv", text)
            assert (await site.run())["status"] == "uploaded"
            epochs.append(backend.epoch)

    assert epochs[0] < epochs[1]
    [upload] = backend.visible.values()
    assert backend.uploads[upload[0]].body["installation_epoch"] == epochs[1]


async def test_a_backend_without_epochs_leaves_the_client_as_it_was(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    backend.epochs = False
    for number in range(2):
        async with Site(backend.url, tmp_path) as site:
            site.write("a.csv", f"n\n{number}\n")
            assert (await site.run())["status"] == "uploaded"
    [upload] = next(iter(backend.visible.values()))[-1:]

    assert "installation_epoch" not in backend.uploads[upload].body


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_backend_that_knows_no_installations_is_sent_to(
    backend: ReferenceBackend, tmp_path: Path, status: int
) -> None:
    def none(request: web.Request) -> web.Response | None:
        return web.Response(status=status) if "/installations/" in request.path else None

    backend.fault, backend.epochs = none, False
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        assert (await site.run())["status"] == "uploaded"


async def test_a_start_whose_answer_was_lost_and_that_was_killed_is_not_moved(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        await site.run()
        taken = backend.epoch
    folder = site.author.state_dir
    with closing(sqlite3.connect(folder / "outbox.sqlite")) as file:
        before = file.execute("SELECT value FROM facts WHERE name = 'epoch'").fetchone()
    outbox = Outbox(folder, SystemClock())
    said = outbox.start()  # kept in the folder; then the answer is lost, and the worker killed
    outbox.close()
    backend.start(said)
    assert said["epoch"] == taken == int(before[0])

    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", OTHER)
        result = await site.run()
        assert site.outbox.store.fact("nonce") is None

    assert result["status"] == "uploaded"


async def test_the_old_host_that_comes_back_is_paused_until_adopted(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path, runtime=state(tmp_path, "a")) as site:
        site.write("a.csv", CSV)
        await site.run()
    async with Site(backend.url, tmp_path, runtime=state(tmp_path, "b")) as site:
        site.write("a.csv", OTHER)
        await site.run()
    async with Site(backend.url, tmp_path, runtime=state(tmp_path, "a")) as site:
        await until(lambda: "adopt" in ((site.status.get("outbox") or {}).get("paused") or ""))
        site.write("a.csv", CSV)
        with pytest.raises(FailedError, match="installation adopt"):
            await site.run()
        await site.engine.report_health({}, {})
        visible = backend.rows()

        site.outbox.adopt()
        await until(lambda: site.status["outbox"]["paused"] is None)
        assert (await site.run())["status"] == "uploaded"

    assert visible == [{"n": "3"}]
    assert backend.reports[-1]["outbox"]["paused"] == "installation_moved"
    assert backend.rows() == [{"n": "1"}, {"n": "2"}]


async def test_an_adopt_whose_start_meets_a_fault_is_tried_again_soon(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        async with Site(backend.url, tmp_path, runtime=state(tmp_path, name)) as site:
            site.write("a.csv", CSV)
            await site.run()
    faults = [503]

    def fault(request: web.Request) -> web.Response | None:
        return web.Response(status=faults.pop()) if faults and request.method == "PUT" else None

    async with Site(backend.url, tmp_path, runtime=state(tmp_path, "a")) as site:
        await until(lambda: "adopt" in ((site.status.get("outbox") or {}).get("paused") or ""))
        backend.fault = fault
        site.outbox.adopt()
        await until(lambda: site.status["outbox"]["paused"] is None)

    assert faults == []


async def test_a_start_that_comes_again_on_its_way_pauses_nobody(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        await site.run()
        [said] = backend.installations.values()
        backend.start(said)  # delivered late, once more
        site.write("a.csv", OTHER)
        result = await site.run()

    assert result["status"] == "uploaded"
    assert backend.rows() == [{"n": "3"}]


async def test_a_start_of_before_a_restore_that_comes_late_pauses_nobody(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    empty = backend.snapshot()
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        await site.run()
        [first] = backend.installations.values()
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", OTHER)
        await site.run()
        backend.restore(empty)
        answer, _ = backend.start(first)  # of the first site, delivered late
        await site.engine.report_health({}, {})
        await until(lambda: site.outbox.store.fact("generation") == backend.generation)
        result = await site.run()

    assert (answer, first["epoch"]) == (409, 0)
    assert result["status"] == "uploaded"
    assert backend.rows() == [{"n": "3"}]


def test_an_adopt_gives_up_no_nonce_whose_start_was_not_answered(outbox: Outbox) -> None:
    asked = outbox.start()["nonce"]
    outbox.adopt()
    again = outbox.start()["nonce"]
    outbox.remember("moved", {"installation_id": "site", "since": None})  # the start was refused
    outbox.adopt()

    assert asked == again
    assert outbox.start()["nonce"] != asked


async def test_a_paused_folder_stays_paused_after_a_restart(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        await site.run()
    backend.start({"epoch": 0, "nonce": "another host"})
    for _ in range(2):
        async with Site(backend.url, tmp_path) as site:
            await until(lambda: (site.status.get("outbox") or {}).get("paused"))
            starts = sum("/installations/" in path for _, path, _ in backend.bodies)

    assert starts == 3  # of the first site, which knew no generation, and the one that was refused


async def test_another_host_that_takes_over_while_this_one_runs_pauses_it(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        await site.run()
        backend.start({"epoch": 0, "nonce": "another host"})
        site.write("a.csv", OTHER)
        await site.run()
        await until(lambda: "adopt" in (site.status["outbox"]["paused"] or ""))

        assert states(site.outbox).popitem()[1] in {"completing", "done"}
        assert site.outbox.store.totals().uploads == 1

    assert len(backend.rows()) == 2


async def test_an_array_of_the_simple_form_carries_the_epoch(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    backend.chunked = False
    async with Site(backend.url, tmp_path, upload_form="simple") as site:
        site.write("a.csv", CSV)
        assert (await site.run())["status"] == "uploaded"
        backend.start({"epoch": 0, "nonce": "another host"})
        site.write("a.csv", OTHER)
        await site.run()
        await until(lambda: "adopt" in (site.status["outbox"]["paused"] or ""))

    assert len(backend.simple) == 1


# F7: the compare


async def test_a_folder_put_back_from_a_snapshot_does_not_say_unchanged(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        await site.run()
    folder = site.author.state_dir
    shutil.copytree(folder, tmp_path / "snapshot")
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", OTHER)
        await site.run()
        backend.epoch = site.outbox.store.fact("epoch")
    shutil.rmtree(folder)
    (tmp_path / "snapshot").rename(folder)
    async with Site(backend.url, tmp_path) as site:
        await until(lambda: "adopt" in ((site.status.get("outbox") or {}).get("paused") or ""))
        site.outbox.adopt()
        await until(lambda: site.status["outbox"]["paused"] is None)
        site.write("a.csv", CSV)
        result = await site.run()

    assert result["status"] == "uploaded"
    assert backend.rows() == [{"n": "1"}, {"n": "2"}]


def test_a_mark_that_is_not_what_was_reported_is_cleared_and_named(outbox: Outbox) -> None:
    seq = seal(outbox, "u1")
    outbox.done("u1", "j")

    same = reported(outbox, source_seq=seq, mode="replace")
    kept = outbox.store.mark("K").upload_key
    other = reported(outbox, source_seq=seq + 5, mode="replace")

    assert (same, kept) == ([], "key-u1")
    assert other == ["K"]
    assert outbox.store.mark("K").upload_key is None
    assert [one["source_key"] for one in outbox.store.missing_sources()] == ["K"]
    assert outbox.store.totals().missing == 1
    seal(outbox, "u2")
    assert outbox.store.missing_sources() == []


def test_what_was_sealed_on_the_reported_state_stays_and_what_follows_it_too(
    outbox: Outbox,
) -> None:
    first = seal(outbox, "u1")
    outbox.done("u1", "j")
    second = seal(outbox, "u2")
    seal(outbox, "u3")

    reported(outbox, source_seq=first, mode="replace")
    waiting = states(outbox)
    reported(outbox, source_seq=second, mode="replace")  # the answer to u2 was lost

    assert (waiting["u2"], waiting["u3"]) == ("sealed", "sealed")
    assert states(outbox)["u3"] == "sealed"
    assert outbox.store.mark("K").upload_key == "key-u3"


def test_what_is_sealed_after_a_compare_follows_what_stayed(outbox: Outbox) -> None:
    seal(outbox, "u1")
    reported(outbox)  # nothing is there yet
    seal(outbox, "u2")
    reported(outbox)

    assert states(outbox) == {"u1": "sealed", "u2": "sealed"}


def test_what_does_not_build_on_the_reported_state_is_kept_unsent(outbox: Outbox) -> None:
    first = seal(outbox, "u1")
    outbox.done("u1", "j")
    seal(outbox, "u2")
    seal(outbox, "u3")

    reported(outbox, source_seq=first + 10**6, mode="replace")

    assert states(outbox) == {"u1": "done", "u2": "superseded", "u3": "held"}
    assert outbox.store.open_uploads() == []
    assert list(outbox.store.bodies("u3"))
    above = seal(outbox, "u4")
    assert above > first + 10**6
    assert states(outbox)["u3"] == "superseded"


def test_an_attempt_that_began_on_another_state_is_made_again(outbox: Outbox) -> None:
    first = seal(outbox, "u1")
    outbox.done("u1", "j")
    build(outbox, "same")
    reported(outbox, source_seq=first, mode="replace")
    before = states(outbox)["same"]
    reported(outbox, source_seq=first + 1, mode="replace")

    assert before == "building"
    assert states(outbox)["same"] == "abandoned"


def test_append_goes_back_to_the_reported_watermark(outbox: Outbox) -> None:
    first = seal(outbox, "u1", "append", until=5)
    outbox.done("u1", "j")
    position = outbox.store.mark("K").watermark
    seal(outbox, "u2", "append", until=9)
    outbox.done("u2", "j")
    seal(outbox, "u3", "append", until=12)

    reported(outbox, source_seq=first, watermark=position, mode="append")

    assert states(outbox)["u3"] == "superseded"
    assert (outbox.store.mark("K").value, outbox.store.mark("K").watermark) == (5, position)
    assert [one["source_key"] for one in outbox.store.missing_sources()] == ["K"]


def test_append_keeps_what_chains_onto_the_reported_watermark(outbox: Outbox) -> None:
    first = seal(outbox, "u1", "append", until=5)
    outbox.done("u1", "j")
    position = outbox.store.mark("K").watermark
    seal(outbox, "u2", "append", until=9)

    assert reported(outbox, source_seq=first, watermark=position, mode="append") == []
    assert states(outbox)["u2"] == "sealed"
    assert outbox.store.mark("K").value == 9


def test_a_full_upload_that_the_backend_lost_is_owed(outbox: Outbox) -> None:
    first = seal(outbox, "u1", "append", until=5)
    outbox.done("u1", "j")
    position = outbox.store.mark("K").watermark
    seal(outbox, "u2", "append", until=5, full=True)
    outbox.done("u2", "j")

    reported(outbox, source_seq=first, watermark=position, mode="append")

    assert outbox.store.mark("K").owed
    seal(outbox, "u3", "append", until=5, full=True)
    assert not outbox.store.mark("K").owed


def test_what_an_operator_removed_is_not_missing(outbox: Outbox) -> None:
    seal(outbox, "u1")
    outbox.done("u1", "j")
    kept = reported(outbox, source_seq=1, mode="replace", removed=True)
    waiting = seal(outbox, "u2")

    reported(outbox, source_seq=1, mode="replace", removed=True)

    assert (kept, outbox.store.missing_sources()) == ([], [])
    assert outbox.store.mark("K").upload_key == "key-u2"
    assert (states(outbox)["u2"], waiting > 1) == ("sealed", True)


def test_of_what_an_operator_removed_no_full_upload_is_owed(outbox: Outbox) -> None:
    first = seal(outbox, "u1", "append", until=5)
    outbox.done("u1", "j")
    position = outbox.store.mark("K").watermark
    seal(outbox, "u2", "append", until=5, full=True)
    outbox.done("u2", "j")

    reported(outbox, source_seq=first, watermark=position, mode="append", removed=True)

    assert not outbox.store.mark("K").owed


def test_a_lost_folder_goes_on_where_the_backend_is(outbox: Outbox) -> None:
    reported(outbox, source_seq=7, watermark=[5, 10**12 + 7], full_seq=3, mode="append")

    mark = outbox.store.mark("K")
    assert (mark.value, mark.mode, mark.owed) == (5, "append", False)
    assert seal(outbox, "u1", "append", until=9) > 7


async def test_many_sources_are_compared_over_all_pages(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path) as site:
        for number in range(7):
            site.write(f"{number}.csv", f"n\n{number}\n")
        await site.run()
    backend.page = 2
    snapshot = backend.snapshot()
    lost = sorted(backend.high)[-1]
    for name in ("high", "visible"):
        snapshot[name].pop(lost)
    snapshot["uploads"].clear()
    backend.restore(snapshot)
    async with Site(backend.url, tmp_path) as site:
        await until(lambda: site.outbox.store.fact("generation") == backend.generation)

        missing = site.outbox.store.missing_sources()
        assert [one["source_key"] for one in missing] == [lost]


# F8: late content


async def test_superseded_content_is_read_again_and_never_sealed_above_by_itself(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    read: list[str] = []

    class Noting(Plain):
        def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
            read.append("process")
            yield from batches

    async with Site(backend.url, tmp_path, author=Noting) as site:
        site.write("a.csv", CSV)
        await site.run()
        [key] = backend.high
        backend.high[key] += 10**9  # another folder has completed something newer
        site.write("a.csv", OTHER)
        result = await site.run()
        [late] = site.outbox.store.uploads(["superseded"])

    assert result["status"] == "uploaded"
    assert len(read) == 3
    assert late.answer["read_again_as"] in result["upload_ids"]
    assert backend.rows() == [{"n": "3"}]


@pytest.mark.parametrize("what", ["folder", "file"])
async def test_superseded_content_whose_source_is_gone_is_a_dead_letter(
    backend: ReferenceBackend, tmp_path: Path, what: str
) -> None:
    waits = [True]

    def wait(request: web.Request) -> web.Response | None:
        if waits and request.path.endswith("/complete"):
            return web.Response(status=503, headers={"Retry-After": "0"})
        return None

    async with Site(backend.url, tmp_path, runtime={"upload_wait_s": 0.1}) as site:
        site.write("b.csv", CSV)
        path = site.write("a.csv", CSV)
        source = site.data if what == "folder" else path
        await site.run(source)
        await until(lambda: site.outbox.store.totals().uploads == 0)
        backend.fault = wait
        for key in backend.high:
            backend.high[key] += 10**9
        site.write("a.csv", OTHER)
        await site.run(source)
        path.unlink()
        waits.clear()
        await until(lambda: site.outbox.store.uploads(["held"]))
        if what == "folder":
            await site.run(source)
        else:
            with pytest.raises(BadParamsError):
                await site.run(source)
        [dead] = site.outbox.store.uploads(["dead"])
        rows = backend.rows("exports/a.csv")
        assert site.outbox.retry(dead.upload_id)
        site.engine.sender.wake()
        await until(lambda: backend.rows("exports/a.csv") == [{"n": "3"}])

    assert "superseded" in dead.answer["reason"]
    assert rows == [{"n": "1"}, {"n": "2"}]


# F9: duplicates


def test_a_duplicate_by_key_raises_the_marks_number_and_one_by_upload_id_does_not(
    outbox: Outbox,
) -> None:
    seq = seal(outbox, "u1")
    outbox.done("u1", "j", same_key_seq=seq + 50)

    assert reported(outbox, source_seq=seq + 50, mode="replace") == []
    assert outbox.store.mark("K").upload_key == "key-u1"
    seq = seal(outbox, "u2")
    outbox.done("u2", "j")
    assert reported(outbox, source_seq=seq + 50, mode="replace") == ["K"]


# G: a restored backend


@pytest.mark.parametrize("hears", ["complete", "health", "start"])
async def test_a_restored_backend_gets_what_it_lacks_by_itself(
    backend: ReferenceBackend, tmp_path: Path, hears: str
) -> None:
    site = Site(backend.url, tmp_path)
    async with site:
        site.write("a.csv", CSV)
        await site.run()
        snapshot = backend.snapshot()
        site.write("a.csv", OTHER)
        site.write("b.csv", OTHER)
        await site.run()
        backend.restore(snapshot)
        if hears == "complete":
            site.write("c.csv", CSV)
            await site.run()
        elif hears == "health":
            await site.engine.report_health({}, {})
        if hears != "start":
            await until(lambda: site.outbox.store.fact("generation") == backend.generation)
            missing = site.outbox.store.totals().missing
            await site.run()
    if hears == "start":
        async with Site(backend.url, tmp_path) as site:
            await until(lambda: site.outbox.store.fact("generation") == backend.generation)
            missing = site.outbox.store.totals().missing
            await site.run()

    assert missing == 2
    assert backend.rows("exports/a.csv") == backend.rows("exports/b.csv") == [{"n": "3"}]


async def test_rows_of_a_restored_backend_are_read_again_behind_its_watermark(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    async with Site(backend.url, tmp_path, author=Counter) as site:
        snapshot: dict[str, Any] = {}
        for number in (3, 5, 8):
            snapshot = snapshot or (backend.snapshot() if number == 5 else {})
            count.write_text(str(number))
            await site.run(count)
        backend.restore(snapshot)
        await site.engine.report_health({}, {})
        await until(lambda: site.outbox.store.fact("generation") == backend.generation)
        await site.run(count)
        await until(lambda: site.outbox.store.totals().uploads == 0)

    assert [row["n"] for row in backend.rows()] == list(range(1, 9))


async def test_a_range_in_which_nothing_is_left_to_read_is_no_longer_missing(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    async with Site(backend.url, tmp_path, author=Counter) as site:
        count.write_text("3")
        await site.run(count)
        snapshot = backend.snapshot()
        count.write_text("5")
        await site.run(count)
        backend.restore(snapshot)
        await site.engine.report_health({}, {})
        await until(lambda: site.outbox.store.totals().missing)
        count.write_text("3")  # the source has no more than the backend
        result = await site.run(count)

        assert result["status"] == "unchanged"
        assert not site.outbox.store.totals().missing


@pytest.mark.parametrize("answer", ["done", "superseded", "die"])
def test_an_answer_of_another_generation_ends_nothing(outbox: Outbox, answer: str) -> None:
    reported(outbox, "g1")
    seal(outbox, "u1")
    given: dict[str, Any] = {"done": (None,), "superseded": ({},), "die": ({},)}

    assert not getattr(outbox, answer)("u1", *given[answer], generation="g2")
    assert states(outbox) == {"u1": "sealed"}
    assert getattr(outbox, answer)("u1", *given[answer], generation="g1")
    assert states(outbox) != {"u1": "sealed"}


async def test_pages_of_two_generations_are_not_compared(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path, runtime=state(tmp_path, "a")) as site:
        for number in range(4):
            site.write(f"{number}.csv", f"n\n{number}\n")
        await site.run()
    backend.page = 2
    snapshot, pages = backend.snapshot(), []

    def restored(request: web.Request) -> None:
        if request.method == "GET":
            pages.append(request.path)
            if len(pages) == 1:
                backend.restore(snapshot)

    backend.fault = restored
    async with Site(backend.url, tmp_path, runtime=state(tmp_path, "b")) as site:
        await until(lambda: site.outbox.store.fact("generation"))
        generation = site.outbox.store.fact("generation")

    assert generation == backend.generation
    assert len(pages) == 2


def test_generation_and_compare_are_one_transaction(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal(outbox, "u1")
    outbox.done("u1", "j")

    def dies(*_: Any) -> bool:
        raise RuntimeError("killed in the compare")

    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "_compare", dies)
        with pytest.raises(RuntimeError):
            reported(outbox, "g2")

    assert outbox.store.fact("generation") is None
    assert reported(outbox, "g2") == ["K"]


# M8, C3, M4, and what a watermark is bound to


class Cursor(Counter):
    """Reads its own source; the file says what it yields and returns."""

    answers: ClassVar[list[tuple[list[int], Any]]] = []

    def read(
        self, data_source: str, params: Params, after: Any = None
    ) -> Generator[Batch, None, Any]:
        rows, until = self.answers.pop(0)
        if rows:
            yield [{"n": n} for n in rows]
        return until


async def cursor_runs(
    backend: ReferenceBackend, folder: Path, *answers: tuple[list[int], Any]
) -> list[str]:
    """The status, or the error, of runs whose `read` answers so."""
    said = []
    Cursor.answers = list(answers)
    async with Site(backend.url, folder, author=Cursor) as site:
        for _ in answers:
            try:
                said.append((await site.run("numbers"))["status"])
            except FailedError as error:
                said.append(error.message)
    return said


async def test_a_null_watermark_after_one_existed_fails_the_run(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    said = await cursor_runs(backend, tmp_path, ([1, 2], 2), ([3], None), ([], None), ([3], 3))

    assert said[0] == said[3] == "uploaded"
    assert all("watermark is null" in text and "numbers" in text for text in said[1:3])
    assert [row["n"] for row in backend.rows()] == [1, 2, 3]


async def test_rows_behind_the_same_watermark_fail_the_run(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    said = await cursor_runs(backend, tmp_path, ([1], 2), ([3], 2), ([], 2), ([4], None))

    assert said[0] == "uploaded"
    assert "still 2" in said[1]
    assert said[2] == "unchanged"
    assert [row["n"] for row in backend.rows()] == [1]


async def test_until_is_never_the_same_twice(backend: ReferenceBackend, tmp_path: Path) -> None:
    await cursor_runs(backend, tmp_path, ([1], 7))
    [first] = list(backend.watermark.values())
    Cursor.answers = [([1], 7)]
    async with Site(backend.url, tmp_path, author=Cursor) as site:
        await site.run("numbers", full=True)

    [second] = backend.watermark.values()
    assert first[0] == second[0] == 7
    assert first[1] < second[1]
    assert list(backend.high.values()) == [second[1]]


class Appending(Counter):
    """The numbers up to one in a file, appended."""

    stream = "numbers"


class Replacing(Plain):
    """The same source, replaced."""

    stream = "numbers"

    def read(self, data_source: str, params: Params, after: Any = None) -> Iterator[Batch]:
        yield [{"n": n + 1} for n in range(int(Path(data_source).read_text()))]


async def test_another_mode_makes_the_next_run_full(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    count.write_text("3")
    authors: list[type[Plain | Counter]] = [Replacing, Appending, Replacing]
    for author in authors:
        async with Site(backend.url, tmp_path, author=author) as site:
            assert (await site.run(count))["status"] == "uploaded"
        assert [row["n"] for row in backend.rows()] == [1, 2, 3]

    lost = state(tmp_path, "lost")
    async with Site(backend.url, tmp_path, author=Appending, runtime=lost) as site:
        await until(lambda: site.outbox.store.fact("generation"))
        assert (await site.run(count))["status"] == "uploaded"
    assert [row["n"] for row in backend.rows()] == [1, 2, 3]


def orders(folder: Path, name: str = "client.db", **more: Any) -> dict[str, Any]:
    """A query over a table of three orders."""
    path = folder / name
    if not path.exists():
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("CREATE TABLE orders (id INTEGER, at INTEGER)")
            db.executemany("INSERT INTO orders VALUES (?, ?)", [(1, 10), (2, 20), (3, 30)])
    query = {"url": f"sqlite:///{path}", "query": "SELECT id, at FROM orders", "watermark": "id"}
    return {"sources": {"orders": {**query, **more}}}


@pytest.mark.parametrize(
    ("more", "said"), [({"watermark": "at"}, "column id"), ({"name": "other.db"}, "other.db")]
)
async def test_another_column_or_database_of_the_watermark_is_refused_with_the_hint(
    backend: ReferenceBackend, tmp_path: Path, more: dict[str, str], said: str
) -> None:
    async with Site(backend.url, tmp_path, **orders(tmp_path)) as site:
        await site.run("sql:orders")
    async with Site(backend.url, tmp_path, **orders(tmp_path, **more)) as site:
        with pytest.raises(BadParamsError, match="full: true") as caught:
            await site.run("sql:orders")
        whole = await site.run("sql:orders", full=True)
        after = await site.run("sql:orders")

    assert said in caught.value.message
    assert (whole["status"], after["status"]) == ("uploaded", "unchanged")
    assert len(backend.rows()) == 3


async def test_a_changed_query_is_reported(backend: ReferenceBackend, tmp_path: Path) -> None:
    async with Site(backend.url, tmp_path, **orders(tmp_path)) as site:
        first = await site.run("sql:orders")
    spaced = {"query": "SELECT  id,\n at FROM orders ;"}
    async with Site(backend.url, tmp_path, **orders(tmp_path, **spaced)) as site:
        same = await site.run("sql:orders")
    other = {"query": "SELECT id, at FROM orders WHERE at > 0"}
    async with Site(backend.url, tmp_path, **orders(tmp_path, **other)) as site:
        changed = await site.run("sql:orders")

    assert "changed_queries" not in {**first, **same}
    assert changed["changed_queries"] == ["sql:orders"]


async def test_a_source_that_is_also_stored_under_other_params_is_reported(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        alone = await site.run(params={"day": 1})
        both = await site.run(params={"day": 2})

    assert "other_params" not in alone
    assert both["other_params"] == [{"source": "exports/a.csv", "params": {"day": 1}}]
    assert len(backend.rows()) == 4


# D: dead letters


def test_of_one_source_only_the_newest_dead_letter_keeps_its_bytes(outbox: Outbox) -> None:
    for name in ("u1", "u2", "u3"):
        seal(outbox, name)
    for name in ("u2", "u1", "u3"):
        outbox.die(name, {"reason": "422"})

    assert states(outbox) == {"u1": "overtaken", "u2": "overtaken", "u3": "dead"}
    assert not list(outbox.store.bodies("u1"))
    assert outbox.store.upload("u1").answer == {"reason": "422", "overtaken": True}
    seal(outbox, "u4")
    outbox.done("u4", "j")
    assert states(outbox)["u3"] == "overtaken"


def test_a_retried_dead_letter_keeps_its_number(outbox: Outbox) -> None:
    seq = seal(outbox, "u1")
    outbox.die("u1", {"reason": "422"})

    assert outbox.retry("u1")
    assert (outbox.store.upload("u1").state, outbox.store.upload("u1").source_seq) == (
        "sealed",
        seq,
    )


def test_a_purged_dead_letter_takes_its_mark_along_if_it_is_its_own(outbox: Outbox) -> None:
    seal(outbox, "u1")
    outbox.die("u1", {})
    outbox.purge("u1")
    gone = outbox.store.mark("K").upload_key
    seal(outbox, "u2")
    outbox.die("u2", {})
    seal(outbox, "u3")
    outbox.purge("u2")

    assert gone is None
    assert outbox.store.mark("K").upload_key == "key-u3"


async def test_an_appended_source_is_not_read_on_behind_a_dead_letter(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    refusing = [True]

    def refuse(request: web.Request) -> web.Response | None:
        refused = refusing and request.path.endswith("/complete")
        return web.json_response({"title": "no"}, status=422) if refused else None

    backend.fault = refuse
    count = tmp_path / "count"
    async with Site(backend.url, tmp_path, author=Counter) as site:
        for number in (3, 5, 9):
            count.write_text(str(number))
            result = await site.run(count)
            assert (result["status"], result["success"]) == ("rejected", False)
        uploads = len(site.outbox.store.uploads())
        refusing.clear()
        whole = await site.run(count, full=True)
        after = await site.run(count)

    assert uploads == 1
    assert whole["status"] == "uploaded"
    assert after["status"] == "unchanged"
    assert [row["n"] for row in backend.rows()] == list(range(1, 10))


@pytest.mark.parametrize("skip", [True, False])
async def test_a_refused_range_is_skipped_or_read_again(
    backend: ReferenceBackend, tmp_path: Path, skip: bool
) -> None:
    refusing = [True]

    def refuse(request: web.Request) -> web.Response | None:
        refused = refusing and request.path.endswith("/complete")
        return web.json_response({"title": "no"}, status=422) if refused else None

    count = tmp_path / "count"
    async with Site(backend.url, tmp_path, author=Counter) as site:
        count.write_text("2")
        await site.run(count)
        backend.fault = refuse
        count.write_text("5")
        await site.run(count)
        [dead] = site.outbox.store.uploads(["dead"])
        refusing.clear()
        given_up = (site.outbox.skip if skip else site.outbox.purge)(dead.upload_id)
        site.engine.sender.wake()
        count.write_text("7")
        await site.run(count)
        await until(lambda: site.outbox.store.totals().uploads == 0)

    assert given_up == 3
    assert [row["n"] for row in backend.rows()] == [1, 2, *([] if skip else [3, 4, 5]), 6, 7]


def test_only_a_refused_range_is_skipped(outbox: Outbox) -> None:
    seal(outbox, "u1")
    outbox.die("u1", {})

    with pytest.raises(ConfigError, match="no refused range"):
        outbox.skip("u1")


def test_a_range_that_no_longer_begins_where_the_source_is_is_not_sealed(outbox: Outbox) -> None:
    seal(outbox, "u1", "append", until=5)
    build(outbox, "u2", "append")

    with pytest.raises(SourceChangedError, match="moved"):
        outbox.seal(Sealing(upload_id="u2", upload_key="k", until=9))


# The file of the version before


async def test_an_outbox_of_the_first_version_goes_forward_and_is_sent(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    folder = tmp_path / "state" / "site"
    folder.mkdir(parents=True)
    with closing(sqlite3.connect(folder / "outbox.sqlite")) as file:
        file.executescript(OLD.read_text())
    outbox = Outbox(folder, SystemClock())
    marks = {key: outbox.store.mark(key) for key in "ABC"}
    uploads = {upload.upload_id: upload for upload in outbox.store.uploads()}
    outbox.close()
    a1, b1 = uploads["a1"].source_seq, uploads["b1"].source_seq
    assert a1 is not None
    assert b1 is not None
    backend.high = {"A": a1, "B": b1, "C": 0}
    backend.watermark = {"B": 5}
    backend.mode, backend.full = {"A": "replace", "B": "append"}, {"B": b1}
    async with Site(backend.url, tmp_path) as site:
        await until(lambda: site.outbox.store.totals().uploads == 0)
        ended = states(site.outbox)
        mark = site.outbox.store.mark("B")

    assert [marks[key].mode for key in "ABC"] == ["replace", "append", "replace"]
    assert (marks["B"].value, marks["C"].dead) == (9, "c1")
    assert ended == {"a1": "done", "a2": "done", "b1": "done", "b2": "done", "c1": "dead"}
    assert (mark.value, mark.owed) == (9, False)
    assert len(backend.rows()) == 2


def test_the_moved_answer_is_the_protocols() -> None:
    assert MOVED["type"].endswith(":installation-moved")
    assert Plain.mode == "replace"

"""What the sender does with each answer of a backend, over real HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
from aiohttp import web
from catalogzero.clock import SystemClock
from catalogzero.cloud.outbox.outbox import Opening
from catalogzero.cloud.sending.retry_timer import RetryTimer
from catalogzero.cloud.sending.sender import LOOKED_AT, Sender
from catalogzero.protocol.deciding import MAX_RESENT
from catalogzero.testing import ManualClock

from tests.cloud.processors import Counter
from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site, nudged, until

CSV = "n,name\n1,one\n2,two\n"


class Hasty(SystemClock):
    """A clock on which an hour passes in a second, so that waits between tries are short."""

    def monotonic(self) -> float:
        return 3_600 * super().monotonic()


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


def once(status: int, path: str, **headers: str) -> Callable[[web.Request], web.Response | None]:
    """A fault that answers the first request whose path ends so, with a problem type of ours."""
    left = [1]
    problem = {"type": "urn:catalogzero:problem:invalid-request", "title": "not now"}

    def fault(request: web.Request) -> web.Response | None:
        if not request.path.endswith(path) or not left:
            return None
        left.pop()
        return web.json_response(problem, status=status, headers=headers)

    return fault


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
@pytest.mark.parametrize("path", ["/chunks/0", "/complete"])
async def test_a_passing_fault_is_tried_again(
    backend: ReferenceBackend, tmp_path: Path, status: int, path: str
) -> None:
    backend.fault = once(status, path)
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        result = await site.run()

    assert result["status"] == "uploaded"
    assert [row["n"] for row in backend.rows()] == ["1", "2"]


@pytest.mark.parametrize("status", [401, 403, 405, 307])
async def test_a_refused_key_or_route_pauses_the_outbox_and_keeps_everything(
    backend: ReferenceBackend, tmp_path: Path, status: int
) -> None:
    backend.fault = lambda request: web.Response(status=status, headers={"Location": backend.url})
    async with Site(backend.url, tmp_path, upload_form="chunked") as site:
        site.write("a.csv", CSV)
        result = await site.run()
        await until(lambda: (site.status.get("outbox") or {}).get("paused"))

        assert result["status"] == "queued"
        assert str(status) in site.status["outbox"]["paused"]
        assert site.outbox.store.totals().uploads == 1
    assert backend.rows() == []


async def test_another_key_in_the_key_file_ends_the_pause(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("old-key\n")
    async with Site(backend.url, tmp_path, api_key_file=key) as site:
        site.write("a.csv", CSV)
        assert (await site.run())["status"] == "queued"
        key.write_text("test-key\n")
        await until(backend.rows)
        await until(lambda: site.status["outbox"]["paused"] is None)

    assert len(backend.rows()) == 2


@pytest.mark.parametrize("status", [400, 413, 422, 451])
async def test_a_refused_chunk_rejects_the_run_and_the_next_one_tries_again(
    backend: ReferenceBackend, tmp_path: Path, status: int
) -> None:
    backend.fault = once(status, "/chunks/0")
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        first = await site.run()
        if first["upload_ids"]:
            assert site.outbox.purge(first["upload_ids"][0]) == 2
        second = await site.run()

    assert (first["status"], first["success"]) == ("rejected", False)
    assert str(status) in first["error"]
    assert (second["status"], len(backend.rows())) == ("uploaded", 2)


async def test_a_chunk_damaged_on_the_way_is_sent_again_and_a_path_that_damages_all_ends(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    def damage(times: int) -> Callable[[web.Request], web.Response | None]:
        left = [times]

        def fault(request: web.Request) -> web.Response | None:
            if not request.path.endswith("/chunks/0") or not left[0]:
                return None
            left[0] -= 1
            kind = "urn:catalogzero:problem:digest-mismatch"
            return web.json_response({"type": kind}, status=400)

        return fault

    patient = {"upload_wait_s": 1e6}
    async with Site(backend.url, tmp_path, clock=Hasty(), runtime=patient) as site, nudged(site):
        site.write("a.csv", CSV)
        backend.fault = damage(2)
        once_damaged = await site.run()
        before = len(backend.bodies)
        backend.fault = damage(1000)
        always = await site.run(full=True)
        sent = [path for _, path, _ in backend.bodies[before:] if path.endswith("/chunks/0")]

    assert once_damaged["status"] == "uploaded"
    assert always["status"] == "rejected"
    assert len(sent) == 1 + MAX_RESENT


async def test_a_dead_letter_is_kept_with_its_answer_and_sent_again_on_retry(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    backend.fault = once(422, "/complete")
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        result = await site.run()
        [dead] = site.outbox.store.uploads(["dead"])
        assert (result["status"], dead.answer["status"]) == ("rejected", 422)
        assert site.outbox.retry(dead.upload_id)
        await until(backend.rows)

    assert len(backend.rows()) == 2


async def test_a_source_whose_last_upload_was_refused_is_rejected_until_it_is_sent_or_purged(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    backend.fault = lambda request: (
        web.Response(status=422, text="no column `id`\nsecond line")
        if request.path.endswith("/complete")
        else None
    )
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        site.write("b.csv", CSV)
        runs = [await site.run(site.data / "a.csv") for _ in range(2)]
        [dead] = site.outbox.store.uploads(["dead"])
        backend.fault = lambda request: None
        runs += [await site.run(), await site.run(site.data / "b.csv")]
        site.outbox.retry(dead.upload_id)
        site.engine.sender.wake()
        await until(lambda: len(backend.rows()) == 4)
        await until(lambda: site.outbox.store.upload(dead.upload_id).state == "done")
        runs.append(await site.run())

    statuses = [run["status"] for run in runs]
    assert statuses == ["rejected", "rejected", "rejected", "unchanged", "unchanged"]
    assert [run.get("success", True) for run in runs] == [False, False, False, True, True]
    assert "422 no column `id`" in runs[1]["error"]
    assert "second line" not in runs[1]["error"]
    assert (runs[2]["records"], runs[2]["skipped"]) == (2, 0)


async def test_an_append_behind_a_dead_letter_is_rejected_too(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    backend.fault = once(422, "/complete")
    async with Site(backend.url, tmp_path, author=Counter, runtime={"upload_wait_s": 0.2}) as site:
        runs = []
        for until_row in ("2", "3", "3"):
            source = site.write("count", until_row)
            runs.append((await site.run(source))["status"])
            await until(lambda: site.outbox.store.uploads(["dead"]))

    assert runs[1:] == ["rejected", "rejected"]


async def test_a_superseded_upload_never_says_uploaded(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    def overtake(request: web.Request) -> None:
        if request.path.endswith("/complete"):
            [upload] = site.outbox.store.open_uploads()
            backend.watermark[upload.source_key] = 7

    async with Site(backend.url, tmp_path, author=Counter) as site:
        source = site.write("count", "2")
        backend.fault = overtake
        result = await site.run(source)
        fact = site.outbox.store.fact("last_success_at")

    assert result["status"] == "superseded"
    assert "success" not in result
    assert fact is None
    assert backend.rows() == []


async def test_chunks_that_the_backend_lost_are_sent_again(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    def forget(request: web.Request) -> None:
        if request.path.endswith("/complete") and not lost:
            lost.append(True)
            for upload in backend.uploads.values():
                upload.chunks.clear()

    lost: list[bool] = []
    backend.fault = forget
    async with Site(backend.url, tmp_path, runtime={"chunk_bytes": 1024}) as site:
        site.write("a.csv", "n\n" + "\n".join(str(n) for n in range(500)))
        result = await site.run()

    assert result["status"] == "uploaded"
    assert [row["n"] for row in backend.rows()] == [str(n) for n in range(500)]


async def test_a_backend_that_takes_only_plain_bodies_gets_them(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    backend.codings = ("",)
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        assert (await site.run())["status"] == "uploaded"

    assert len(backend.rows()) == 2


@pytest.mark.parametrize("status", [400, 415])
async def test_a_backend_that_answers_zstd_with_an_error_page_gets_gzip_once(
    backend: ReferenceBackend, tmp_path: Path, status: int
) -> None:
    codings: list[str] = []

    def no_zstd(request: web.Request) -> web.Response | None:
        if not request.path.endswith("/chunks/0"):
            return None
        codings.append(request.headers.get("Content-Encoding", ""))
        page = "bad body\nat line 1" if codings[-1] == "zstd" or hopeless else ""
        return web.Response(text=page, status=status) if page else None

    hopeless: list[bool] = []
    backend.fault = no_zstd
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        first = await site.run()
        hopeless.append(True)
        second = await site.run(full=True)
        [dead] = site.outbox.store.uploads(["dead"])

    assert (first["status"], second["status"]) == ("uploaded", "rejected")
    assert codings[:2] == ["zstd", "gzip"]
    assert codings[2:] == (["gzip"] if status == 400 else ["gzip", ""])
    assert dead.answer["reason"] == f"{status} bad body"
    assert f"{status} bad body" in second["error"]


async def test_a_page_that_answers_200_to_everything_ends_no_upload(tmp_path: Path) -> None:
    async with ReferenceBackend() as backend:
        backend.fault = lambda request: web.Response(text="<html>sign in</html>")
        async with Site(backend.url, tmp_path, runtime={"upload_wait_s": 1.0}) as site:
            site.write("a.csv", CSV)
            result = await site.run()

            assert result["status"] == "queued"
            assert site.outbox.store.totals().uploads == 1


@pytest.mark.parametrize("kind", ["text/html", "text/plain", "application/pdf"])
async def test_a_page_that_answers_200_to_the_simple_form_pauses_and_loses_nothing(
    backend: ReferenceBackend, tmp_path: Path, kind: str
) -> None:
    page = partial(web.Response, text="<p>sign in</p>", content_type=kind)
    backend.fault = lambda request: page() if request.method == "POST" else None
    async with Site(backend.url, tmp_path, upload_form="simple") as site:
        site.write("a.csv", CSV)
        result = await site.run()
        paused = site.outbox.store.fact("paused")
        backend.fault = lambda request: None
        site.engine.sender.try_now()
        site.engine.sender.wake()
        await until(lambda: backend.simple)

    assert result["status"] == "queued"
    assert "200 <p>sign in</p>" in paused["reason"]
    assert len(next(iter(backend.simple.values()))) == 2


async def test_health_and_registration_take_a_page_for_no_success_and_try_again(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    seen: list[str] = []

    def page(request: web.Request) -> web.Response | None:
        seen.append(request.path)
        first = seen.count(request.path) == 1
        return web.Response(text="<html/>", content_type="text/html") if first else None

    backend.fault = page
    async with Site(backend.url, tmp_path) as site:
        answer = await site.engine.report_health({}, {})
        await until(lambda: backend.reports and backend.installations)

    assert answer["sent"] is False
    assert seen.count("/v1/health") == 2
    assert seen.count("/v1/installations/site") == 3  # the first start is two requests


async def test_auto_takes_the_simple_form_where_there_is_no_other(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    backend.chunked = False
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        result = await site.run()

    assert (result["status"], result["cloud_job_id"]) == ("uploaded", "simple-1")
    assert list(backend.simple.values()) == [[{"n": "1", "name": "one"}, {"n": "2", "name": "two"}]]


async def test_the_simple_form_refuses_a_result_of_several_chunks_with_the_fix(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(
        backend.url, tmp_path, upload_form="simple", runtime={"chunk_bytes": 1024}
    ) as site:
        site.write("a.csv", "n\n" + "\n".join(str(n) for n in range(500)))
        result = await site.run()

    assert result["status"] == "rejected"
    assert "chunk_bytes" in result["error"]
    assert backend.simple == {}


async def test_what_a_killed_run_left_is_abandoned_and_what_was_sealed_is_sent(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path, runtime={"upload_wait_s": 0}) as site:
        await backend.__aexit__()
        site.write("a.csv", CSV)
        await site.run()
        site.outbox.begin(Opening("torn", "key", "exports/b.csv", "replace", full=False, params={}))
    async with backend, Site(backend.url, tmp_path) as site:
        await until(backend.rows)
        assert site.outbox.store.upload("torn").state == "abandoned"

    assert len(backend.rows()) == 2


async def test_a_superseded_upload_whose_source_is_unchanged_is_sealed_again_above(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    def jump(request: web.Request) -> None:
        if request.path.endswith("/complete") and not jumped:
            jumped.append(True)
            key = site.outbox.store.open_uploads()[0].source_key
            backend.high[key] = 1 << 50

    jumped: list[bool] = []
    async with Site(backend.url, tmp_path) as site:
        backend.fault = jump
        site.write("a.csv", CSV)
        result = await site.run()

    assert result["status"] == "uploaded"
    assert len(backend.rows()) == 2
    assert max(backend.high.values()) == (1 << 50) + 1


async def test_a_lost_state_folder_repeats_nothing(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    for number in range(2):
        runtime = {"state_dir": tmp_path / f"state-{number}"}
        async with Site(backend.url, tmp_path, runtime=runtime) as site:
            site.write("a.csv", CSV)
            assert (await site.run())["status"] == "uploaded"

    assert len(backend.rows()) == 2


async def test_old_content_that_comes_back_replaces_the_newer(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path) as site:
        for text in ("n\n1\n", "n\n2\n2\n", "n\n1\n"):
            site.write("a.csv", text)
            await site.run()

    assert [row["n"] for row in backend.rows()] == ["1"]


async def test_unacknowledged_requests_are_repeated_until_answered(tmp_path: Path) -> None:
    async with ReferenceBackend() as backend:
        cut: list[str] = []

        def hang_up(request: web.Request) -> None:
            if request.path not in cut:
                cut.append(request.path)
                assert request.transport is not None
                request.transport.abort()

        backend.fault = hang_up
        async with Site(backend.url, tmp_path) as site:
            site.write("a.csv", CSV)
            assert (await site.run())["status"] == "uploaded"

    assert len(backend.rows()) == 2


def test_requests_that_fail_at_once_put_the_next_try_off_as_one() -> None:
    backoff = RetryTimer()

    for _ in range(8):
        backoff.failed(100.0)
    assert backoff.attempts == 1
    assert 100.0 <= backoff.not_before <= 101.0
    backoff.failed(backoff.not_before)
    assert backoff.attempts == 2
    backoff.failed(100.0, retry_after_s=60.0)
    assert backoff.not_before >= 160.0


async def test_many_uploads_that_wait_for_their_next_try_hold_up_no_later_one(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    failing: set[str] = set()

    def fault(request: web.Request) -> web.Response | None:
        upload_id = request.path.split("/uploads/")[-1].split("/")[0]
        if request.method == "GET" or request.path.endswith("/installations/site"):
            return None
        if len(failing) <= LOOKED_AT:
            failing.add(upload_id)
        if upload_id in failing:
            return web.Response(status=500)
        return None

    backend.fault = fault
    async with Site(
        backend.url, tmp_path, runtime={"upload_wait_s": 0}, upload_form="chunked"
    ) as site:
        for number in range(LOOKED_AT + 1):
            site.write(f"early/{number}.csv", CSV)
        await site.run()
        await until(lambda: len(failing) > LOOKED_AT)
        await site.run(site.write("late.csv", CSV))
        await until(backend.rows)

    assert len(backend.rows()) == 2


def test_when_the_next_try_is_may_be_asked_while_uploads_come() -> None:
    class Moved(RetryTimer):
        """What the loop's thread does between two looks of another one."""

        @property
        def not_before(self) -> float:
            """Another upload comes just now."""
            each[f"upload-{len(each)}"] = RetryTimer(not_before=9.0)
            return 5.0

        @not_before.setter
        def not_before(self, value: float) -> None:
            """As a timer's."""

    each: dict[str, RetryTimer] = {}
    each["first"] = Moved()
    clock = ManualClock()
    known = {"each": each, "all": RetryTimer(), "_clock": clock, "_waiting_work": True}
    sender = Sender.__new__(Sender)
    vars(sender).update(known)

    assert sender.next_due_s() == max(5.0 - clock.monotonic(), 0.0)

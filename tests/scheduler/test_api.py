"""A client written for ScheduleZero's HTTP API works on ours, and what ours adds works too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import structlog
from catalogzero.scheduler.api import Api
from catalogzero.scheduler.server import SchedulerServer
from catalogzero.web import listening
from sqlalchemy import text

from tests.scheduler.simulation import make_schedule
from tests.scheduler.toys import Toy, ended, executions, toy, until

EVERY_HOUR = {"type": "interval", "hours": 1}


def schedule(**fields: Any) -> dict[str, Any]:
    """A request in ScheduleZero's own spelling."""
    return {
        "handler_id": "toy",
        "job_method": "quick",
        "job_params": {},
        "trigger": EVERY_HOUR,
        **fields,
    }


async def test_a_schedule_fires_at_its_creation_and_is_recorded(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api):
        created = await api.post("/api/schedule", json=schedule(job_params={"x": 7}, job_id="one"))
        (record,) = await until(lambda: ended(api, job_id="one"))

    told = {"status": "success", "job_id": "one", "schedule_id": "one"}
    assert (created.status_code, created.json()) == (201, told)
    assert record["status"] == "success"
    assert record["result"]["x"] == 7
    assert record["result"]["summary"]["total"] == 1
    assert (record["handler_id"], record["method_name"]) == ("toy", "quick")
    assert (record["attempt_number"], record["max_attempts"]) == (1, 3)
    assert record["params_summary"] == "x=7"
    assert record["duration_ms"] >= 0
    assert record["late"] is False


async def test_the_documents_spelling_of_the_fields_is_taken_too(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api):
        body = {"handler_id": "toy", "method_name": "quick", "trigger_config": EVERY_HOUR}
        created = await api.post("/api/schedule", json={**body, "params": {"x": 3}})
        (record,) = await until(lambda: ended(api))

    assert created.status_code == 201
    assert created.json()["job_id"].startswith("toy_quick_")
    assert record["result"]["x"] == 3


def nested(depth: int) -> list[Any]:
    """A list in a list in a list."""
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("schedule", {}, 400, "JSON body required."),
        ("schedule", {"handler_id": "toy"}, 400, "Missing required field: 'trigger'"),
        (
            "schedule",
            {"trigger": EVERY_HOUR},
            400,
            "Missing required fields: ['handler_id', 'job_method']",
        ),
        (
            "schedule",
            schedule(job_params=[1]),
            400,
            "'job_params' must be a dictionary/object.",
        ),
        (
            "schedule",
            schedule(trigger={"type": "weekly"}),
            400,
            "Invalid trigger configuration: Unsupported trigger type: 'weekly'. "
            "Use 'date', 'interval', or 'cron'.",
        ),
        ("schedule", schedule(handler_id="x"), 404, "Handler 'x' not registered."),
        (
            "schedule",
            schedule(job_method="_secret"),
            400,
            "Method '_secret' not exposed by handler 'toy'.",
        ),
        ("schedule", schedule(overlap="maybe"), 400, "'overlap' must be one of"),
        ("schedule", schedule(jitter_s=3600), 400, "'jitter_s' must be shorter"),
        ("schedule", schedule(max_attempts=0), 400, "'max_attempts' must be a number"),
        ("schedule", schedule(max_runs=1.5), 400, "'max_runs' must be a whole number"),
        ("schedule", schedule(timeout_s=True), 400, "'timeout_s' must be a number"),
        ("schedule", schedule(end_time="2001-01-01"), 400, "it ends before it fires"),
        ("schedule", schedule(job_params={"x": nested(400)}), 400, "nested too deeply"),
        ("schedule", schedule(trigger={"type": nested(400)}), 400, "nested too deeply"),
        ("run_now", schedule(wait="no"), 400, "'wait' must be true or false"),
        ("run_now", schedule(handler_id="x"), 404, "Handler 'x' not registered."),
        (
            "run_now",
            schedule(job_method="fail"),
            500,
            "Handler returned error: ValueError: no such",
        ),
    ],
)
async def test_a_wrong_request_is_refused_as_schedulezero_does(
    scheduler: SchedulerServer,
    api: httpx.AsyncClient,
    path: str,
    body: dict[str, Any],
    status: int,
    message: str,
) -> None:
    async with toy(scheduler.zmq_address, api):
        answer = await api.post(f"/api/{path}", json=body)

    assert answer.status_code == status
    assert answer.json()["error"]["code"] == status
    assert message in answer.json()["error"]["message"]


async def test_a_job_id_is_taken_once(scheduler: SchedulerServer, api: httpx.AsyncClient) -> None:
    async with toy(scheduler.zmq_address, api):
        body = schedule(job_id="one", timeout_s=30, job_params={"x": 1})
        await api.post("/api/schedule", json=body)
        await until(lambda: ended(api, job_id="one"))
        before = (await api.get("/api/schedules")).json()
        again = await api.post("/api/schedule", json=body)
        others = [
            await api.post("/api/schedule", json={**body, **other})
            for other in (
                {"job_params": {"x": 2}},
                {"trigger": {"type": "interval", "hours": 2}},
                {"timeout_s": 31},
                {"job_method": "fail", "job_params": {}},
            )
        ]
        after = (await api.get("/api/schedules")).json()

    assert again.status_code == 201
    assert again.json() == {"status": "success", "job_id": "one", "schedule_id": "one"}
    assert [other.status_code for other in others] == [409] * 4
    assert others[0].json()["error"]["message"] == "Job ID 'one' already exists."
    assert [one["next_fire_time"] for one in after["schedules"]] == [
        one["next_fire_time"] for one in before["schedules"]
    ]


@pytest.mark.parametrize(
    ("query", "change", "message"),
    [
        ({}, {"job_id": "other"}, "'job_id' must be that of the path: 'one'."),
        ({"dry_run": "maybe"}, {}, "dry_run must be true or false"),
        ({}, {"paused": "yes"}, "'paused' must be true or false."),
        ({}, {"job_method": "dig"}, "Method 'dig' not exposed"),
        ({}, {"trigger": {"type": "cron", "hour": 25}}, "Invalid trigger configuration"),
        ({}, {"max_runs": 1}, "'max_runs' must be more than the 1 runs there were"),
    ],
)
async def test_a_schedule_is_not_changed_to_what_cannot_be(
    scheduler: SchedulerServer,
    api: httpx.AsyncClient,
    query: dict[str, str],
    change: dict[str, Any],
    message: str,
) -> None:
    async with toy(scheduler.zmq_address, api):
        await api.post("/api/schedule", json=schedule(job_id="one"))
        await until(lambda: ended(api, job_id="one"))
        before = (await api.get("/api/schedules")).json()
        answer = await api.put("/api/schedules/one", params=query, json=schedule(**change))
        after = (await api.get("/api/schedules")).json()

    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert after == before


async def test_schedules_are_listed_and_removed(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api):
        await api.post("/api/schedule", json=schedule(job_id="a/b", job_params={"x": 1}))
        listed = (await api.get("/api/schedules")).json()
        removed = await api.delete("/api/schedules/a%2Fb")
        again = await api.delete("/api/schedules/a%2Fb")
        left = (await api.get("/api/schedules")).json()

    (one,) = listed["schedules"]
    assert listed["count"] == 1
    assert one["id"] == "a/b"
    assert one["args"] == ["toy", "quick", {"x": 1}, "a/b"]
    assert one["trigger"] == "interval[1:00:00]"
    assert one["next_fire_time"].endswith("+00:00")
    assert removed.json() == {
        "status": "success",
        "message": "Schedule 'a/b' removed",
        "schedule_id": "a/b",
    }
    assert again.status_code == 404
    assert left == {"schedules": [], "count": 0}


async def test_a_few_schedules_are_listed_with_their_last_execution(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api):
        for job_id, method in (("a_1", "quick"), ("ab1", "fail"), ("c", "quick")):
            await api.post("/api/schedule", json=schedule(job_id=job_id, job_method=method))
            await until(lambda job_id=job_id: ended(api, job_id=job_id))  # type: ignore[misc]
        few = (await api.get("/api/schedules", params={"limit": 2})).json()
        found = (await api.get("/api/schedules", params={"limit": 5, "search": "A_"})).json()
        failing = (await api.get("/api/schedules", params={"limit": 5, "search": "fail"})).json()
        wrong = await api.get("/api/schedules", params={"limit": 0})

    assert ([one["id"] for one in few["schedules"]], few["count"]) == (["a_1", "ab1"], 3)
    assert [one["last_execution"]["status"] for one in few["schedules"]] == ["success", "error"]
    assert ([one["id"] for one in found["schedules"]], found["count"]) == (["a_1"], 1)
    assert [one["id"] for one in failing["schedules"]] == ["ab1"]
    assert wrong.status_code == 400


@pytest.fixture
async def listing_in_threes(scheduler: SchedulerServer) -> AsyncIterator[httpx.AsyncClient]:
    """A client of another API of the same scheduler, which reads three schedules at once."""
    async with httpx.AsyncClient(base_url=scheduler.url) as client:
        config = (await client.get("/api/config")).json()
    served = Api(scheduler.runner, structlog.get_logger(), config, part=3).application()
    async with (
        listening(served, "127.0.0.1", 0) as url,
        httpx.AsyncClient(base_url=url, timeout=20) as client,
    ):
        yield client


async def test_schedules_are_listed_in_pages_and_whole(
    scheduler: SchedulerServer, listing_in_threes: httpx.AsyncClient
) -> None:
    api = listing_in_threes
    nightly = {"type": "cron", "hour": 2}
    empty = (await api.get("/api/schedules")).json()
    for number in range(10):
        one = make_schedule(nightly, job_id=f"n{number}.x")
        await scheduler.runner.write(scheduler.runner.store.add_schedule, one, paused=number > 6)
    head = await api.head("/api/schedules")
    whole = (await api.get("/api/schedules")).json()
    found = (await api.get("/api/schedules", params={"search": "n7"})).json()
    pages: list[list[str]] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await api.get("/api/schedules", params={"limit": 4, **cursor})).json()
        pages.append([one["id"] for one in page["schedules"]])
        if page["cursor"] is None:
            break
        cursor = {"cursor": page["cursor"]}
    wrong = [
        (await api.get("/api/schedules", params={"cursor": text})).status_code
        for text in ("", "x", "0.x.n", "2.1.n", "0.-1.n")
    ]

    ids = [f"n{number}.x" for number in range(10)]
    assert (head.status_code, head.content) == (200, b"")
    assert empty == {"schedules": [], "count": 0}
    assert [one["id"] for one in whole["schedules"]] == ids
    assert whole["count"] == page["count"] == 10
    assert [one["id"] for one in found["schedules"]] == ["n7.x"]
    assert pages == [ids[:4], ids[4:8], ids[8:]]
    assert wrong == [400] * 5


async def test_run_now_answers_with_the_result(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api):
        answer = await api.post("/api/run_now", json=schedule(job_params={"x": 2}))

    assert answer.status_code == 200
    assert answer.json()["status"] == "success"
    assert answer.json()["result"]["x"] == 2
    assert answer.json()["message"] == "Job executed on handler 'toy'"


async def test_a_native_handler_s_ping_and_metrics_can_be_run(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api):
        ping = await api.post("/api/run_now", json=schedule(job_method="ping"))
        metrics = await api.post("/api/run_now", json=schedule(job_method="get_metrics"))

    assert ping.json()["result"]["message"] == "pong"
    assert metrics.json()["result"]["handler_id"] == "toy"


async def test_run_now_without_waiting_reports_the_execution(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api) as served:
        handler = served.handler
        assert isinstance(handler, Toy)
        body = schedule(job_method="long", wait=False)
        accepted = await api.post("/api/run_now", json=body)
        place = f"/api/executions/{accepted.json()['execution_id']}"
        running = (await api.get(place)).json()
        handler.going.set()
        record = await until(lambda: _final(api, place)) or {}

    assert accepted.status_code == 202
    assert running["status"] == "running"
    assert (record["status"], record["result"]) == (
        "success",
        {"success": True, "done": True},
    )


async def test_an_idempotency_key_runs_once(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api) as served:
        key = {"Idempotency-Key": "order-7"}
        answers = await asyncio.gather(
            *(api.post("/api/run_now", json=schedule(), headers=key) for _ in range(5))
        )
        other = await api.post("/api/run_now", json=schedule(job_params={"x": 9}), headers=key)

        assert isinstance(served.handler, Toy)
        assert served.handler.starts == 1
    assert {answer.json()["execution_id"] for answer in answers} == {
        answers[0].json()["execution_id"]
    }
    assert other.status_code == 409


async def test_filters_of_executions_combine_and_pages_follow_the_cursor(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api):
        for x in range(5):
            await api.post("/api/run_now", json=schedule(job_params={"x": x}))
        await api.post("/api/run_now", json=schedule(job_method="fail"))
        good = await executions(api, handler_id="toy", status="success", method_name="quick")
        bad = (await api.get("/api/executions/errors")).json()
        seen: list[int] = []
        cursor: dict[str, str] = {}
        while True:
            page = (
                await api.get(
                    "/api/executions", params={"limit": 2, "method_name": "quick", **cursor}
                )
            ).json()
            seen += [record["result"]["x"] for record in page["records"]]
            if page["cursor"] is None:
                break
            cursor = {"cursor": page["cursor"]}
        capped = (await api.get("/api/executions", params={"limit": 5_000})).json()
        wrong = await api.get("/api/executions", params={"limit": "many"})

    assert [record["result"]["x"] for record in good] == [4, 3, 2, 1, 0]
    assert seen == [4, 3, 2, 1, 0]
    assert (bad["count"], bad["errors"][0]["error"]) == (
        1,
        "Handler returned error: ValueError: no such table",
    )
    assert capped["limit"] == 1_000
    assert wrong.status_code == 400


async def test_what_runs_came_to_is_said_counted_and_found(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    nightly = {"type": "cron", "hour": 2, "timezone": "Europe/Berlin"}
    async with toy(scheduler.zmq_address, api):
        for job_id, method, params in (
            ("fails", "fail", {}),
            ("sent", "sends", {"status": "uploaded"}),
            ("unsent", "sends", {"status": "queued"}),
        ):
            body = schedule(job_method=method, job_params=params, job_id=job_id, trigger=nightly)
            await api.post("/api/schedule", json=body)
            await api.post("/api/run_now", json={**body, "wait": True})
        bare = schedule(job_method="sends", job_params={"status": "failed"})
        await api.post("/api/run_now", json=bare)
        overview = (await api.get("/api/overview")).json()
        waiting = (await api.get("/api/overview", params={"show": "waiting"})).json()
        shown = {
            show: [one["job_id"] for one in await executions(api, show=show)]
            for show in ("failed", "waiting", "by_hand")
        }
        both = await executions(api, show="by_hand", job_id="sent")
        unknown = await api.get("/api/executions", params={"show": "nonsense"})
        stranger = await api.post("/api/run_now", json={**bare, "job_id": "nobody"})
        await api.post("/api/run_now", json={**bare, "job_id": 7})
        (one,) = both
        detail = (await api.get(f"/api/executions/{one['execution_id']}")).json()
        handler = (await api.get(f"/api/executions/{one['execution_id']}/handler")).json()

    counts = {"all": 3, "failing": 1, "waiting": 1, "paused": 0}
    assert (overview["counts"], waiting["counts"]) == (counts, counts)
    assert [(one["id"], one["standing"]) for one in overview["schedules"]] == [
        *(("fails", "failing"), ("unsent", "waiting"), ("sent", "well"))
    ]
    assert [one["id"] for one in waiting["schedules"]] == ["unsent"]
    assert [mark["state"] for mark in waiting["schedules"][0]["recent"]] == ["waiting"]
    assert overview["schedules"][0]["trigger_words"] == "every day at 02:00 Europe/Berlin"
    assert overview["next_fire_time"] == overview["schedules"][0]["next_fire_time"]
    assert len(shown["by_hand"]) == 4
    assert (shown["failed"][1:], shown["waiting"]) == (["fails"], ["unsent"])
    assert one["outcome"] == {"state": "uploaded", "words": "uploaded 3 rows", "rows": 3}
    assert (unknown.status_code, stranger.status_code) == (400, 200)
    assert (detail["params"], detail["schedule"]["id"]) == ({"status": "uploaded"}, "sent")
    assert [mark["execution_id"] for mark in detail["neighbours"]] == [one["execution_id"]]
    assert (handler["known"], handler["traceback"]) == (True, None)


async def test_the_handler_is_asked_for_the_traceback_of_a_run(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api):
        await api.post("/api/run_now", json=schedule(job_method="fail"))
        ((failed,), path) = (await executions(api)), "/api/executions/{}/handler"
        known = (await api.get(path.format(failed["execution_id"]))).json()
    async with toy(scheduler.zmq_address, api):  # another process of it: it never had that run
        forgotten = (await api.get(path.format(failed["execution_id"]))).json()
    await until(lambda: away(api))
    gone = (await api.get(path.format(failed["execution_id"]))).json()
    nobody = await api.get(path.format("nobody"))

    assert 'raise ValueError("no such table")' in known["traceback"]
    assert known["run_id"]
    assert (forgotten["known"], forgotten["traceback"]) == (False, None)
    assert "no longer knows this run" in forgotten["reason"]
    assert gone["reason"].startswith("the handler does not answer")
    assert nobody.status_code == 404


async def away(api: httpx.AsyncClient) -> bool:
    """Whether the only handler is known to be away."""
    (one,) = (await api.get("/api/handlers")).json()["handlers"]
    return bool(one["status"] == "Disconnected")


@pytest.mark.parametrize("name", ["%00", "%ED%A0%80", "nobody"])
async def test_a_name_that_cannot_be_stored_is_known_to_nobody(
    scheduler: SchedulerServer, api: httpx.AsyncClient, name: str
) -> None:
    answers = [
        await api.get(f"/api/executions/{name}"),
        await api.get(f"/api/schedules/{name}/next"),
        await api.delete(f"/api/schedules/{name}"),
        await api.get(f"/api/executions?job_id={name}"),
    ]

    assert [answer.status_code in (400, 404) for answer in answers[:3]] == [True] * 3
    assert answers[3].json().get("records", []) == []


async def test_handlers_are_really_asked(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api):
        there = (await api.get("/api/handlers")).json()["handlers"]

    async def gone() -> bool:
        listed = (await api.get("/api/handlers")).json()["handlers"]
        return [(one["id"], one["status"]) for one in listed] == [("toy", "Disconnected")]

    assert [(one["id"], one["status"]) for one in there] == [("toy", "Connected")]
    methods = ["fail", "flaky", "get_metrics", "long", "missing", "never", "ping", "quick", "sends"]
    assert there[0]["methods"] == ["echo", *methods]
    await until(gone)


async def test_stats_health_and_config_answer(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api):
        await api.post("/api/run_now", json=schedule())
        await api.post("/api/run_now", json=schedule(job_method="fail"))
        stats = (await api.get("/api/executions/stats")).json()
    health = (await api.get("/api/health")).json()
    config = (await api.get("/api/config")).json()

    assert (stats["total_executions"], stats["success_count"], stats["error_count"]) == (2, 1, 1)
    assert stats["success_rate"] == 50.0
    assert stats["by_handler"] == {"toy": {"total": 2, "success": 1, "error": 1}}
    assert stats["buffer_size"] == 100_000
    assert stats["buffer_utilization"] == pytest.approx(0.002)
    assert {"instance_name", "description", "admin_contact", "version"} <= config.keys()
    assert (health["status"], health["service"]) == ("ok", "ScheduleZero")
    assert health["implementation"] == "catalogzero"
    assert health["clock_step"] is None
    assert config["zmq_address"] == scheduler.zmq_address


async def test_a_schedule_that_stands_still_says_why_and_can_be_paused_and_deleted(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    nightly = {"type": "cron", "hour": 2, "timezone": "Europe/Berlin"}
    async with toy(scheduler.zmq_address, api):
        for job_id in ("gone", "zoned"):
            await api.post("/api/schedule", json=schedule(job_id=job_id, trigger=nightly))
        for change in (
            "trigger_config = replace(trigger_config, 'Berlin', 'Atlantis') WHERE job_id = 'gone'",
            "due_us = 0",
        ):
            with scheduler.runner.store.writing() as c:
                c.execute(text(f"UPDATE scheduler_schedules SET {change}"))  # noqa: S608 - a constant
        scheduler.runner.wake()
        await until(lambda: ended(api, job_id="zoned"))
        listed = (await api.get("/api/schedules")).json()["schedules"]
        refused = [await api.get("/api/schedules/gone/next")]
        refused.append(await api.post("/api/schedules/gone/run"))
        paused = await api.post("/api/schedules/gone/pause")
        resumed = await api.post("/api/schedules/gone/resume")
        removed = await api.delete("/api/schedules/gone")
        left = (await api.get("/api/schedules")).json()["schedules"]

    shown = {one["id"]: one for one in listed}
    assert shown["zoned"]["error"] is None
    assert shown["gone"]["error"] == "no time zone is called 'Europe/Atlantis'"
    assert shown["gone"]["next_fire_time"] is None
    assert [answer.status_code for answer in (*refused, paused, resumed, removed)] == [
        *(409, 409),
        *(200, 200, 200),
    ]
    assert "stands still: no time zone" in refused[0].json()["error"]["message"]
    assert [one["id"] for one in left] == ["zoned"]


async def test_a_paused_schedule_waits_until_it_is_resumed(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api):
        body = schedule(job_id="p", trigger={"type": "interval", "seconds": 0.2})
        await api.post("/api/schedule", json=body)
        await until(lambda: ended(api, job_id="p"))
        await api.post("/api/schedules/p/pause")
        paused = (await api.get("/api/schedules")).json()["schedules"][0]
        before = len(await executions(api, job_id="p"))
        await api.post("/api/schedules/p/resume")
        more = await until(lambda: _more_than(api, before))
        unknown = await api.post("/api/schedules/q/pause")

    assert (paused["paused"], paused["next_fire_time"]) == (True, None)
    assert more
    assert unknown.status_code == 404


async def test_the_next_fire_times_are_reported_in_utc_and_in_the_zone(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with toy(scheduler.zmq_address, api):
        trigger = {"type": "cron", "hour": 2, "timezone": "Asia/Kolkata", "day": 1}
        await api.post("/api/schedule", json=schedule(job_id="n", trigger=trigger))
        told = (await api.get("/api/schedules/n/next", params={"count": 3})).json()

    assert told["timezone"] == "Asia/Kolkata"
    assert [moment[8:] for moment in told["local"]] == ["01T02:00:00+05:30"] * 3
    assert [moment[10:] for moment in told["next"]] == ["T20:30:00+00:00"] * 3


async def test_requests_from_other_origins_and_hosts_are_refused(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    body = schedule()

    rebound = await api.get("/api/schedules", headers={"Host": "evil.example"})
    foreign = await api.post("/api/schedule", json=body, headers={"Origin": "https://evil.example"})
    form = await api.post("/api/schedule", content=b"{}", headers={"Content-Type": "text/plain"})

    assert (rebound.status_code, foreign.status_code, form.status_code) == (403, 403, 400)
    assert "access-control-allow-origin" not in form.headers


async def _final(api: httpx.AsyncClient, place: str) -> dict[str, Any] | None:
    record: dict[str, Any] = (await api.get(place)).json()
    return record if record["completed_at"] else None


async def _more_than(api: httpx.AsyncClient, count: int) -> bool:
    return len(await ended(api, job_id="p")) > count

"""What happens on the way to the backend: where it shows, and what the printed hint does."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import web

from tests.cloud.reference import ReferenceBackend
from tests.incidents.front import Answer, Front, page, unchanged
from tests.incidents.plant import KEY, Plant, Row, until

ROWS: list[Row] = [{"n": n, "name": f"row {n}"} for n in range(1, 4)]
MORE: list[Row] = [{"n": n, "name": f"row {n}"} for n in range(4, 6)]


@pytest.fixture
async def front(backend: ReferenceBackend) -> AsyncIterator[Front]:
    async with Front(backend) as listener:
        yield listener


@pytest.fixture
async def plant(front: Front, tmp_path: Path) -> AsyncIterator[Plant]:
    async with Plant(tmp_path, front.url) as machine:
        yield machine


async def queue(plant: Plant, figure: str, rows: list[Row] = ROWS, name: str = "a.csv") -> None:
    """Export rows, and have them read: they wait; then wait until a `figure` of the outbox says so.

    The run is no success that uploaded anything.
    """
    plant.write(name, rows)
    result = await plant.run()
    assert result["status"] == "queued"

    async def is_said() -> bool:
        return bool(((await plant.metrics()).get("outbox") or {}).get(figure))

    await until(is_said, lambda: f"the outbox has {figure}: {plant.log()}")


async def test_a_machine_that_is_well_shows_no_trouble_anywhere(
    plant: Plant, backend: ReferenceBackend
) -> None:
    plant.write("a.csv", ROWS)
    await plant.start()
    await plant.run()
    await plant.delivered(backend)
    seen, report = await plant.look(), await plant.health(backend)
    async with plant.conductor() as conductor:
        row = await conductor.site()

    assert seen.troubles == []
    assert {one["status"] for one in seen.findings.values()} <= {"pass", "warn"}
    assert (seen.health, report["status"], report["reasons"]) == ("ok", "ok", [])
    assert row["troubles"] == []
    assert await plant.stop() == 0
    assert {line["level"] for line in plant.log()} == {"info"}


class Pause(NamedTuple):
    """A way to be refused for good, and how it shows."""

    code: str
    """The code of the pause."""
    reason: str
    """A part of its reason."""
    finding: str
    """The check that names it."""
    fix: str
    """A part of its fix."""


async def shows_pause(plant: Plant, pause: Pause) -> None:
    """Sending is paused: log, metrics, status, check and the outbox's list say why."""
    line = await plant.logged("sending is paused", level="error")
    seen = await plant.look()
    finding, outbox = seen.findings[pause.finding], seen.outbox
    [trouble] = seen.troubles

    assert pause.reason in line["reason"]
    assert line["next_try_at"]
    assert (outbox["paused_code"], outbox["uploads"]) == (pause.code, 1)
    assert (outbox["paused"], outbox["paused_since"]) == (line["reason"], line["since"])
    assert seen.health == "failing"
    assert pause.reason in trouble["what"]
    assert finding["status"] == "fail"
    assert pause.fix in finding["fix"]
    assert pause.reason in seen.listed
    assert trouble["next"].startswith("catalogzero check site")  # which names the fix


async def test_a_wrong_key_pauses_and_the_right_file_is_taken_by_itself(
    plant: Plant, backend: ReferenceBackend
) -> None:
    plant.set_key("a-wrong-key-77f1")
    await plant.start()
    await queue(plant, "paused")
    await shows_pause(plant, Pause("http_401", "401", "api key", "api_key_file"))
    async with plant.conductor() as conductor:
        [trouble] = (await conductor.site())["troubles"]
    assert (trouble["cause"], trouble["command"]) == ("paused", "catalogzero check site")
    assert "401" in trouble["why"]
    plant.set_key(KEY)
    await plant.delivered(backend)
    await plant.logged("sending goes on", level="info")
    seen, report = await plant.look(), await plant.health(backend)

    assert seen.troubles == []
    assert (seen.health, report["status"]) == ("ok", "ok")


async def test_a_key_that_is_revoked_and_replaced_needs_no_restart(
    plant: Plant, backend: ReferenceBackend
) -> None:
    await plant.start()
    plant.write("a.csv", ROWS)
    await plant.run()
    await plant.delivered(backend)
    backend.key = "the-next-key-0b2e"
    await queue(plant, "paused", MORE, "b.csv")
    [trouble] = (await plant.look()).troubles
    plant.set_key(backend.key)
    await plant.delivered(backend)

    assert "401" in trouble["what"]
    assert plant.handler.poll() is None
    assert len(plant.log("sending is paused")) == 1


async def test_a_redirect_is_named_with_the_address_to_write(
    plant: Plant, front: Front, backend: ReferenceBackend
) -> None:
    def moved(request: web.Request) -> web.Response:
        there = backend.url.removesuffix("/v1") + request.path_qs
        return web.Response(status=308, headers={"Location": there})

    front.answer = moved
    await plant.start()
    await queue(plant, "paused")
    await shows_pause(plant, Pause("http_308", f"308 to {backend.url}", "backend", "`endpoint`"))
    found = (await plant.finding("backend"))["found"]
    [address] = re.findall(r" to (\S+/v1)", found)
    plant.section["config"]["endpoint"] = address
    plant.write_registry()
    await plant.restart()
    await plant.delivered(backend)


async def test_a_wrong_path_is_named_until_the_endpoint_is_right(
    plant: Plant, front: Front, backend: ReferenceBackend
) -> None:
    right = plant.section["config"]["endpoint"]
    plant.section["config"]["endpoint"] = f"{right}/process"
    plant.write_registry()
    front.answer = lambda request: (
        page(404, "Not Found") if request.path.startswith("/v1/process") else None
    )
    await plant.start()
    await queue(plant, "paused")
    await shows_pause(plant, Pause("http_404", "404", "backend", "the path of `endpoint`"))
    plant.section["config"]["endpoint"] = right
    plant.write_registry()
    await plant.restart()
    await plant.delivered(backend)


async def test_a_captive_page_is_no_answer_of_a_backend(
    plant: Plant, front: Front, backend: ReferenceBackend
) -> None:
    await plant.start()
    plant.write("a.csv", ROWS)
    await plant.run()
    await plant.delivered(backend)
    front.answer = lambda request: page(200, "sign in to the hotel's network")
    await queue(plant, "paused", MORE, "b.csv")
    await shows_pause(plant, Pause("http_200", "a page came", "backend", "sign in to this network"))
    front.answer = lambda request: None
    await plant.follow("catalogzero outbox retry site --now")
    await plant.delivered(backend)


async def test_a_pause_is_known_of_a_handler_that_is_down_and_ended_by_a_retry_now(
    plant: Plant, front: Front, backend: ReferenceBackend
) -> None:
    front.answer = lambda request: web.json_response({"title": "blocked"}, status=403)
    await plant.start()
    await queue(plant, "paused")
    plant.kill()
    listed, status = await plant.outbox("list"), await plant.status()
    front.answer = lambda request: None
    await plant.start()
    await plant.follow("catalogzero outbox retry site --now")
    await plant.delivered(backend)

    assert "403 blocked" in listed.out
    assert status.code == 1
    whats = [one["what"] for one in status.json["troubles"] if one["of"] == "site"]
    assert any("is not running" in what for what in whats)
    assert any("403 blocked" in what for what in whats)


async def test_a_backend_that_is_away_is_named_and_its_return_too(
    plant: Plant, front: Front, backend: ReferenceBackend
) -> None:
    await plant.start()
    await front.close()
    await queue(plant, "fault")
    line = await plant.logged("backend away", level="warning")
    seen = await plant.look()
    async with plant.conductor() as conductor:
        row = await conductor.site()
    await front.open()
    await plant.follow("catalogzero outbox retry site --now")
    await plant.delivered(backend)
    await plant.logged("backend back", level="info")
    report = await plant.health(backend)

    assert "Connect call failed" in line["reason"]
    assert seen.health == "degraded"
    assert seen.outbox["next_try_at"]
    assert seen.findings["backend"]["status"] == "fail"
    assert "whether this machine may go out" in seen.findings["backend"]["fix"]
    assert seen.troubles[0]["next"].startswith("catalogzero check site")
    assert row["troubles"][0]["cause"] == "fault"
    assert report["status"] == "ok"
    assert len(plant.log("backend away")) < 4


def at_uploads(answer: Answer) -> Answer:
    """An answer to the uploads' requests alone."""
    return lambda request: answer(request) if "/uploads/" in request.path else None


class InTrouble(NamedTuple):
    """What stands in the way for a while, and how it shows."""

    answer: Answer
    code: str
    found: str


TROUBLED = {
    "500": InTrouble(at_uploads(lambda request: page(500, "broken")), "http_500", "500"),
    "429": InTrouble(
        at_uploads(lambda request: page(429, "slow down", **{"Retry-After": "900"})),
        "http_429",
        "429",
    ),
}


@pytest.mark.parametrize("name", TROUBLED)
async def test_a_backend_in_trouble_shows_and_a_retry_now_sends_at_once(
    plant: Plant, front: Front, backend: ReferenceBackend, name: str
) -> None:
    incident = TROUBLED[name]
    front.answer = incident.answer
    await plant.start()
    await queue(plant, "fault")
    line = await plant.logged("upload retried", level="warning")
    seen = await plant.look()
    front.answer = lambda request: None
    await plant.follow("catalogzero outbox retry site --now")
    await plant.delivered(backend)
    await plant.logged("uploads arrive again", level="info")
    report = await plant.health(backend)

    assert incident.code.removeprefix("http_") in line["reason"]
    assert seen.outbox["fault"] == incident.code
    assert seen.outbox["next_try_at"]
    assert seen.health == "degraded"
    assert incident.code in seen.troubles[0]["what"]
    assert seen.findings["backend"]["status"] in {"warn", "fail"}
    assert incident.found in seen.findings["backend"]["found"]
    assert report["status"] == "ok"


@pytest.mark.parametrize("way", ["a larger limit", "smaller chunks"])
async def test_a_limit_of_a_proxy_names_both_ways_out(
    plant: Plant, front: Front, backend: ReferenceBackend, way: str
) -> None:
    limit = 2_000

    def limited(request: web.Request) -> web.Response | None:
        too_large = (request.content_length or 0) > limit
        return page(413, "Request Entity Too Large") if too_large else None

    front.answer = limited
    rows = [{"n": n, "name": f"{n * 7919 % 10_007:05}" * 8} for n in range(1_500)]
    plant.write("a.csv", rows)
    await plant.start()
    error = await plant.refused()
    line = await plant.logged("upload refused", level="error")
    seen = await plant.look()
    fix = seen.findings["backend"]["fix"]
    assert fix in error.message
    assert "client_max_body_size" in fix
    assert "`chunk_bytes`" in fix
    assert fix in line["reason"]
    assert (seen.outbox["dead"], seen.health) == (1, "failing")
    assert "were refused" in seen.troubles[0]["what"]
    assert (await plant.follow(seen.troubles[0]["next"])).out == seen.listed
    assert line["upload_id"] in seen.listed
    if way == "a larger limit":
        limit = 64 << 20
        await plant.follow("catalogzero outbox retry site --now")
    else:
        plant.section["chunk_bytes"] = 1_024
        plant.write_registry()
        await plant.restart()
        await plant.follow(f"catalogzero outbox purge site {line['upload_id']} --yes")
        await plant.run()
    await plant.delivered(backend)


async def test_a_health_report_that_is_not_delivered_shows_on_this_machine(
    plant: Plant, front: Front, backend: ReferenceBackend
) -> None:
    front.answer = lambda request: page(500, "broken") if "/health" in request.path else None
    await plant.start()
    await plant.client.call("health_report", timeout_s=60)
    await plant.logged("health not delivered", level="warning")

    async def is_known() -> bool:
        """The worker has reported it to the handler."""
        return bool((await plant.metrics())["health"]["reasons"])

    await until(is_known, "the handler knows of the report that was not delivered")
    seen = await plant.look()
    front.answer = lambda request: None
    missed = await plant.health(backend)
    await plant.logged("health delivered again", level="info")
    report = await plant.health(backend)

    fault = "the last health report was not delivered: http_500"
    assert [one["what"] for one in seen.troubles] == missed["reasons"] == [fault]
    assert (seen.health, report["status"]) == ("degraded", "ok")


@pytest.mark.parametrize("damage", ["cut short", "lost"])
async def test_a_reply_that_is_damaged_or_lost_costs_no_row_and_doubles_none(
    plant: Plant, front: Front, backend: ReferenceBackend, damage: str
) -> None:
    def damaged(request: web.Request, reply: web.StreamResponse) -> web.StreamResponse:
        if not request.path.endswith("/complete"):
            return reply
        if damage == "lost":
            assert request.transport is not None
            request.transport.abort()
            return reply
        return web.Response(status=201, body=b'{"job_id": "jo', content_type="application/json")

    front.reply = damaged
    await plant.start()
    figure = {"cut short": "paused", "lost": "fault"}[damage]
    await queue(plant, figure)
    seen = await plant.look()
    front.reply = unchanged
    await plant.follow("catalogzero outbox retry site --now")
    await plant.delivered(backend)

    [trouble] = seen.troubles
    shown = {"cut short": '201 {"job_id": "jo', "lost": "connection_lost"}[damage]
    assert shown in trouble["what"]
    assert shown in seen.listed
    assert "catalogzero outbox retry --now" in seen.findings["outbox"]["fix"]

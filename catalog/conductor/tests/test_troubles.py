"""What the rule calls a trouble, its words, and how troubles of one cause become one line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from catalogzero import Batch, CloudProcessor, Params
from catalogzero.testing import serving

from conductorzero.troubles import Trouble, grouped, troubles_of
from fleets import conducting, until

SINCE = "2026-01-01T00:00:00+00:00"
RUN = {"run_id": "r-1", "method": "send", "ended_at": SINCE, "code": "failed", "type": "OSError"}
LATER = {"run_id": "r-2", "method": "send", "ended_at": "2026-01-01T01:00:00+00:00"}


def found(state: str = "active", peer: str | None = None, **metrics: Any) -> list[Trouble]:
    return [*troubles_of("shop", state, SINCE, peer, metrics)]


@pytest.mark.parametrize(
    ("metrics", "cause", "words", "why", "command"),
    [
        (
            {"outbox": {"paused": "401: key revoked", "paused_code": "http_401"}},
            *("paused", "paused", "401: key revoked", "catalogzero check shop"),
        ),
        (
            {"outbox": {"paused": "moved", "paused_code": "installation_moved"}},
            *("paused", "paused", "moved", "catalogzero check shop"),
        ),
        (
            {"outbox": {"dead": 1}},
            *("dead_letters", "1 dead letter", "the backend refused them"),
            "catalogzero outbox list shop",
        ),
        (
            {"outbox": {"missing": 2}},
            *("missing_sources", "2 sources missing", "the outbox was damaged"),
            "catalogzero outbox list shop",
        ),
        (
            {"outbox": {"fault": "http_500"}},
            *("fault", "cannot send", "http_500", "catalogzero check shop"),
        ),
        (
            {"outbox": {"oldest_age_s": 3_601, "uploads": 2}},
            *("old_backlog", "old backlog", "the oldest of 2 uploads is not sent"),
            "catalogzero check shop",
        ),
        (
            {"outbox": {"disk_free_bytes": 300 << 20}},
            *("disk_nearly_full", "disk nearly full", "300 MB are free"),
            "catalogzero outbox list shop",
        ),
        (
            {"last_failed_run": RUN, "last_error": "OSError: gone"},
            *("run_failed", "failed", "OSError: gone", "catalogzero check shop"),
        ),
        (
            {"health": {"status": "degraded", "reasons": ["the clock is off"]}},
            *("unwell", "unwell", "the clock is off", "catalogzero check shop"),
        ),
    ],
)
def test_each_cause_has_its_words_its_reason_and_its_command(
    metrics: dict[str, Any], cause: str, words: str, why: str, command: str
) -> None:
    (one,) = found(**metrics)

    assert (one.cause, one.words, one.why, one.command) == (cause, words, why, command)
    assert one.title
    assert one.fix


@pytest.mark.parametrize(
    ("code", "named"), [("installation_moved", "installation adopt"), ("http_401", "api_key")]
)
def test_the_fix_of_a_pause_fits_its_code(code: str, named: str) -> None:
    (one,) = found(outbox={"paused": "it stands still", "paused_code": code})

    assert named in one.fix


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"outbox": {"uploads": 9, "oldest_age_s": 60, "disk_free_bytes": 2 << 30, "dead": 0}},
        {"last_failed_run": RUN, "last_successful_run": LATER},
        {"health": {"status": "ok", "reasons": []}},
        {"outbox": 7, "health": ["x"], "last_failed_run": "no"},
    ],
)
def test_what_is_well_or_nonsense_is_no_trouble(metrics: dict[str, Any]) -> None:
    assert found(**metrics) == []


def test_of_a_silent_handler_only_its_silence_is_known() -> None:
    (one,) = found("unreachable", outbox={"dead": 3})

    assert (one.cause, one.since, one.command) == ("no_answer", SINCE, "catalogzero status")


def test_what_the_handler_says_itself_is_not_said_twice() -> None:
    reasons = [
        "sending is paused: 401",
        "3 uploads were refused (catalogzero outbox list)",
        "the oldest upload waits for 4000 s",
        "the clock is 700 s off the backend's",
    ]
    outbox = {"paused": "401", "dead": 3, "oldest_age_s": 4_000}

    all_of_it = found(outbox=outbox, health={"status": "failing", "reasons": reasons})

    assert [one.cause for one in all_of_it] == ["paused", "dead_letters", "unwell"]
    assert all_of_it[-1].why == "the clock is 700 s off the backend's"


def test_one_cause_is_one_line_however_many_handlers() -> None:
    def of(handler_id: str, since: str, uploads: int) -> Any:
        outbox = {
            **{"paused": f"try {uploads}: no key", "paused_since": since},
            **{"uploads": uploads, "records": uploads * 10, "dead": uploads},
        }
        return handler_id, [*troubles_of(handler_id, "idle", "", None, {"outbox": outbox})], outbox

    paused, letters = grouped([of("b", "2026-02", 2), of("a", "2026-01", 3)])

    assert (paused["handlers"], paused["handler_ids"]) == (2, ["b", "a"])
    assert (paused["uploads"], paused["rows"], paused["since"]) == (5, 50, "2026-01")
    assert letters["words"] == "5 dead letters"


class Rows(CloudProcessor):
    """Sends what it reads."""

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        """Leave the rows as they are."""
        yield from batches


@asynccontextmanager
async def refusing_backend() -> AsyncIterator[str]:
    """A backend that knows no key."""

    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"error": {"code": "unauthorized"}}, status=401)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", refuse)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1/process"
    finally:
        await runner.cleanup()


async def test_a_handler_whose_key_is_refused_is_in_trouble_wherever_one_looks(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.csv").write_text("n\n1\n2\n")
    async with refusing_backend() as endpoint:
        rows = Rows(endpoint=endpoint, api_key="refused-key-of-a-test", data_roots=[tmp_path])
        async with (
            serving(rows, handler_id="rows", min_file_age_s=0, labels={"site": "lyon"}) as served,
            conducting({"rows": served.address}) as conductor,
            aiohttp.ClientSession() as session,
        ):
            url = (await conductor.client.call("get_metrics"))["dashboard_url"]
            source = {"data_source": str(tmp_path / "a.csv")}
            sending = asyncio.create_task(served.client.call("process_and_upload", source))
            told: dict[str, Any] = {}

            async def shown() -> bool:
                async with session.get(f"{url}/api/fleet") as response:
                    told.update(await response.json())
                (row,) = told["handlers"]
                return bool(row["troubles"]) and row["runs"] == ["waiting"]

            await until(shown, within_s=20)
            async with session.get(f"{url}/metrics") as response:
                scraped = await response.text()
            await sending
            async with session.get(f"{url}/api/handlers/rows") as response:
                (run,) = (await response.json())["runs"]["runs"]
            path = f"{url}/api/handlers/rows/runs/{run['run_id']}"
            async with session.get(path) as response:
                uploads = (await response.json())["run"]["uploads"]

    (row,), (trouble,) = told["handlers"], told["troubles"]
    assert row["labels"] == {"site": "lyon"}
    assert (trouble["cause"], trouble["handler_ids"], trouble["rows"]) == ("paused", ["rows"], 2)
    assert "401" in trouble["why"]
    assert trouble["since"] < trouble["next_try_at"]
    assert "key" in trouble["fix"]
    assert trouble["command"] == "catalogzero check rows"
    assert told["summary"]["headline"] == "Rows of the one handler that sends any do not arrive"
    assert 'catalogzero_handler_outbox_paused{handler_id="rows"} 1' in scraped
    assert 'catalogzero_handler_trouble{cause="paused",handler_id="rows"} 1' in scraped
    assert "refused-key-of-a-test" not in str(told) + scraped
    assert [one["records"] for one in uploads] == [2]

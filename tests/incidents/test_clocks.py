"""A clock ten minutes off the backend's: where it shows; no row is lost or doubled by it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from aiohttp import web

from tests.cloud.reference import ReferenceBackend
from tests.incidents.plant import KEY, Plant

OFF_S = 600.0


class ElsewhenBackend(ReferenceBackend):
    """A backend whose clock is so far ahead of this machine's."""

    ahead_s = 0.0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        here = datetime.now(UTC) + timedelta(seconds=self.ahead_s)
        found = await super().answer(request)
        if request.path.endswith("/health") and found.status == 200:
            found = web.json_response({"server_time": here.isoformat()})
        found.headers["Date"] = format_datetime(here, usegmt=True)
        return found


@pytest.mark.parametrize("ahead_s", [OFF_S, -OFF_S])
async def test_a_clock_that_is_off_is_named_with_its_fix_and_costs_no_row(
    tmp_path: Path, ahead_s: float
) -> None:
    backend = ElsewhenBackend(KEY)
    async with backend, Plant(tmp_path, backend.url) as plant:
        backend.ahead_s = ahead_s
        plant.write("a.csv", [{"n": 1}, {"n": 2}])
        await plant.start()
        assert (await plant.run())["status"] == "uploaded"
        await plant.delivered(backend)
        await plant.health(backend)  # whose answer says how late it is there
        report, found, status = await asyncio.gather(
            plant.health(backend), plant.finding("clock"), plant.status()
        )

        assert report["status"] == "degraded"
        assert any("the clock is" in one for one in report["reasons"])
        assert found["status"] == "warn"
        assert found["found"].startswith("-" if ahead_s > 0 else "+")  # this machine's clock
        assert "timedatectl set-ntp true" in found["fix"]
        assert any("the clock is" in one["what"] for one in status.json["troubles"])

        backend.ahead_s = 0.0  # the clocks agree
        plant.write("b.csv", [{"n": 3}])
        assert (await plant.run())["status"] == "uploaded"
        await plant.delivered(backend)
        await plant.health(backend)
        assert (await plant.health(backend))["status"] == "ok"
        assert (await plant.finding("clock"))["status"] == "pass"
        assert (await plant.status()).code == 0

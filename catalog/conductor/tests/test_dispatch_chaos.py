"""Dispatch to handlers that are killed and frozen at random: no job that must not runs twice."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from catalogzero import Handler, job
from catalogzero.testing import serving

from conductorzero.coordination import Dispatch
from conductorzero.watch import Watch
from fleets import ShopProcess, free_port, pause, watching

KILLS = int(os.environ.get("CATALOGZERO_CHAOS_KILLS", "40"))
CALLERS = 8

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


class Diary(Handler):
    """Writes down each run that begins."""

    path: Path

    async def once(self, name: str, lasts_s: float) -> str:
        """A job that must not run twice."""
        return await self._begin(f"once {name}", lasts_s)

    @job(retry_safe=True)
    async def again(self, name: str, lasts_s: float) -> str:
        """A job that may."""
        return await self._begin(f"again {name}", lasts_s)

    async def _begin(self, line: str, lasts_s: float) -> str:
        with self.path.open("a") as file:
            file.write(line + "\n")
        await pause(lasts_s)
        return line


class DiaryProcess(ShopProcess):
    """A diary in a process of its own."""

    def __init__(self, handler_id: str, port: int, path: Path) -> None:
        super().__init__(handler_id, port, script=__file__, more=(str(path),))


async def serve_diary(handler_id: str, port: str, path: str) -> None:
    """Serve a diary, and say so."""
    diary = Diary()
    diary.path = Path(path)
    async with serving(
        diary, handler_id=handler_id, port=int(port), max_concurrent_jobs=3, max_queued_jobs=1
    ):
        sys.stdout.write("serving\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


async def harm(processes: list[ShopProcess], chance: random.Random) -> None:
    """Kill and restart, or freeze, one after the other."""
    for _ in range(KILLS):
        one = chance.choice(processes)
        await pause(chance.random() * 0.8)
        if chance.random() < 0.7:
            await one.kill()
            await pause(chance.random())
            await one.__aenter__()
        else:
            one.freeze()
            await pause(chance.random() * 3)
            one.thaw()


async def keep_calling(watch: Watch, caller: int, until_done: asyncio.Task[None]) -> dict[str, str]:
    """Dispatch one job after the other; what came of each."""
    chance = random.Random(caller)  # noqa: S311 - a story, no secret
    outcomes: dict[str, str] = {}
    while not until_done.done():
        method = chance.choice(["once", "again"])
        params: dict[str, Any] = {"name": f"{caller}-{len(outcomes)}", "lasts_s": chance.random()}
        told = await Dispatch(watch, method, params, None, 1.0, look_after_s=0.5).run()
        outcomes[f"{method} {params['name']}"] = told["status"]
    return outcomes


async def test_no_job_that_may_run_once_runs_twice(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    ports = {f"diary-{number}": free_port() for number in range(4)}
    async with AsyncExitStack() as stack:
        processes: list[ShopProcess] = [
            await stack.enter_async_context(DiaryProcess(name, port, diary))
            for name, port in ports.items()
        ]
        watch = await stack.enter_async_context(watching({**ports}))
        chance = random.Random(KILLS)  # noqa: S311 - a story, no secret
        harming = asyncio.create_task(harm(processes, chance))
        calls = [keep_calling(watch, caller, harming) for caller in range(CALLERS)]
        outcomes = {
            key: value for one in await asyncio.gather(*calls) for key, value in one.items()
        }
        await harming
    began = Counter(diary.read_text().splitlines())

    assert Counter(outcomes.values())["success"] > KILLS
    assert "lost" in outcomes.values()
    assert [line for line, times in began.items() if line.startswith("once ") and times > 1] == []
    assert [line for line, told in outcomes.items() if told == "success" and not began[line]] == []
    assert [line for line, told in outcomes.items() if told == "refused" and began[line]] == []


if __name__ == "__main__":
    asyncio.run(serve_diary(*sys.argv[1:]))

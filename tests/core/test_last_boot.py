"""A call that meets a restart: what the boot before began, the next one knows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from catalogzero import HandlerClient
from catalogzero.testing import serving
from catalogzero.wire.messages import Reply, StartBy

from tests.core.support import Bench, RawPeer

SENT = "f7b4.1"


async def stamp_of(client: HandlerClient) -> StartBy:
    pong = await client.ping()
    return StartBy(pong["boot_id"], pong["uptime_s"] + pong["dedupe_window_s"])


async def count(client: HandlerClient, stamp: StartBy, request_id: str = SENT) -> Reply:
    return await client.request("count", request_id=request_id, start_by=stamp)


async def test_a_call_that_ran_before_the_restart_has_its_reply_and_no_second_run(
    tmp_path: Path,
) -> None:
    async with serving(Bench(), state_dir=tmp_path) as at:
        stamp = await stamp_of(at.client)
        before = await count(at.client, stamp)
    async with serving(Bench(), state_dir=tmp_path) as at:
        after = await count(at.client, stamp)
        unstamped = await at.client.call("list_runs")

    assert (after.result, after.run_id) == (before.result, before.run_id)
    assert unstamped["runs"] == []


async def test_a_call_that_never_began_before_the_restart_is_to_be_made_again(
    tmp_path: Path,
) -> None:
    async with serving(Bench(), state_dir=tmp_path) as at:
        stamp = await stamp_of(at.client)
    async with serving(Bench(), state_dir=tmp_path) as at:
        refused = await count(at.client, stamp)

    assert (refused.code, refused.retryable) == ("draining", True)


async def test_a_call_that_was_refused_before_the_restart_never_began(tmp_path: Path) -> None:
    async with serving(Bench(), state_dir=tmp_path) as at:
        stamp = await stamp_of(at.client)
        await at.client.call("drain")
        assert (await count(at.client, stamp)).code == "draining"
    async with serving(Bench(), state_dir=tmp_path) as at:
        assert (await count(at.client, stamp)).code == "draining"


async def test_after_a_crash_nobody_knows(tmp_path: Path) -> None:
    async with serving(Bench(), state_dir=tmp_path) as at:
        stamp = await stamp_of(at.client)
        await count(at.client, stamp)
    (tmp_path / "bench" / "last_boot.json").unlink()
    async with serving(Bench(), state_dir=tmp_path) as at:
        assert (await count(at.client, stamp)).code == "expired"
        assert (await count(at.client, stamp, "another")).code == "expired"


async def test_a_boot_before_the_last_is_not_answered_for(tmp_path: Path) -> None:
    async with serving(Bench(), state_dir=tmp_path) as at:
        stamp = await stamp_of(at.client)
    async with serving(Bench(), state_dir=tmp_path):
        pass
    async with serving(Bench(), state_dir=tmp_path) as at:
        assert (await count(at.client, stamp)).code == "expired"


async def test_a_start_that_fails_leaves_the_word_for_the_next(tmp_path: Path) -> None:
    async with serving(Bench(), state_dir=tmp_path) as at:
        stamp = await stamp_of(at.client)
        taken = at.service.port
        try:
            async with serving(Bench(), state_dir=tmp_path / "other", port=taken):
                raise AssertionError("the port is taken")
        except ValueError:
            pass
    async with serving(Bench(), state_dir=tmp_path) as at:
        assert (await count(at.client, stamp)).code == "draining"


async def test_a_call_without_an_id_is_not_answered_for(tmp_path: Path) -> None:
    async with serving(Bench(), state_dir=tmp_path) as at:
        stamp = await stamp_of(at.client)
        call = {"method": "count", "params": {}, "start_by": asdict(stamp)}
        async with RawPeer(at.address) as peer:
            assert (await peer.ask(call))["success"] is True
    async with serving(Bench(), state_dir=tmp_path) as at, RawPeer(at.address) as peer:
        assert (await peer.ask(call))["code"] == "expired"

"""A tick is never run twice, and always ends: random worlds with every kind of fault.

The faults and the promises are those of the design's exhaustive model: a network that loses,
delays and repeats, handlers that restart or forget, schedulers that freeze past their lease.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.scheduler.world import SETTINGS, WINDOW_S, LeaseHolder, World

STEP_S = 0.5
FAULTY_S = 120.0
PATIENCE_S = 3_000.0


async def live(seed: int, *, retry_safe: bool, timeout_s: float | None = None) -> World:
    """Let a world go on until its execution is final and nothing is under way."""
    world = World(seed, retry_safe=retry_safe, faults=seed % 7, timeout_s=timeout_s)
    world.holders["A"].take_over()
    while world.clock.monotonic() < PATIENCE_S:
        await world.clock.advance(STEP_S)
        happen(world)
        if world.row.is_final() and world.clock.monotonic() > FAULTY_S + 2 * WINDOW_S:
            break
    for task in world.tasks:
        task.cancel()
    await asyncio.gather(*world.tasks, return_exceptions=True)
    return world


def happen(world: World) -> None:
    """Let the handler restart or a scheduler freeze or die; take over what nobody drives."""
    if world.clock.monotonic() < FAULTY_S:
        if world.fault(0.02):
            world.restart()
        if world.fault(0.02):
            owner = world.holders[str(world.row.owner)]
            owner.frozen_until_s = world.clock.monotonic() + world.random.uniform(1, 2 * WINDOW_S)
            other(world).take_over()
        if world.fault(0.01) and (task := world.holders[str(world.row.owner)].task):
            task.cancel()
    owner = world.holders[str(world.row.owner)]
    if not world.row.is_final() and (owner.task is None or owner.task.done()):
        other(world).take_over()


def other(world: World) -> LeaseHolder:
    """The scheduler that does not own the row, or the same one if that is frozen."""
    holder = world.holders["B" if world.row.owner == "A" else "A"]
    frozen = holder.frozen_until_s > world.clock.monotonic()
    return world.holders[str(world.row.owner)] if frozen else holder


@pytest.mark.parametrize("seed", range(60))
async def test_a_method_that_is_not_retry_safe_starts_at_most_once(seed: int) -> None:
    world = await live(seed, retry_safe=False)

    assert world.broken == []
    assert world.starts <= 1
    assert world.row.is_final()


@pytest.mark.parametrize("seed", range(60))
async def test_a_retry_safe_method_starts_at_most_max_attempts_times(seed: int) -> None:
    world = await live(1_000 + seed, retry_safe=True)

    assert world.broken == []
    assert world.starts <= world.row.max_attempts
    assert world.row.is_final()


@pytest.mark.parametrize("chance", [10_208, 500_208])
async def test_a_handler_that_was_not_asked_yet_is_not_called_without_a_pause(chance: int) -> None:
    """A record that waits was taken over, and its handler's link is new: calls had no end."""
    random.seed(chance)
    async with asyncio.timeout(30):
        world = await live(1_028, retry_safe=True)

    assert world.row.is_final()


@pytest.mark.parametrize("seed", range(40))
async def test_a_run_over_its_schedule_s_timeout_is_over_before_it_is_an_error(seed: int) -> None:
    world = await live(2_000 + seed, retry_safe=bool(seed % 2), timeout_s=3.0)

    assert world.broken == []
    assert world.starts <= (world.row.max_attempts if seed % 2 else 1)
    assert world.row.is_final()


async def test_a_cancel_that_came_before_its_call_is_sent_again() -> None:
    world = World(1, retry_safe=False, faults=0, timeout_s=3.0, longest_s=1e6)
    world.lose_next = True
    world.holders["A"].take_over()
    await forward(world, 60)

    assert (world.starts, world.row.status, world.running) == (1, "error", 0)
    assert "took longer than timeout_s" in str(world.row.error)


async def test_a_handler_that_stays_away_is_given_up_whoever_waits_for_it() -> None:
    world = World(1, retry_safe=False, faults=0, longest_s=1e6)
    world.holders["A"].take_over()
    await forward(world, 10)
    assert (world.starts, world.row.status) == (1, "running")

    world.silent = True
    await forward(world, SETTINGS.lost_after_s * 0.9)
    world.holders["B"].take_over()
    await forward(world, 40)
    assert (world.row.status, world.row.waiting) == ("retry", True)
    await forward(world, SETTINGS.lost_after_s * 0.1)

    assert world.row.status == "lost"


async def forward(world: World, seconds: float) -> None:
    """Let time pass in steps."""
    end_s = world.clock.monotonic() + seconds
    while world.clock.monotonic() < end_s:
        await world.clock.advance(STEP_S)

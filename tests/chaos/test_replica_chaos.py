"""Instances of a processor on one store are killed, cut off from it, and called again.

CATALOGZERO_CHAOS_SEED sets the dice.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.replica_storm import ReplicaStorm
from tests.chaos.sources import ORDERS, Accounts, Client, Lines, ManyCalls
from tests.chaos.test_storm import SEED

pytestmark = [
    pytest.mark.timeout(1_800),
    pytest.mark.postgresql,
    pytest.mark.xdist_group("replicas"),
]


async def stormed(
    client: type[Client], folder: Path, store: str, *, kills: int, rows: int
) -> ReplicaStorm:
    """One storm, and all that must be so at rest."""
    storm = ReplicaStorm(client, folder, store, kills=kills, rows=rows, seed=SEED)
    try:
        async with storm.proxy:
            await storm.run()
            await storm.check()
    finally:
        storm.site.stop()
        print(storm.table())  # noqa: T201
    return storm


async def test_a_few_kills_of_instances_lose_nothing_and_send_nothing_twice(
    postgresql: str, tmp_path: Path
) -> None:
    storm = await stormed(ManyCalls, tmp_path, postgresql, kills=4, rows=900)

    numbers = list(map(int, storm.in_order(ORDERS)))
    assert numbers == sorted(numbers)


@pytest.mark.chaos
@pytest.mark.parametrize(("client", "rows"), [(ManyCalls, 1_800), (Lines, 60), (Accounts, 20)])
async def test_many_kills_of_instances_lose_nothing_and_send_nothing_twice(
    client: type[Client], rows: int, postgresql: str, tmp_path: Path
) -> None:
    await stormed(client, tmp_path, postgresql, kills=25, rows=rows)

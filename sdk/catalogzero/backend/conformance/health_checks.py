"""The checks of health reports, the same for both forms; every coroutine function here is one."""

from __future__ import annotations

from catalogzero.backend.conformance.probe import Probe, expect, expect_refused
from catalogzero.protocol.bodies import HEALTH_SCHEMA

OK = (200, 201, 202, 204)
BARE = {"metrics": {"memory_mb": 40.0}, "timestamp": "2026-01-01T00:00:00+00:00"}


async def health_reports_are_taken(probe: Probe) -> None:
    """The vendor would not see how its installations are."""
    bare = {"client_id": f"verify-{probe.run}", **BARE}
    more = {**bare, "schema": HEALTH_SCHEMA, "seq": 1, "status": "ok", "unknown": [1]}
    expect(await probe.ask("POST", "health", json=bare), *OK)
    answer = expect(await probe.ask("POST", "health", json=more), *OK)
    if "server_time" not in answer:
        probe.doubt("health answers no server_time: clients cannot see that their clock is off")


async def health_keys_are_checked(probe: Probe) -> None:
    """Anyone could report in an installation's name."""
    body = {"client_id": f"verify-{probe.run}", **BARE}
    expect_refused(await probe.ask("POST", "health", json=body, key="not-a-key"), 401, 403)

"""Preflight checks: what `catalogzero check` runs before a handler is started.

Each check ends within three seconds, and says pass, warn or fail with the mend.

Layer: pure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from catalogzero.errors import CatalogZeroError

CHECK_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Finding:
    """What one check found; `mend` is empty when it passed."""

    name: str
    status: Literal["pass", "warn", "fail"]
    found: str
    mend: str = ""


class Check(NamedTuple):
    """One check: its name, and a coroutine function or a plain one (run in a thread).

    It returns a `Finding`; what it raises is a failure.
    """

    name: str
    act: Callable[[], Any]


async def run_checks(checks: Iterable[Check]) -> list[Finding]:
    """All checks at once, each bounded; findings in the order of the checks."""
    return list(await asyncio.gather(*(_bounded(check) for check in checks)))


async def _bounded(check: Check) -> Finding:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            if asyncio.iscoroutinefunction(check.act):
                found = await check.act()
            else:
                found = await asyncio.to_thread(check.act)
    except TimeoutError:
        mend = "see that it is up, and reachable from here"
        return Finding(check.name, "fail", f"no answer within {CHECK_TIMEOUT_S:g} s", mend)
    except CatalogZeroError as error:
        return Finding(check.name, "fail", error.message, "do as it says")
    return found if isinstance(found, Finding) else Finding(check.name, "pass", str(found))

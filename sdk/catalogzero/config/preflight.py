"""Preflight checks: what `catalogzero check` runs before a handler is started.

Each check ends within three seconds, and says pass, warn or fail with the fix.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from catalogzero.config.state_folder import owner_hint
from catalogzero.errors import CatalogZeroError, text_of

CHECK_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Finding:
    """What one check found; `fix` is empty when it passed."""

    name: str
    status: Literal["pass", "warn", "fail"]
    found: str
    fix: str = ""


class Check(NamedTuple):
    """One check: its name, and a coroutine function or a plain one (run in a thread).

    It returns a `Finding`; what it raises, and an answer past its time, is a failure, and `fix`
    then says what to do.
    """

    name: str
    act: Callable[[], Any]
    fix: str
    timeout_s: float = CHECK_TIMEOUT_S

    @classmethod
    def of(cls, found: Finding) -> Check:
        """One whose finding is known already."""
        return cls(found.name, lambda: found, found.fix)


async def run_checks(checks: Iterable[Check]) -> list[Finding]:
    """All checks at once, each bounded; findings in the order of the checks."""
    return list(await asyncio.gather(*(_bounded(check) for check in checks)))


async def _bounded(check: Check) -> Finding:
    try:
        async with asyncio.timeout(check.timeout_s):
            is_async = inspect.iscoroutinefunction(check.act)
            found = await (check.act() if is_async else _on_a_thread(check.act))
    except TimeoutError:
        return Finding(check.name, "fail", f"no answer within {check.timeout_s:g} s", check.fix)
    except PermissionError as error:
        where = Path(error.filename) if error.filename else None
        fix = owner_hint(where) if where else check.fix
        return Finding(check.name, "fail", f"{where or error}: permission denied", fix)
    except Exception as error:  # noqa: BLE001 - one check's fault must not hide the others
        text = error.message if isinstance(error, CatalogZeroError) else text_of(error)
        return Finding(check.name, "fail", text, check.fix)
    return found if isinstance(found, Finding) else Finding(check.name, "pass", str(found))


async def _on_a_thread(act: Callable[[], Any]) -> Any:
    """On a thread that nobody waits for: a file system that does not answer holds up no end."""
    done: Future[Any] = Future()
    # Running, it cannot be cancelled: a result that comes too late is then left alone.
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(act())
        except Exception as error:  # noqa: BLE001 - handed to who asked
            done.set_exception(error)

    threading.Thread(target=run, name="check", daemon=True).start()
    return await asyncio.wrap_future(done)

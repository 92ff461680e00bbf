"""Runs the checks against one backend, and reports.

Owns the order, the choice of the form, and the report; what is checked stands in `chunked`,
`identity`, `simple` and `health`.
"""

from __future__ import annotations

import inspect
import re
import secrets
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx

from catalogzero.backend.conformance import chunked, health, identity, simple
from catalogzero.backend.conformance.probe import Check, Ledger, NotConformingError, Probe
from catalogzero.cloud.sending.door import Door
from catalogzero.errors import ConfigError, UnauthorizedError, UnreachableError

Form = Literal["auto", "chunked", "simple"]


@dataclass(frozen=True)
class Result:
    """What came of one check: `pass`, `warn` (allowed, but at a price) or `fail`.

    `why` says what goes wrong in service when the check fails.
    """

    check: str
    outcome: Literal["pass", "warn", "fail"]
    details: list[str]
    why: str


@dataclass
class Report:
    """A run of the suite: its results, and what it wrote under which names.

    `visible` tells for each source how many rows should be visible now.
    """

    endpoint: str
    form: str
    run: str
    results: list[Result] = field(default_factory=list)
    visible: dict[str, int] = field(default_factory=dict)
    rows_sent: int = 0

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(result.outcome != "fail" for result in self.results)


async def verify(
    endpoint: str,
    key: str,
    *,
    form: Form = "auto",
    timeout_s: float = 30.0,
    ca_file: Path | None = None,
    only: str = "",
    on_result: Callable[[Result], None] = lambda _: None,
) -> Report:
    """Check a backend; it is written to, under names that begin with `verify-` and the run's.

    Args:
        endpoint: The base URL, as a handler's settings name it.
        key: A key made for tests.
        form: The form to check; `auto` finds out as a client does.
        timeout_s: How long one request may take.
        ca_file: The authorities to trust instead of the system's, PEM.
        only: Run only the checks whose name holds this.
        on_result: Called after each check.

    Raises:
        UnreachableError: Nobody answers there.
        UnauthorizedError: The key is refused.
        ConfigError: `ca_file` cannot be read, or there is no check of that name.
    """
    run, ledger = secrets.token_hex(4), Ledger()
    async with _client(timeout_s, ca_file) as client:

        def probe(name: str) -> Probe:
            return Probe(client, endpoint, key, run=run, name=name, ledger=ledger)

        report = Report(endpoint, await _form(probe("first"), form), run)
        for check in _checks(report.form, only):
            result = await _run(check, probe(check.__name__.replace("_", "-")))
            report.results.append(result)
            on_result(result)
    report.visible = {source: ledger.rows(source) for source in ledger.shown}
    report.rows_sent = sum(map(len, ledger.chunks.values()))
    return report


def _checks(form: str, only: str) -> list[Check]:
    """The checks of a form, those of one name where one is given."""
    of_form = [*chunked.CHECKS, *identity.CHECKS] if form == "chunked" else simple.CHECKS
    chosen = [check for check in (*of_form, *health.CHECKS) if only in _title(check)]
    if not chosen:
        raise ConfigError(f"no check of the {form} form is called {only!r}")
    return chosen


def _title(check: Check) -> str:
    """A check's name, as people read it."""
    return check.__name__.replace("_", " ")


@asynccontextmanager
async def _client(timeout_s: float, ca_file: Path | None) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client as the handlers have one: TLS verified, no redirect followed."""
    try:
        tls = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(f"ca_file {ca_file}: {error.strerror or error}") from None
    async with httpx.AsyncClient(transport=Door(tls), timeout=timeout_s) as client:
        yield client


async def _form(probe: Probe, form: Form) -> Literal["chunked", "simple"]:
    """The form to check, once it is known that the backend answers and takes the key."""
    try:
        answer = await probe.put(probe.upload("u"), 0, [{"row": "first"}])
        is_simple = answer.status_code in (404, 405, 501)
        if is_simple or form == "simple":
            answer = await probe.post_array("u", [{"row": "first"}])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = re.sub(r" ssl:\w+ ", " ", str(error)) or _named(error)
        raise UnreachableError(f"nobody answers at {probe.endpoint}: {why}") from None
    if answer.status_code in (401, 403):
        raise UnauthorizedError(f"{probe.endpoint} refused the key ({answer.status_code})")
    if form != "auto":
        return form
    return "simple" if is_simple else "chunked"


async def _run(check: Check, probe: Probe) -> Result:
    """One check's result; a connection that breaks is a failure too."""
    details: Sequence[str] = probe.doubts
    outcome: Literal["pass", "warn", "fail"]
    try:
        await check(probe)
        outcome = "warn" if probe.doubts else "pass"
    except NotConformingError as error:
        outcome, details = "fail", [str(error), *probe.doubts]
    except httpx.HTTPError as error:
        outcome, details = "fail", [f"the connection failed: {_named(error)}", *probe.doubts]
    return Result(
        check.__name__.replace("_", " "), outcome, list(details), inspect.getdoc(check) or ""
    )


def _named(error: Exception) -> str:
    """An error's kind and text."""
    return f"{type(error).__name__} {error}".strip()

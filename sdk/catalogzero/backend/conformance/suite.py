"""Runs the checks against one backend, and reports.

Owns the order, the choice of the form, and the report; what is checked stands in the modules
beside it.
"""

from __future__ import annotations

import inspect
import re
import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import aiohttp
import httpx

from catalogzero.backend.conformance import (
    chunked,
    health_checks,
    identity_checks,
    merge_checks,
    outside,
    simple,
)
from catalogzero.backend.conformance.probe import (
    ConformanceCheck,
    Ledger,
    Means,
    NotConformingError,
    Probe,
    checks_in,
    title_of,
)
from catalogzero.cloud.sending.bounded import BoundedTransport
from catalogzero.errors import ConfigError, UnauthorizedError, UnreachableError

Form = Literal["auto", "chunked", "simple"]
Verdict = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Result:
    """What came of one check: `pass`, `warn` (allowed, but at a price) or `fail`.

    `why` says what goes wrong in service when the check fails.
    """

    check: str
    outcome: Verdict
    details: list[str]
    why: str


@dataclass
class Report:
    """A run of the suite: its results, and what it wrote under which names.

    `visible` is for each source how many rows should be visible now; `not_checked` names what
    it takes another option to check.
    """

    endpoint: str
    form: str
    run: str
    results: list[Result] = field(default_factory=list)
    visible: dict[str, int] = field(default_factory=dict)
    rows_sent: int = 0
    not_checked: list[str] = field(default_factory=list)

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
    slow_s: float = 5.0,
    ca_file: Path | None = None,
    only: str = "",
    other_key: str = "",
    restart: str = "",
    rows: str = "",
    latest: str = "",
    on_result: Callable[[Result], None] = lambda _: None,
) -> Report:
    """Check a backend; it is written to, under names that begin with `verify-` and the run's.

    Args:
        endpoint: The base URL, as a handler's settings name it.
        key: A key made for tests.
        form: The form to check; `auto` finds out as a client does.
        timeout_s: How long one request may take.
        slow_s: An answer that takes longer is a warning: a client waits a minute at most.
        ca_file: The authorities to trust instead of the system's, PEM.
        only: Run only the checks whose name holds this.
        other_key: A key of another tenant made for tests.
        restart: A shell's command that kills the backend and starts it again.
        rows: A shell's command that prints what is visible, a line of JSON for each record:
            `{"source": …, "record": {…}}`.
        latest: One that prints so the newest row of each key of what came in mode merge.
        on_result: Called after each check.

    Raises:
        UnreachableError: Nobody answers there.
        UnauthorizedError: The key is refused.
        ConfigError: `ca_file` cannot be read, or there is no check of that name.
    """
    try:
        tls = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(f"ca_file {ca_file}: {error.strerror or error}") from None
    # as the handlers have one: TLS verified, no redirect followed
    async with httpx.AsyncClient(transport=BoundedTransport(tls), timeout=timeout_s) as client:
        means = Means(
            client=client,
            tls=tls,
            endpoint=endpoint,
            key=key,
            run=secrets.token_hex(4),
            ledger=Ledger(),
            other_key=other_key,
            restart=restart,
            rows=rows,
            latest=latest,
        )
        report = Report(endpoint, await _form(Probe(means, "first"), form), means.run)
        checks, report.not_checked = _checks(report.form, means, only)
        for check in checks:
            result = await _run(check, Probe(means, check.__name__.replace("_", "-")), slow_s)
            report.results.append(result)
            on_result(result)
    report.visible = {source: len(seen) for source, seen in means.ledger.visible().items()}
    report.rows_sent = sum(map(len, means.ledger.chunks.values()))
    return report


def _checks(form: str, means: Means, only: str) -> tuple[list[ConformanceCheck], list[str]]:
    """The checks of a form, those of one name where one is given; and what is not checked."""
    modules = [chunked, identity_checks, merge_checks] if form == "chunked" else [simple]
    known = [check for module in (*modules, health_checks) for check in checks_in(module)]
    more, absent = outside.checks(form, means)
    chosen = [check for check in (*known, *more) if only in title_of(check)]
    if not chosen:
        raise ConfigError(f"no check of the {form} form is called {only!r}")
    return chosen, absent


async def _form(probe: Probe, form: Form) -> Literal["chunked", "simple"]:
    """The form to check, once it is known that the backend answers and takes the key."""
    try:
        answer = await probe.put(probe.upload("u"), 0, [{"row": "first"}])
        # as a client finds out: a backend of the simple form has no such path
        is_simple = answer.status_code in (404, 405, 501)
        if is_simple or form == "simple":
            answer = await probe.post_array("u", [{"row": "first"}])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = re.sub(r" ssl:\w+ ", " ", str(error)) or _named(error)
        raise UnreachableError(f"nobody answers at {probe.means.endpoint}: {why}") from None
    if answer.status_code in (401, 403):
        raise UnauthorizedError(f"{probe.means.endpoint} refused the key ({answer.status_code})")
    if form != "auto":
        return form
    return "simple" if is_simple else "chunked"


async def _run(check: ConformanceCheck, probe: Probe, slow_s: float) -> Result:
    """One check's result; a connection that breaks is a failure too."""
    fault = ""
    try:
        await check(probe)
        if probe.slowest[0] > slow_s:
            probe.doubt(f"slow: {probe.slowest[1]} was answered after {probe.slowest[0]:.1f} s")
    except NotConformingError as error:
        fault = str(error)
    except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
        fault = f"the connection failed: {_named(error)}"
    details = [fault, *probe.doubts] if fault else probe.doubts
    outcome: Verdict = "fail" if fault else "warn" if details else "pass"
    return Result(title_of(check), outcome, details, inspect.getdoc(check) or "")


def _named(error: Exception) -> str:
    """An error's kind and text."""
    return f"{type(error).__name__} {error}".strip()

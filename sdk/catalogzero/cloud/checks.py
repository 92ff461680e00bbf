"""What `catalogzero check` looks at for a processor: backend, key, clock, disk, outbox, data.

Reads and asks, changes nothing; one GET without a body goes to the backend.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from pathlib import Path

import httpx

from catalogzero.clock import Clock
from catalogzero.cloud.egress import check_host, policy_digest
from catalogzero.cloud.encoding import ColumnFilter
from catalogzero.cloud.extras import require_extra
from catalogzero.cloud.outbox.store import Outbox
from catalogzero.cloud.reading.records import Found, ReadOptions
from catalogzero.cloud.reading.sources import Roots
from catalogzero.cloud.sending.client import ApiKey, http_client
from catalogzero.cloud.sending.health import SKEW_S
from catalogzero.cloud.settings import CloudSettings
from catalogzero.config.preflight import CHECK_TIMEOUT_S, Check, Finding
from catalogzero.config.settings import EgressPolicy
from catalogzero.errors import BadParamsError, CatalogZeroError, ConfigError
from catalogzero.protocol.deciding import http_date
from catalogzero.protocol.identities import url_under
from catalogzero.sql import DamagedFileError

LOW_DISK_BYTES = 1 << 30
SHOWN_LOST = 20
LOOKED_AT_FILES = 50


def preflight(
    settings: CloudSettings,
    policy: EgressPolicy,
    *,
    user_agent: str,
    state_dir: Path,
    clock: Clock,
) -> list[Check]:
    """The checks of a processor with these settings."""
    asking: list[asyncio.Task[httpx.Response]] = []

    async def answer() -> httpx.Response:
        if not asking:
            asking.append(asyncio.create_task(_ask(settings, policy, user_agent)))
        return await asyncio.shield(asking[0])

    checks = [
        Check("backend", partial(_backend, settings, policy, answer)),
        Check("api key", partial(_key, answer, settings)),
        Check("clock", partial(_clock, answer, clock)),
        Check("disk", partial(_disk, state_dir)),
        Check("outbox", partial(_outbox, state_dir, clock)),
        Check("egress", partial(_egress, settings, policy, state_dir, clock)),
    ]
    if (policy.hash or policy.hash_sources) and policy.hash_key_file is None:
        checks.append(Check("hash key", partial(_hash_key, state_dir)))
    if settings.data_roots:
        checks.append(Check("data roots", partial(_roots, settings)))
        checks.append(Check("files", partial(_files, settings)))
    if settings.sources:
        checks.append(Check("queries", partial(_queries, settings)))
    return checks


async def _ask(settings: CloudSettings, policy: EgressPolicy, user_agent: str) -> httpx.Response:
    """One GET with the key; 404 is what a backend answers that knows no such upload."""
    check_host(policy, settings.endpoint)
    headers = {
        "Authorization": f"Bearer {ApiKey(settings).current()}",
        "User-Agent": user_agent,
    }
    url = url_under(settings.endpoint, "uploads", "preflight-check")
    async with http_client(settings) as client:
        return await client.get(url, headers=headers, timeout=CHECK_TIMEOUT_S)


async def _backend(
    settings: CloudSettings, policy: EgressPolicy, answer: Callable[[], Awaitable[httpx.Response]]
) -> Finding:
    """Allowed by the egress policy, reachable, over TLS that is trusted, and no redirect."""
    check_host(policy, settings.endpoint)
    try:
        response = await answer()
    except (httpx.HTTPError, OSError) as error:
        fix = "see endpoint, proxy and ca_file, and whether this machine may go out"
        return Finding("backend", "fail", _said(error), fix)
    except ConfigError:
        return Finding("backend", "warn", "not asked: there is no key to ask with", "see api key")
    where = f"{response.request.url.host} answers"
    if response.is_redirect:
        fix = "write the address that it points to as endpoint: redirects are never followed"
        return Finding("backend", "fail", f"{where} with a redirect", fix)
    if response.status_code >= 500:
        fix = "ask its operator; uploads wait in the outbox meanwhile"
        return Finding("backend", "warn", f"{where} {response.status_code}", fix)
    return Finding("backend", "pass", where)


def _said(error: Exception) -> str:
    """A failed connection in a few words."""
    return re.sub(r" ssl:\w+ ", " ", str(error)) or type(error).__name__


async def _key(answer: Callable[[], Awaitable[httpx.Response]], settings: CloudSettings) -> Finding:
    """Accepted by the backend."""
    try:
        ApiKey(settings).current()
    except ConfigError as error:
        fix = "write the key that the vendor gave you there, readable by this user"
        return Finding("api key", "fail", error.message, fix)
    try:
        status = (await answer()).status_code
    except (httpx.HTTPError, OSError, ConfigError):
        return Finding("api key", "warn", "not asked: no answer from the backend", "see backend")
    if status in {401, 403}:
        fix = "see api_key_file, or ask the vendor for another key"
        return Finding("api key", "fail", f"the backend answers {status}", fix)
    return Finding("api key", "pass", "not refused")


async def _clock(answer: Callable[[], Awaitable[httpx.Response]], clock: Clock) -> Finding:
    """Near the backend's."""
    try:
        date = http_date((await answer()).headers.get("date", ""))
    except (httpx.HTTPError, OSError, ConfigError):
        return Finding("clock", "warn", "not compared: no answer from the backend", "see backend")
    if date is None:
        return Finding("clock", "pass", "the backend tells no time")
    off_s = (clock.now() - date).total_seconds()
    if abs(off_s) > SKEW_S:
        fix = "turn on time synchronisation (timedatectl set-ntp true)"
        return Finding("clock", "warn", f"{off_s:+.0f} s off the backend's", fix)
    return Finding("clock", "pass", f"{off_s:+.0f} s off the backend's")


def _disk(folder: Path) -> Finding:
    """Room for the outbox."""
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    found = f"{free / (1 << 30):.1f} GiB free at {there}"
    if free < LOW_DISK_BYTES:
        return Finding("disk", "warn", found, "make room, or set `state_dir` to another disk")
    return Finding("disk", "pass", found)


def _hash_key(folder: Path) -> Finding:
    """Kept where a lost state folder does not take it along."""
    found = (
        f"the key of the hashes lies in the state folder ({folder / 'egress.key'}): if that is "
        "lost, each hash is another one, and every source is sent again beside what it sent before"
    )
    return Finding("hash key", "warn", found, "set egress.hash_key_file, and back that file up")


def _outbox(folder: Path, clock: Clock) -> Finding:
    """Readable, without dead letters."""
    if not (folder / "outbox.sqlite").exists():
        return Finding("outbox", "pass", "none yet")
    try:
        with closing(Outbox(folder, clock, repair=False)) as outbox:
            totals, paused, damage = outbox.totals(), outbox.fact("paused"), outbox.damage()
    except DamagedFileError as error:
        fix = "start the handler: it takes over what can be read, and names what cannot"
        return Finding("outbox", "fail", error.message, fix)
    if damage is not None:
        named = [f"{one['source'] or 'a source'} ({one['upload_id']})" for one in damage["lost"]]
        shown = ", ".join(named[:SHOWN_LOST]) or "none"
        found = f"the file was damaged; {len(named)} uploads cannot be read: {shown}"
        fix = f"call their sources again, then remove {damage['file']} from {folder}"
        return Finding("outbox", "warn", found, fix)
    found = f"{totals.uploads} uploads wait, {totals.dead} were refused"
    if totals.dead or paused:
        fix = "look at `catalogzero outbox list`"
        return Finding("outbox", "warn", f"{found}; paused: {paused}" if paused else found, fix)
    return Finding("outbox", "pass", found)


def _egress(settings: CloudSettings, policy: EgressPolicy, folder: Path, clock: Clock) -> Finding:
    """Rules that hold, and no source that left by other ones."""
    columns = ColumnFilter(policy, b"")
    for name, query in settings.sources.items():
        if query.watermark is not None and not columns.in_clear(query.watermark):
            found = f"sources.{name}: its watermark {query.watermark!r} may not leave"
            return Finding("egress", "fail", found, "let the column leave, or drop `watermark`")
    if not (folder / "outbox.sqlite").exists():
        return Finding("egress", "pass", "nothing left yet")
    outbox = Outbox(folder, clock, repair=False)
    unmatched = outbox.fact("egress_unmatched") or []
    older = outbox.under_other_policy(policy_digest(policy))
    outbox.close()
    if unmatched:
        found = f"in the last run no column matched {', '.join(unmatched)}"
        return Finding("egress", "warn", found, "write the names as the sources have them")
    if older:
        fix = "call with full: true, to replace what they sent by what may leave now"
        return Finding("egress", "warn", f"{older} sources were sent by another policy", fix)
    return Finding("egress", "pass", "each rule matches, and every source left by this policy")


def _roots(settings: CloudSettings) -> Finding:
    """There, and readable."""
    for root in settings.data_roots:
        if not root.is_dir() or not os.access(root, os.R_OK | os.X_OK):
            fix = "create it, or let this user read it"
            return Finding("data roots", "fail", f"{root} is no folder that can be read", fix)
    return Finding("data roots", "pass", ", ".join(map(str, settings.data_roots)))


def _files(settings: CloudSettings) -> Finding:
    """The first 64 KiB of the first files can be read by the rules."""
    options = ReadOptions(
        encoding=settings.encoding,
        delimiter=settings.delimiter,
        allow_empty=settings.allow_empty,
    )
    found, refusals = list[Found](), list[str]()
    for root in settings.data_roots:
        with suppress(BadParamsError):  # no file yet, or no folder, as another check says
            for item in islice(Roots([root]).items(str(root), options), LOOKED_AT_FILES):
                try:
                    found.append(item.look())
                except CatalogZeroError as error:
                    refusals.append(error.message)
    if refusals:
        said = f"{len(refusals)} of {len(found) + len(refusals)} would be refused: {refusals[0]}"
        return Finding("files", "warn", said, "set what it names, or move the file away")
    forms = {f"{f.kind} {f.encoding or ''} {f.delimiter or ''}".strip() for f in found}
    return Finding("files", "pass", f"{len(found)} looked at: {', '.join(sorted(forms))}")


def _queries(settings: CloudSettings) -> Finding:
    """Their databases answer."""
    require_extra("sql")
    from sqlalchemy.exc import SQLAlchemyError

    from catalogzero.cloud.reading.queries import database_url, query_error
    from catalogzero.sql.engines import open_source

    for name, query in settings.sources.items():
        try:
            with open_source(database_url(query), CHECK_TIMEOUT_S):
                pass
        except SQLAlchemyError as error:
            raise query_error(f"sources.{name}", error) from error
    return Finding("queries", "pass", ", ".join(settings.sources))

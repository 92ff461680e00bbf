"""What `catalogzero check` asks of a backend: does it answer, is it one, does it take this key.

Two requests on the path that uploads take, and nothing is stored by them: a GET of an upload that
nobody made, and the head of a PUT as long as a chunk whose body never comes. What refuses such a
body by its head, a proxy with its limit or a server without that path, answers at once; an upload
backend waits for the body.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace

import httpx

from catalogzero.clock import Clock
from catalogzero.cloud.egress import check_host
from catalogzero.cloud.sending.backend_client import (
    FAILED_EXCHANGE,
    MASKED,
    ApiKey,
    answered,
    certificate_files,
    failed_exchange,
    http_client,
    tls_context,
)
from catalogzero.cloud.settings import CloudSettings
from catalogzero.config.certificates import expiring, good_until
from catalogzero.config.preflight import CHECK_TIMEOUT_S, Finding
from catalogzero.config.settings import EgressPolicy
from catalogzero.errors import ConfigError
from catalogzero.protocol.bodies import AS_JSON, CONTENT_TYPES, content_digest
from catalogzero.protocol.deciding import Outcome, header, http_date
from catalogzero.protocol.identities import url_under
from catalogzero.runtime.health import SKEW_S

ANSWER_S = CHECK_TIMEOUT_S * 0.8
HEAD_S = CHECK_TIMEOUT_S * 0.3
"""How long the head of a request may be thought about; who is silent then waits for its body."""
NO_SUCH_PATH = {404, 405, 501}
_FAULTS = {
    "certificate has expired": "the backend's certificate is over, or this machine's clock is "
    "wrong: compare `date`, and ask the backend's operator",
    "self-signed certificate": "the backend, or a proxy that opens TLS on the way, shows a "
    "certificate of a private authority: set `ca_file` to that authority's certificate",
    "unable to get local issuer": "set `ca_file` to the certificate of the authority that signed",
    "Hostname mismatch": "write the name that the certificate has as the host of `endpoint`",
    "certificate required": "it asks for a client certificate: set `client_cert_file` and "
    "`client_key_file`",
    "Name or service not known": "see the host of `endpoint`, and this machine's DNS",
    "Connect call failed": "see host and port of `endpoint`, and whether this machine may go out, "
    "or needs `proxy`",
}
_OTHER_FAULT = "see `endpoint` and `proxy`, and whether this machine may go out"


@dataclass
class Reachability:
    """What is asked, each answer looked at by a method of its own; a text is what passed."""

    settings: CloudSettings
    policy: EgressPolicy
    user_agent: str
    clock: Clock
    chunk_bytes: int
    asking: asyncio.Task[Outcome] | None = None
    """The one GET that three of them look at the answer of."""

    async def answer(self) -> Outcome:
        """What the backend answers.

        Raises:
            ConfigError: It cannot be asked: no key, no certificates, or a host that is forbidden.
        """
        if self.asking is None:
            self.asking = asyncio.create_task(self.ask("GET", "uploads", f"check-{uuid.uuid4()}"))
        # Each check has a time limit of its own: the first that is over must not end the others'.
        return await asyncio.shield(self.asking)

    async def ask(self, method: str, *path: str, given: Mapping[str, str] | None = None) -> Outcome:
        """One request with the key; with headers `given`, its head alone: its body never comes."""
        check_host(self.policy, self.settings.endpoint)
        key = ApiKey(self.settings).current()
        headers = {"Authorization": f"Bearer {key}", "User-Agent": self.user_agent, **(given or {})}
        url = url_under(self.settings.endpoint, *path)
        content = never() if given else None
        try:
            async with (
                asyncio.timeout(HEAD_S if given else ANSWER_S),
                http_client(self.settings) as client,
                client.stream(method, url, headers=headers, content=content) as answer,
            ):
                body = (await answer.aread()).replace(key.encode(), MASKED)
                return answered(answer, body)
        except TimeoutError:
            return Outcome(fault=f"no answer within {ANSWER_S:g} s")
        except FAILED_EXCHANGE as error:
            return failed_exchange(error)

    async def head(self, method: str, *path: str) -> Outcome | None:
        """What the head alone of an upload's request is answered; None: its body is waited for."""
        media = AS_JSON if method == "POST" else {"Content-Type": CONTENT_TYPES["ndjson"]}
        given = {"Content-Length": str(self.chunk_bytes), "Content-Digest": content_digest(b"")}
        outcome = await self.ask(method, *path, given={**given, **media})
        return None if outcome.status is None else outcome

    async def backend(self) -> Finding | str:
        """Allowed by the egress policy, reachable over trusted TLS, and one that takes uploads."""
        check_host(self.policy, self.settings.endpoint)
        try:
            tls_context(self.settings)
        except ConfigError:
            return Finding("backend", "warn", "not asked: no certificates to ask with", NEXT_CHECK)
        try:
            outcome, head = await asyncio.gather(
                self.answer(), self.head("PUT", "uploads", f"check-{uuid.uuid4()}", "chunks", "0")
            )
        except ConfigError:
            return Finding("backend", "warn", "not asked: there is no key to ask with", NEXT_CHECK)
        host = httpx.URL(self.settings.endpoint).host
        where = f"{host} answers"
        if outcome.status is None:
            return Finding("backend", "fail", plain_fault(outcome.fault), fix_of(outcome.fault))
        if bad := stopped(outcome, where):
            return bad
        if self.settings.upload_form == "simple" or (
            self.settings.upload_form == "auto" and head and head.status in NO_SUCH_PATH
        ):
            # As a client finds out: what takes no chunks may take whole arrays.
            head = await self.head("POST")
            where = f"{host} answers, and takes whole arrays"
        if head is None or head.status in {400, 401, 403, 411, 415, 422}:
            return where
        if head.status == 413:
            found = f"{host} answers 413 to a body of chunk_bytes ({self.chunk_bytes:,})"
            return Finding("backend", "fail", found, head.fix)
        if head.status in NO_SUCH_PATH:
            found = f"{host} answers {said(head)} to uploads"
            return Finding("backend", "fail", found, head.fix)
        return stopped(head, f"{host} answers") or where

    async def api_key(self) -> Finding | str:
        """Accepted by the backend."""
        try:
            ApiKey(self.settings).current()
        except ConfigError as error:
            fix = "write the key that the vendor gave you there, readable by this user"
            return Finding("api key", "fail", error.message, fix)
        try:
            outcome = await self.answer()
        except ConfigError:
            outcome = Outcome()
        if outcome.status in {401, 403}:
            return Finding("api key", "fail", f"the backend answers {outcome.status}", outcome.fix)
        if outcome.status is None or stopped(outcome, ""):
            return Finding("api key", "warn", "not compared: no backend answered", NEXT_CHECK)
        return "not refused"

    async def clock_skew(self) -> Finding | str:
        """Near the backend's."""
        try:
            outcome = await self.answer()
        except ConfigError:
            outcome = Outcome()
        if outcome.status is None:
            return Finding("clock", "warn", "not compared: no backend answered", NEXT_CHECK)
        date = http_date(header(outcome.headers, "date"))
        if date is None:
            return "the backend sends no Date header"
        off_s = (self.clock.now() - date).total_seconds()
        if abs(off_s) > SKEW_S:
            fix = "turn on time synchronisation (timedatectl set-ntp true)"
            return Finding("clock", "warn", f"{off_s:+.0f} s off the backend's", fix)
        return f"{off_s:+.0f} s off the backend's"

    def certificates(self) -> Finding | str:
        """There, readable, a pair, and not about to expire."""
        try:
            tls_context(self.settings)
        except ConfigError as error:
            fix = "write the right file there, readable by this user, or take the setting out"
            return Finding("certificates", "fail", error.message, fix)
        shown, found = [], list[Finding]()
        for name, path in certificate_files(self.settings):
            if until := good_until(path, any_will_do=name == "ca_file"):
                shown.append(f"{name} until {until:%Y-%m-%d}")
                if left := expiring(name, path, until, self.clock.now()):
                    found.append(replace(left, name="certificates"))
        found.sort(key=lambda finding: finding.status)  # `fail` before `warn`
        return found[0] if found else ", ".join(shown)


NEXT_CHECK = "end the failure that another line names, then check again"


def stopped(outcome: Outcome, where: str) -> Finding | None:
    """What is wrong with an answer that no upload backend gives, or that says wait."""
    status = outcome.status or 0
    if status >= 500 and status != 501:
        fix = "ask its operator; uploads wait in the outbox meanwhile"
        return Finding("backend", "warn", f"{where} {said(outcome)}", fix)
    if status == 429:
        return Finding("backend", "warn", f"{where} {said(outcome)}", outcome.fix)
    if status // 100 == 3 or status == 407 or (status // 100 == 2 and not outcome.is_plain):
        return Finding("backend", "fail", f"{where} {said(outcome)}", outcome.fix)
    # A 404 is of an upload that nobody made, or of a wrong path: the head decides.
    return None


def said(outcome: Outcome) -> str:
    """Status and first words of an answer."""
    if (outcome.status or 0) // 100 == 2:
        return f"{outcome.status} with a page (HTML, or long text)"
    return f"{outcome.status} {outcome.problem}".strip()


def plain_fault(fault: str) -> str:
    """A failed connection in its own words, without those of the libraries."""
    text = re.sub(r" ssl:\S+ | ssl:<[^>]*> ", " ", fault)
    return re.sub(r"^\w+: ", "", text) or fault


def fix_of(fault: str) -> str:
    """What to look at when nobody answered."""
    return next((fix for words, fix in _FAULTS.items() if words in fault), _OTHER_FAULT)


async def never() -> AsyncIterator[bytes]:
    """A body of which no more than a blank comes: aiohttp sends the head with the first byte."""
    yield b" "
    await asyncio.Event().wait()

"""One tenant's share of the backend, and the hook: none waits for another tenant."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import threading
import uuid
from typing import Any

import orjson
import pytest
from catalogzero.backend import CompletedUpload, api, tenants
from catalogzero.backend.decoding import parse
from catalogzero.backend.shares import RateLimit
from catalogzero.backend.store import BackendDatabase
from catalogzero.testing import ManualClock

from tests.backend.peer import Peer, serve_peer
from tests.backend.test_command import run
from tests.backend.test_metrics import scrape, value
from tests.cloud.site import until

ROWS = b'{"n": 1}\n' * 9_000
LARGE = len(ROWS) > api.SMALL_BYTES


def share(peer: Peer, **given: float) -> None:
    """Set the tenant's share as an operator does."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    done = run("tenants", "limit", peer.name, *options, "--database", peer.database)
    assert done.returncode == 0, done.stderr


class Gate:
    """Holds every parse of a body until it is opened, and counts those that are there."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.arrived, self._open = 0, threading.Event()
        patch.setattr(api, "parse", self._held)

    def _held(self, *given: Any) -> Any:
        self.arrived += 1
        self._open.wait(20)
        return parse(*given)

    def open(self) -> None:
        """Let all go on."""
        self._open.set()


async def test_at_its_share_of_places_a_tenant_is_asked_to_wait_and_another_is_served(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve_peer(database_url) as peer:
        share(peer, chunks=2)
        gate = Gate(monkeypatch)
        sent = [asyncio.create_task(peer.put(f"u{n}", 0, data=ROWS)) for n in range(5)]
        await until(lambda: sum(task.done() for task in sent) == 3)
        refused = [task.result() for task in sent if task.done()]
        gate.open()
        stored = [answer for answer in await asyncio.gather(*sent) if answer.status == 201]
        metrics = (await peer.ask("GET", "/metrics")).body.decode()

    assert LARGE
    assert [(one.status, one.problem) for one in refused] == [(429, "rate-limited")] * 3
    assert all(int(one.headers["Retry-After"]) >= 1 for one in refused)
    assert len(stored) == 2
    assert 'catalogzero_backend_limited_total{share="chunks"} 3.0' in metrics


async def test_another_tenant_s_chunk_waits_for_none_that_is_decoded(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen large bodies of one tenant are held: one is worked on, as another tenant is there."""
    async with serve_peer(database_url) as heavy:
        name = f"other-{uuid.uuid4().hex[:6]}"
        key = run("tenants", "add", name, "--database", database_url).stdout.strip()
        light = Peer(heavy.url, name, key, heavy.session, database_url)
        await light.ask("GET", "/v1/uploads/u1")
        gate = Gate(monkeypatch)
        sent = [asyncio.create_task(heavy.put(f"h{n}", 0, data=ROWS)) for n in range(16)]
        await until(lambda: sum(task.done() for task in sent) == 12)
        held = gate.arrived
        monkeypatch.setattr(api, "parse", parse)
        large = await light.put("u1", 0, data=ROWS)
        small = await light.put("u2", 0, {"n": 1})
        gate.open()
        answers = [answer.status for answer in await asyncio.gather(*sent)]

    assert held == 1
    assert (large.status, small.status) == (201, 201)
    assert sorted(answers) == [201] * 4 + [429] * 12


async def test_bytes_and_rows_have_a_share_too(database_url: str) -> None:
    options = {"clock": ManualClock(), "tenant_held_bytes": 2_000}
    async with serve_peer(database_url, **options) as peer:
        share(peer, rows_per_s=10)
        too_many = await peer.put("u1", 0, {"text": "x" * 3_000})
        first = await peer.put("u1", 0, *[{"n": n} for n in range(50)])
        owing = await peer.put("u1", 1, {"n": 1})
        share(peer, held_bytes=9_000, rows_per_s=0)
        shown = json.loads(
            run("tenants", "limit", peer.name, "--json", "--database", database_url).stdout
        )

    assert (too_many.status, first.status, owing.status) == (429, 201, 429)
    assert owing.headers["Retry-After"] == "4"  # 30 rows above a burst of 20, and one more
    assert shown["share"] == {
        "requests_per_s": None,
        "held_bytes": 9_000,
        "chunks": None,
        "rows_per_s": None,
    }


async def test_a_key_that_is_not_known_is_not_looked_for_at_each_request(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Any] = []
    real = BackendDatabase.read

    async def counted(self: BackendDatabase, work: Any) -> Any:
        if work.__module__ == tenants.__name__:
            reads.append(work)
        return await real(self, work)

    monkeypatch.setattr(BackendDatabase, "read", counted)
    headers = {"Authorization": f"Bearer czk_{'0' * 12}_{'A' * 43}"}
    answers = [await peer.ask("GET", "/v1/uploads/u1", headers=headers) for _ in range(5)]

    assert [answer.status for answer in answers] == [401] * 5
    assert len(reads) == 1


async def test_a_hook_that_hangs_holds_up_its_own_tenant_alone(database_url: str) -> None:
    called: list[tuple[str, str]] = []

    async def hook(upload: CompletedUpload) -> None:
        called.append((upload.tenant, upload.upload_id))
        if upload.tenant == peer.name:
            await asyncio.Event().wait()

    async with serve_peer(database_url, hook=hook) as peer:
        name = f"other-{uuid.uuid4().hex[:6]}"
        key = run("tenants", "add", name, "--database", database_url).stdout.strip()
        other = Peer(peer.url, name, key, peer.session, database_url)
        for number in range(2):
            one = {"source_key": f"s{number}", "chunks": 0, "records": 0}
            await peer.complete(f"u{number}", **one)
            await other.complete(f"u{number}", **one)
        await until(lambda: len(called) == 3)

    assert sorted(called) == sorted([(peer.name, "u0"), (name, "u0"), (name, "u1")])


async def test_a_hook_that_always_fails_ends_as_a_dead_letter(database_url: str) -> None:
    secret = "a secret that only the two know"  # noqa: S105
    called: list[tuple[bytes, str]] = []

    async def hook(upload: CompletedUpload) -> None:
        called.append((upload.message(), upload.signature()))
        await asyncio.Event().wait()

    options = {"hook_timeout_s": 0.01, "hook_attempts": 2, "hook_secret": secret}
    async with serve_peer(database_url, hook=hook, **options) as peer:

        def mine() -> list[tuple[bytes, str]]:
            return [one for one in called if orjson.loads(one[0])["tenant"] == peer.name]

        def dead() -> list[dict[str, Any]]:
            listed = run(
                "hooks", "list", "--tenant", peer.name, "--json", "--database", database_url
            )
            return list(json.loads(listed.stdout)["hooks"])

        completed = await peer.complete("u1", chunks=0, records=0)
        await until(lambda: bool(dead()))
        [letter] = dead()
        async with serve_peer(database_url) as other:
            metrics = await scrape(other)
        again = run("hooks", "retry", letter["job_id"], "--database", database_url)
        await until(lambda: len(mine()) > 2)

    assert (letter["job_id"], letter["attempts"]) == (completed.json["job_id"], 2)
    assert letter["error"] == "TimeoutError"
    assert value(metrics, "catalogzero_backend_hook_failed") >= 1
    assert again.stdout == "the hook is called again for 1 upload\n"
    message, signature = mine()[0]
    made = hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()
    assert signature == f"sha256={made}"


async def test_a_tenant_that_asks_too_fast_waits_and_others_do_not(database_url: str) -> None:
    options = {"clock": ManualClock(), "max_requests_per_s": 1}
    async with (
        serve_peer(database_url, **options) as eager,
        serve_peer(database_url, **options) as other,
    ):
        answers = [await eager.ask("GET", "/v1/uploads/u1") for _ in range(3)]

        assert [answer.status for answer in answers] == [404, 404, 429]
        assert answers[2].problem == "rate-limited"
        assert answers[2].headers["Retry-After"] == "1"
        assert (await other.ask("GET", "/v1/uploads/u1")).status == 404


def test_a_bucket_fills_again_at_its_rate() -> None:
    limit = RateLimit()

    def ask(key: str, now_s: float) -> float:
        wait_s = limit.wait_s(key, now_s, 2)
        if not wait_s:
            limit.take(key, now_s, 2, 1)
        return wait_s

    assert [ask("a", 0) for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert [ask("a", 0.5), ask("a", 0.5), ask("b", 0.5)] == [0, 0.5, 0]
    limit.take("b", 0.5, 2, 9)  # owed
    assert limit.wait_s("b", 0.5, 2) == 3.5


async def test_what_all_tenants_hold_together_is_bounded_and_what_is_over_it_may_come_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve_peer(database_url, max_held_bytes=len(ROWS) + 1_024) as peer:
        gate = Gate(monkeypatch)
        held = asyncio.create_task(peer.put("u1", 0, data=ROWS))
        await until(lambda: gate.arrived == 1)
        refused = await peer.put("u2", 0, data=ROWS)
        gate.open()
        stored = await held
        again = await peer.put("u2", 0, data=ROWS)

    assert (refused.status, refused.headers["Retry-After"]) == (503, "2")
    assert (stored.status, again.status) == (201, 201)

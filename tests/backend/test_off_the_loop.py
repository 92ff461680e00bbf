"""What is decoded, parsed and built is so off the loop's thread, in memory that is bounded."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from catalogzero.backend import api, fleet_pages, installations
from catalogzero.protocol.bodies import content_digest

from tests.backend.peer import NDJSON, Peer, completion
from tests.backend.test_command import run, served
from tests.backend.test_packed_bodies import peak_mib
from tests.protocol.streams import pack

JSON = {"Content-Type": "application/json"}
CSV = {"Content-Type": "text/csv"}
MIB = 1 << 20


class Watch:
    """Wraps functions, and notes in which thread each ran, and over how many bytes at most."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.sizes: dict[tuple[str, bool], list[int]] = defaultdict(list)

    def over(self, module: Any, *names: str) -> None:
        """Wrap functions of a module."""
        for name in names:
            self._patch.setattr(module, name, self._noting(name, getattr(module, name)))

    def _noting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        here = threading.get_ident()

        def noted(*given: Any, **named: Any) -> Any:
            size = max((len(one) for one in given if isinstance(one, bytes)), default=0)
            self.sizes[name, threading.get_ident() == here].append(size)
            return call(*given, **named)

        return noted


async def test_nothing_large_or_packed_is_decoded_on_the_loop(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    decoding = ("check_digest", "decompress", "read_model", "parse", "parse_array")
    watch.over(api, *decoding)
    bomb = pack(b"", "zstd") * 100_000
    large: dict[str, Any] = {"params": {"text": "x" * 60_000}}
    rows = b'{"a": 1}\n' * 10_000
    packed = {"Content-Encoding": "zstd", **JSON}
    path = "/v1/uploads/u1/complete"

    refused = await peer.ask("POST", path, data=bomb, headers=packed)
    stored = await peer.put("u1", 0, data=rows, headers={"Content-Digest": content_digest(rows)})
    simple = await peer.ask("POST", "/v1", json=[{"a": 1}] * 2_000)
    completed = await peer.complete("u1", records=10_000, **large)
    about = {"entry": "skylark", "host": {"text": "x" * 20_000}}
    started = await peer.ask("PUT", "/v1/installations/site-1", json=about)
    report = {"client_id": "site-1", "metrics": {"text": "x" * 9_000}, "timestamp": ""}
    reported = await peer.ask("POST", "/v1/health", json=report)
    small = await peer.ask("POST", path, data=pack(b"{}", "zstd"), headers=packed)
    light = await peer.ask("POST", path, json=completion())

    answers = (refused, stored, simple, completed, started, reported, small, light)
    assert [one.status for one in answers] == [413, 201, 201, 201, 201, 200, 400, 200]
    on_loop = {name: max(sizes) for (name, here), sizes in watch.sizes.items() if here}
    off_loop = {name for name, here in watch.sizes if not here}
    assert off_loop == set(decoding)
    assert set(on_loop) == {"check_digest", "decompress", "read_model"}  # of the last one
    assert max(on_loop.values()) <= api.ON_LOOP_BYTES


async def test_pages_are_built_off_the_loop(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    await peer.put("u1", 0, {"a": 1})
    await peer.complete("u1")
    watch = Watch(monkeypatch)
    watch.over(fleet_pages, "html", "asdict")
    watch.over(api, "_page")
    watch.over(installations, "page_of")

    await peer.ask("PUT", "/v1/installations/site-1", json={"entry": "skylark", "epoch": 0})
    await peer.ask("GET", "/v1/installations/site-1")
    await peer.ask("GET", "/")
    await peer.ask("GET", "/fleet.json")
    own = f"tenant={peer.name}&id=site-1"
    await peer.ask("GET", f"/installation?{own}")
    await peer.ask("GET", f"/installation.json?{own}")

    names = ("html", "asdict", "_page", "page_of")
    built = {(name, False) for name in names}
    assert set(watch.sizes) == built


async def test_no_body_takes_more_than_four_times_what_it_may_unpack_to(tmp_path: Path) -> None:
    limit = 32 * MIB  # a quarter of the default, as is the count of records
    limits = {
        "CATALOGZERO_BACKEND_MAX_DECODED_BYTES": str(limit),
        "CATALOGZERO_BACKEND_MAX_CHUNK_RECORDS": "250000",
    }
    database = str(tmp_path / "backend.db")
    key = run("tenants", "add", "skylark", "--database", database).stdout.strip()
    most = limit - 4_096
    bodies: dict[str, tuple[dict[str, str], bytes, int]] = {
        "records that are empty": (NDJSON, b"{}\n" * (most // 3), 413),
        "as many as may be": (NDJSON, b"{}\n" * 250_000, 201),
        "one long text": (NDJSON, b'{"a":"%s"}' % (b"x" * most), 201),
        "one long text of backslashes": (NDJSON, b'{"a":"%s"}' % (b"\\\\" * (most // 2)), 413),
        "half as many": (NDJSON, b'{"a":"%s"}' % (b"\\\\" * (most // 4)), 201),
        "one long text of wide characters": (
            NDJSON,
            b'{"a":"%s%s"}' % ("\U0001f600".encode(), b"x" * (most - 64)),
            413,
        ),
        "one record of empty objects": (NDJSON, b'{"a":[%s{}]}' % (b"{}," * (most // 3 - 9)), 413),
        "rows": (NDJSON, b'{"a":1,"b":"some text","c":2.5}\n' * (most // 33), 413),
        "a header of many columns": (CSV, b"a," * (most // 2), 413),
        "one row of many lines": (CSV, b"a\n" + b'"\n",' * (most // 4 - 9), 413),
        "a row of an empty cell and one of quotes": (
            CSV,
            b'a,b\n,"%s"\n' % (b'""' * (most // 2 - 9)),
            201,
        ),
        "an array of empty objects": (JSON, b"[%s{}]" % (b"{}," * (most // 3 - 9)), 413),
        "an array of rows": (JSON, b"[%s{}]" % (b'{"a":1,"b":"text"},' * 400_000), 413),
        "as many rows as may be": (JSON, b"[%s{}]" % (b'{"a":1,"b":"text"},' * 170_000), 201),
        "an array of one long text": (JSON, b'[{"a":"%s"}]' % (b"x" * (most - 9)), 201),
    }
    with served("--database", database, **limits) as (process, announced):
        headers = {"Authorization": f"Bearer {key}"}
        url = announced["endpoint"]
        async with aiohttp.ClientSession(headers=headers) as session:

            async def send(number: int, media: dict[str, str], body: bytes) -> int:
                method, where = "PUT", f"{url}/uploads/u{number}/chunks/0"
                if media is JSON:
                    method, where = "POST", url
                sent = {**media, "Content-Encoding": "zstd"}
                ask = session.request(method, where, data=pack(body, "zstd"), headers=sent)
                async with ask as answer:
                    return answer.status

            for number, media in enumerate((NDJSON, CSV, JSON)):
                small = {0: b'{"a":1}\n', 1: b"a\n1\n", 2: b'[{"a":1}]'}[number]
                assert await send(100 + number, media, small) == 201
            taken: dict[str, int] = {}
            for number, (name, (media, body, status)) in enumerate(bodies.items()):
                for attempt in range(3):  # the allocator may still hold what others left
                    forget_peak(process.pid)
                    before = peak_mib(process.pid)
                    assert await send(number + 1_000 * attempt, media, body) == status, name
                    taken[name] = peak_mib(process.pid) - before
                    if taken[name] <= 4 * limit // MIB:
                        break

    assert max(taken.values()) <= 4 * limit // MIB, taken


def forget_peak(pid: int) -> None:
    """The most memory that the process ever held is what it holds now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")

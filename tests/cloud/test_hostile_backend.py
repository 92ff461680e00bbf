"""A backend that means harm: whatever it answers, the client stays whole, and so does the data."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import tempfile
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog
from aiohttp import web
from catalogzero.clock import SystemClock
from catalogzero.cloud.audit import AuditLog
from catalogzero.cloud.sending.backend_client import BackendClient
from catalogzero.cloud.settings import CloudSettings
from catalogzero.config.seldom import Seldom
from catalogzero.config.settings import EgressPolicy
from catalogzero.errors import CatalogZeroError
from catalogzero.protocol.deciding import Outcome, RequestKind
from catalogzero.protocol.identities import Identity
from catalogzero.protocol.problems import Kind
from catalogzero.testing import ManualClock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site, until
from tests.protocol.streams import deflate_bomb, gzip_bomb, zstd_bomb

MOST_BYTES = 128 << 20
"""A mebibyte of JSON may be ninety times as large while it is read."""
Act = Callable[[asyncio.StreamWriter], Awaitable[None]]


# What one answer may cost


def head(status: int, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} Any", *headers, "", ""]).encode()


def whole(status: int, body: bytes, *headers: str) -> Act:
    """One answer, of that length."""

    async def act(writer: asyncio.StreamWriter) -> None:
        writer.write(head(status, f"Content-Length: {len(body)}", *headers) + body)
        await writer.drain()

    return act


def endless(start: bytes, more: Callable[[int], bytes]) -> Act:
    """An answer that does not end."""

    async def act(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        for number in itertools.count():
            writer.write(more(number))
            await writer.drain()

    return act


async def dripping(writer: asyncio.StreamWriter) -> None:
    writer.write(head(200, "Content-Type: application/json"))
    never = asyncio.Event()
    while True:
        writer.write(b" ")
        await writer.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(never.wait(), 0.05)


def a_header(number: int) -> bytes:
    return b"x-%d: %b\r\n" % (number, b"a" * 4_000)


JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"
ANSWERS: dict[str, Act] = {
    "endless spaces": endless(head(200, JSON), lambda n: b" " * 65_536),
    "endless headers": endless(b"HTTP/1.1 200 OK\r\n", a_header),
    "endless trailers": endless(head(200, CHUNKED) + b"2\r\n{}\r\n0\r\n", a_header),
    "an endless status line": endless(b"", lambda n: b"H" * 65_536),
    "an endless chunk extension": endless(head(200, CHUNKED), lambda n: b"1;" + b"a" * 65_000),
    "endless tiny chunks": endless(head(200, CHUNKED), lambda n: b"1\r\na\r\n" * 1000),
    "endless early hints": endless(b"", lambda n: b"HTTP/1.1 103 Hints\r\n\r\n" * 100),
    "one byte at a time": dripping,
    "a gzip bomb": whole(200, gzip_bomb(256), "Content-Encoding: gzip"),
    "a deflate bomb": whole(200, deflate_bomb(256), "Content-Encoding: deflate"),
    "a zstd bomb": whole(200, zstd_bomb(2_048), "Content-Encoding: zstd"),
    "a bomb in a bomb": whole(200, gzip.compress(gzip_bomb(256)), "Content-Encoding: gzip, gzip"),
    "deep JSON": whole(422, b"[" * 500_000 + b"]" * 500_000, JSON),
    "many objects": whole(422, b"[" + b"{}," * 349_000 + b"0]", JSON),
    "many numbers": whole(409, b'{"missing":[' + b"0," * 500_000 + b"0]}", JSON),
}


@asynccontextmanager
async def serving(act: Act, heads: list[bytes]) -> AsyncIterator[str]:
    """An endpoint that reads a request's head, keeps it, and acts."""

    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            await act(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        for writer in writers:
            writer.transport.abort()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def pushed(endpoint: str, folder: Path, times: int = 1) -> list[Outcome]:
    """What came of as many `complete`s through one door."""
    given = CloudSettings(
        endpoint=endpoint, api_key="test-key", data_roots=[folder], upload_timeout_s=1
    )
    who = Identity(
        installation_id="i", handler_id="h", entry="e", version="1", stream="s", sdk_version="0"
    )
    clock = SystemClock()
    audit, log, seldom = AuditLog(folder, clock), structlog.get_logger(), Seldom(clock)
    async with BackendClient(given, EgressPolicy(), who, audit, clock, log, seldom) as backend:
        return [
            await backend.push(RequestKind.COMPLETE, "POST", (), b"{}", {}) for _ in range(times)
        ]


@pytest.mark.parametrize("name", ANSWERS)
async def test_memory_is_bounded_whatever_is_answered(name: str, tmp_path: Path) -> None:
    async with serving(ANSWERS[name], []) as endpoint:
        tracemalloc.start()
        try:
            [outcome] = await pushed(endpoint, tmp_path)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert peak < MOST_BYTES
    assert not outcome.is_plain or outcome.status is None or outcome.body is not None
    assert len(outcome.problem) <= 300


async def test_an_answer_is_asked_for_unpacked_and_no_cookie_comes_back(tmp_path: Path) -> None:
    heads: list[bytes] = []
    biscuits = [f"Set-Cookie: c{number}={'x' * 200}" for number in range(40)]
    async with serving(whole(503, b"{}", JSON, *biscuits, "Connection: close"), heads) as endpoint:
        outcomes = await pushed(endpoint, tmp_path, times=3)

    assert [outcome.status for outcome in outcomes] == [503, 503, 503]
    assert len(heads) == 3
    assert all(b"accept-encoding: identity" in one.lower() for one in heads)
    assert not any(b"cookie" in one.lower() for one in heads)


async def test_a_packed_answer_is_read_all_the_same(tmp_path: Path) -> None:
    body = gzip.compress(b'{"job_id": "j"}')
    async with serving(whole(201, body, JSON, "Content-Encoding: gzip"), []) as endpoint:
        [outcome] = await pushed(endpoint, tmp_path)

    assert outcome.body == {"job_id": "j"}


# What a history of answers may cost

SIMULATED_S = 1_800.0
RUNS = 4
MOST_REQUESTS = 1_500
"""Two sources for half an hour: a loop that never waits longer comes to ten thousand."""

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from(["x" * 5_000, "\x1b[2J", "2026-01-01T00:00:00+00:00", 1, 0, 2**62, 2**63 - 1]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
FRESH = "fresh"
GENERATIONS = st.sampled_from(["g1", "g2", FRESH, "", None])
TOLD = st.fixed_dictionaries(
    {"source_seq": st.just(5) | SCALARS},
    optional={"watermark": VALUES, "full_seq": SCALARS, "mode": st.sampled_from(["append", 7])},
)
MEMBERS = {
    "job_id": st.just("job") | VALUES,
    "superseded": st.just(True) | VALUES,
    "source_seq": st.integers(0, 2**62) | VALUES,
    "watermark": VALUES,
    "by": st.just("upload_key") | VALUES,
    "missing": st.just([0]) | st.just([]) | VALUES,
    "type": st.sampled_from([kind.uri for kind in Kind]) | VALUES,
    "detail": VALUES,
    "since": VALUES,
    "generation": GENERATIONS | VALUES,
    "epoch": st.sampled_from([1, 5, 2**62]) | VALUES,
    "states": st.dictionaries(st.text(max_size=3), TOLD | VALUES, max_size=3) | VALUES,
    "sources": st.dictionaries(st.text(max_size=3), SCALARS, max_size=3) | VALUES,
    "next": st.just("2") | VALUES,
    "server_time": VALUES,
    "next_interval_s": VALUES,
}
USUAL: dict[str, list[tuple[int, Any]]] = {
    "chunk": [
        (201, {}),
        (410, {}),
        (404, {}),
        (415, {}),
        (400, {"type": Kind.DIGEST_MISMATCH.uri}),
    ],
    "complete": [
        (201, {"job_id": "job"}),
        (200, {"superseded": True, "source_seq": 2**61}),
        (409, {"missing": [0]}),
        (409, {"type": Kind.INSTALLATION_MOVED.uri}),
        (422, {}),
    ],
    "start": [
        (200, {"generation": "g1", "epoch": 7, "states": {}}),
        (200, {"generation": "g1", "epoch": 7, "states": {}, "next": "2"}),
        (409, {"type": Kind.GENERATION_CHANGED.uri, "generation": "g2"}),
        (404, {}),
    ],
    "simple": [(201, {"job_id": "job"}), (501, {}), (200, {})],
    "health": [(200, {"next_interval_s": 0.001}), (500, {})],
}
BODIES = st.one_of(
    st.fixed_dictionaries({}, optional=MEMBERS).map(orjson.dumps),
    VALUES.map(orjson.dumps),
    st.sampled_from([b"", b"null", b"\xff\xfe", b"<html>", b"{", b" " * (2 << 20), b"x" * 2_000]),
    st.just(b'{"watermark":' + b"[" * 400 + b"]" * 400 + b',"superseded":true}'),
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Retry-After": st.sampled_from(
            ["0", "-5", "9" * 30, "1.5", "soon", f"Mon, 01 Jan {'9' * 25} 00:00:00 GMT", "٣"]
        ),
        "Catalogzero-Generation": st.sampled_from(["g1", "g2", FRESH]),
        "Set-Cookie": st.just("a=b"),
        "Location": st.sampled_from(["/v1/elsewhere", "http://127.0.0.1:1/"]),
        "Content-Type": st.sampled_from(["text/plain", "application/json", "x", "text/html"]),
        "Content-Encoding": st.sampled_from(["gzip", "br", "identity"]),
        "Date": st.just(f"Mon, 01 Jan {'9' * 25} 00:00:00 GMT"),
    },
)
TAKEN = [200, 201, 202, 204, 226, 299]
ELSEWHERE = [300, 301, 307]
REFUSED = [400, 401, 403, 404, 405, 407, 409, 410, 413, 415, 418, 422, 451]
LATER = [408, 425, 429, 500, 501, 503, 599, 999]
STATUSES = st.sampled_from(TAKEN + ELSEWHERE + REFUSED + LATER)
Said = tuple[int, dict[str, str], bytes]


def answers_to(kind: str) -> st.SearchStrategy[list[Said]]:
    """The answers to one kind of request, given in turn for ever."""
    usual = st.sampled_from(USUAL[kind]).map(lambda one: (one[0], orjson.dumps(one[1])))
    any_at_all = st.tuples(STATUSES, BODIES)
    one = st.tuples(usual | any_at_all, HEADERS).map(lambda pair: (pair[0][0], pair[1], pair[0][1]))
    return st.lists(one, min_size=1, max_size=4)


HISTORIES = st.fixed_dictionaries({kind: answers_to(kind) for kind in USUAL})


class HostileBackend:
    """Answers each kind of request by its list, in turn, for ever; keeps what it said."""

    def __init__(self, history: dict[str, list[Said]]) -> None:
        self._turns = {kind: itertools.cycle(said) for kind, said in history.items()}
        self.count, self.busy, self.cookies = 0, 0, 0
        self.said: dict[str, list[Said]] = defaultdict(list)
        self.by_kind: Counter[str] = Counter()
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> HostileBackend:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, auto_decompress=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.count, self.busy = self.count + 1, self.busy + 1
        self.cookies += "Cookie" in request.headers
        try:
            await request.read()
            match request.path.removeprefix("/v1").strip("/").split("/"):
                case ["uploads", upload_id, "complete"]:
                    kind, of = "complete", upload_id
                case ["uploads", *_]:
                    kind, of = "chunk", ""
                case ["installations", *_]:
                    kind, of = "start", ""
                case ["health"]:
                    kind, of = "health", ""
                case _:
                    kind, of = "simple", request.headers["Idempotency-Key"]
            self.by_kind[kind] += 1
            status, headers, body = next(self._turns[kind])
            self.said[of].append((status, headers, body))
            fresh = {key: f"g-{self.count}" for key, text in headers.items() if text == FRESH}
            return web.Response(status=status, headers={**headers, **fresh}, body=body)
        finally:
            self.busy -= 1


def acknowledges(said: Said, *, simple: bool) -> bool:
    """Whether an answer says that the content is there, by the protocol's words."""
    status, headers, body = said
    if headers.get("Content-Encoding", "identity") != "identity" and body:
        return False
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        told = None
    if simple:
        plain = told is not None or (not body.strip() and len(body) < 1_000)
        plain = plain or (headers.get("Content-Type") == "text/plain" and len(body) <= 1_024)
        return 200 <= status < 300 and (plain or status == 204)
    if status not in (200, 201) or not isinstance(told, dict) or told.get("superseded"):
        return False
    job = told.get("job_id")
    return (isinstance(job, str) and job != "") or (type(job) is int and job >= 0)


async def let_pass(site: Site, backend: HostileBackend, clock: ManualClock, seconds: float) -> None:
    """Let time pass by what is due, each time once nothing is under way."""
    sender, end, never = site.engine.sender, clock.monotonic() + seconds, asyncio.Event()
    while clock.monotonic() < end and backend.count <= MOST_REQUESTS:
        sender.wake()
        quiet, seen = 0, -1
        while quiet < 3:
            with suppress(TimeoutError):
                await asyncio.wait_for(never.wait(), 0.004)
            still = seen == backend.count and not backend.busy and not sender.is_flying
            quiet, seen = quiet + 1 if still else 0, backend.count
        due_s = sender.next_due_s()
        step_s = 5.0 if due_s is None or sender.holds else due_s
        await clock.advance(min(max(step_s, 0.5), end - clock.monotonic()) or 0.5)


def say(status: int, told: Any = None, **headers: str) -> Said:
    body = told if isinstance(told, bytes) else orjson.dumps(told or {})
    return status, {name.replace("_", "-"): text for name, text in headers.items()}, body


def history(**answers: list[Said]) -> dict[str, list[Said]]:
    """What is not given is answered as it should be."""
    good = {kind: [say(*answers[0])] for kind, answers in USUAL.items()}
    return {**good, **answers}


MISSING = say(409, {"missing": [0]})
SUPERSEDED = {"superseded": True, "source_seq": 2**61}
LOOPS = {
    "missing for ever": history(complete=[MISSING]),
    "nothing missing, for ever": history(complete=[say(409, {"missing": []})]),
    "finished, then missing": history(chunk=[say(410)], complete=[MISSING]),
    "superseded for ever": history(complete=[say(200, SUPERSEDED)]),
    "another generation in each answer": history(
        complete=[say(201, {"job_id": "job"}, Catalogzero_Generation=FRESH)]
    ),
    "another generation in each refusal": history(
        complete=[say(422, {}, Catalogzero_Generation=FRESH)]
    ),
    "moved, and started all the same": history(
        complete=[say(409, {"type": Kind.INSTALLATION_MOVED.uri})]
    ),
    "the same page for ever": history(
        start=[say(200, {"generation": "g1", "epoch": 7, "states": {}, "next": "2"})]
    ),
}
TRAPS = {
    "a date past all years": history(
        start=[say(503, {}, Retry_After=f"Mon, 01 Jan {'9' * 25} 00:00:00 GMT")]
    ),
    "moved, since what cannot be kept": history(
        start=[say(409, {"type": Kind.INSTALLATION_MOVED.uri, "since": "x" * 100_000})]
    ),
    "moved, since a deep list": history(
        start=[
            say(
                409,
                b'{"type":"%b","since":%b}'
                % (Kind.INSTALLATION_MOVED.uri.encode(), b"[" * 300 + b"]" * 300),
            )
        ]
    ),
    "a refusal that is nested deeply": history(complete=[say(422, b"[" * 300 + b"]" * 300)]),
    "a refusal of a mebibyte": history(complete=[say(422, {"title": "x" * (1 << 20)})]),
    "a job_id of a mebibyte": history(complete=[say(201, {"job_id": "x" * 1_000_000})]),
    "a job_id that is false": history(complete=[say(201, {"job_id": False})]),
    "a source_seq that is no number": history(
        complete=[say(200, {"job_id": "job", "by": "upload_key", "source_seq": "x"})]
    ),
    "superseded by no number": history(complete=[say(200, {**SUPERSEDED, "source_seq": [1]})]),
    "superseded up to a long text": history(
        complete=[say(200, {**SUPERSEDED, "watermark": "x" * 100_000})]
    ),
    "sources that nobody sent": history(
        start=[say(200, {"sources": {f"s-{number}": 1 for number in range(8)}})]
    ),
    "a report each millisecond": history(health=[say(200, {"next_interval_s": 0.001})]),
    "a report each true": history(health=[say(200, {"next_interval_s": True})]),
}


@pytest.mark.parametrize("name", LOOPS | TRAPS)
async def test_no_loop_and_no_trap_takes_the_client_or_its_data(name: str) -> None:
    await suffer((LOOPS | TRAPS)[name], "chunked")


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HISTORIES, st.sampled_from(["chunked", "auto"]))
async def test_no_history_of_answers_takes_the_client_or_its_data(
    history: dict[str, list[Said]], form: str
) -> None:
    await suffer(history, form)


async def suffer(history: dict[str, list[Said]], form: str) -> None:
    """Two sources, four runs and half an hour with a backend, then one that means well."""
    folder = Path(tempfile.mkdtemp())
    clock = ManualClock()
    runtime = {"upload_wait_s": 0.0, "chunk_bytes": 1_024}
    async with HostileBackend(history) as backend:
        site = Site(backend.url, folder, clock=clock, runtime=runtime, upload_form=form)
        site.write("a.csv", "n\n1\n")
        site.write("b.csv", "n\n2\n")
        async with site:
            for _ in range(RUNS):
                with suppress(CatalogZeroError):
                    await site.run()
                await site.engine.report_health({}, {})
                await let_pass(site, backend, clock, SIMULATED_S / RUNS)

            assert not site.main.done()
            assert backend.count <= MOST_REQUESTS, backend.by_kind
            assert backend.cookies == 0
            kept_within_bounds(site)
            nothing_is_lost_or_called_delivered(site, backend)
    await arrives_at_an_honest_backend(folder, site)


def kept_within_bounds(site: Site) -> None:
    """What a backend said takes little room."""
    outbox = site.outbox
    [(answers, uploads)] = outbox.store.execute("SELECT MAX(LENGTH(answer)), COUNT(*) FROM uploads")
    [(facts,)] = outbox.store.execute("SELECT MAX(LENGTH(value)) FROM facts")
    [(sources, marks)] = outbox.store.execute(
        "SELECT COUNT(*), MAX(LENGTH(watermark)) FROM sources"
    )
    assert (answers or 0) <= 20_000
    assert uploads <= 2 * RUNS * 4
    assert facts <= 20_000
    assert sources <= 10
    assert (marks or 0) <= 5_000
    sender = site.engine.sender
    assert max(len(sender.each), len(sender.late), len(sender.resent)) <= 2 * RUNS * 4
    assert (site.engine.health.next_interval_s or 10) >= 10


def nothing_is_lost_or_called_delivered(site: Site, backend: HostileBackend) -> None:
    """Each upload's bytes are there, but where the backend said what ends it."""
    for upload in site.outbox.store.uploads():
        key = f"{upload.upload_key}-{upload.source_seq}"
        said = [(one, False) for one in backend.said[upload.upload_id]]
        said += [(one, True) for one in backend.said[key]]
        if upload.state == "done":
            assert any(acknowledges(one, simple=simple) for one, simple in said)
        elif upload.state in ("sealed", "completing", "dead", "held"):
            there = len(list(site.outbox.store.bodies(upload.upload_id)))
            assert (there, upload.records) == (upload.chunks, 1)
        else:
            assert upload.state in ("superseded", "abandoned", "overtaken")
    open_or_done = {
        upload.source
        for upload in site.outbox.store.uploads(["sealed", "completing", "dead", "held", "done"])
    }
    assert all(f"exports/{name}" in open_or_done for name in ("a.csv", "b.csv"))


async def arrives_at_an_honest_backend(folder: Path, before: Site) -> None:
    """With what an operator has (`adopt`, `retry`), all is delivered once a backend means well."""
    async with ReferenceBackend() as honest:
        site = Site(honest.url, folder, upload_form="chunked", runtime={"upload_wait_s": 30.0})
        async with site:
            site.outbox.adopt()
            await until(lambda: not site.engine.sender.holds)
            for dead in site.outbox.store.uploads(["dead"]):
                site.outbox.retry(dead.upload_id)
            for _ in range(2):
                await site.run()
            await until(lambda: sorted(row["n"] for row in honest.rows()) == ["1", "2"])


# What a start may report


async def test_sources_in_endless_pages_are_given_up(tmp_path: Path) -> None:
    pages = itertools.count()
    asked: list[str] = []

    async def start(request: web.Request) -> web.Response:
        asked.append(request.query.get("next", ""))
        page = next(pages)
        states: Any = {f"{page}-{number}": {} for number in range(40_000)}
        told = {"generation": "g", "epoch": 1, "states": states, "next": "more"}
        return web.json_response(told)

    app = web.Application()
    app.router.add_route("*", "/v1/installations/{name}", start)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    async with Site(url, tmp_path, clock=ManualClock()) as site:
        await until(lambda: site.engine.sender.fault)

        assert site.outbox.store.execute("SELECT COUNT(*) FROM sources") == [(0,)]
        assert site.engine.sender.holds
    await runner.cleanup()
    assert len(asked) == 1 + 1 + (128 << 20) // (256 * 40_000)

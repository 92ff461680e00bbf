"""Scheduler, backend and conductor answer alike, to everything that is not their own business."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import structlog
from aiohttp import web
from catalogzero import UnreachableError
from catalogzero.web import ConnectionLimits, edge_application, json_response, listening
from structlog.testing import LogCapture

from tests.web.services import NAMES, TOKEN, Request, Service, read_answer, served

SAFE = ("content-security-policy", "x-content-type-options", "referrer-policy")


@pytest.fixture(params=NAMES)
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Service]:
    """Each service in turn, with a token."""
    async with served(request.param, tmp_path) as one:
        yield one


@pytest.fixture(params=NAMES)
async def open_service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Service]:
    """Each service in turn, open to this machine."""
    async with served(request.param, tmp_path, is_open=True) as one:
        yield one


def nested(depth: int) -> bytes:
    """A list in a list in a list."""
    return b"[" * depth + b"]" * depth


# --- tokens


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
async def test_the_scheme_of_a_token_has_no_case(service: Service, scheme: str) -> None:
    answer = await service.ask(service.guarded, key=f"{scheme} {TOKEN}".encode())

    assert answer.status == 200


@pytest.mark.parametrize(
    "shown",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        TOKEN.encode(),
        b"Bearer " + TOKEN[:-1].encode(),
        b"Bearer " + TOKEN.upper().encode(),
        b"Token " + TOKEN.encode(),
        "Bearer Ünïcödé".encode(),
        b"Bearer \xff\xfe\xed\xa0\x80",
        b"Basic \xff",
        b"\xff " + TOKEN.encode(),
    ],
)
async def test_without_the_token_nothing_is_answered(
    service: Service, shown: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = await service.ask(service.guarded, key=shown)

    assert answer.status == 401
    assert service.message(answer)
    assert answer.headers["www-authenticate"]
    assert "Traceback" not in capfd.readouterr().err


# --- Host and Origin


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", "[::1", "", "a@b"],
)
async def test_an_open_service_answers_under_no_other_name(
    open_service: Service, host: str
) -> None:
    answer = await open_service.ask(open_service.reading, {"Host": host}, key=b"")

    assert answer.status == (421 if open_service.name == "conductor" else 403)
    assert open_service.message(answer)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:9", "127.9.9.9"])
async def test_an_open_service_answers_under_every_loopback_name(
    open_service: Service, host: str
) -> None:
    assert (await open_service.ask(open_service.reading, {"Host": host}, key=b"")).status == 200


async def test_the_absolute_form_of_a_request_hides_no_foreign_host(open_service: Service) -> None:
    path = open_service.reading.path
    inside = Request("GET", f"http://127.0.0.1{path}")
    outside = Request("GET", f"http://evil.example{path}")

    answers = [
        await open_service.ask(inside, {"Host": "evil.example"}, key=b""),
        await open_service.ask(outside, key=b""),
    ]

    assert {answer.status for answer in answers} <= {403, 421}


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"])
async def test_an_open_service_is_closed_to_proxies(open_service: Service, header: str) -> None:
    answer = await open_service.ask(open_service.reading, {header: "203.0.113.9"}, key=b"")

    assert answer.status == 403
    assert "token" in open_service.message(answer)


async def test_who_shows_the_token_may_use_any_name(service: Service) -> None:
    headers = {"Host": "proxy.example", "X-Forwarded-For": "203.0.113.9"}

    assert (await service.ask(service.guarded, headers)).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
async def test_other_origins_are_refused(service: Service, headers: dict[str, str]) -> None:
    answer = await service.ask(service.guarded, headers)

    assert answer.status == 403
    assert "origin" in service.message(answer)


async def test_its_own_origin_is_not_refused(service: Service) -> None:
    headers = {"Origin": service.url, "Sec-Fetch-Site": "same-origin"}

    assert (await service.ask(service.guarded, headers)).status == 200


async def test_the_upload_api_answers_under_any_name(tmp_path: Path) -> None:
    async with served("backend", tmp_path) as backend:
        headers = {"Host": "uploads.vendor.example", "X-Forwarded-For": "203.0.113.9"}

        assert (await backend.ask(backend.posting, headers)).status == 201


# --- bodies


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        pytest.param(b"[" + b"9" * 5_000 + b"]", {}, id="integer of 5,000 digits"),
        pytest.param(b'{"action": ' + b"9" * 5_000 + b"}", {}, id="integer in an object"),
        pytest.param(b"[1e999]", {}, id="infinite number"),
        pytest.param(b'[{"a": NaN}]', {}, id="NaN"),
        pytest.param(nested(100_000), {}, id="nested 100,000 deep"),
        pytest.param(b'[{"a":' + nested(1_100) + b"}]", {}, id="nested 1,100 deep"),
        pytest.param(b'{"action":' + nested(500) + b"}", {}, id="nested 500 deep, in an object"),
        pytest.param(b'[{"a": "\\ud800"}]', {}, id="lone surrogate"),
        pytest.param(b'{"handler_id": "\\udfff"}', {}, id="lone surrogate in an object"),
        pytest.param(b'{"handler_id": "a\\u0000b", "job_method": "x"}', {}, id="NUL"),
        pytest.param(b"\xff\xfe{}", {}, id="not UTF-8"),
        pytest.param(b"", {}, id="empty"),
        pytest.param(b"{", {}, id="half"),
        pytest.param(b"7", {}, id="a number"),
        pytest.param(b"null", {}, id="null"),
        pytest.param(b"not deflated", {"Content-Encoding": "deflate"}, id="bad deflate"),
        pytest.param(b"not zipped", {"Content-Encoding": "gzip"}, id="bad gzip"),
        pytest.param(b"\x1f\x8b\x08\x00", {"Content-Encoding": "gzip"}, id="half gzip"),
        pytest.param(b"{}", {"Content-Encoding": "br"}, id="unknown encoding"),
        pytest.param(
            gzip.compress(bytes(64 << 20)), {"Content-Encoding": "gzip"}, id="64 MiB in gzip"
        ),
        pytest.param(b"[{}]", {"Content-Type": "text/plain"}, id="text/plain"),
        pytest.param(b"[{}]", {"Content-Type": "\u00fc/\u00fc;;=\u00e9"}, id="odd media type"),
        pytest.param(b"[{}]", {"Content-Type": ""}, id="no media type"),
        pytest.param(b" " * (40 << 20), {}, id="40 MiB"),
    ],
)
async def test_a_body_that_is_wrong_is_the_client_s_fault(
    service: Service, body: bytes, headers: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    answer = await service.post(body, headers)

    assert 400 <= answer.status < 500
    assert service.message(answer)
    assert (await service.ask(service.guarded)).status == 200
    assert "Traceback" not in capfd.readouterr().err


# --- what cannot be read


@pytest.mark.parametrize("odd", ["%zz", "%", "%FF", "%ED%A0%80", "%00", "%C3%28", "a%2"])
@pytest.mark.parametrize("place", ["/{}", "/?a={}"])
async def test_a_path_or_query_that_is_no_text_is_refused(
    service: Service, odd: str, place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = await service.ask(Request("GET", place.format(odd)))

    assert answer.status == 400
    assert "path or query" in service.message(answer)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / and more HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 9_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * 9_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 100 + b"\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1e3\r\n\r\n", 400),
    ],
)
async def test_what_is_no_http_is_refused_in_the_service_s_own_form(
    service: Service, raw: bytes, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = await service.send(raw)

    assert answer.status == status
    assert service.message(answer)
    assert set(SAFE) <= set(answer.headers)
    assert "Traceback" not in capfd.readouterr().err


async def test_every_answer_has_the_headers_that_keep_browsers_strict(service: Service) -> None:
    one = service.guarded
    answers = [
        await service.ask(one),
        await service.ask(one, key=b""),
        await service.ask(Request("GET", service.page)),
        await service.ask(Request("GET", "/nowhere")),
        await service.ask(Request("DELETE", service.page)),
        await service.ask(Request("GET", "/%zz")),
        await service.post(b"{"),
    ]

    assert [answer.status for answer in answers] == [200, 401, 200, 404, 405, 400, 400]
    for answer in answers:
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers
    assert "GET" in answers[4].headers["allow"]


async def test_a_page_that_is_known_is_not_sent_again(service: Service) -> None:
    first = await service.ask(Request("GET", service.page))
    again = await service.ask(
        Request("GET", service.page), {"If-None-Match": first.headers["etag"]}
    )
    other = await service.ask(Request("GET", service.page), {"If-None-Match": '"other"'})

    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    assert first.headers["cache-control"] == "no-cache"
    assert (again.status, again.body) == (304, b"")
    assert (other.status, other.body) == (200, first.body)


# --- bounds on connections


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("begun", [b"", b"GET", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
async def test_a_connection_that_brings_no_head_is_closed(
    name: str, begun: bytes, tmp_path: Path
) -> None:
    async with served(name, tmp_path, limits=ConnectionLimits(head_s=0.2)) as service:
        reader, writer = await asyncio.open_connection(*service.place)
        writer.write(begun)

        assert await _end_of(reader) == b""
        writer.close()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
async def test_a_connection_that_brings_no_second_head_is_closed(
    name: str, begun: bytes, tmp_path: Path
) -> None:
    async with served(name, tmp_path, limits=ConnectionLimits(idle_s=0.2)) as service:
        reader, writer = await asyncio.open_connection(*service.place)
        writer.write(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n")
        first = await read_answer(reader, to_the_end=False)
        writer.write(begun)

        assert first.status in (401, 404)
        assert await _end_of(reader) == b""
        writer.close()


@pytest.mark.parametrize("name", NAMES)
async def test_a_head_in_time_lets_a_request_take_longer(name: str, tmp_path: Path) -> None:
    limits = ConnectionLimits(head_s=0.2, body_s=30.0)
    async with served(name, tmp_path, limits=limits) as service:
        slow, writer = await _half_a_body(service)
        idle, other = await asyncio.open_connection(*service.place)
        assert await _end_of(idle) == b""
        writer.write(b"}")
        answer = await read_answer(slow, to_the_end=False)

        assert answer.status == 400
        writer.close()
        other.close()


@pytest.mark.parametrize("name", NAMES)
async def test_a_body_that_stops_coming_is_408(name: str, tmp_path: Path) -> None:
    async with served(name, tmp_path, limits=ConnectionLimits(body_s=0.2)) as service:
        reader, writer = await _half_a_body(service)
        answer = await read_answer(reader, to_the_end=False)

        assert answer.status == 408
        assert "0.2 s" in service.message(answer)
        writer.close()


@pytest.mark.parametrize("name", NAMES)
async def test_a_reader_that_stands_still_is_cut(name: str, tmp_path: Path) -> None:
    async with served(name, tmp_path, limits=ConnectionLimits(send_s=0.2)) as service:
        one = Request("GET", service.page)
        head = (
            f"GET {one.path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        )
        _, writer = await asyncio.open_connection(*service.place, limit=1)

        async with asyncio.timeout(30):
            with pytest.raises(ConnectionError):
                await _write_for_ever(writer, head.encode())
        assert (await service.ask(service.guarded)).status == 200
        writer.transport.abort()


@pytest.mark.parametrize("name", NAMES)
async def test_one_connection_too_many_is_answered_503(name: str, tmp_path: Path) -> None:
    async with served(name, tmp_path, limits=ConnectionLimits(connections=2)) as service:
        held = [await asyncio.open_connection(*service.place) for _ in range(2)]
        for _, writer in held:
            writer.write(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for reader, _ in held:
            await read_answer(reader, to_the_end=False)

        refused = await service.send(b"")
        for _, writer in held:
            writer.close()
        async with asyncio.timeout(30):
            while (await service.ask(service.guarded)).status == 503:
                pass

        assert refused.status == 503
        assert refused.headers["retry-after"]


async def _write_for_ever(writer: asyncio.StreamWriter, request: bytes) -> None:
    """Send a request again and again, and read no answer."""
    while True:
        writer.write(request)
        await writer.drain()


async def _half_a_body(
    service: Service,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request whose body stops before its end."""
    reader, writer = await asyncio.open_connection(*service.place)
    head = (
        f"POST {service.posting.path} HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {service.posting.key}\r\nContent-Type: application/json\r\n"
        "Content-Length: 2\r\n\r\n{"
    )
    writer.write(head.encode())
    return reader, writer


async def _end_of(reader: asyncio.StreamReader) -> bytes:
    """What comes until the service closes the connection, or resets it."""
    async with asyncio.timeout(30):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize(
    ("host", "path", "statuses"),
    [
        ("10.1.2.3:8888", "/", (200, 200)),
        ("pages.internal", "/", (200, 200)),
        ("localhost", "/", (200, 200)),
        ("other.internal", "/", (403, 200)),
        ("10.1.2.3:8888", "/api/schedules", (401, 200)),
        ("pages.internal", "/api/schedules", (401, 200)),
        ("other.internal", "/api/schedules", (401, 200)),
    ],
)
async def test_beyond_loopback_data_needs_the_token_and_pages_a_name_of_the_service(
    tmp_path: Path, host: str, path: str, statuses: tuple[int, int]
) -> None:
    every, hosts = "0.0.0.0", ("pages.internal",)  # noqa: S104 - the case itself
    async with served("scheduler", tmp_path, host=every, hosts=hosts) as scheduler:
        one = Request("GET", path)
        without = await scheduler.ask(one, {"Host": host}, key=b"")
        with_it = await scheduler.ask(one, {"Host": host})

    assert (without.status, with_it.status) == statuses


async def test_a_host_that_is_listed_may_come_through_a_proxy(tmp_path: Path) -> None:
    hosts = ("pages.internal",)
    async with served("scheduler", tmp_path, is_open=True, hosts=hosts) as scheduler:
        headers = {"Host": "Pages.Internal", "X-Forwarded-For": "203.0.113.9"}

        assert (await scheduler.ask(scheduler.reading, headers, key=b"")).status == 200


async def test_odd_methods_are_counted_as_one(tmp_path: Path) -> None:
    async with served("backend", tmp_path) as backend:
        await backend.ask(Request("PURGE", "/"))
        counted = (await backend.ask(backend.reading)).body.decode()

    assert 'answers_total{method="other",route="other",status="405"} 1.0\n' in counted


# --- faults of the service


@pytest.fixture
async def faulty() -> AsyncIterator[tuple[str, LogCapture]]:
    """A service of one route, which raises the error that the path names; and its log."""
    capture = LogCapture()
    log = structlog.wrap_logger(None, processors=[capture])
    app = edge_application(lambda error: json_response({}, error.status), log)

    async def fail(request: web.Request) -> web.Response:
        await request.read()
        raise FAULTS[request.match_info["fault"]]

    app.add_routes([web.post("/{fault}", fail)])
    async with listening(app, "127.0.0.1", 0) as url:
        yield url, capture


FAULTS: dict[str, Exception] = {
    "value": ValueError("a fault"),
    "refused": ConnectionRefusedError("a peer of the service is away"),
    "unreachable": UnreachableError("no handler there"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_answered_and_logged_even_one_of_another_connection(
    fault: str, faulty: tuple[str, LogCapture]
) -> None:
    url, capture = faulty

    async with aiohttp.ClientSession() as client, client.post(f"{url}/{fault}") as answer:
        status = answer.status

    assert status == 500
    assert [(line["event"], line["path"]) for line in capture.entries] == [
        ("request_failed", f"/{fault}")
    ]


async def test_a_client_that_goes_away_in_mid_body_is_no_fault(
    faulty: tuple[str, LogCapture], caplog: pytest.LogCaptureFixture
) -> None:
    url, capture = faulty
    port = int(url.rpartition(":")[2])
    _reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /value HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf")
    await writer.drain()
    writer.close()
    await writer.wait_closed()

    async with aiohttp.ClientSession() as client, client.post(f"{url}/value") as answer:
        assert answer.status == 500

    assert len(capture.entries) == 1
    assert caplog.records == []

"""Requests made up from the OpenAPI document: no server error, no answer that it does not name."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.backend.peer import serve_peer

schemathesis = pytest.importorskip("schemathesis")
CHECKS = [
    schemathesis.checks.not_a_server_error,
    *(
        getattr(importlib.import_module("schemathesis.specs.openapi.checks"), name)
        for name in (
            "status_code_conformance",
            "content_type_conformance",
            "response_schema_conformance",
        )
    ),
]


@contextmanager
def served_beside(database_url: str) -> Iterator[tuple[str, str]]:
    """A backend on a loop in another thread; gives its URL and a key."""
    ready: Future[tuple[str, str]] = Future()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with serve_peer(database_url) as peer:
            ready.set_result((peer.url, peer.key))
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        yield ready.result(30)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@pytest.mark.parametrize("examples", [20, pytest.param(200, marks=[pytest.mark.slow])])
def test_made_up_requests_meet_no_server_error_and_no_breach_of_the_document(
    database_url: str, examples: int
) -> None:
    with served_beside(database_url) as (url, key):
        statuses: Counter[int] = Counter()
        schema = schemathesis.openapi.from_url(f"{url}/v1/openapi.json")
        for found in schema.get_all_operations():
            operation = found.ok()

            @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy())
            def check(case: Any) -> None:
                answer = case.call(headers={"Authorization": f"Bearer {key}"})
                statuses[answer.status_code] += 1
                case.validate_response(answer, checks=CHECKS)

            check()

    assert {201, 400, 404} <= set(statuses), statuses

"""Requests made up from the OpenAPI document: every answer is one that it names, none a fault."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.scheduler.processes import SchedulerProcess, handler_process

KNOWN = {"handler_id": "chore", "job_method": "note", "job_params": {}, "partition": False}
EVERY_HOUR = {"type": "interval", "hours": 1}
MAY_BE = {200, 201, 202, 400, 404, 409, 500}
schemathesis = pytest.importorskip("schemathesis")
pytestmark = [pytest.mark.timeout(600)]
CHECKS = [
    getattr(importlib.import_module("schemathesis.specs.openapi.checks"), name)
    for name in (
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    )
]


@pytest.fixture
def running(database: str, tmp_path: Path) -> Iterator[SchedulerProcess]:
    """A scheduler process, and a handler that it knows as `chore`."""
    with (
        SchedulerProcess(database) as scheduler,
        handler_process(scheduler.zmq_address, tmp_path),
    ):
        scheduler.wait_for_handler("chore")
        yield scheduler


@pytest.mark.parametrize("examples", [15, pytest.param(200, marks=[pytest.mark.slow])])
def test_made_up_requests_meet_no_fault_and_no_breach_of_the_document(
    running: SchedulerProcess, examples: int
) -> None:
    statuses: Counter[int] = Counter()
    schema = schemathesis.openapi.from_url(f"{running.url}/api/openapi.json")
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(), known=st.booleans(), bare=st.booleans())
        def check(case: Any, known: bool, bare: bool) -> None:
            if known and isinstance(case.body, dict):
                needed = KNOWN | ({"trigger": EVERY_HOUR} if "trigger" in case.body else {})
                case.body = needed if bare else case.body | needed
            answer = case.call()
            statuses[answer.status_code] += 1
            assert "Internal error" not in answer.text
            case.validate_response(answer, checks=CHECKS)

        check()

    assert {200, 201, 400, 404} <= set(statuses) <= MAY_BE, statuses
    assert running.process.poll() is None

"""The pure decision of what an answer means."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from catalogzero.protocol.deciding import (
    MAX_RESENT,
    MAX_RETRY_AFTER_S,
    Outcome,
    RequestKind,
    Verdict,
    decide,
    retry_after_s,
)
from catalogzero.protocol.identities import url_under
from hypothesis import given
from hypothesis import strategies as st

OURS = "urn:catalogzero:problem:"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
BODIES = (
    JSON
    | st.fixed_dictionaries({"job_id": st.text() | st.integers()})
    | st.fixed_dictionaries({"superseded": st.booleans()})
    | st.fixed_dictionaries({"missing": st.lists(st.integers() | st.text(), max_size=3)})
)
OUTCOMES = st.builds(
    Outcome,
    status=st.none() | st.integers(100, 599),
    headers=st.dictionaries(st.sampled_from(["Retry-After", "retry-after", "X"]), st.text()),
    body=BODIES,
    fault=st.text(),
)
UPLOADING = st.sampled_from([RequestKind.CHUNK, RequestKind.COMPLETE, RequestKind.SIMPLE])
ENDING = {Verdict.DONE, Verdict.SUPERSEDED}


@given(st.sampled_from(RequestKind), OUTCOMES, st.booleans(), st.sampled_from(["zstd", "identity"]))
def test_every_outcome_has_a_verdict(
    asked: RequestKind, outcome: Outcome, probing: bool, coding: str
) -> None:
    decision = decide(asked, outcome, NOW, probing=probing, coding=coding)

    assert decision.verdict in Verdict
    assert 0 <= (decision.retry_after_s or 0) <= MAX_RETRY_AFTER_S


@given(OUTCOMES)
def test_only_a_real_answer_to_complete_ends_a_sealed_upload(outcome: Outcome) -> None:
    verdict = decide(RequestKind.COMPLETE, outcome, NOW).verdict

    if verdict in ENDING:
        assert outcome.status is not None
        assert 200 <= outcome.status < 300
        assert isinstance(outcome.body, dict)
        assert outcome.body.get("superseded") is True or outcome.body["job_id"] is not None


@given(OUTCOMES, st.booleans())
def test_no_answer_to_a_chunk_ends_an_upload_well(outcome: Outcome, probing: bool) -> None:
    assert decide(RequestKind.CHUNK, outcome, NOW, probing=probing).verdict not in ENDING


@given(UPLOADING, OUTCOMES)
def test_faults_of_the_moment_never_kill_an_upload(asked: RequestKind, outcome: Outcome) -> None:
    if outcome.status is None or outcome.status >= 500 or outcome.status in {408, 425, 429}:
        assert decide(asked, outcome, NOW).verdict is Verdict.RETRY


@given(UPLOADING, st.sampled_from([300, 302, 307, 308, 401, 403, 404, 405, 407]))
def test_what_the_client_must_fix_pauses(asked: RequestKind, status: int) -> None:
    assert decide(asked, Outcome(status=status), NOW).verdict is Verdict.PAUSE


@given(st.sampled_from([RequestKind.HEALTH, RequestKind.INSTALLATION]), OUTCOMES)
def test_neither_health_nor_registration_pauses_uploads(
    asked: RequestKind, outcome: Outcome
) -> None:
    verdict = decide(asked, outcome, NOW).verdict

    assert verdict in {Verdict.DONE, Verdict.RETRY, Verdict.IGNORE}


@pytest.mark.parametrize(
    ("asked", "status", "body", "coding", "verdict"),
    [
        (RequestKind.CHUNK, 201, None, "zstd", Verdict.STORED),
        (RequestKind.CHUNK, 200, None, "zstd", Verdict.STORED),
        (RequestKind.CHUNK, 409, None, "zstd", Verdict.DEAD),
        (RequestKind.CHUNK, 410, None, "zstd", Verdict.COMPLETE_NOW),
        (RequestKind.CHUNK, 415, None, "zstd", Verdict.OTHER_CODING),
        (RequestKind.CHUNK, 415, None, "identity", Verdict.DEAD),
        (RequestKind.CHUNK, 400, {"title": "what is this?"}, "zstd", Verdict.OTHER_CODING),
        (RequestKind.CHUNK, 400, None, "zstd", Verdict.OTHER_CODING),
        (RequestKind.CHUNK, 400, None, "gzip", Verdict.DEAD),
        (RequestKind.CHUNK, 400, None, "identity", Verdict.DEAD),
        (RequestKind.CHUNK, 400, {"type": OURS + "undecodable-body"}, "zstd", Verdict.DEAD),
        (RequestKind.COMPLETE, 409, {"missing": [1]}, "zstd", Verdict.SEND_MISSING),
        (RequestKind.COMPLETE, 409, None, "zstd", Verdict.DEAD),
        (RequestKind.COMPLETE, 201, {"job_id": "j"}, "zstd", Verdict.DONE),
        (RequestKind.COMPLETE, 200, {"superseded": True}, "zstd", Verdict.SUPERSEDED),
        (RequestKind.COMPLETE, 200, None, "zstd", Verdict.PAUSE),
        (RequestKind.SIMPLE, 204, None, "zstd", Verdict.DONE),
        (RequestKind.INSTALLATION, 404, None, "zstd", Verdict.IGNORE),
    ],
)
def test_the_table_of_answers(
    asked: RequestKind, status: int, body: object, coding: str, verdict: Verdict
) -> None:
    outcome = Outcome(status=status, body=body)

    assert decide(asked, outcome, NOW, coding=coding).verdict is verdict


@pytest.mark.parametrize("asked", [RequestKind.CHUNK, RequestKind.COMPLETE, RequestKind.SIMPLE])
def test_a_body_that_did_not_arrive_as_it_left_is_sent_again_a_few_times(
    asked: RequestKind,
) -> None:
    outcome = Outcome(status=400, body={"type": OURS + "digest-mismatch"})

    verdicts = [decide(asked, outcome, NOW, resent=n).verdict for n in range(MAX_RESENT + 2)]

    assert verdicts == [Verdict.RETRY] * MAX_RESENT + [Verdict.DEAD] * 2


PAGE = {"content-type": "text/html; charset=utf-8"}
PLAIN = {"Content-Type": "text/plain"}


@pytest.mark.parametrize(
    ("headers", "text", "taken"),
    [
        (PAGE, "", True),
        (PAGE, '{"job_id": 7}', True),
        (PLAIN, "OK", True),
        (PLAIN, "x" * 1024, True),
        (PLAIN, "x" * 1025, False),
        (PLAIN, " <!doctype html>", False),
        (PAGE, "OK", False),
        (PAGE, "<html>sign in</html>", False),
        ({"Content-Type": "application/xml"}, "<ok/>", False),
        ({}, "OK", False),
    ],
)
def test_a_2xx_of_the_simple_form_is_empty_json_or_a_short_plain_text(
    headers: dict[str, str], text: str, taken: bool
) -> None:
    body = {"job_id": 7} if text.startswith("{") else None
    outcome = Outcome(status=200, headers=headers, body=body, text=text)

    verdicts = [
        decide(asked, outcome, NOW).verdict for asked in (RequestKind.SIMPLE, RequestKind.HEALTH)
    ]

    assert verdicts == ([Verdict.DONE] * 2 if taken else [Verdict.PAUSE, Verdict.RETRY])


@pytest.mark.parametrize("status", [404, 405, 501])
def test_only_the_first_chunk_finds_out_the_form(status: int) -> None:
    outcome = Outcome(status=status)

    assert decide(RequestKind.CHUNK, outcome, NOW, probing=True).verdict is Verdict.OTHER_FORM
    assert decide(RequestKind.CHUNK, outcome, NOW).verdict in {Verdict.PAUSE, Verdict.RETRY}


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (413, {}, ("client_max_body_size", "lower `chunk_bytes`")),
        (407, {}, ("set `proxy`",)),
        (404, {}, ("path of `endpoint`",)),
        (401, {}, ("`api_key_file`",)),
        (
            302,
            {"Location": "https://login.example/?token=of-the-session"},
            ("302 to https://login.example/?token=**********", "as `endpoint`"),
        ),
    ],
)
def test_what_stops_uploads_says_what_ends_it(
    status: int, headers: dict[str, str], words: tuple[str, ...]
) -> None:
    decision = decide(RequestKind.CHUNK, Outcome(status=status, headers=headers, text="no"), NOW)

    assert decision.verdict in (Verdict.PAUSE, Verdict.DEAD)
    assert all(word in decision.reason for word in words)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        ("999999999999999999999", MAX_RETRY_AFTER_S),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(days=1), usegmt=True), 0.0),
        ("soon", None),
        ("-5", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after_s({"retry-after": value}, NOW) == seconds


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://a.example/v1", "https://a.example/v1/health"),
        ("https://a.example/v1/", "https://a.example/v1/health"),
        ("https://a.example", "https://a.example/health"),
        ("https://a.example/v1?site=7", "https://a.example/v1/health?site=7"),
    ],
)
def test_a_path_goes_below_the_endpoint_before_its_query(base: str, url: str) -> None:
    assert url_under(base, "health") == url

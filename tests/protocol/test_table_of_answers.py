"""The table of docs/reference/delivery-guarantee.md is the one that the code walks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from catalogzero.protocol.deciding import (
    CONDITIONS,
    DOES,
    RULES,
    Outcome,
    RequestKind,
    Rule,
    Verdict,
    decide,
)
from catalogzero.protocol.problems import Kind

PAGE = Path(__file__).parents[2] / "docs/reference/delivery-guarantee.md"
HEAD = "| request | answer | what it means | what the sender does |"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
STATUSES = (None, 100, 200, 201, 204, 302, 400, 401, 404, 408, 409, 410, 415, 422, 500, 501)
BODIES: tuple[object, ...] = (
    None,
    {"superseded": True},
    {"job_id": "j"},
    {"missing": [1]},
    {"type": "urn:catalogzero:problem:installation-moved"},
    {"type": "urn:catalogzero:problem:generation-changed"},
    {"type": Kind.DIGEST_MISMATCH.uri},
)


def printed() -> list[str]:
    """The rows of the page's table, below its head."""
    _, _, below = PAGE.read_text().partition(HEAD + "\n|---|---|---|---|\n")
    return below.partition("\n\n")[0].splitlines()


def test_the_page_prints_the_rules_row_by_row() -> None:
    rows = [
        f"| {rule.requests} | {rule.answers}{rule.given and f' ({rule.given})'}"
        f" | `{rule.verdict}` | {DOES[rule.verdict]}{rule.why and f': {rule.why}'} |"
        for rule in RULES
    ]

    assert printed() == rows


def test_rules_are_made_of_what_there_is() -> None:
    named = {word for rule in RULES for word in rule.requests.split(", ")} - {"any"}

    assert named <= set(RequestKind)
    assert {rule.given for rule in RULES} == set(CONDITIONS)
    assert {rule.verdict for rule in RULES} == set(Verdict) == set(DOES)


@pytest.mark.parametrize("row", range(len(RULES)))
def test_no_row_is_hidden_by_those_above_it(row: int) -> None:
    """Without any one row, some answer means something else."""

    def meanings(rules: Sequence[Rule]) -> list[tuple[Verdict, str]]:
        return [
            (decision.verdict, decision.reason)
            for asked in RequestKind
            for status in STATUSES
            for body in BODIES
            for blocked in (False, True)
            for probing in (False, True)
            for coding in ("zstd", "identity")
            for text in ("", "<html>")
            for decision in [
                decide(
                    asked,
                    Outcome(status=status, body=body, text=text, blocked=blocked),
                    NOW,
                    probing=probing,
                    coding=coding,
                    rules=rules,
                )
            ]
        ]

    last = RULES[-1]._replace(verdict=Verdict.STORED)
    less = [*RULES[:row], *RULES[row + 1 :]] if row < len(RULES) - 1 else [*RULES[:-1], last]

    assert meanings(less) != meanings(RULES)

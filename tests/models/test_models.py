"""Each rule of the protocols, in every interleaving of a small model; see README.md beside this."""

from __future__ import annotations

import pytest

from tests.models.cases import ALL
from tests.models.explore import Case, as_expected, explore


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case, id=f"{model}: {case.name}", marks=[pytest.mark.slow] if case.slow else []
        )
        for model, case in ALL
    ],
)
def test_the_rules_hold_and_each_is_needed(case: Case) -> None:
    found = explore(case, stop=True)

    assert as_expected(case, found), found

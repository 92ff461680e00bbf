"""Delays between tries: doubled, bounded, jittered, and usable by tenacity."""

from __future__ import annotations

import pytest
from catalogzero.backoff import Backoff
from tenacity import RetryError, Retrying, stop_after_attempt


def test_delays_double_up_to_their_bound() -> None:
    exact = Backoff(0.5, 3.0, jitter=(1.0, 1.0))

    assert [exact.delay_s(tries) for tries in (0, 1, 2, 3, 4, 50)] == [0.5, 0.5, 1, 2, 3, 3]
    assert Backoff(1.0, 7.0, jitter=(1.0, 1.0)).delay_s(1_000_000) == 7.0


def test_jitter_stays_within_its_bounds_and_spreads() -> None:
    delays = [Backoff(1.0, 8.0, jitter=(0.5, 1.5), min_s=4.5).delay_s(10) for _ in range(2_000)]

    assert min(delays) == 4.5
    assert 11 < max(delays) <= 12
    assert len(set(delays)) > 1_000


def test_tenacity_waits_by_it() -> None:
    slept: list[float] = []
    attempts = Retrying(
        wait=Backoff(1.0, 3.0, jitter=(1.0, 1.0)), stop=stop_after_attempt(4), sleep=slept.append
    )
    with pytest.raises(RetryError):
        attempts(lambda: 1 / 0)

    assert slept == [1.0, 2.0, 3.0]

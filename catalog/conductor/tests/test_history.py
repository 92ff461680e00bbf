"""What the history keeps, how exactly, and within which bounds."""

from __future__ import annotations

import json
import random
import sqlite3
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from catalogzero import ConfigError
from hypothesis import given
from hypothesis import strategies as st

from conductorzero.board import Event
from conductorzero.history import DAY_S, HOUR_S, MINUTE_S, STEPS, Bucket, History, bin_of, ms_of

START_S = 1_800_000_000 // HOUR_S * HOUR_S


def bucket(response_time_ms: float | None = 2.0, memory_mb: float = 30.0) -> Bucket:
    one = Bucket()
    one.add_ping(response_time_ms)
    one.add_metrics({"memory_mb": memory_mb, "cpu_percent": 1.0, "in_flight": 1})
    return one


@given(st.floats(min_value=0.01, max_value=600_000))
def test_a_response_time_is_kept_to_five_percent(response_time_ms: float) -> None:
    assert ms_of(bin_of(response_time_ms)) == pytest.approx(response_time_ms, rel=0.05)


def test_percentiles_are_those_of_the_samples() -> None:
    chance = random.Random(7)  # noqa: S311 - samples, no secret
    times = [chance.lognormvariate(1, 0.7) for _ in range(5_000)]
    one = Bucket()
    for time in times:
        one.add_ping(time)

    cuts = statistics.quantiles(times, n=100)
    assert one.percentile_ms(0.50) == pytest.approx(cuts[49], rel=0.05)
    assert one.percentile_ms(0.95) == pytest.approx(cuts[94], rel=0.05)


@given(st.lists(st.none() | st.floats(0.01, 5_000), max_size=30), st.integers(0, 30))
def test_buckets_add_up(times: list[float | None], cut: int) -> None:
    whole, first, second = Bucket(), Bucket(), Bucket()
    for number, time in enumerate(times):
        whole.add_ping(time)
        (first if number < cut else second).add_ping(time)

    first.merge(second)

    assert first == whole


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=3
)
FIGURES = ("memory_mb", "cpu_percent", "worker_memory_mb", "in_flight")


@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(FIGURES, ODD)), max_size=3))
def test_no_metrics_however_odd_break_the_history(metrics: list[dict[str, Any]]) -> None:
    one = Bucket()
    for figures in metrics:
        one.add_metrics(figures)
    history = History(Path(":memory:"))
    history.write(START_S, {"shop": one}, [])

    assert history.rows() == 1
    assert json.loads(json.dumps(one.as_json(), allow_nan=False))["asked"] == 0
    history.close()


def test_availability_counts_the_unanswered(tmp_path: Path) -> None:
    one = bucket(2.0)
    one.add_ping(None)
    one.add_ping(None)
    one.add_ping(4.0)

    assert one.as_json()["availability"] == 0.5


def test_what_was_written_is_read_after_a_restart(tmp_path: Path) -> None:
    first = History(tmp_path / "history.sqlite3")
    first.write(START_S, {"shop": bucket()}, [])
    first.close()

    second = History(tmp_path / "history.sqlite3")

    assert second.buckets("shop", START_S) == [(START_S, bucket())]
    assert second.buckets("other", START_S) == []
    second.close()


def test_minutes_older_than_a_day_become_hours_without_loss(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite3")
    for minute in range(3 * 60):
        history.write(START_S + minute * MINUTE_S, {"shop": bucket(1.0 + minute)}, [])

    history.write(START_S + DAY_S + 2 * HOUR_S, {"shop": bucket()}, [])

    stored = history.buckets("shop", START_S)
    assert [at for at, _ in stored[:2]] == [START_S, START_S + HOUR_S]
    assert [one.asked for _, one in stored] == [60, 60, *[1] * 60, 1]
    assert stored[0][1].percentile_ms(0.5) == pytest.approx(30, rel=0.06)
    history.close()


def test_rows_delivered_add_up_and_the_most_that_waited_stays(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite3")
    for minute, (delivered, waiting) in enumerate([(5, 1), (7, 9), (0, 2)]):
        one = Bucket(delivered=delivered)
        one.add_metrics({"memory_mb": 1, "cpu_percent": 1, "outbox": {"uploads": waiting}})
        history.write(START_S + minute * MINUTE_S, {"shop": one}, [], {"shop": minute})

    history.write(START_S + DAY_S + HOUR_S, {"shop": bucket()}, [])

    (_, hour), _ = history.buckets("shop", START_S)
    shown = hour.as_json()
    assert (shown["delivered"], shown["uploads_waiting_max"]) == (12, 9)
    assert history.totals() == {"shop": 2}
    history.close()


def test_a_file_of_the_first_release_is_brought_forward(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    with sqlite3.connect(path) as db:
        db.executescript(STEPS[0] + "PRAGMA user_version = 1;")
        db.execute("INSERT INTO handler VALUES (1, 'shop')")
        db.execute("INSERT INTO sample VALUES (1, 0, 60, 1, 1, '{}', 1, 2.5, 1.0, 0)")
    db.close()

    history = History(path)

    ((_, one),) = history.buckets("shop", 0)
    assert (one.asked, one.memory_mb, one.delivered) == (1, 2.5, 0)
    history.close()


def test_samples_past_the_days_go(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite3", keep_days=2)
    history.write(START_S, {"shop": bucket()}, [])

    history.write(START_S + 4 * DAY_S, {"shop": bucket()}, [])

    assert [at for at, _ in history.buckets("shop", 0)] == [START_S + 4 * DAY_S]
    history.close()


def test_rows_past_the_bound_go_oldest_first(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite3", max_rows=10)
    for minute in range(25):
        history.write(START_S + minute * MINUTE_S, {"shop": bucket()}, [])

    assert history.rows() == 10
    assert history.buckets("shop", 0)[0][0] == START_S + 15 * MINUTE_S
    history.close()


def test_events_are_kept_newest_first(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite3")
    now = datetime(2026, 1, 1, tzinfo=UTC)
    events = [Event(n, now, f"shop{n % 2}", "state", f"change {n}", "idle") for n in range(4)]
    history.write(START_S, {}, events)

    assert [event["text"] for event in history.events(None, 2)] == ["change 3", "change 2"]
    assert [event["text"] for event in history.events("shop0", 9)] == ["change 2", "change 0"]
    history.close()


def test_a_file_of_a_newer_release_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    before = path.read_bytes()

    with pytest.raises(ConfigError, match="newer conductorzero"):
        History(path)

    assert path.read_bytes() == before


def test_a_damaged_file_is_quarantined_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    damaged = b"not a database, but long enough to look like one" * 40
    path.write_bytes(damaged)

    history = History(path)
    history.write(START_S, {"shop": bucket()}, [])

    assert history.quarantined == tmp_path / "history.sqlite3.damaged"
    assert history.quarantined.read_bytes() == damaged
    assert history.rows() == 1
    history.close()


def test_a_file_that_is_damaged_while_it_is_open_costs_one_write(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite3"
    history = History(path)
    for minute in range(500):
        history.write(START_S + minute * MINUTE_S, {"shop": bucket()}, [])
    history.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4_096)
        file.write(b"\xff" * (size - 4_096))

    history = History(path)
    with pytest.raises(sqlite3.DatabaseError):
        history.write(START_S, {"shop": bucket()}, [])
    history.write(START_S + MINUTE_S, {"shop": bucket()}, [])

    assert history.buckets("shop", 0) == [(START_S + MINUTE_S, bucket())]
    history.close()


def test_a_full_disk_costs_what_was_to_be_written_and_no_more(tmp_path: Path) -> None:
    code = (
        "import resource, sqlite3, sys; from pathlib import Path\n"
        "from conductorzero.history import Bucket, History\n"
        "history = History(Path(sys.argv[1]))\n"
        "history.write(0, {'early': Bucket(asked=1)}, [])\n"
        "many = {f'shop-{n}': Bucket(asked=1) for n in range(5_000)}\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, -1))\n"
        "for minute in (60, 120):\n"
        "    try: history.write(minute, many, [])\n"
        "    except sqlite3.OperationalError as error: print(type(error).__name__)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))\n"
        "history.write(180, {'late': Bucket(asked=1)}, [])\n"
        "print([history.buckets(name, 0)[0][0] for name in ('early', 'late')], history.rows())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "history.sqlite3"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert told.stdout.split("\n")[:3] == ["OperationalError", "OperationalError", "[0, 180] 2"]


def test_minutes_become_hours_early_before_hours_are_dropped(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite3", max_rows=100)
    for minute in range(4 * 60):
        history.write(START_S + minute * MINUTE_S, {"shop": bucket()}, [])

    stored = history.buckets("shop", 0)
    assert history.rows() <= 100
    assert sum(one.asked for _, one in stored) == 4 * 60
    assert stored[0] == (START_S, stored[0][1])
    assert stored[0][1].asked == 60
    history.close()

"""Triggers: what they accept, and when they are due, at the edges of clock changes above all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import tzlocal
from catalogzero.scheduler.trigger_forms import of_crontab, trigger_words
from catalogzero.scheduler.triggers import describe_trigger, make_trigger, parse_trigger
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduler.oracle import cron_ticks, interval_ticks

SPRING = datetime(2026, 3, 28, tzinfo=UTC)
AUTUMN = datetime(2026, 10, 24, tzinfo=UTC)
EDGES = {
    "Europe/Berlin": (datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)),
    "America/New_York": (datetime(2026, 3, 8, 7, tzinfo=UTC), datetime(2026, 11, 1, 6, tzinfo=UTC)),
    "America/Havana": (datetime(2026, 3, 8, 5, tzinfo=UTC), datetime(2026, 11, 1, 5, tzinfo=UTC)),
    "Australia/Lord_Howe": (
        datetime(2026, 4, 4, 15, tzinfo=UTC),
        datetime(2026, 10, 3, 15, 30, tzinfo=UTC),
    ),
    "Asia/Kolkata": (SPRING, AUTUMN),
}


def ticks(trigger: dict[str, Any], start: datetime, end: datetime) -> list[datetime]:
    """Every tick of (start, end]."""
    due, found, moment = make_trigger(parse_trigger(trigger)), [], start
    while (tick := due.next_after(moment)) and tick <= end:
        found.append(tick)
        moment = tick
    return found


def local(moments: list[datetime], zone: str) -> list[str]:
    """Moments as a clock on the wall shows them."""
    return [moment.astimezone(ZoneInfo(zone)).strftime("%d %H:%M") for moment in moments]


@pytest.mark.parametrize(
    ("trigger", "expected"),
    [
        ({"hour": 2, "minute": 30}, ["28 02:30", "29 03:00", "30 02:30"]),
        ({"hour": 2, "minute": "*/20"}, ["28 02:00", "28 02:20", "28 02:40", "29 03:00"]),
        ({"hour": 3, "minute": 15}, ["28 03:15", "29 03:15", "30 03:15"]),
    ],
)
def test_wall_times_that_the_clock_skips_fire_once_as_it_springs_forward(
    trigger: dict[str, Any], expected: list[str]
) -> None:
    cron = {"type": "cron", "timezone": "Europe/Berlin", **trigger}

    found = local(ticks(cron, SPRING, SPRING + timedelta(days=3)), "Europe/Berlin")

    assert found[: len(expected)] == expected


def test_midnight_that_the_clock_skips_does_not_lose_its_day() -> None:
    cron = {"type": "cron", "timezone": "America/Havana", "hour": 0, "minute": 15}
    start = datetime(2026, 3, 7, tzinfo=UTC)

    found = local(ticks(cron, start, start + timedelta(days=3)), "America/Havana")

    assert found == ["07 00:15", "08 01:00", "09 00:15"]


def test_a_job_just_after_midnight_does_not_lose_the_day_after_the_change() -> None:
    cron = {"type": "cron", "timezone": "Europe/Berlin", "hour": 0, "minute": 5, "second": 30}

    found = local(ticks(cron, SPRING, SPRING + timedelta(days=4)), "Europe/Berlin")

    assert found == ["29 00:05", "30 00:05", "31 00:05", "01 00:05"]


def test_a_nightly_job_runs_once_in_the_night_of_25_hours() -> None:
    cron = {"type": "cron", "timezone": "Europe/Berlin", "hour": 2, "minute": 30}

    found = ticks(cron, AUTUMN, AUTUMN + timedelta(days=2))

    assert local(found, "Europe/Berlin") == ["24 02:30", "25 02:30"]


def test_a_half_hourly_job_goes_on_through_the_hour_that_comes_twice() -> None:
    cron = {"type": "cron", "timezone": "Europe/Berlin", "minute": "*/30"}

    found = ticks(cron, AUTUMN, AUTUMN + timedelta(days=2))

    assert {after - before for before, after in pairwise(found)} == {timedelta(minutes=30)}


@pytest.mark.parametrize(
    ("given_days", "days"),
    [
        ("0", {6}),
        ("7", {6}),
        (1, {0}),
        ("1-5", {0, 1, 2, 3, 4}),
        ("5-1", {4, 5, 6, 0}),
        ("sat-mon", {5, 6, 0}),
        ("0-6", set(range(7))),
        ("0-7", set(range(7))),
        ("1-5/2", {0, 2, 4}),
        ("mon,3,sun", {0, 2, 6}),
        ("*", set(range(7))),
        ("*/2", {6, 1, 3, 5}),
        ("MON-Wed", {0, 1, 2}),
    ],
)
def test_numbered_weekdays_are_cron_s(given_days: Any, days: set[int]) -> None:
    cron = {"type": "cron", "timezone": "UTC", "day_of_week": given_days, "hour": 5}

    found = ticks(cron, SPRING, SPRING + timedelta(days=14))

    assert {moment.weekday() for moment in found} == days
    assert len(found) == 2 * len(days)


@pytest.mark.parametrize(
    ("trigger", "message"),
    [
        ("daily", "an object with a 'type'"),
        ({}, "Unsupported trigger type: ''"),
        ({"type": "interval"}, "the interval must be"),
        ({"type": "interval", "seconds": -5}, "'seconds' must be a number, 0 or more"),
        ({"type": "interval", "seconds": "soon"}, "'seconds' must be a number"),
        ({"type": "interval", "minute": 5}, "interval takes no 'minute'"),
        ({"type": "interval", "hours": 36, "wall": True}, "'wall' takes whole days or weeks"),
        ({"type": "interval", "days": 1, "wall": "yes"}, "'wall' must be true or false"),
        ({"type": "interval", "weeks": 1e300}, "'weeks' must be a number"),
        ({"type": "interval", "hours": 1, "start_time": "noon"}, "'start_time'"),
        ({"type": "cron"}, "cron needs at least one of"),
        ({"type": "cron", "hour": 24}, "24"),
        ({"type": "cron", "hour": "x"}, "x"),
        ({"type": "interval", "hours": 1, "timezone": "Mars/Base"}, "no time zone is called"),
        ({"type": "cron", "hour": 1, "timezone": "Mars/Base"}, "no time zone is called"),
        ({"type": "cron", "hour": 1, "timezone": "../etc/passwd"}, "no time zone is called"),
        ({"type": "cron", "day_of_week": "8"}, "8"),
        ({"type": "cron", "day_of_week": "MON#1"}, "'day_of_week' cannot be 'mon#1'"),
        ({"type": "cron", "day_of_week": "mon;tue"}, "'day_of_week' cannot be 'mon;tue'"),
        ({"type": "cron", "day_of_week": "mon,friend"}, "'day_of_week' cannot be 'friend'"),
        ({"type": "cron", "day_of_week": "mon-fri x"}, "'day_of_week' cannot be"),
        ({"type": "cron", "day_of_week": "1-5/0"}, "'day_of_week' cannot be"),
        ({"type": "cron", "day_of_week": "5#2"}, "'day_of_week' cannot be"),
        ({"type": "cron", "day_of_week": "L"}, "'day_of_week' cannot be"),
        ({"type": "cron", "day": "last fri x"}, "'day' cannot be 'last fri x'"),
        ({"type": "cron", "day": "lastx"}, "'day' cannot be 'lastx'"),
        ({"type": "cron", "day": "1,15W"}, "'day' cannot be '15w'"),
        ({"type": "cron", "day": "1st monday"}, "'day' cannot be"),
        ({"type": "cron", "month": "jan;feb"}, "'month' cannot be 'jan;feb'"),
        ({"type": "cron", "month": "jan-jun/2"}, "'month' cannot be 'jan-jun/2'"),
        ({"type": "cron", "hour": "2;3"}, "'hour' cannot be '2;3'"),
        ({"type": "cron", "hour": "\u0661"}, "'hour' cannot be"),
        ({"type": "cron", "minute": ""}, "'minute' cannot be ''"),
        (
            {"type": "cron", "hour": 1, "day_or_weekday": 1},
            "'day_or_weekday' must be true or false",
        ),
        ({"type": "interval", "hours": 1, "day_or_weekday": True}, "interval takes no"),
        ({"type": "cron", "day_of_week": "fun"}, "is no weekday"),
        ({"type": "date"}, "'run_date' is required for date trigger"),
        ({"type": "date", "run_date": []}, "must be ISO string or Unix timestamp, got list"),
        ({"type": "date", "run_date": 1e300}, "'run_date'"),
    ],
)
def test_what_is_no_trigger_is_refused_with_the_field(trigger: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is looked at below
        parse_trigger(trigger)

    assert message in str(caught.value)


FRIDAY_OR_13TH = {"type": "cron", "timezone": "UTC", "hour": 0, "day": "13", "day_of_week": "fri"}


def test_all_fields_of_a_cron_trigger_must_match() -> None:
    found = ticks(
        FRIDAY_OR_13TH, datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
    )

    assert local(found, "UTC") == ["13 00:00"] * 3
    assert [moment.month for moment in found] == [2, 3, 11]


def test_day_or_weekday_fires_on_either() -> None:
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
    either = {**FRIDAY_OR_13TH, "day_or_weekday": True}
    midnights = [start + timedelta(days=n) for n in range(1, 366)]

    found = ticks(either, start, end)

    assert found == [day for day in midnights if day.day == 13 or day.weekday() == 4]
    described = describe_trigger(parse_trigger(either))
    assert described == "cron[day='13', day_of_week='fri', hour='0'; day or weekday] UTC"


@pytest.mark.parametrize("stars", [{"day": "*/2"}, {"day_of_week": "*"}])
def test_day_or_weekday_counts_where_both_are_set(stars: dict[str, str]) -> None:
    both = parse_trigger({**FRIDAY_OR_13TH, **stars, "day_or_weekday": True})

    assert "day_or_weekday" not in both
    assert both == parse_trigger({**FRIDAY_OR_13TH, **stars})


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "never", [{"day": 30, "month": 2}, {"week": 53, "month": 6}, {"hour": 1, "year": 2020}]
)
def test_a_cron_that_never_fires_has_no_next_time(never: dict[str, Any]) -> None:
    trigger = make_trigger(parse_trigger({"type": "cron", "timezone": "UTC", **never}))

    assert trigger.next_after(SPRING) is None


@pytest.mark.parametrize(
    ("wall", "hours"), [(False, ["02:30", "02:30", "03:30", "03:30"]), (True, 4 * ["02:30"])]
)
def test_days_are_24_hours_and_with_wall_keep_the_hour(wall: bool, hours: list[str]) -> None:
    zone = ZoneInfo("Europe/Berlin")
    begin = datetime(2026, 3, 27, 2, 30, tzinfo=zone)
    trigger = {"type": "interval", "days": 1, "timezone": zone.key, "start_time": begin.isoformat()}

    found = local(
        ticks({**trigger, "wall": wall}, begin - timedelta(1), begin + timedelta(4.5)), zone.key
    )

    skipped = found.pop(2)
    assert skipped == ("29 03:00" if wall else "29 03:30")
    assert found == [f"{day} {hour}" for day, hour in zip((27, 28, 30, 31), hours, strict=True)]


@settings(max_examples=50, deadline=None)
@given(
    days=st.integers(1, 20),
    zone=st.sampled_from(sorted(EDGES)),
    minute=st.integers(0, 1_439),
    year=st.integers(2020, 2026),
)
def test_an_interval_by_the_clock_keeps_days_and_hour(
    days: int, zone: str, minute: int, year: int
) -> None:
    first = datetime(year, 1, 5, minute // 60, minute % 60, tzinfo=ZoneInfo(zone))
    trigger = {"type": "interval", "days": days, "wall": True, "timezone": zone}
    end = first + timedelta(days=380)

    found = ticks({**trigger, "start_time": first.isoformat()}, first - timedelta(1), end)

    walls = [first + n * timedelta(days=days) for n in range(380 // days + 1)]
    moments = [wall.astimezone(UTC) for wall in walls]
    on_the_clock = [
        m for m, wall in zip(moments, walls, strict=True) if m.astimezone(wall.tzinfo) == wall
    ]
    assert set(on_the_clock) <= set(found)
    assert len(on_the_clock) >= len(walls) - 2
    assert [m.astimezone(first.tzinfo).date() for m in found] == [wall.date() for wall in walls]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 2 * * *", "every day at 02:00"),
        ("30 2 * * 0", "Sundays at 02:30"),
        ("0 18 * * 1-5", "Mon - Fri at 18:00"),
        ("0 2,14 * * 1,3,5", "Mon, Wed and Fri at 02:00 and 14:00"),
        ("15 * * * *", "every hour at :15"),
        ("*/15 * * * *", "every 15 minutes"),
        ("* * * * *", "every minute"),
        ("0 */4 * * *", "every 4 hours at :00"),
        ("0 8-17 * * mon-fri", "every hour from 08:00 to 17:00 Mon - Fri"),
        ("*/10 8-17 * * *", "every 10 minutes from 08:00 to 17:59"),
        ("0 4 1 * *", "day 1 of the month at 04:00"),
        ("0 4 1,15 * *", "days 1 and 15 of the month at 04:00"),
        ("0 0 1 1,7 *", "day 1 in Jan and Jul at 00:00"),
        ("0 0 13 * 5", "day 13 of the month or Fridays at 00:00"),
        ("*/7 * * * *", "when minute is */7"),
        ("5-59/10 1 * * *", "when hour is 1, minute is 5-59/10"),
    ],
)
def test_a_crontab_line_is_said_in_words(line: str, words: str) -> None:
    asked = {**of_crontab(line), "timezone": "Europe/Berlin"}
    stored = parse_trigger(asked)

    # A manifest's trigger is said as the stored one is.
    assert (
        trigger_words(asked) == trigger_words(stored, "Europe/Berlin") == f"{words} Europe/Berlin"
    )


@pytest.mark.parametrize(
    ("trigger", "words"),
    [
        ({"type": "interval", "minutes": 30}, "every 30 minutes"),
        ({"type": "interval", "days": "1"}, "every day"),
        ({"type": "interval", "hours": 1, "minutes": 30}, "every 1 hour 30 minutes"),
        ({"type": "interval", "seconds": 0.5}, "every 0.5 seconds"),
        (
            {"type": "interval", "days": 1, "wall": True, "timezone": "Europe/Paris"},
            "every day by the clock of Europe/Paris",
        ),
        ({"type": "cron", "hour": 2, "timezone": "UTC"}, "every day at 02:00 UTC"),
        ({"type": "cron", "second": "*/10", "timezone": "UTC"}, "every 10 seconds UTC"),
        (
            {"type": "cron", "day": "last", "timezone": "UTC"},
            "the last day of the month at 00:00 UTC",
        ),
        ({"type": "cron", "week": 53, "timezone": "UTC"}, "when week is 53 UTC"),
        ({"type": "date", "run_date": "2026-03-29T02:00:00+02:00"}, "once, 2026-03-29 00:00 UTC"),
        ({"type": "date", "run_date": 1_774_742_400}, "once, 2026-03-29 00:00 UTC"),
    ],
)
def test_every_kind_of_trigger_is_said_in_words(trigger: dict[str, Any], words: str) -> None:
    assert trigger_words(trigger, trigger.get("timezone", "UTC")) == words
    assert trigger_words(parse_trigger(trigger), trigger.get("timezone")) == words


def test_an_interval_takes_numbers_written_as_text() -> None:
    trigger = parse_trigger({"type": "interval", "minutes": "1.5"})

    assert describe_trigger(trigger) == "interval[0:01:30]"


def test_a_date_is_iso_or_epoch() -> None:
    iso = parse_trigger({"type": "date", "run_date": "2026-03-29T02:00:00+02:00"})
    epoch = parse_trigger({"type": "date", "run_date": 1_774_742_400})

    assert iso == epoch == {"type": "date", "run_date": "2026-03-29T00:00:00+00:00"}


def test_a_trigger_without_a_zone_is_in_the_machine_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    tzlocal.reload_localzone()

    trigger = parse_trigger({"type": "cron", "hour": 2})

    monkeypatch.undo()
    tzlocal.reload_localzone()
    assert trigger["timezone"] == "Asia/Kolkata"


FIELD = {
    "second": st.sampled_from(["0", "*/20", "30", "10-50/25"]),
    "minute": st.sampled_from(["*", "0", "30", "*/15", "59", "0,45"]),
    "hour": st.sampled_from(["*", "0", "1", "2", "3", "*/2", "0-3", "23"]),
    "day": st.sampled_from(["*", "1", "last", "*/2", "25,29", "8"]),
    "month": st.sampled_from(["*", "3", "10", "mar-nov"]),
    "day_of_week": st.sampled_from(["*", "sun", "mon-fri", "0", "sat,sun", "*/2"]),
}


@settings(max_examples=60, deadline=None)
@given(
    fields=st.fixed_dictionaries({}, optional=FIELD).filter(bool),
    zone=st.sampled_from(sorted(EDGES)),
    edge=st.integers(0, 1),
    before_s=st.integers(0, 26 * 3_600),
)
def test_cron_agrees_with_a_search_through_every_minute_of_a_clock_change(
    fields: dict[str, str], zone: str, edge: int, before_s: int
) -> None:
    start = EDGES[zone][edge] - timedelta(seconds=before_s)
    end = start + timedelta(hours=28)

    found = ticks({"type": "cron", "timezone": zone, **fields}, start, end)

    assert found == cron_ticks(fields, zone, start, end)


@settings(max_examples=50, deadline=None)
@given(
    length=st.fixed_dictionaries(
        {"seconds": st.integers(1, 90_000)}, optional={"minutes": st.integers(0, 90)}
    ),
    offset_s=st.integers(-5_000, 100_000),
)
def test_an_interval_keeps_to_its_grid(length: dict[str, int], offset_s: int) -> None:
    first = SPRING + timedelta(seconds=offset_s)
    trigger = {"type": "interval", "start_time": first.isoformat(), **length}
    end = SPRING + 20 * timedelta(**length)

    assert ticks(trigger, SPRING, end) == interval_ticks(timedelta(**length), first, SPRING, end)

"""Singer taps as child processes: what a reading of one gives, and how it ends."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from catalogzero import Stream
from catalogzero.clock import SystemClock
from catalogzero.cloud.reading.records import BadRecords
from catalogzero.cloud.singer import tap_process
from catalogzero.errors import CatalogZeroError, FailedError, RunCancelledError

from tests.cloud.taps import (
    NAME,
    FaultyTap,
    Given,
    bookmark_of,
    entry,
    ids,
    record,
    schema,
    state,
)

MakeTap = Callable[..., FaultyTap]


@pytest.fixture
def tap(tmp_path: Path) -> FaultyTap:
    """A tap of two streams: `orders` goes on by `at`, `countries` is read whole."""
    return FaultyTap(tmp_path, entry("orders"), entry("countries", "FULL_TABLE"))


def refused(made: Callable[[], Any]) -> str:
    """What a refusal says."""
    with pytest.raises(CatalogZeroError) as caught:
        made()
    return caught.value.message


SPOKEN = (schema("orders"), schema("countries"))


# What it gives.


def test_streams_that_alternate_come_in_batches_of_their_own(tap: FaultyTap) -> None:
    pairs = [record(stream, n) for n in range(3) for stream in ("orders", "countries")]
    tap.does(*SPOKEN, *pairs, state(orders={"at": "b"}))

    given, until = tap.read(batch_rows=4)

    assert list(ids(given)) == [
        *(("orders", [0, 1]), ("countries", [0, 1])),
        *(("orders", [2]), ("countries", [2])),
        ("checkpoint", {"orders": {"at": "b"}}),
    ]
    assert {name: bookmark_of(one) for name, one in until.items()} == {"orders": {"at": "b"}}


def test_a_checkpoint_names_the_streams_that_moved_and_comes_behind_their_rows(
    tmp_path: Path,
) -> None:
    tap = FaultyTap(tmp_path, entry("orders"), entry("users"))
    tap.does(
        *(schema("orders"), schema("users"), record("orders", 1), record("users", 1)),
        *(state(orders=1), record("users", 2), state(orders=1, users=2), state(orders=1, users=2)),
    )

    given, _ = tap.read(batch_rows=1)

    assert list(ids(given)) == [
        *(("orders", [1]), ("users", [1]), ("checkpoint", {"orders": 1})),
        *(("users", [2]), ("checkpoint", {"users": 2})),
    ]


def test_states_that_come_quickly_end_no_range(tap: FaultyTap) -> None:
    tap.does(*SPOKEN, *(one for n in range(1, 9) for one in (record("orders", n), state(orders=n))))

    given, until = tap.read(batch_rows=5)

    assert list(ids(given)) == [
        *(("orders", [1, 2, 3, 4, 5]), ("checkpoint", {"orders": 5}), ("orders", [6, 7, 8])),
    ]
    assert bookmark_of(until["orders"]) == 8


def test_the_next_run_is_given_each_stream_s_own_position(tmp_path: Path) -> None:
    tap = FaultyTap(tmp_path, entry("orders"), entry("users"), entry("items"))
    bookmarks = {"orders": {"at": "b", "n": 2}, "users": "u"}
    told = {"bookmarks": bookmarks, "currently_syncing": "users"}
    tap.does(*map(schema, ("orders", "users", "items")), {"type": "STATE", "value": told})

    _, until = tap.read()
    assert tap.seen["state"] is None
    tap.read(until)
    assert tap.seen["state"] == {"bookmarks": bookmarks}
    tap.read({**until, "users": None})
    assert tap.seen["state"] == {"bookmarks": {"orders": bookmarks["orders"]}}


def test_a_state_without_bookmarks_is_the_position_of_every_stream(tmp_path: Path) -> None:
    tap = FaultyTap(tmp_path, entry("orders"), entry("users"))
    told = {"last": "2026-01-01"}
    tap.does(schema("orders"), schema("users"), {"type": "STATE", "value": told})

    _, until = tap.read()
    tap.read(until)
    assert tap.seen["state"] == told
    tap.read({**until, "users": None})
    assert tap.seen["state"] is None  # one state cannot say both: all is read again


def test_what_a_tap_does_not_go_on_from_is_no_position(tap: FaultyTap) -> None:
    marks = {"starting_replication_value": 0, "progress_markers": {"replication_key_value": 7}}
    parts = [{"context": {"org": 1}, "replication_key_value": 3, **marks}]
    tap.does(*SPOKEN, record("orders", 1), state(orders=marks), state(orders={"partitions": parts}))

    given, until = tap.read(batch_rows=1)

    settled = {"partitions": [{"context": {"org": 1}, "replication_key_value": 3}]}
    assert list(ids(given))[1:] == [("checkpoint", {"orders": settled})]
    tap.read(until)
    assert tap.seen["state"] == {"bookmarks": {"orders": settled}}


def test_numbers_keep_every_digit_in_rows_and_in_positions(tap: FaultyTap) -> None:
    whole, exact = "123456789012345678901234567890", "12345678901234567890.123450"
    row = f'{{"id": {whole}, "price": {exact}}}'
    tap.does(
        *SPOKEN,
        f'{{"type": "RECORD", "stream": "orders", "record": {row}}}\n',
        f'{{"type": "STATE", "value": {{"bookmarks": {{"orders": [{whole}, {exact}]}}}}}}\n',
    )

    given, until = tap.read()
    tap.read(until)

    assert given[0] == ("orders", [{"id": int(whole), "price": Decimal(exact)}])
    (written,) = [json.loads(until["orders"]["json"], parse_float=Decimal)["bookmark"]]
    assert written == [int(whole), Decimal(exact)]


def test_a_field_that_is_deselected_is_dropped_where_the_tap_sends_it(tmp_path: Path) -> None:
    stream = entry("orders")
    for field, said in (("email", {"selected": False}), ("id", {"inclusion": "automatic"})):
        stream["metadata"].append({"breadcrumb": ["properties", field], "metadata": said})
    tap = FaultyTap(tmp_path, stream)
    tap.does(schema("orders"), record("orders", 1, email="a@b", note="n"), state(orders=1))

    given, _ = tap.read()

    assert given[0] == ("orders", [{"id": 1, "note": "n"}])


def test_messages_may_name_a_stream_by_its_label_and_describe_a_parent(tmp_path: Path) -> None:
    tap = FaultyTap(tmp_path, entry("public-orders", stream="orders"))
    tap.does(schema("parent"), schema("orders"), record("orders", 1), state(orders=1))

    given, until = tap.read()

    assert list(ids(given)) == [("public-orders", [1])]
    assert bookmark_of(until["public-orders"]) == 1


def test_versions_and_unknown_messages_are_passed_over_the_latter_logged_once(
    tap: FaultyTap,
) -> None:
    odd = {"type": "METRIC", "value": 1}
    version = {"type": "ACTIVATE_VERSION", "stream": "orders", "version": 1}
    tap.does(*SPOKEN, odd, version, record("orders", 1), odd, state(orders=1))

    assert list(ids(tap.read()[0])) == [("orders", [1])]
    assert [line["type"] for line in tap.lines if "unknown" in line["event"]] == ["METRIC"]


def test_arrow_tables_where_the_class_asks_for_them(tap: FaultyTap) -> None:
    tap.does(*SPOKEN, record("orders", 1), record("orders", 2), state(orders=1))

    ((_, table),) = tap.read(arrow=True)[0]

    assert table.to_pydict() == {"id": [1, 2]}


def test_a_stream_that_is_not_read_in_this_pass_is_dropped(tap: FaultyTap) -> None:
    tap.does(*SPOKEN, record("orders", 1), record("countries", 1), state(orders=1))

    given, until = tap.read({"countries": None})

    assert (list(ids(given)), until) == ([("countries", [1])], {})


def test_what_is_read_whole_has_a_digest_of_its_own(tmp_path: Path) -> None:
    tap = FaultyTap(tmp_path, entry("a", "FULL_TABLE"), entry("b", "FULL_TABLE"))

    def digests(last: int) -> list[str | None]:
        tap.does(schema("a"), schema("b"), *(record("a", n) for n in range(5)), record("b", last))
        with tap.item(batch_rows=2 + last).open(None, BadRecords("fail")) as reading:
            list(reading.batches())
            return [reading.content_of("a"), reading.content_of("b"), reading.content()]

    first, again, other = digests(1), digests(1), digests(2)

    assert first == again
    assert [one == two for one, two in zip(first, other, strict=True)] == [True, False, False]


# Its catalog, and what is planned by it.


def test_without_a_catalog_file_all_that_it_discovers_is_read(tmp_path: Path) -> None:
    left_out = {"selected-by-default": False}
    discovered = [
        entry("orders", metadata=[]),
        entry("raw", metadata=[{"breadcrumb": [], "metadata": left_out}]),
        entry("countries", "FULL_TABLE", metadata=[{"breadcrumb": [], "metadata": {}}]),
    ]
    tap = FaultyTap(tmp_path)
    (tmp_path / "discovered.json").write_text(json.dumps({"streams": discovered}, indent=2))
    tap.more = {}
    tap.does(*SPOKEN)

    plans = tap.item().plans(())
    tap.read()

    assert [(plan.stream.name, plan.mode, plan.stream.key) for plan in plans] == [
        *(("orders", "merge", ("id",)), ("countries", "replace", ())),
    ]
    chosen = [one["metadata"][-1]["metadata"] for one in tap.seen["catalog"]["streams"]]
    assert [one["selected"] for one in chosen] == [True, False, True]


@pytest.mark.parametrize(
    ("stream", "key", "tombstone"),
    [
        (entry("orders"), ("id",), None),
        (entry("orders", "LOG_BASED"), ("id",), "_sdc_deleted_at"),
        (entry("orders", replication_key="at", metadata=[]), ("id",), None),
    ],
)
def test_the_key_is_the_catalog_s_and_a_log_has_tombstones(
    tmp_path: Path, stream: dict[str, Any], key: tuple[str, ...], tombstone: str | None
) -> None:
    stream["metadata"] = stream["metadata"] or [{"breadcrumb": [], "metadata": {"selected": True}}]
    (plan,) = FaultyTap(tmp_path, stream).item().plans(())

    assert plan.mode == "merge"
    assert (plan.stream.key, plan.stream.tombstone) == (key, tombstone)


def test_a_class_may_declare_the_streams_with_keys_of_its_own(tap: FaultyTap) -> None:
    plans = tap.item().plans((Stream("orders", key=("order_id",)), Stream("countries")))

    assert [(plan.stream.key, plan.mode) for plan in plans] == [
        *((("order_id",), "merge"), ((), "replace")),
    ]


@pytest.mark.parametrize(
    ("streams", "declared", "text"),
    [
        ([entry("orders", key_properties=[])], (), "INCREMENTAL without a key.*FULL_TABLE"),
        ([entry("orders", "LOG_BASED", key_properties=None)], (), "LOG_BASED without a key"),
        ([entry("orders", metadata=[])], (), "selects no stream"),
        ([entry("orders", replication_method="FULL_TABLE")], (), "FULL_TABLE and INCREMENTAL"),
        ([entry("orders", "BY_MOON")], (), "BY_MOON.*FULL_TABLE, INCREMENTAL, LOG_BASED"),
        ([entry("orders"), entry("orders")], (), "stands twice"),
        ([{"stream": "orders"}], (), r"no Singer catalog: streams.0.tap_stream_id"),
        ([entry("orders")], (Stream("users"),), "declares no stream 'orders': deselect it"),
        ([entry("orders")], (Stream("orders"), Stream("days")), "has no stream 'days'.*FULL_TABLE"),
    ],
)
def test_what_cannot_be_read_rightly_is_refused_before_reading(
    tmp_path: Path, streams: list[Any], declared: tuple[Stream, ...], text: str
) -> None:
    item = FaultyTap(tmp_path, *streams).item()

    with pytest.raises(CatalogZeroError, match=text) as caught:
        item.plans(declared)

    assert "catalog.json" in caught.value.message


def test_another_replication_key_than_the_position_s_is_refused(tap: FaultyTap) -> None:
    tap.does(*SPOKEN, state(orders=1))
    _, until = tap.read()
    tap.catalog.write_text(json.dumps({"streams": [entry("orders", replication_key="id")]}))

    said = refused(lambda: tap.read(until))

    assert "'orders' went on by 'at' until now, and is to go on by 'id'" in said
    assert "full: true" in said


# How it ends badly.


@pytest.mark.parametrize(
    ("end", "text"),
    [
        ({"exit": 3}, "the tap ended with status 3"),
        ({"kill": 9}, "the tap was killed by signal 9"),
        ({"type": "BATCH", "stream": "orders"}, "BATCH messages.*batch_config"),
        ("Traceback (most recent…\n", "line 13 of its output is no Singer message.*Traceback"),
        ('{"type": "RECORD", "str', "line 13 of its output is no Singer message"),
        ({"type": "RECORD", "stream": "users", "record": {}}, "'users'.*does not select"),
        ({"type": "RECORD", "stream": "orders", "record": 1}, "'orders' that is no object"),
        ('{"level": "info"}\n', "an object without the type of a Singer message"),
        ({"type": "SCHEMA", "stream": "orders", "key_properties": ["no"]}, "key of stream.*no"),
    ],
)
def test_a_tap_that_ends_badly_fails_and_nothing_after_its_checkpoint_is_given(
    tap: FaultyTap, end: Any, text: str
) -> None:
    rows = {"times": 4, "each": record("orders", "N")}
    tap.does(*SPOKEN, rows, state(orders=4), {"error": "out of\x1b[31m luck\n"}, rows, "\n", end)

    given: Given = []
    with pytest.raises(FailedError, match=rf"{NAME}: .*{text}") as caught:
        tap.read(given=given, batch_rows=4)

    assert [name for name, _ in given[:2]] == ["orders", "checkpoint"]
    assert [name for name, _ in given[2:]] == ["orders"]
    assert "it said last: out of" in caught.value.message


def test_a_record_before_its_schema_and_a_stream_without_one_are_refused(tap: FaultyTap) -> None:
    tap.does(schema("countries"), record("orders", 1))
    assert "'orders' before its SCHEMA" in refused(tap.read)

    tap.does(schema("orders"))
    said = refused(tap.read)
    assert "never spoke of stream 'countries'" in said
    assert "allow_empty: true" in said


def test_a_bookmark_that_is_too_long_to_be_kept_is_refused(tap: FaultyTap) -> None:
    tap.does(*SPOKEN, state(orders=["partition"] * 400))

    assert "'orders' has 5637 bytes, and at most 4096" in refused(tap.read)


def test_rows_without_a_bookmark_to_go_on_from_are_refused(tap: FaultyTap) -> None:
    tap.does(*SPOKEN, record("orders", 1))

    assert "'orders', and no bookmark from which to go on" in refused(tap.read)


def test_a_malformed_record_does_what_bad_records_do(tap: FaultyTap, tmp_path: Path) -> None:
    tap.does(*SPOKEN, record("orders", float("nan")), record("orders", 2), state(orders=2))

    assert f"{NAME}, line 3: not a JSON object" in refused(tap.read)
    bad = BadRecords("quarantine", tmp_path / "bad.jsonl")
    assert list(ids(tap.read(bad=bad)[0])) == [("orders", [2])]
    assert json.loads((tmp_path / "bad.jsonl").read_text())["line"] == 3


def test_a_line_that_is_too_long_is_refused(
    tap: FaultyTap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tap_process, "MAX_LINE_BYTES", 1 << 20)
    tap.does(*SPOKEN, '{"type": "RECORD", "x": "', {"raw": "y" * 1024, "times": 3 << 10})

    assert "longer than 1 MiB" in refused(tap.read)


class HastyClock(SystemClock):
    """Hours go by at every look, once something has happened."""

    def __init__(self, is_hasty: Callable[[], bool]) -> None:
        self._is_hasty, self._hours = is_hasty, count()

    def monotonic(self) -> float:
        return 4_000.0 * next(self._hours) if self._is_hasty() else 0.0


def ends(pid: int, within_s: float = 30) -> bool:
    """Whether a process ends: what makes its descriptor readable."""
    try:
        end = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ready, _, _ = select.select([end], [], [], within_s)
    os.close(end)
    return bool(ready)


@pytest.mark.parametrize("is_deaf", [False, True])
def test_a_tap_that_says_nothing_is_ended_with_its_children(
    tap: FaultyTap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_deaf: bool
) -> None:
    monkeypatch.setattr(tap_process, "END_GRACE_S", 0.2)
    tap.clock = HastyClock(lambda: (tmp_path / "pid").exists())
    deaf = [{"deaf": True}] if is_deaf else []
    tap.does(*deaf, {"child": str(tmp_path / "pid")}, *SPOKEN, {"silent": True})

    said = refused(tap.read)

    assert "the tap said nothing for 3600 s" in said
    assert ends(tap.seen["pid"])
    assert ends(int((tmp_path / "pid").read_text()))


def test_a_child_that_it_leaves_behind_holds_nothing_up(tap: FaultyTap, tmp_path: Path) -> None:
    left = "import subprocess, sys; subprocess.Popen(['sleep', '60'])"
    tap.command.write_text(f"#!{sys.executable}\n{left}\n")

    said = refused(tap.read)

    assert "never spoke" in said


def test_a_run_that_is_cancelled_ends_it(tap: FaultyTap) -> None:
    tap.does(*SPOKEN, record("orders", 1), {"silent": True})
    looks = count()
    tap.is_cancelled = lambda: tap.seen_file.exists() and next(looks) > 2

    with pytest.raises(RunCancelledError):
        tap.read()

    assert ends(tap.seen["pid"])


def test_it_dies_with_the_process_that_reads_it(tap: FaultyTap) -> None:
    tap.does(*SPOKEN, record("orders", 1), state(orders=1), {"silent": True})
    command = [sys.executable, "-m", "tests.cloud.taps", json.dumps(tap.config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert "StreamRows" in reader.stdout.readline()
        assert not ends(tap.seen["pid"], within_s=0)
        reader.kill()

    assert ends(tap.seen["pid"])


# What it is given, and what it says beside.


def test_it_is_given_little_of_the_environment_and_a_folder_of_its_own(
    tap: FaultyTap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_API_KEY", "secret-of-the-handler")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    tap.does(*SPOKEN)
    tap.read()

    seen = tap.seen
    assert seen["environment"].keys() <= {"PATH", "HOME", "HTTPS_PROXY", *tap_process._ENVIRONMENT}
    assert seen["environment"]["HTTPS_PROXY"] == "http://proxy.example"
    assert not Path(seen["folder"]).exists()
    assert Path(seen["folder"]) != Path.cwd()


def test_its_standard_error_is_logged_by_lines_without_the_secrets_of_its_config(
    tmp_path: Path,
) -> None:
    url = "postgresql://me:pw-of-the-db@db.example/shop"
    pem = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n"
    nested = {"token": "tok-7", "items": ["long-enough-to-be-a-secret"], "site": "berlin"}
    tap = FaultyTap(tmp_path, entry("orders"), url=url, deep=nested, pem=pem)
    tap.does(
        *(schema("orders"), {"error": f"at {url}\nwith tok-7 of berlin\n\n"}),
        *({"error": f"key:\n{pem}"}, {"error": json.dumps(nested)}, {"exit": 1}),
    )

    said = refused(tap.read)

    logged = [line["text"] for line in tap.lines]
    assert logged[:2] == [
        "at postgresql://me:**********@db.example/shop",
        "with ********** of berlin",
    ]
    everything = f"{logged} {said}"
    assert "berlin" in said
    for secret in ("pw-of-the-db", "tok-7", "MIIEvQIBADANBgkq", "long-enough-to-be-a-secret"):
        assert secret not in everything


def test_a_flood_on_standard_error_is_read_and_cut(tap: FaultyTap) -> None:
    tap.does(
        *SPOKEN,
        {"error": "word\n", "times": 30_000},
        {"error": "x", "times": 1_000_000},
        {"error": "\n"},
        *(record("orders", 1), state(orders=1)),
    )

    assert list(ids(tap.read()[0])) == [("orders", [1])]
    assert len(tap.lines) == 10_001
    assert tap.lines[-1]["event"] == "tap: no further line is logged"


@pytest.mark.parametrize(
    ("mode", "text", "error"),
    [
        (0o622, '{"a": 1}', "others may write it: chmod go-w"),
        (0o600, "token=abcdef", "no JSON object"),
        (0o600, '"secret-text"', "no JSON object"),
        (0o600, json.dumps({"a": "x" * (1 << 16)}), "no JSON object of at most 64 KiB"),
    ],
)
def test_a_config_file_that_cannot_hold_secrets_is_refused(
    tap: FaultyTap, mode: int, text: str, error: str
) -> None:
    path = tap.config_file
    path.write_text(text)
    path.chmod(mode)

    said = refused(tap.read)

    assert error in said
    assert str(path) in said
    assert text not in said


def test_a_command_that_cannot_be_started_says_so(tap: FaultyTap) -> None:
    tap.command.write_text("#!/nowhere/python\n")
    assert "cannot be started: No such file" in refused(tap.read)

    tap.command.chmod(0o644)
    assert f"command {tap.command} is no file that this user may execute" in refused(tap.read)

"""What may leave, and the proof of what left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from catalogzero.clock import SystemClock
from catalogzero.cloud.egress import AuditLog, Pace, check_host, egress_key, verify_audit
from catalogzero.cloud.encoding import ColumnFilter
from catalogzero.config.settings import EgressPolicy
from catalogzero.errors import ConfigError
from hypothesis import given
from hypothesis import strategies as st

from tests.cloud.processors import ArrowPlain, Plain
from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site, until

CSV = "n,name,email\n1,one,a@b.example\n2,two,\n"


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


@pytest.mark.parametrize("author", [Plain, ArrowPlain])
async def test_columns_are_dropped_and_hashed_before_anything_leaves(
    backend: ReferenceBackend, tmp_path: Path, author: Any
) -> None:
    (tmp_path / "key").write_text("k" * 32)
    policy = {"drop": ["name"], "hash": ["email"], "hash_key_file": tmp_path / "key"}
    async with Site(backend.url, tmp_path, author=author, runtime={"egress": policy}) as site:
        site.write("a.csv", CSV)
        await site.run()

    rows = backend.rows()
    assert [set(row) for row in rows] == [{"n", "email"}, {"n", "email"}]
    assert len(rows[0]["email"]) == 64
    assert b"a@b.example" not in b"".join(body for _, _, body in backend.bodies)


async def test_only_kept_columns_leave_and_source_names_can_be_hashed(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    policy = {"keep": ["n"], "hash_sources": True}
    async with Site(backend.url, tmp_path, runtime={"egress": policy}) as site:
        site.write("patients-of-ward-7.csv", CSV)
        await site.run()
        second = await site.run()

    sent = b"".join(body for _, _, body in backend.bodies)
    assert backend.rows() == [{"n": "1"}, {"n": "2"}]
    assert b"ward-7" not in sent
    assert second["status"] == "unchanged"


@given(st.lists(st.dictionaries(st.sampled_from("abcd"), st.none() | st.integers() | st.text())))
def test_a_dropped_column_never_leaves_whatever_the_rows(rows: list[dict[str, Any]]) -> None:
    columns = ColumnFilter(EgressPolicy(drop=["a"], keep=["a", "b"], hash=["c"]), b"k" * 16)

    for row, kept in zip(rows, columns(rows), strict=True):
        assert set(kept) == set(row) & {"b", "c"}
        assert all(
            kept["c"] != value for value in [row.get("c")] if "c" in row and value is not None
        )


def test_a_hash_is_the_same_for_rows_and_tables() -> None:
    columns = ColumnFilter(EgressPolicy(hash=["a"]), b"k" * 16)
    rows = [{"a": "x"}, {"a": None}]

    assert columns(pa.Table.from_pylist(rows)).to_pylist() == columns(rows)


@pytest.mark.parametrize("host", ["api.acme.example", "api.acme.example:8443"])
def test_only_allow_listed_hosts_are_endpoints(host: str) -> None:
    policy = EgressPolicy(hosts=["API.acme.example"])

    check_host(policy, f"https://{host}/v1")
    with pytest.raises(ConfigError, match=r"egress\.hosts"):
        check_host(policy, "https://api.acme.example.evil.example/v1")


def test_the_key_of_hashes_is_made_once_and_private(tmp_path: Path) -> None:
    policy = EgressPolicy(hash=["a"])

    assert egress_key(policy, tmp_path) == egress_key(policy, tmp_path)
    assert (tmp_path / "egress.key").stat().st_mode & 0o777 == 0o600


async def test_every_push_is_in_the_audit_log_and_its_head_in_the_health_report(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        await site.run()
        await until(lambda: backend.installations)
        await site.engine.report_health({"failures_total": 0}, {})
        report = verify_audit(site.author.state_dir / "audit.jsonl")

    assert report.broken_at is None
    assert report.pushes == len(backend.bodies) == 4
    assert (report.records, report.unsettled) == (2, [])
    sent = [orjson.loads(line) for line in _lines(site) if b'"push"' in line]
    assert sorted(entry["bytes"] for entry in sent) == sorted(len(b) for *_, b in backend.bodies)
    heads = [orjson.loads(line)["prev"] for line in _lines(site)]
    assert backend.reports[0]["audit_head"] in heads


def _lines(site: Site) -> list[bytes]:
    return (site.author.state_dir / "audit.jsonl").read_bytes().splitlines()


@pytest.mark.parametrize("how", ["change", "remove", "insert", "swap"])
def test_a_changed_audit_log_does_not_verify(tmp_path: Path, how: str) -> None:
    log = AuditLog(tmp_path, SystemClock())
    for number in range(3):
        log.settle(log.begin(bytes=number), status=200)
    log.close()
    lines = log.path.read_bytes().splitlines(keepends=True)
    assert verify_audit(log.path).broken_at is None

    match how:
        case "change":
            lines[2] = lines[2].replace(b'"bytes":1', b'"bytes":9')
        case "remove":
            del lines[2]
        case "insert":
            lines.insert(2, lines[0])
        case "swap":
            lines[2], lines[3] = lines[3], lines[2]
    log.path.write_bytes(b"".join(lines))

    assert verify_audit(log.path).broken_at is not None


def test_a_push_without_its_end_shows_as_unsettled_also_after_a_torn_line(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, SystemClock())
    log.begin(bytes=1)
    log.close()
    with log.path.open("ab") as file:
        file.write(b'{"at": "2026-01')
    again = AuditLog(tmp_path, SystemClock())
    again.settle(again.begin(bytes=2), status=200)
    again.close()

    report = verify_audit(log.path)
    assert (report.broken_at, report.unsettled, report.torn) == (None, [1], 1)
    assert report.head == again.head


async def test_a_pace_spreads_bytes_over_time() -> None:
    class Waits:
        def __init__(self) -> None:
            self.at = 0.0

        def monotonic(self) -> float:
            return self.at

        async def sleep(self, delay_s: float) -> None:
            self.at += delay_s

    clock = Waits()
    pace = Pace(100.0, clock)  # type: ignore[arg-type]  # the two of its methods that it uses
    for _ in range(11):
        await pace.take(50)

    assert clock.at == pytest.approx(5.0)

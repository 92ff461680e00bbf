"""What may leave, and the proof of what left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from enum import Enum
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest
from aiohttp import web
from catalogzero.clock import SystemClock
from catalogzero.cloud.audit import AuditLog, verify_audit
from catalogzero.cloud.egress import Throttle, check_host, egress_key
from catalogzero.cloud.encoding import ColumnFilter
from catalogzero.config.settings import EgressPolicy
from catalogzero.errors import BadParamsError, ConfigError, FailedError
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


LOOKS_LIKE_EMAIL = [
    "email",
    " EMail\t",
    "\ufeffemail",
    "\uff45\uff4d\uff41\uff49\uff4c",
    "e\u200bmail",
    "EMAIL\u00a0",
]


class Column(str, Enum):  # noqa: UP042  # the other kind: its text is another than its value
    """A name that prints as another."""

    EMAIL = "email"


@pytest.mark.parametrize("kind", ["rows", "table"])
@pytest.mark.parametrize("name", [*LOOKS_LIKE_EMAIL, Column.EMAIL])
@pytest.mark.parametrize("rule", ["drop", "hash"])
def test_what_looks_like_the_column_is_the_column(name: str, rule: str, kind: str) -> None:
    columns = ColumnFilter(EgressPolicy.model_validate({rule: ["Email"]}), b"k" * 16)
    rows = [{name: "a@b.example", "n": 1}]
    batch = rows if kind == "rows" else pa.table({str(name): ["a@b.example"], "n": [1]})
    if kind == "table" and isinstance(name, Column):
        batch = pa.table({name.value: ["a@b.example"], "n": [1]})

    left = columns(batch)
    left = left if kind == "rows" else left.to_pylist()

    assert "a@b.example" not in str(left)
    assert len(left[0]) == (1 if rule == "drop" else 2)
    assert columns.matched() == [f"{rule}: Email"]


def test_a_key_that_is_no_text_is_matched_by_the_name_it_leaves_under() -> None:
    columns = ColumnFilter(EgressPolicy(drop=["7"], keep=["7", "true"]), b"")

    assert columns([{7: "no", True: "yes", None: "no"}]) == [{"true": "yes"}]


def test_keep_is_exact_and_what_is_hashed_is_kept() -> None:
    columns = ColumnFilter(EgressPolicy(keep=["n"], hash=["email"]), b"k" * 16)

    [row] = columns([{"n": 1, "N": 2, " n": 3, "EMAIL": "x", "other": 4}])

    assert (set(row), row["n"]) == ({"n", "EMAIL"}, 1)


def test_metadata_of_a_table_does_not_leave() -> None:
    field = pa.field("n", pa.int64(), metadata={"note": "secret"})
    table = pa.table({"n": [1]}, schema=pa.schema([field], metadata={"pandas": "secret"}))

    left = ColumnFilter(EgressPolicy(drop=["email"]), b"")(table)

    assert "secret" not in left.schema.to_string(show_field_metadata=True)


async def test_a_keep_that_leaves_nothing_of_a_file_refuses_it(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    async with Site(backend.url, tmp_path, runtime={"egress": {"keep": ["N"]}}) as site:
        site.write("a.csv", CSV)
        with pytest.raises(FailedError, match=r"exports/a\.csv: egress\.keep leaves no column"):
            await site.run()
        site.write("b.csv", "N\n5\n")
        with pytest.raises(FailedError, match="1 of 2"):
            await site.run()

    assert backend.rows() == [{"N": "5"}]


async def test_a_rule_that_matches_nothing_is_reported_and_strict_refuses_it_before_all(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    rules = {"drop": ["emial", "name"], "hash": ["phone"]}
    async with Site(backend.url, tmp_path, runtime={"egress": rules}) as site:
        site.write("a.csv", CSV)
        loose = await site.run()
        fact = site.outbox.store.fact("egress_unmatched")
        await site.run()
        assert site.outbox.store.fact("egress_unmatched") == fact
    sent = len(backend.bodies)
    strict = {"egress": {**rules, "strict": True}, "chunk_bytes": 1024}
    async with Site(backend.url, tmp_path, runtime=strict) as site:
        site.write("b.csv", "n,name,email\n" + "1,x,a@b.example\n" * 1000)
        with pytest.raises(FailedError, match="no column of this run matched drop: emial, hash: p"):
            await site.run(full=True)
        assert site.outbox.store.totals().uploads == 0
        await until(lambda: backend.installations)
    assert not [path for _, path, _ in backend.bodies[sent:] if "/uploads/" in path]
    right = {**strict, "egress": {"drop": ["email", "name"], "strict": True}}
    async with Site(backend.url, tmp_path, runtime=right) as site:
        site.write("c.csv", "name\nx\n")
        first = await site.run()
        site.write("c.csv", "name\ny\n")
        second = await site.run()

    assert loose["unmatched_rules"] == fact == ["drop: emial", "hash: phone"]
    assert loose["unmatched"] == 2
    assert (first["status"], first["unmatched"]) == ("uploaded", 0)
    assert (second["status"], second["skipped"]) == ("uploaded", 2)


async def test_strict_sends_nothing_before_the_run_is_through(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    states: set[str] = set()

    def note(request: web.Request) -> None:
        if "/uploads/" in request.path:
            states.add(site.outbox.store.upload(request.path.split("/")[3]).state)

    backend.fault = note
    runtime = {"egress": {"drop": ["email"], "strict": True}, "chunk_bytes": 1024}
    async with Site(backend.url, tmp_path, runtime=runtime, upload_form="chunked") as site:
        site.write("a.csv", "n,email\n" + "1,a@b.example\n" * 10_000)
        result = await site.run()

    assert result["status"] == "uploaded"
    assert states == {"sealed", "completing"}


async def test_sources_sent_under_another_policy_are_counted_until_they_are_sent_again(
    backend: ReferenceBackend, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    results = []
    for policy in ({}, {"drop": ["email"]}):
        async with Site(backend.url, tmp_path, runtime={"egress": policy}) as site:
            for name in ("a.csv", "b.csv", "c.csv"):
                site.write(name, CSV)
            results += [await site.run(), await site.run(site.data / "a.csv", full=True)]
    async with Site(backend.url, tmp_path, runtime={"egress": {"drop": ["EMAIL "]}}) as site:
        results.append(await site.run(full=True))

    counts = [result.get("sources_under_other_policy", 0) for result in results]
    assert counts == [0, 0, 3, 2, 0]
    assert capfd.readouterr().out.count("the egress policy changed") == 1


@pytest.mark.parametrize("rule", [{"drop": ["N"]}, {"hash": ["n"]}, {"keep": ["x"]}])
async def test_a_watermark_that_may_not_leave_is_refused(
    backend: ReferenceBackend, tmp_path: Path, rule: dict[str, list[str]]
) -> None:
    url = f"sqlite:///{tmp_path}/shop.sqlite"
    query = {"url": url, "query": "SELECT 1 AS n, 2 AS x", "watermark": "n"}
    async with Site(
        backend.url, tmp_path, runtime={"egress": rule}, sources={"orders": query}
    ) as site:
        with pytest.raises(BadParamsError, match="keeps back its watermark 'n'"):
            await site.run("sql:orders")


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
        report = verify_audit(site.author.state_dir)

    assert report.broken_at is None
    assert report.pushes == len(backend.bodies) == 5  # the first start is two requests
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
    assert verify_audit(log.path.parent).broken_at is None

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

    assert verify_audit(log.path.parent).broken_at is not None


def test_a_push_without_its_end_shows_as_unsettled_also_after_a_torn_line(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, SystemClock())
    log.begin(bytes=1)
    log.close()
    with log.path.open("ab") as file:
        file.write(b'{"at": "2026-01')
    again = AuditLog(tmp_path, SystemClock())
    again.settle(again.begin(bytes=2), status=200)
    again.close()

    report = verify_audit(log.path.parent)
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
    pace = Throttle(100.0, clock)  # type: ignore[arg-type]  # the two of its methods that it uses
    for _ in range(11):
        await pace.take(50)

    assert clock.at == pytest.approx(5.0)

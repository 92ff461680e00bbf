"""`backend verify`: what it finds in backends that are right, and in backends that are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from catalogzero.backend import api, installations, uploads
from catalogzero.backend.conformance.suite import Report, verify
from catalogzero.backend.server import serving
from catalogzero.errors import ConfigError, UnauthorizedError, UnreachableError
from catalogzero.protocol.bodies import Installation
from catalogzero.protocol.judging import Claim, Judgement, Standing, judge
from sqlalchemy import Connection

from tests.backend.peer import Peer, serve_peer
from tests.backend.test_command import run

EXAMPLES = Path(__file__).parents[2] / "examples" / "own_backend"
KEY = "a-key-for-tests"


@contextmanager
def own_backend(name: str, database: Path) -> Iterator[str]:
    """One of the example backends as a process; gives its endpoint."""
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), "0", str(database)],
        env={**os.environ, "OWN_BACKEND_KEY": KEY},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def failures(report: Report) -> dict[str, list[str]]:
    """The checks that failed, with what was found."""
    return {r.check: r.details for r in report.results if r.outcome == "fail"}


async def test_the_reference_backend_conforms_and_shows_the_rows_that_are_named(
    peer: Peer,
) -> None:
    report = await verify(peer.url + "/v1", peer.key)

    assert report.form == "chunked"
    assert [r for r in report.results if r.outcome != "pass"] == []
    seen = peer.sql(
        "SELECT source, count(*) FROM visible_records"
        " WHERE tenant = :tenant AND stream = 'catalogzero-verify' GROUP BY source"
    )
    named = {source: rows for source, rows in report.visible.items() if rows}
    assert dict(seen) == named
    assert all(source.startswith(f"verify-{report.run}-") for source in named)


async def test_the_reference_backend_conforms_in_the_simple_form(peer: Peer) -> None:
    report = await verify(peer.url + "/v1", peer.key, form="simple")

    assert [r for r in report.results if r.outcome != "pass"] == []


@pytest.mark.parametrize("form", ["simple", "chunked"])
async def test_an_example_of_an_own_backend_conforms(tmp_path: Path, form: str) -> None:
    with own_backend(f"{form}.py", tmp_path / "own.db") as endpoint:
        report = await verify(endpoint, KEY)

    assert (report.form, failures(report)) == (form, {})


@pytest.mark.parametrize(
    ("line", "broken", "found"),
    [
        (
            'if not hmac.compare_digest(shown.encode(), f"Bearer {KEY}".encode()):',
            "if False:",
            "keys are checked",
        ),
        ("if json.loads(stored[0]) != records:", "if False:", "other records under a number"),
        ("if twin and not full:", "if False:", "two attempts are never both seen"),
        ("if twin and not full:", "if twin:", "full is exempt from the key"),
        ("database.execute(rise, [number, source])\n        return", "return", "two attempts"),
        (" AND key = ? AND visible", " AND key = ?", "content that comes back"),
        ("number <= highest:", "number < highest:", "older content never replaces"),
        ('if state != "open":', "if False:", "older content never replaces"),
        ("chained = append and not full", "chained = False", "appends follow the watermark"),
        ("chained = append and not full", "chained = append", "a full append hides"),
        ("if missing:", "if False:", "complete names the missing chunks"),
    ],
)
async def test_a_rule_that_is_taken_out_is_found(
    tmp_path: Path, line: str, broken: str, found: str
) -> None:
    source = (EXAMPLES / "chunked.py").read_text()
    assert line in source
    mutant = tmp_path / "mutant.py"
    mutant.write_text(source.replace(line, broken))
    with own_backend(str(mutant), tmp_path / "own.db") as endpoint:
        report = await verify(endpoint, KEY, only=found)

    assert any(name.startswith(found) for name in failures(report))


def admits_all(*_: Any) -> None:
    """The fence taken out."""


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("complete is not fenced", "an older folder is refused"),
        ("no nonce is kept", "a start whose answer was lost"),
        ("one nonce is kept", "a start that comes again"),
        ("the last nonce is passed over", "a start that comes again"),
        ("full_seq is not told", "a start is told"),
        ("two generations", "every answer names the generation"),
        ("duplicates by key say upload_id", "a duplicate says how"),
    ],
)
async def test_a_rule_of_identity_that_is_taken_out_is_found(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, rule: str, found: str
) -> None:
    if rule == "complete is not fenced":
        monkeypatch.setattr(installations, "admit", admits_all)
    elif rule == "one nonce is kept":
        monkeypatch.setattr(installations, "KEPT_NONCES", 1)
    elif rule in ("no nonce is kept", "the last nonce is passed over"):
        register, name_of = installations.register, "nonce" if "kept" in rule else "last_nonce"

        def forgetful(
            connection: Connection, tenant: int, name: str, body: Installation, at: str
        ) -> Any:
            return register(connection, tenant, name, body.model_copy(update={name_of: ""}), at)

        monkeypatch.setattr(installations, "register", forgetful)
    elif rule == "full_seq is not told":
        page_of = installations.page_of

        def lossy(*args: Any) -> installations.Page:
            page = page_of(*args)
            for state in page.states.values():
                state["full_seq"] = 0
            return page

        monkeypatch.setattr(installations, "page_of", lossy)
    elif rule == "two generations":
        monkeypatch.setattr(api, "store_reports", lambda *_: defaultdict(lambda: "another"))
    else:

        def same(claim: Claim, standing: Standing) -> Judgement:
            verdict = judge(claim, standing)
            return Judgement.DUPLICATE if verdict is Judgement.SAME_KEY else verdict

        monkeypatch.setattr(uploads, "judge", same)
    async with serve_peer(peer.database) as mutant:
        report = await verify(mutant.url + "/v1", mutant.key, only=found)

    assert any(name.startswith(found) for name in failures(report))


async def test_a_backend_without_epochs_passes_with_warnings(tmp_path: Path) -> None:
    with own_backend("chunked.py", tmp_path / "own.db") as endpoint:
        report = await verify(endpoint, KEY, only="folder")

    assert [result.outcome for result in report.results] == ["warn"]
    assert "no epochs" in report.results[0].details[0]


async def test_an_array_that_is_stored_twice_is_found(tmp_path: Path) -> None:
    source = (EXAMPLES / "simple.py").read_text()
    mutant = tmp_path / "mutant.py"
    mutant.write_text(source.replace("if found:", "if False:").replace("INSERT", "REPLACE"))
    with own_backend(str(mutant), tmp_path / "own.db") as endpoint:
        report = await verify(endpoint, KEY, only="stored once")

    assert "the same key is stored once" in failures(report)


@pytest.fixture
async def accepting() -> AsyncIterator[str]:
    """A web site that answers 200 to everything."""

    async def anything(_: web.Request) -> web.Response:
        return web.Response(text="<html>Welcome!</html>", content_type="text/html")

    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", anything)
    async with serving(app) as url:
        yield url


async def test_a_web_site_is_no_backend(accepting: str) -> None:
    report = await verify(accepting + "/v1", KEY)

    assert not report.passed
    assert "keys are checked" in failures(report)


async def test_nobody_there_and_a_wrong_key_are_told_apart(peer: Peer, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="nobody answers"):
        await verify("http://127.0.0.1:9/v1", KEY)
    with pytest.raises(UnauthorizedError, match="refused the key"):
        await verify(peer.url + "/v1", "wrong")
    with pytest.raises(ConfigError, match="no check of the chunked form"):
        await verify(peer.url + "/v1", peer.key, only="nothing")
    with pytest.raises(ConfigError, match="ca_file"):
        await verify(peer.url + "/v1", KEY, ca_file=tmp_path / "absent.pem")


def test_the_command_says_what_failed_and_what_it_wrote(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(KEY + "\n")
    source = (EXAMPLES / "chunked.py").read_text()
    mutant = tmp_path / "mutant.py"
    mutant.write_text(source.replace("number <= highest:", "number < highest:"))

    with own_backend(str(mutant), tmp_path / "own.db") as endpoint:
        given = ["verify", endpoint, "--key-file", str(key_file), "--only", "older content"]
        done = run(*given)
        report = run(*given, "--json")

    assert done.returncode == report.returncode == 1
    assert "fail  older content never replaces newer" in done.stdout
    assert "why it matters: A request that was delayed" in done.stdout
    assert "Written:" in done.stdout
    assert KEY not in done.stdout + report.stdout
    assert json.loads(report.stdout)["passed"] is False


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["http://127.0.0.1:9/v1", "--key-file", "absent"], 3),
        (["http://127.0.0.1:9/v1"], 3),
        (["http://127.0.0.1:9/v1", "--key-file", "key"], 4),
    ],
)
def test_what_keeps_it_from_checking_has_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text(KEY)

    done = run("verify", *arguments)

    assert done.returncode == code
    assert done.stderr.startswith("catalogzero: ")


def test_an_endpoint_that_is_no_url_is_a_usage_error() -> None:
    done = run("verify", "api.acme.example/v1")

    assert done.returncode == 2
    assert "is no endpoint such as" in done.stderr

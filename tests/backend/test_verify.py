"""`backend verify`: what it finds in backends that are right, and in backends that are not."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from catalogzero.backend.conformance.suite import Report, verify
from catalogzero.backend.server import serving
from catalogzero.errors import ConfigError, UnauthorizedError, UnreachableError
from catalogzero.protocol.bodies import GENERATION

from tests.backend.mutants import MUTANTS, Mutant
from tests.backend.peer import Peer, serve_peer
from tests.backend.test_command import run

EXAMPLES = Path(__file__).parents[2] / "examples" / "own_backend"
KEY, OTHER = "a-key-for-tests", "another-tenant-s"
PRINT_REFERENCE = """\
import json, sys
from catalogzero.backend.store import BackendDatabase
from sqlalchemy import text
view = text(f"SELECT source, payload FROM {sys.argv[3]} WHERE tenant = :tenant")
for source, record in BackendDatabase(sys.argv[1]).read_now(
    lambda connection: connection.execute(view, {"tenant": sys.argv[2]}).all()
):
    print(json.dumps({"source": source, "record": record}))
"""
PRINT_VISIBLE = """\
import json, sqlite3, sys
rows = sqlite3.connect(sys.argv[1]).execute(f"SELECT source, record FROM {sys.argv[2]}")
for source, record in rows:
    print(json.dumps({"source": source, "record": record}))
"""


@contextmanager
def own_backend(name: str, database: Path) -> Iterator[str]:
    """One of the example backends, with two tenants, as a process; gives its endpoint."""
    keys = KEY if name.endswith("simple.py") else f"{KEY} {OTHER}"
    process = subprocess.Popen(
        [*interpreter_of(name), str(EXAMPLES / name), "0", str(database)],
        env={**os.environ, "OWN_BACKEND_KEY": keys},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def interpreter_of(name: str) -> list[str]:
    """What runs an example; where it is not installed, the test is skipped."""
    if not name.endswith(".mjs"):
        return [sys.executable]
    if not shutil.which("node"):
        pytest.skip("no node here: install Node.js 20 or later")
    return ["node"]


def rows_commands(name: str, database: Path) -> tuple[str, str]:
    """The commands that print what an example shows, all of it and the newest of each key."""
    given = [*interpreter_of(name), str(EXAMPLES / name)]
    rows, latest = [*given, "--rows", str(database)], [*given, "--latest", str(database)]
    if name.endswith(".py"):
        printer = [sys.executable, "-c", PRINT_VISIBLE, str(database)]
        rows, latest = [*printer, "visible"], [*printer, "latest"]
    return shlex.join(rows), shlex.join(latest)


def failures(report: Report) -> dict[str, list[str]]:
    """The checks that failed, with what was found."""
    return {r.check: r.details for r in report.results if r.outcome == "fail"}


async def test_the_reference_backend_conforms_and_shows_the_rows_that_are_named(peer: Peer) -> None:
    printer = [sys.executable, "-c", PRINT_REFERENCE, peer.database, peer.name]
    views = ("visible_records", "latest_records")
    rows, latest = (shlex.join([*printer, view]) for view in views)
    async with serve_peer(peer.database) as beside:
        report = await verify(
            peer.url + "/v1", peer.key, other_key=beside.key, rows=rows, latest=latest, slow_s=120.0
        )

    assert report.form == "chunked"
    assert [r for r in report.results if r.outcome != "pass"] == []
    seen = peer.sql(
        "SELECT source, count(*) FROM visible_records"
        " WHERE tenant = :tenant AND stream LIKE 'catalogzero-verify%' GROUP BY source"
    )
    named = {source: rows for source, rows in report.visible.items() if rows}
    assert dict(seen) == named
    assert all(source.startswith(f"verify-{report.run}-") for source in named)


async def test_the_reference_backend_conforms_in_the_simple_form(peer: Peer) -> None:
    report = await verify(peer.url + "/v1", peer.key, form="simple")

    assert [r for r in report.results if r.outcome != "pass"] == []


@pytest.mark.parametrize("name", ["simple.py", "chunked.py", "chunked.mjs"])
async def test_an_example_of_an_own_backend_conforms(tmp_path: Path, name: str) -> None:
    database = tmp_path / "own.db"
    with own_backend(name, database) as endpoint:
        rows, latest = rows_commands(name, database)
        report = await verify(endpoint, KEY, other_key=OTHER, rows=rows, latest=latest)

    assert (report.form, failures(report)) == (name.partition(".")[0], {})
    assert ("--restart" in str(report.not_checked)) is (report.form == "chunked")


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
async def test_a_rule_that_is_taken_out_of_an_example_is_found(
    tmp_path: Path, mutant: Mutant
) -> None:
    database = tmp_path / "own.db"
    with own_backend(str(mutant.write(EXAMPLES, tmp_path)), database) as endpoint:
        rows, latest = rows_commands(str(tmp_path / mutant.example), database)
        only = mutant.only
        report = await verify(endpoint, KEY, only=only, other_key=OTHER, rows=rows, latest=latest)

    assert mutant.found in failures(report)


class RuleBreaker:
    """Stands before a backend, and takes one rule out of what is asked or answered."""

    def __init__(self, peer: Peer, rule: str) -> None:
        self.peer, self.rule, self.epoch, self.turn = peer, rule, 0, itertools.count()
        self.newest, self.sent = "", ""

    def change_asked(self, path: str, body: Any) -> None:
        """Change the JSON of a request."""
        if self.rule == "complete is not fenced" and path.endswith("/complete"):
            self.epoch = max(self.epoch, body.get("installation_epoch", 0))
            body["installation_epoch"] = self.epoch
        elif self.rule == "no nonce is kept" and "nonce" in body:
            body["nonce"] = ""
        elif self.rule == "the last nonce is passed over" and "last_nonce" in body:
            body["last_nonce"] = ""
        elif self.rule == "one nonce is kept" and body.get("nonce"):
            # each but the newest goes by a name that the backend does not know yet
            if body.get("last_nonce") == self.newest:
                body["last_nonce"] = self.sent
            if body["nonce"] != self.newest:
                self.newest = body["nonce"]
                self.sent = f"{self.newest}-{next(self.turn)}"
            body["nonce"] = self.sent

    def change_answer(self, path: str, body: Any, headers: dict[str, str]) -> None:
        """Change the JSON and the headers of an answer."""
        self.epoch = max(self.epoch, body.get("epoch", 0))
        if self.rule == "full_seq is not given":
            for state in body.get("states", {}).values():
                state["full_seq"] = 0
        elif self.rule == "two generations" and path.endswith("/health"):
            headers[GENERATION] = "another"
        elif self.rule.startswith("duplicates by key") and "by" in body:
            body["by"] = "upload_id"

    async def serve(self, request: web.Request) -> web.Response:
        """Pass a request on, and its answer back."""
        body = await request.read()
        if request.content_type == "application/json":
            asked = json.loads(body)
            self.change_asked(request.path, asked)
            body = json.dumps(asked).encode()
        kept = ("Authorization", "Content-Type", "Content-Encoding", "Content-Digest")
        given = {name: request.headers[name] for name in kept if name in request.headers}
        url = self.peer.url + request.path_qs
        sent = self.peer.session.request(request.method, url, data=body, headers=given)
        async with sent as answer:
            headers = {"Content-Type": answer.headers["Content-Type"]}
            headers[GENERATION] = answer.headers.get(GENERATION, "")
            shown = await answer.json(content_type=None)
            self.change_answer(request.path, shown, headers)
            return web.Response(body=json.dumps(shown), status=answer.status, headers=headers)


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("complete is not fenced", "an older folder is refused"),
        ("no nonce is kept", "a start whose answer was lost"),
        ("one nonce is kept", "a start that comes again"),
        ("the last nonce is passed over", "a start that comes again"),
        ("full_seq is not given", "a start is given"),
        ("two generations", "every answer names the generation"),
        ("duplicates by key say upload_id", "a duplicate says how"),
    ],
)
async def test_a_rule_of_identity_that_is_taken_out_is_found(
    peer: Peer, rule: str, found: str
) -> None:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", RuleBreaker(peer, rule).serve)
    async with serving(app) as url:
        report = await verify(url + "/v1", peer.key, only=found)
    kept = await verify(peer.url + "/v1", peer.key, only=found)

    assert any(name.startswith(found) for name in failures(report))
    assert failures(kept) == {}


async def test_a_backend_without_epochs_passes_with_warnings(tmp_path: Path) -> None:
    source = (EXAMPLES / "chunked.py").read_text()
    old = source.replace('"epoch" in body', "False").replace('"Catalogzero-Generation"', '"Via"')
    (tmp_path / "old.py").write_text(old)
    with own_backend(str(tmp_path / "old.py"), tmp_path / "own.db") as endpoint:
        report = await verify(endpoint, KEY, only="folder")

    assert [result.outcome for result in report.results] == ["warn"]
    assert "no epochs" in report.results[0].details[0]


async def test_a_backend_without_merge_passes_with_warnings(tmp_path: Path) -> None:
    source = (EXAMPLES / "chunked.py").read_text()
    (tmp_path / "old.py").write_text(
        source.replace('("append", "merge", "replace")', '("append", "replace")')
    )
    with own_backend(str(tmp_path / "old.py"), tmp_path / "own.db") as endpoint:
        report = await verify(endpoint, KEY, only="merge")

    assert [result.outcome for result in report.results] == ["warn"] * len(report.results)
    assert report.results
    assert all("no mode merge" in r.details[0] for r in report.results)


class Restarted:
    """An example backend that a command kills and starts again."""

    def __init__(self, folder: Path, name: str, database: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.pid, out, script = folder / "pid", folder / "out", folder / "restart.sh"
        command = shlex.join([*interpreter_of(name), str(EXAMPLES / name), port, str(database)])
        script.write_text(
            f"[ -f {self.pid} ] && kill -9 $(cat {self.pid})\nrm -f {out}\n"
            f"{command} >{out} 2>&1 &\necho $! >{self.pid}\n"
            f"until [ -s {out} ]; do sleep 0.02; done\n"
        )
        self.endpoint, self.command = f"http://127.0.0.1:{port}/v1", f"sh {script}"

    def __enter__(self) -> Restarted:
        env = {**os.environ, "OWN_BACKEND_KEY": KEY}
        subprocess.run(["sh", "-c", self.command], check=True, env=env)
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(int(self.pid.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("name", ["chunked.py", "chunked.mjs"])
@pytest.mark.parametrize("keeps", [True, False])
async def test_what_a_kill_costs_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, keeps: bool
) -> None:
    monkeypatch.setenv("OWN_BACKEND_KEY", KEY)
    database = tmp_path / "own.db"
    with Restarted(tmp_path, name, database) as backend:
        command = backend.command if keeps else f"rm {database}*; {backend.command}"
        report = await verify(backend.endpoint, KEY, only="outlives a kill", restart=command)

    assert report.passed is keeps


async def test_a_command_that_fails_and_lines_that_are_no_rows_are_failures(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {}
    for rows in ("exit 3", "echo no", """echo '{"source": "verify-none"}'"""):
        report = await verify(peer.url + "/v1", peer.key, only="rows that are seen", rows=rows)
        told[rows] = report.results[0].details[0]

    assert "ended with 3" in told["exit 3"]
    assert all("expected lines of" in told[rows] for rows in list(told)[1:])


async def test_a_slow_answer_is_a_warning(peer: Peer) -> None:
    report = await verify(peer.url + "/v1", peer.key, only="health reports", slow_s=0.0)

    assert report.results[0].outcome == "warn"
    assert "slow: POST /v1/health" in report.results[0].details[0]


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


async def test_nobody_there_and_a_wrong_key_are_distinguished(peer: Peer, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="nobody answers"):
        await verify("http://127.0.0.1:9/v1", KEY)
    with pytest.raises(UnauthorizedError, match="refused the key"):
        await verify(peer.url + "/v1", "wrong")
    with pytest.raises(ConfigError, match="no check of the chunked form"):
        await verify(peer.url + "/v1", peer.key, only="no such check")
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
    assert "Not checked: tenants are apart (--other-key-file)" in done.stdout
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

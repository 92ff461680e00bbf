"""`catalogzero scheduler` as a process, and `catalogzero schedule` against it."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from datetime import datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import zmq
from catalogzero.cli.main import CommandTable, main

from tests.scheduler.processes import CATALOGZERO, SchedulerProcess, handler_process

pytestmark = pytest.mark.timeout(180)

URL = "http://127.0.0.1:{}"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SchedulerProcess]:
    """A scheduler process, and a handler process that has registered."""
    folder = tmp_path_factory.mktemp("cli")
    with (
        SchedulerProcess(f"sqlite:///{folder / 'scheduler.db'}") as scheduler,
        handler_process(scheduler.zmq_address, folder),
    ):
        scheduler.wait_for_handler("chore")
        yield scheduler


def schedule(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command, in this process: its start is not what is tested."""
    command = ["catalogzero", "schedule", "--url", url, *arguments]
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        patch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code
    return subprocess.CompletedProcess(command, int(code or 0), out.getvalue(), err.getvalue())


def reported(url: str, *arguments: str) -> Any:
    """What the command prints with --json."""
    done = schedule(url, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_schedule_lives_its_whole_life_from_the_command_line(running: SchedulerProcess) -> None:
    url = running.url
    cron = ("--cron", "30 2 * * 1-5", "--timezone", "Europe/Berlin", "--job-id", "nightly")
    assert reported(url, "add", "chore", "note", *cron, "--params", '{"text": "hello"}') == {
        "status": "success",
        "job_id": "nightly",
        "schedule_id": "nightly",
    }

    times = reported(url, "next", "nightly", "--count", "3")
    assert len(times["next"]) == 3
    assert all(moment[11:16] == "02:30" for moment in times["local"])
    listed = schedule(url, "list").stdout
    assert "nightly  Mon - Fri at 02:30 Europe/Berlin" in listed
    assert re.search(r"\d\d:30:00 UTC +chore note$", listed)
    assert schedule(url, "pause", "nightly").returncode == 0
    assert reported(url, "list")["schedules"][0]["paused"] is True
    assert schedule(url, "resume", "nightly").returncode == 0
    assert json.loads(schedule(url, "run", "nightly").stdout)["text"] == "hello"
    assert "hello" in schedule(url, "run", "chore", "note", "--params", '{"text": "hello"}').stdout
    titles, *rows = schedule(url, "executions", "--handler-id", "chore").stdout.splitlines()
    assert titles.split() == ["started", "job_id", "outcome", "run"]
    assert len(rows) == 2
    ours = reported(url, "executions", "--job-id", "nightly", "--show", "by_hand")["records"]
    assert len(ours) == 1  # a run by hand is found by its schedule
    assert re.search(rf"UTC +nightly +done \(.* s, by hand\) +{ours[0]['execution_id']}$", rows[1])
    assert reported(url, "executions", "--show", "failed")["records"] == []
    assert schedule(url, "remove", "nightly").returncode == 0
    assert reported(url, "list")["count"] == 0


def test_handlers_are_listed_and_forgotten_from_the_command_line(running: SchedulerProcess) -> None:
    url = running.url
    with zmq.Context() as context, context.socket(zmq.REQ) as wire:
        wire.connect(running.zmq_address)
        gone = {"handler_id": "gone", "address": "tcp://127.0.0.1:1", "methods": ["work"]}
        wire.send_json({"method": "register", "params": gone})
        assert wire.recv_json()
    added = schedule(url, "add", "gone", "work", "--every", "1h", "--job-id", "waits")
    named = schedule(url, "remove-handler", "gone")
    while "which is away" not in schedule(url, "executions", "--status", "retry").stdout:
        assert reported(url, "executions")["records"][0]["status"] in ("running", "retry")
    schedule(url, "remove", "waits")

    assert "the params were not checked: the handler" in added.stdout
    assert (named.returncode, "remove them first: waits" in named.stderr) == (1, True)
    listed = {row.split()[0]: row for row in schedule(url, "handlers").stdout.splitlines()}
    assert "Connected" in listed["chore"]
    assert "Disconnected" in listed["gone"]
    assert schedule(url, "remove-handler", "gone").returncode == 0
    assert [one["id"] for one in reported(url, "handlers")["handlers"]] == ["chore"]


@pytest.mark.parametrize(
    ("cron", "first"),
    [
        ("0 0 13 * 5", {"13", "Fri"}),
        ("0 0 * * FRI", {"Fri"}),
        ("0 0 */13 * */5", {"27 Sun", "27 Fri", "01 Sun", "01 Fri", "14 Sun", "14 Fri"}),
    ],
)
def test_cron_text_follows_crontab(running: SchedulerProcess, cron: str, first: set[str]) -> None:
    reported(
        running.url, "add", "chore", "note", "--cron", cron, "--timezone", "UTC", "--job-id", "c"
    )
    times = reported(running.url, "next", "c", "--count", "60")["next"]
    schedule(running.url, "remove", "c")

    moments = [datetime.fromisoformat(time) for time in times]
    names = [{f"{m:%d}", f"{m:%a}", f"{m:%d %a}"} for m in moments]
    assert all(first & name for name in names)
    assert {one for name in names for one in first & name} == first
    assert {(moment.hour, moment.minute) for moment in moments} == {(0, 0)}


def test_the_help_says_how_day_and_weekday_combine() -> None:
    done = schedule("http://127.0.0.1:1", "add", "--help")

    assert "every 13th and every Friday" in " ".join(done.stdout.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("add", "chore", "note"), 2, "name one of --every, --cron and --at"),
        (("add", "chore", "note", "--every", "soon"), 2, "30s, 5m"),
        (
            ("add", "chore", "note", "--every", "5m", "--timezone", "UTC"),
            2,
            "no use for a --timezone",
        ),
        (("add", "chore", "note", "--at", "tomorrow"), 1, "'tomorrow' is not ISO 8601"),
        (("add", "chore", "note", "--cron", "0 2 * *"), 2, "--cron takes five fields"),
        (("add", "chore", "note", "--cron", "0 2 * * MON#1"), 1, "cannot be 'mon#1'"),
        (("add", "chore", "note", "--cron", "0 0 30 2 *"), 1, "it never fires"),
        (("list", "--url", "somewhere"), 2, "--url somewhere: begin it with http://"),
        (("add", "nobody", "note", "--every", "5m"), 1, "Handler 'nobody' not registered."),
        (("remove", "nothing"), 1, "Schedule 'nothing' not found"),
        (("run", "nothing"), 1, "no schedule is called 'nothing'"),
        (("run", "chore", "fail"), 1, "ValueError: on purpose"),
    ],
)
def test_a_failure_is_a_sentence_and_an_exit_code(
    running: SchedulerProcess, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = schedule(running.url, *arguments)

    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_a_server_that_cannot_pause_is_said_to_be_one(tmp_path: Path) -> None:
    class Other(SimpleHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(404)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Other, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = schedule(URL.format(server.server_address[1]), "pause", "nightly")
        server.shutdown()

    assert done.returncode == 1
    assert "/api/schedules/nightly/pause: this server does not know that request" in done.stderr


def test_a_url_without_its_scheme_is_a_usage_error() -> None:
    done = schedule("127.0.0.1:8888", "list")

    assert done.returncode == 2
    assert "begin it with http://" in done.stderr


def test_a_scheduler_that_is_not_there_is_exit_code_4() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = URL.format(taken.getsockname()[1])
        done = schedule("http://127.0.0.1:8888", "list", "--url", url)

    assert done.returncode == 4
    assert f"no scheduler answers at {url}" in done.stderr
    assert "name it with --url" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_scheduler_stops_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    with SchedulerProcess(f"sqlite:///{tmp_path / 'scheduler.db'}") as scheduler:
        scheduler.process.send_signal(number)
        code = scheduler.process.wait(20)

    assert code == 0


def test_a_token_is_needed_where_one_is_set(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("correct-horse-battery\n")
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    with SchedulerProcess(database, "--token-file", str(token_file)) as scheduler:
        without = schedule(scheduler.url, "list")
        shown = ("--token-file", str(token_file), "list")
        with_it = schedule(scheduler.url, *shown)

    assert (without.returncode, with_it.returncode) == (5, 0)


def test_every_option_of_the_scheduler_has_an_environment_variable(tmp_path: Path) -> None:
    command: Any = CommandTable().get_command(None, "scheduler")
    settings = command.context_settings
    names = [option.name for option in command.params]
    values = {"port": "0", "zmq_port": "0", "database": str(tmp_path / "s.db"), "host": "0.0.0.0"}  # noqa: S104
    environment = {f"CATALOGZERO_SCHEDULER_{n.upper()}": v for n, v in values.items()}
    done = subprocess.run(
        [*CATALOGZERO, "scheduler"], capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, **environment},
    )  # fmt: skip

    assert settings == {"auto_envvar_prefix": "CATALOGZERO_SCHEDULER"}
    assert {"host", "allow_host", "allow_origin", "lease_s", "json"} <= {*names}
    assert all(option.allow_from_autoenv for option in command.params)
    assert done.returncode == 3
    assert "--host 0.0.0.0 is not loopback" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "0.0.0.0"), "name a --token-file too"),  # noqa: S104 - it is refused
        (("--zmq-host", "0.0.0.0"), "--allow-plaintext on a private network"),  # noqa: S104 - same
        (("--database", "mysql://x/y"), "name a sqlite:///file or a postgresql://"),
        (("--curve-clients-file", "keys"), "needs --curve-key-file"),
        (("--allow-origin", "https://portal.example"), "name a --token-file too"),
        (("--allow-origin", "*"), "--allow-origin *: write it as https://portal.example"),
        (("--port", "{taken}"), "port {taken} on 127.0.0.1 cannot be had"),
        (("--zmq-port", "{taken}"), "--zmq-host, --zmq-port: port {taken} on 127.0.0.1 is taken"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_starts(
    options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    database = ("--database", f"sqlite:///{tmp_path / 'scheduler.db'}")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken = listening.getsockname()[1]
        given = [option.format(taken=taken) for option in options]
        command = [*CATALOGZERO, "scheduler", "--port", "0", "--zmq-port", "0", *database, *given]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == (75 if "{taken}" in options else 3)
    assert message.format(taken=taken) in done.stderr

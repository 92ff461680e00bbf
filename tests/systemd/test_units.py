"""Every unit that `catalogzero systemd` prints, started as it stands under a real systemd.

One machine for all of them: backend, scheduler, conductor and a processor, whose key, operator's
token and data are root's or a group's. It has neither network nor container engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.systemd.machine import BIN, Machine, NoMachineError, booted

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(400)]

REGISTRY = "/etc/acme/handler_registry.yaml"
HANDLERS = """\
handlers:
  - handler_id: acme
    entry: file-processor
    port: 5555
    config:
      endpoint: http://127.0.0.1:8800/v1
      api_key_file: /etc/acme/api_key
      data_roots: [/srv/exports]
  - handler_id: conductor
    module_path: conductorzero
    class_name: ConductorZero
    port: 5999
    config: {handler_registry: {acme: 5555}}
"""
SERVICES = ("catalogzero-backend", "catalogzero-scheduler", "conductor", "acme")
DATABASE = "sqlite:////var/lib/catalogzero-backend/backend.db"
BOOTS = 5
CALLER = Path(__file__).with_name("caller.py")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with the four units, all started."""
    try:
        with booted(tmp_path_factory.mktemp("machine")) as one:
            install(one)
            yield one
    except NoMachineError as error:
        pytest.skip(str(error))


def install(machine: Machine) -> None:
    """What an operator does, in the order of the pages."""
    machine.run("groupadd", "exporters")
    machine.run("install", "-d", "-m", "0750", "-g", "exporters", "/srv/exports")
    machine.write("/srv/exports/flights.csv", "flight,late\nUA1545,yes\nB6725,no\n", mode=0o640)
    machine.run("chgrp", "exporters", "/srv/exports/flights.csv")
    machine.write(REGISTRY, HANDLERS)
    machine.write("/etc/acme/api_key", "to be written", mode=0o600)
    machine.write("/etc/catalogzero/operator_token", "t" * 40, mode=0o600)
    units = ("--all", "--registry", REGISTRY, "--scheduler", "--backend")
    handed = "CATALOGZERO_BACKEND_OPERATOR_TOKEN_FILE=/etc/catalogzero/operator_token"
    machine.catalogzero("systemd", *units, "--credential", handed, "--out", "/etc/systemd/system")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "catalogzero-backend")
    key = machine.catalogzero("backend", "tenants", "add", "acme", "--database", DATABASE)
    machine.write("/etc/acme/api_key", key, mode=0o600)
    started = machine.run("systemctl", "start", *SERVICES, check=False)
    journals = "".join(machine.journal(name)[-2000:] for name in SERVICES)
    assert started.returncode == 0, started.stderr + journals


def call(machine: Machine, port: int, method: str, **params: Any) -> Any:
    """The result of a call."""
    where = f"tcp://127.0.0.1:{port}"
    return json.loads(machine.catalogzero("call", where, method, "--params", json.dumps(params)))


@pytest.mark.parametrize("name", SERVICES)
def test_each_unit_starts_as_it_stands(machine: Machine, name: str) -> None:
    shown = machine.show(name, "ActiveState", "NRestarts", "Result", "StatusText", "OOMPolicy")
    journal = machine.journal(name)

    assert re.fullmatch(r"serving (http|tcp)://127\.0\.0\.1:\d+", shown.pop("StatusText"))
    assert shown == {
        "ActiveState": "active",
        "NRestarts": "0",
        "Result": "success",
        "OOMPolicy": "continue",
    }
    assert "Traceback" not in journal
    assert '"level": "error"' not in journal


@pytest.mark.parametrize("name", SERVICES)
def test_each_unit_is_taken_and_kept_small(machine: Machine, name: str) -> None:
    verified = machine.run("systemd-analyze", "verify", "--man=no", f"{name}.service")
    rated = machine.run("systemd-analyze", "security", "--threshold=15", name, check=False)

    assert verified.stderr == ""
    assert rated.returncode == 0, rated.stdout


def test_a_call_goes_from_data_of_a_group_to_the_backend_with_the_key_of_root(
    machine: Machine,
) -> None:
    result = call(machine, 5555, "process_and_upload", data_source="/srv/exports", full=True)

    assert (result["status"], result["records"]) == ("uploaded", 2)
    assert "key_not_readable" not in machine.journal("acme")


def test_check_answers_for_the_unit_s_user(machine: Machine) -> None:
    command = ("check", "acme", "--unit", "acme", "--registry", REGISTRY, "--json")

    before = json.loads(machine.catalogzero(*command))["findings"]
    machine.run("chmod", "700", "/srv/exports")
    after = json.loads(machine.catalogzero(*command, check=False))["findings"]
    machine.run("chmod", "750", "/srv/exports")

    found = {one["name"]: one["status"] for one in before}
    assert "fail" not in found.values(), before
    assert [one["name"] for one in after if one["status"] == "fail"] != []
    assert machine.show("acme", "ActiveState", "NRestarts") == {
        "ActiveState": "active",
        "NRestarts": "0",
    }


def test_the_conductor_sees_the_handler_and_the_machine(machine: Machine) -> None:
    assert call(machine, 5999, "ping_handler", handler_id="acme")["alive"] is True
    assert call(machine, 5999, "get_system_metrics")["memory"]["total_mb"] > 0


def test_the_scheduler_knows_both_handlers(machine: Machine) -> None:
    # A handler that was just restarted registers again within half a minute.
    ask = "curl --silent http://127.0.0.1:8888/api/handlers"
    both = f"{ask} | grep --only-matching Connected | wc --lines"
    wait = f'for _ in $(seq 60); do [ "$({both})" = 2 ] && break; sleep 1; done; {ask}'
    answer = machine.run("sh", "-c", wait).stdout

    found = {one["id"]: one["status"] for one in json.loads(answer)["handlers"]}
    assert found == {"acme": "Connected", "conductor": "Connected"}


def test_the_operator_s_token_is_handed_over(machine: Machine) -> None:
    asked = ("curl", "--silent", "-o", "/dev/null", "-w", "%{http_code}", "-u")

    codes = [
        machine.run(*asked, f"operator:{word}", "http://127.0.0.1:8800/").stdout
        for word in ("t" * 40, "another")
    ]

    assert codes == ["200", "401"]


def test_calls_wait_out_restarts_and_none_fails_or_runs_twice(machine: Machine) -> None:
    machine.write("/etc/desk/desk.py", DESK)
    machine.write("/etc/desk/handler_registry.yaml", DESK_REGISTRY)
    start(machine, "/etc/desk", "desk")
    caller = machine.start(BIN / "python", CALLER, "tcp://127.0.0.1:5600", BOOTS)
    assert caller.stdout is not None
    for _ in range(BOOTS - 1):
        assert caller.stdout.readline() == "a new boot answers\n"
        machine.run("systemctl", "restart", "desk")

    said, faults = caller.communicate(timeout=300)

    outcome = json.loads(said.splitlines()[-1])
    assert (outcome["failed"], faults) == ([], "")
    counted = (machine.root / "var/lib/catalogzero/desk/desk/ran").read_text().split()
    assert sorted(counted) == sorted(outcome["called"])
    assert outcome["boots"] == BOOTS
    assert machine.show("desk", "NRestarts", "Result") == {"NRestarts": "0", "Result": "success"}


def start(machine: Machine, folder: str, name: str) -> None:
    """Print a handler's unit and start it."""
    machine.catalogzero(
        "systemd", name, "--registry", f"{folder}/handler_registry.yaml",
        "--out", "/etc/systemd/system",
    )  # fmt: skip
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", name)


DESK = '''
"""A handler that notes each run."""
from catalogzero import Handler


class Desk(Handler):
    """Notes what it was asked."""

    def note(self, number: str) -> dict:
        """Writes the number down."""
        with (self.state_dir / "ran").open("a") as file:
            file.write(number + "\\n")
        return {"number": number}
'''
DESK_REGISTRY = """\
scheduler: none
handlers:
  - {handler_id: desk, module_path: desk, class_name: Desk, port: 5600}
"""


def test_a_wrong_configuration_is_not_started_again(machine: Machine) -> None:
    machine.write("/etc/wrong/handler_registry.yaml", DESK_REGISTRY.replace("desk", "wrong"))
    with pytest.raises(AssertionError):
        start(machine, "/etc/wrong", "wrong")

    shown = machine.until("wrong", ActiveState="failed", NRestarts="0", ExecMainStatus="3")

    assert shown["NRestarts"] == "0"
    assert "module 'wrong' cannot be imported" in machine.journal("wrong")


HOLDER = """
import socket, threading
from catalogzero.config.sd_notify import ready
held = socket.create_server(("127.0.0.1", 5600))
ready("nobody")
threading.Event().wait()
"""


def test_a_taken_port_is_tried_again(machine: Machine) -> None:
    machine.run("systemctl", "stop", "desk", check=False)
    machine.write("/etc/desk/desk.py", DESK)
    machine.write("/etc/desk/handler_registry.yaml", DESK_REGISTRY)
    holder = ("--unit=holder", "--property=Type=notify", BIN / "python", "-c", HOLDER)
    machine.run("systemd-run", *holder)
    with pytest.raises(AssertionError):
        start(machine, "/etc/desk", "desk")
    shown = machine.show("desk", "ExecMainStatus")

    machine.run("systemctl", "stop", "holder")
    machine.until("desk", ActiveState="active")

    assert shown == {"ExecMainStatus": "75"}

    assert "port 5600 on 127.0.0.1 is taken" in machine.journal("desk")
    assert call(machine, 5600, "ping")["status"] == "ok"


@pytest.mark.parametrize("name", SERVICES[::-1])
def test_each_stops_and_comes_back(machine: Machine, name: str) -> None:
    machine.run("systemctl", "stop", name)
    stopped = machine.show(name, "ActiveState", "Result", "ExecMainStatus")
    machine.run("systemctl", "start", name)
    back = machine.show(name, "ActiveState", "NRestarts")

    assert stopped == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"}
    assert back == {"ActiveState": "active", "NRestarts": "0"}

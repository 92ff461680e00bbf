"""A machine and its copy, both with the state of one installation, under one handler_id."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from catalogzero.runtime.health import SECOND_HOST

from examples.quickstart.processes import free_ports
from tests.core.support import finished, running, served_address
from tests.system.test_status import look, section, troubles, written


def served(registry: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    """The processor of a registry file, with its log as JSON."""
    return running("run", "site", "--registry", str(registry), CATALOGZERO_LOG_FORMAT="json")


def logged(process: subprocess.Popen[str], event: str) -> Any:
    """The next line of that event in a process's log."""
    assert process.stderr is not None
    return json.loads(next(line for line in process.stderr if f'"{event}"' in line))


def test_of_a_machine_and_its_copy_one_is_called_and_the_other_says_what_to_do(
    tmp_path: Path,
) -> None:
    zmq_port, port, *ports = free_ports(4)
    registries = []
    for name, own in zip(("machine", "copy"), ports, strict=True):
        (tmp_path / name).mkdir()
        one = section(tmp_path / name, "site", "http://127.0.0.1:9") | {"port": own}
        scheduler = f"tcp://127.0.0.1:{zmq_port}"
        registries.append(written(tmp_path / name, one, scheduler=scheduler))
    machine, copy = registries
    serve = ("scheduler", "--port", str(port), "--zmq-port", str(zmq_port))
    with ExitStack() as undo:
        undo.enter_context(running(*serve, "--database", f"sqlite:///{tmp_path}/s.db"))
        first = undo.enter_context(served(machine))
        address = served_address(first)
        logged(first, "registered")
        shutil.copytree(tmp_path / "machine" / "state", tmp_path / "copy" / "state")
        second = undo.enter_context(served(copy))
        refused = logged(second, "registration_refused")
        _, report = look(copy)
        check = finished("check", "site", "--registry", str(copy), "--json")
        first.kill()
        logged(second, "registered")
        back = undo.enter_context(served(machine))
        back_refused = logged(back, "registration_refused")
        _, taken = look(copy)

    assert refused["level"] == "error"
    assert f"answers at {address}: stop that one" in refused["error"]
    assert refused["fix"].startswith("two state folders of one installation would overwrite")
    assert f"catalogzero check site --registry {copy}" in troubles(report)["site"]
    (found,) = [one for one in json.loads(check.stdout)["findings"] if one["name"] == "scheduler"]
    assert (check.returncode, found["status"], found["fix"]) == (1, "fail", refused["fix"])
    assert SECOND_HOST in found["found"]
    assert f"answers at tcp://127.0.0.1:{ports[1]}" in back_refused["error"]
    assert SECOND_HOST not in taken["handlers"][0]["reasons"]

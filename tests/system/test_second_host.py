"""A machine and its copy: one installation under one handler_id, or one instance of a handler."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
from catalogzero.runtime.health import SECOND_HOST

from examples.quickstart.processes import free_ports
from tests.cloud.reference import ReferenceBackend
from tests.core.nats_servers import nats_server
from tests.core.support import finished, running, served_address
from tests.scheduler.processes import SchedulerProcess, until
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


def test_behind_nats_the_copy_of_a_machine_is_refused_and_so_is_a_machine_that_comes_back(
    tmp_path: Path,
) -> None:
    with ExitStack() as undo:
        at = f"nats://127.0.0.1:{undo.enter_context(nats_server(tmp_path))}"
        scheduler = undo.enter_context(SchedulerProcess(f"sqlite:///{tmp_path}/s.db"))
        registries = []
        for name in ("machine", "copy"):
            (tmp_path / name).mkdir()
            one = section(tmp_path / name, "site", "http://127.0.0.1:9") | {"transport": at}
            registries.append(written(tmp_path / name, one, scheduler=scheduler.zmq_address))
        machine, copy = registries
        first = undo.enter_context(served(machine))
        logged(first, "registered")
        shutil.copytree(tmp_path / "machine" / "state", tmp_path / "copy" / "state")
        second = undo.enter_context(served(copy))
        refused = logged(second, "registration_refused")
        first.kill()
        logged(second, "registered")
        back = undo.enter_context(served(machine))
        back_refused = logged(back, "registration_refused")

    for line in (refused, back_refused):
        assert f"another host is registered as 'site' and answers at {at}/site/" in line["error"]
        assert line["fix"].startswith("two state folders of one installation would overwrite")


@pytest.mark.parametrize("transport", ["zeromq", "nats"])
async def test_of_two_folders_of_one_installation_one_sends_and_each_row_arrives_once(
    transport: str, tmp_path: Path
) -> None:
    """The copy is not called, but its start is the newest: the machine pauses, and says why."""
    async with ReferenceBackend("key") as backend:
        paused, moved = await asyncio.to_thread(act_with_a_copy, transport, tmp_path, backend)
        visible = backend.rows()

    assert "catalogzero installation adopt site" in paused["reason"]
    assert "catalogzero installation adopt site" in moved["reason"]
    assert sorted(row["n"] for row in visible) == ["1", "2", "3", "4"]


def act_with_a_copy(transport: str, folder: Path, backend: ReferenceBackend) -> tuple[Any, Any]:
    """A machine is copied, goes on beside its copy, and adopts; why each of them was paused."""
    with ExitStack() as undo:
        if transport == "nats":
            transport = f"nats://127.0.0.1:{undo.enter_context(nats_server(folder))}"
        scheduler = undo.enter_context(SchedulerProcess(f"sqlite:///{folder}/s.db"))
        registries = []
        for name in ("machine", "copy"):
            (folder / name).mkdir()
            one = section(folder / name, "site", backend.url) | {"transport": transport}
            registries.append(written(folder / name, one, scheduler=scheduler.zmq_address))
        machine, copy = registries

        def run(*, adds: str = "") -> str:
            """What a run comes to, by the machine's data and one more file."""
            data = folder / "machine" / "site"
            if adds:
                (data / f"{adds}.csv").write_text(f"n,name\n{adds},more\n")
            params = {"job_method": "process_and_upload", "job_params": {"data_source": str(data)}}
            answer = scheduler.api.post("/api/run_now", json={"handler_id": "site", **params})
            return answer.text

        first = undo.enter_context(served(machine))
        logged(first, "registered")
        assert '"status":"uploaded"' in run()
        shutil.copytree(folder / "machine" / "state", folder / "copy" / "state")
        second = undo.enter_context(served(copy))
        logged(second, "registration_refused")
        until(lambda: len(backend.nonces) == 2)
        run(adds="3")
        paused = logged(first, "sending is paused")
        assert "catalogzero installation adopt site" in run(adds="4")
        done = finished("installation", "adopt", "site", "--registry", str(machine))
        assert done.returncode == 0, done.stderr
        until(lambda: '"status":"unchanged"' in run() and len(backend.rows()) == 4)
        second.terminate()
        second.wait()
        back = undo.enter_context(served(copy))
        return paused, logged(back, "sending is paused")


class Machines:
    """Machines that serve one and the same instance of `chore`, and their scheduler.

    Args:
        folder: Where each machine has a folder of its own.
        transport: What carries the calls.
        undo: Ends every process.
    """

    def __init__(self, folder: Path, transport: str, undo: ExitStack) -> None:
        self.folder, self.transport, self.undo = folder, transport, undo
        self.scheduler = undo.enter_context(SchedulerProcess(f"sqlite:///{folder}/s.db"))

    def start(self, name: str) -> subprocess.Popen[str]:
        """Serve the instance on a machine, with its log as JSON."""
        own = self.folder / name
        runtime = ("instance_id=a", f"transport={self.transport}", f"state_dir={own}/state")
        process = running(
            *("run", "tests.scheduler.chore:Chore", "--handler-id", "chore"),
            *("--scheduler", self.scheduler.zmq_address, "--config", f"notes={own}/notes"),
            *(word for one in runtime for word in ("--set", one)),
            CATALOGZERO_LOG_FORMAT="json",
        )
        return self.undo.enter_context(process)

    def call(self, text: str) -> None:
        """A run, to its end."""
        job = {"job_method": "note", "job_params": {"text": text}}
        answer = self.scheduler.api.post("/api/run_now", json={"handler_id": "chore", **job})
        assert answer.status_code == 200, answer.text

    def ran(self, name: str) -> list[str]:
        """The texts of the runs that ended on a machine, or on that which it is a copy of."""
        lines = (self.folder / name / "notes").read_text().splitlines()
        return [line.split()[2] for line in lines if line.startswith("ended")]


@pytest.mark.parametrize("transport", ["zeromq", "nats"])
def test_a_copied_instance_is_refused_and_not_called_while_the_first_one_answers(
    transport: str, tmp_path: Path
) -> None:
    with ExitStack() as undo:
        if transport == "nats":
            transport = f"nats://127.0.0.1:{undo.enter_context(nats_server(tmp_path))}"
        machines = Machines(tmp_path, transport, undo)
        (tmp_path / "machine").mkdir()
        first = machines.start("machine")
        logged(first, "registered")
        machines.call("before")
        shutil.copytree(tmp_path / "machine", tmp_path / "copy")
        copy = machines.start("copy")
        refused = logged(copy, "registration_refused")
        for text in ("one", "two", "three"):
            machines.call(text)
        during = machines.ran("machine"), machines.ran("copy")
        first.kill()
        logged(copy, "registered")
        machines.call("later")
        back = machines.start("machine")
        back_refused = logged(back, "registration_refused")
        machines.call("latest")
        after = machines.ran("machine"), machines.ran("copy")

    for line in (refused, back_refused):
        assert line["level"] == "error"
        assert "another host is registered as 'chore', instance 'a', and answers" in line["error"]
        assert line["error"].endswith("stop that one, or give this one an instance_id of its own")
        assert line["fix"] == "stop the other host, or give this one an `instance_id` of its own"
    assert during == (["before", "one", "two", "three"], ["before"])
    assert after == (["before", "one", "two", "three"], ["before", "later", "latest"])

"""The demo leaves no process behind: not at its end, not after Ctrl-C, not after kill -9."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from examples.quickstart.processes import DemoError, Processes, free_ports

ROOT = Path(__file__).parents[2]
PARENT = (sys.executable, "-c", "import subprocess; subprocess.run(['tail', '-f', '/dev/null'])")
OWNER = """
import signal, sys
from pathlib import Path
from examples.quickstart.processes import Processes
with Processes(Path(sys.argv[1])) as processes:
    child = processes.start("parent", *sys.argv[2:], cwd=Path(sys.argv[1]))
    print(child.pid, flush=True)
    signal.pause()
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A process that owns a child with a child of its own, and these two."""
    command = (sys.executable, "-c", OWNER, str(tmp_path), *PARENT)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        parent = psutil.Process(int(process.stdout.readline()))
        yield process, [parent, _child_of(parent)]
        process.kill()


def _child_of(parent: psutil.Process) -> psutil.Process:
    """The one child of a process, once it has started it."""
    while not (children := parent.children()):
        assert parent.is_running()
        os.sched_yield()
    return children[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill-9"])
def test_nothing_outlives_a_demo_that_is_ended(
    owner: tuple[subprocess.Popen[str], list[psutil.Process]], number: signal.Signals
) -> None:
    process, family = owner

    process.send_signal(number)

    gone, alive = psutil.wait_procs(family, timeout=20)
    assert (len(gone), alive) == (2, [])


def test_stopping_a_process_ends_its_whole_group(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        parent = psutil.Process(processes.start("parent", *PARENT, cwd=tmp_path).pid)
        child = _child_of(parent)
        assert len(processes.left_behind()) == 2

        processes.stop("parent")

        psutil.wait_procs([child], timeout=20)
        assert processes.left_behind() == []


def test_a_failed_command_reports_the_end_of_what_it_said(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes, pytest.raises(DemoError, match="no such flight"):
        processes.run("failing", sys.executable, "-c", "exit('no such flight')", cwd=tmp_path)


def test_waiting_ends_when_a_service_has_ended(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        processes.start("service", sys.executable, "-c", "exit(3)", cwd=tmp_path)

        with pytest.raises(DemoError, match="service ended with 3"):
            processes.wait_for("a wonder", lambda: None, timeout_s=20)


def test_free_ports_are_kept_from_others_and_not_from_the_server_that_they_are_for() -> None:
    ports = free_ports(20)

    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as other, pytest.raises(OSError, match="already in use"):
            other.bind(("127.0.0.1", port))
        with socket.create_server(("127.0.0.1", port)) as server:
            assert server.getsockname()[1] == port

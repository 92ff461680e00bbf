"""A scheduler and PostgreSQL on this machine, and instances of a handler on two hosts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.core.nats_servers import free_port, nats_server
from tests.scale.lan import Host, Lan, NoLanError, two_hosts
from tests.scheduler import processes
from tests.scheduler.conftest import postgresql as postgresql
from tests.scheduler.test_instances import Hosts


class Site(Hosts):
    """The instances of `chore` on two hosts, and the scheduler that they register with.

    Args:
        lan: The hosts.
        transport: What carries the calls: zeromq, or nats, through a server of the site's own.
        database: The scheduler's.
        folder: Where each instance has a folder of its own.
        undo: Ends every process.
    """

    def __init__(
        self, lan: Lan, transport: str, database: str, folder: Path, undo: ExitStack
    ) -> None:
        super().__init__(database, folder, undo, "--zmq-host", lan.address, "--allow-plaintext")
        self.lan, self.transport, self.database = lan, transport, database
        self.names: list[str] = []
        self.executions: dict[str, str] = {}
        self.nats_port, self.nats = free_port(), undo.enter_context(ExitStack())
        if transport == "nats":
            self.start_nats()

    def start_nats(self) -> None:
        """Start the NATS server, at its own port; `nats.close` kills it."""
        server = nats_server(self.folder, port=self.nats_port, host=self.lan.address)
        self.nats.enter_context(server)

    def start(self, host: Host, name: str) -> None:
        """Start an instance on a host, and wait until the scheduler finds it there."""
        more = ["--set", "allow_plaintext=true", "--set", f"host={host.address}"]
        if self.transport == "nats":
            at = f"nats://{self.lan.address}:{self.nats_port}"
            more = ["--set", "allow_plaintext=true", "--set", f"transport={at}"]
        self.undo.enter_context(self.host(name, *more, within=host.within))
        if name not in self.names:
            self.names.append(name)

    def begin(self, method: str, *texts: str, **params: Any) -> None:
        """Begin runs, each of a text of its own."""
        for text in texts:
            self.executions[text] = self.run(method, text, **params)

    def all_noted(self, what: str) -> list[str]:
        """The texts of the runs that began or ended, wherever."""
        return sorted(text for name in self.names for text in self.noted(name, what))

    def results(self) -> dict[str, str]:
        """The status of each run, by its text."""
        status = {one["execution_id"]: one["status"] for one in processes.executions(self.api)}
        return {text: status[execution_id] for text, execution_id in self.executions.items()}

    def wait_for(self, status: str, *texts: str) -> None:
        """Wait until all of these runs have a status; of them all without."""
        wanted = texts or tuple(self.executions)
        processes.until(lambda: {self.results()[text] for text in wanted} == {status}, 90)


@pytest.fixture
def lan(request: pytest.FixtureRequest) -> Iterator[Lan]:
    """Two hosts on a bridge; a parameter is how long each packet is under way, in seconds."""
    with ExitStack() as undo:
        try:
            made = undo.enter_context(two_hosts(getattr(request, "param", 0.0)))
        except NoLanError as error:
            pytest.skip(f"no network namespaces here: {error}")
        yield made


@pytest.fixture(params=["zeromq", "nats"])
def site(
    request: pytest.FixtureRequest, lan: Lan, postgresql: str, tmp_path: Path
) -> Iterator[Site]:
    """A site over each transport in turn."""
    with ExitStack() as undo:
        yield Site(lan, request.param, postgresql, tmp_path, undo)

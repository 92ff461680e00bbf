"""Instances of a processor on two hosts while their network and their store fail.

Whatever fails: a partitioned run over the client's files ends well, each row is at the backend
once, and a further run finds nothing new.
"""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from examples.quickstart.processes import free_ports
from tests.chaos.sources import Sources
from tests.chaos.verdict import Verdict, difference
from tests.cloud.test_connecting import self_signed
from tests.scale.lan import Host, Lan
from tests.scheduler.processes import CATALOGZERO, SchedulerProcess, cut_connections, until
from tests.sql.tcp_proxy import TcpProxy

pytestmark = [
    pytest.mark.timeout(280),
    pytest.mark.postgresql,
    pytest.mark.xdist_group("scale"),
]

FILES, ROWS, LINGER_S, CUT_OFF_S = 24, 480, 2.0, 8.0


class ReplicatedSite:
    """The client's files, a backend, a scheduler, and instances that reach all by the bridge.

    Args:
        lan: The hosts.
        database: The scheduler's; the processor's store is there, too.
        folder: For everything.
        undo: Ends every process.
    """

    def __init__(self, lan: Lan, database: str, folder: Path, undo: ExitStack) -> None:
        self.lan, self._folder, self._undo, self.store_url = lan, folder, undo, database
        backend = f"sqlite:///{folder}/backend.db"
        self._sources = Sources(folder, ROWS, random.Random(1), FILES)  # noqa: S311  # dice
        self._verdict = Verdict(backend)
        of = ("--database", backend)
        added = finished("backend", "tenants", "add", "t", "--json", *of)
        self._key = json.loads(added)["key"]
        (self._port,) = free_ports(1)
        self._certificate = self_signed(folder / "tls", f"IP:{lan.address}")
        key = self._certificate.with_name("key.pem")
        tls = ("--certificate", str(self._certificate), "--private-key", str(key))
        at = ("--host", lan.address, "--port", str(self._port))
        self._start("backend", "backend", "serve", *at, *tls, *of)
        server = psycopg.conninfo.conninfo_to_dict(database)
        there = (str(server.get("host") or "127.0.0.1"), int(server.get("port") or 5432))
        self.store = undo.enter_context(TcpProxy(*there, lan.address))
        name = database.rpartition("/")[2]
        self._state = f"postgresql://postgres@{lan.address}:{self.store.port}/{name}"
        options = ("--zmq-host", lan.address, "--allow-plaintext")
        self.scheduler = undo.enter_context(SchedulerProcess(database, *options))

    def start(self, host: Host, name: str) -> str:
        """Start an instance on a host, until the scheduler finds it there; its address."""
        own = self._folder / name
        (own / "state").mkdir(parents=True)
        (own / "state" / "linger").write_text(str(LINGER_S))
        (port,) = free_ports(1)
        section = {
            "handler_id": "h",
            "module_path": "tests.chaos.processors",
            "class_name": "Mortal",
            "host": host.address,
            "port": port,
            "allow_plaintext": True,
            "instance_id": name,
            "installation_id": "site",
            "state": self._state,
            "state_dir": str(own / "state"),
            "min_file_age_s": 0,
            "max_concurrent_jobs": 1,
            "max_queued_jobs": 0,
            "config": {
                "ca_file": str(self._certificate),
                "endpoint": f"https://{self.lan.address}:{self._port}/v1",
                "api_key": self._key,
                **self._sources.config,
            },
        }
        registry = own / "registry.yaml"
        scheduler = self.scheduler.zmq_address
        registry.write_text(yaml.safe_dump({"scheduler": scheduler, "handlers": [section]}))
        self._start(name, "run", "h", "--registry", str(registry), within=host.within)
        until(lambda: self.sees(name), 60)
        return f"tcp://{host.address}:{port}"

    def _start(self, name: str, *command: str, within: tuple[str, ...] = ()) -> None:
        log = self._undo.enter_context((self._folder / f"{name}.log").open("wb"))
        started = subprocess.Popen([*within, *CATALOGZERO, *command], stdout=log, stderr=log)
        self._undo.callback(started.wait)
        self._undo.callback(started.kill)

    def sees(self, name: str) -> bool:
        """Whether the scheduler finds an instance there."""
        handlers = self.scheduler.api.get("/api/handlers").json().get("handlers", [])
        found = [one for each in handlers for one in each["instances"]]
        there = {"instance_id": name, "status": "Connected"}
        return any(there.items() <= one.items() for one in found)

    def begin(self) -> str:
        """Begin a partitioned run over the files; its id."""
        job = {"job_method": "process_and_upload", "partition": True, "wait": False}
        params = {"data_source": str(self._sources.exports)}
        body = {"handler_id": "h", **job, "job_params": params}
        answer = self.scheduler.api.post("/api/run_now", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["execution_id"])

    def items(self, execution_id: str) -> list[dict[str, Any]]:
        """The items of a run."""
        query = f"parent={execution_id}&limit=1000"
        found = self.scheduler.api.get(f"/api/executions?{query}").json()
        return list(found.get("records", ()))

    def ended(self, execution_id: str) -> int:
        """How many items of a run have ended."""
        return sum(bool(one["completed_at"]) for one in self.items(execution_id))

    def result(self, execution_id: str) -> str:
        """How a run ended, once it has."""

        def status() -> str:
            answer = self.scheduler.api.get(f"/api/executions/{execution_id}")
            found = answer.json() if answer.status_code == 200 else {}
            return str(found["status"]) if found.get("completed_at") else ""

        return until(status, 150)

    def check(self) -> None:
        """Each row of each file is there, and once; a further run sends nothing."""
        want = self._sources.rows()
        want.pop("sql:orders")
        found = difference(want, self._shown())
        assert (found.lost, found.twice) == (0, 0)
        uploads = self._verdict.completed_uploads()
        assert self.result(self.begin()) == "success"
        assert self._verdict.completed_uploads() == uploads

    def _shown(self) -> dict[str, Counter[str]]:
        return self._sources.shown(self._verdict.records())


def finished(*command: str) -> str:
    """What a command prints."""
    done = subprocess.run([*CATALOGZERO, *command], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def replicas(lan: Lan, postgresql: str, tmp_path: Path) -> Iterator[ReplicatedSite]:
    """A site with two instances on the one host, and one on the other."""
    with ExitStack() as undo:
        site = ReplicatedSite(lan, postgresql, tmp_path, undo)
        for host, name in (("a", "a1"), ("a", "a2"), ("b", "b1")):
            site.start(lan.hosts[host], name)
        yield site


def amid(site: ReplicatedSite) -> str:
    """A run of which some items have ended, and others have not."""
    run = site.begin()
    until(lambda: site.ended(run) >= 3, 60)
    return run


def test_a_host_that_is_cut_off_amid_a_run_costs_no_item_and_no_row(
    replicas: ReplicatedSite,
) -> None:
    run, host = amid(replicas), replicas.lan.hosts["a"]
    host.cut()
    heals_s = time.monotonic() + CUT_OFF_S
    before = replicas.ended(run)
    until(lambda: time.monotonic() >= heals_s)
    during = replicas.ended(run)
    host.heal()

    assert during > before
    assert replicas.result(run) == "success"
    replicas.check()


def test_connections_to_the_store_that_are_cut_cost_no_item_and_no_row(
    replicas: ReplicatedSite,
) -> None:
    run = amid(replicas)
    until(lambda: cut_and_look(replicas, run), 150)

    assert replicas.result(run) == "success"
    replicas.check()


def cut_and_look(site: ReplicatedSite, run: str) -> bool:
    """Cut every connection to the store; whether all items have ended."""
    cut_connections(site.store_url)
    site.store.cut()
    return site.ended(run) >= FILES


@pytest.mark.slow
def test_a_store_that_takes_bytes_and_answers_nothing_stops_nobody_for_good(
    replicas: ReplicatedSite,
) -> None:
    """The handlers answer, and say what is away."""
    address = replicas.start(replicas.lan.hosts["b"], "b2")
    run = amid(replicas)
    replicas.store.mute()
    until(lambda: "does not answer" in asked(replicas, address), 120)
    swallowed = replicas.store.swallowed
    replicas.store.speak()
    until(lambda: "does not answer" not in asked(replicas, address), 120)

    assert swallowed > 0
    assert replicas.result(run) in ("success", "error")
    assert replicas.result(replicas.begin()) == "success"
    replicas.check()


def asked(site: ReplicatedSite, address: str) -> str:
    """What an instance says of its health, by a call from its own host."""
    host = next(one for one in site.lan.hosts.values() if one.address in address)
    done = subprocess.run(
        [*host.within, *CATALOGZERO, "metrics", address, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

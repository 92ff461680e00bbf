"""Registration and calls over CURVE: with the right keys all works, without them nothing does."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from catalogzero.errors import ConfigError
from catalogzero.scheduler.server import SchedulerServer, SchedulerSettings, serve_scheduler
from catalogzero.testing import serving
from catalogzero.wire.keys import CurveKeys, CurveServer, read_server_keys

from tests.scheduler.conftest import QUICK
from tests.scheduler.processes import CATALOGZERO, SchedulerProcess
from tests.scheduler.toys import Toy, until

HANDLER, SCHEDULER, STRANGER = CurveKeys.new(), CurveKeys.new(), CurveKeys.new()


def written(path: Path, pair: CurveKeys) -> Path:
    """A key file, as `catalogzero keys new` writes it."""
    path.write_text(f"public: {pair.public.decode()}\nsecret: {pair.secret.decode()}\n")
    return path


def handler_curve(folder: Path, pair: CurveKeys = HANDLER) -> dict[str, Any]:
    """A handler's `curve` block."""
    clients = folder / "clients"
    clients.write_text(f"public: {SCHEDULER.public.decode()}\n")
    return {
        "key_file": written(folder / "handler_key", pair),
        "clients_file": clients,
        "scheduler_key": SCHEDULER.public.decode(),
    }


@pytest.fixture
async def scheduler(tmp_path: Path) -> AsyncIterator[SchedulerServer]:
    """A scheduler that takes registrations from one handler, and calls it by its key."""
    settings = SchedulerSettings(
        port=0,
        zmq_port=0,
        database=f"sqlite:///{tmp_path / 'scheduler.db'}",
        curve=CurveServer(SCHEDULER, frozenset({HANDLER.public})),
        client_keys=SCHEDULER,
        server_keys={"toy": HANDLER.public},
        runner=QUICK,
    )
    async with serve_scheduler(settings) as server:
        yield server


@asynccontextmanager
async def toy(scheduler: SchedulerServer, **runtime: Any) -> AsyncIterator[None]:
    """A toy that tries to register."""
    given = {"handler_id": "toy", "scheduler": scheduler.zmq_address, **runtime}
    async with serving(Toy(), **given):
        yield


async def status(api: httpx.AsyncClient) -> str | None:
    """What the scheduler shows of the toy."""
    known = (await api.get("/api/handlers")).json()["handlers"]
    return known[0]["status"] if known else None


async def test_a_handler_with_keys_registers_and_is_called_over_curve(
    scheduler: SchedulerServer, api: httpx.AsyncClient, tmp_path: Path
) -> None:
    async with toy(scheduler, curve=handler_curve(tmp_path)):

        async def connected() -> bool:
            return await status(api) == "Connected"

        await until(connected)
        body = {"handler_id": "toy", "job_method": "quick", "job_params": {"x": 4}}
        answer = await api.post("/api/run_now", json=body)

    assert answer.status_code == 200
    assert answer.json()["result"]["x"] == 4


async def test_a_plain_handler_under_a_known_name_is_not_called(
    scheduler: SchedulerServer, api: httpx.AsyncClient
) -> None:
    async with serving(Toy()) as impostor:
        store = scheduler.runner.store
        await scheduler.runner.write(store.register, "toy", impostor.address, ["quick"])

        assert await status(api) == "Disconnected"


async def test_a_handler_whose_key_is_not_allowed_is_not_registered(
    scheduler: SchedulerServer, api: httpx.AsyncClient, tmp_path: Path
) -> None:
    stranger, known = tmp_path / "stranger", tmp_path / "known"
    stranger.mkdir()
    known.mkdir()
    async with toy(scheduler, curve=handler_curve(stranger, STRANGER)):
        async with serving(
            Toy(),
            handler_id="known",
            scheduler=scheduler.zmq_address,
            curve=handler_curve(known),
        ):
            await until(lambda: status(api))
        listed = (await api.get("/api/handlers")).json()["handlers"]

    assert [one["id"] for one in listed] == ["known"]


def test_the_file_of_server_keys_is_read_and_its_faults_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\ntoy: {HANDLER.public.decode()} # the one in the cellar\n")

    assert read_server_keys(path) == {"toy": HANDLER.public}
    path.write_text("toy: short\n")
    with pytest.raises(ConfigError, match=r"keys:1: not `handler_id: public key"):
        read_server_keys(path)


async def test_server_keys_without_a_pair_of_its_own_are_refused(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'scheduler.db'}"
    settings = SchedulerSettings(database=database, server_keys={"toy": HANDLER.public})

    with pytest.raises(ConfigError, match="--server-keys-file needs --curve-key-file"):
        async with serve_scheduler(settings):
            pass


def new_pair(path: Path) -> str:
    """A pair by `catalogzero keys new`; its public key."""
    command = [*CATALOGZERO, "keys", "new", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()[-1]


@pytest.mark.timeout(180)
def test_processes_with_key_files_find_each_other_and_one_without_is_refused(
    tmp_path: Path,
) -> None:
    scheduler_key = new_pair(tmp_path / "scheduler.key")
    handler_key = new_pair(tmp_path / "handler.key")
    (tmp_path / "handlers.pub").write_text(f"{handler_key}\n")
    (tmp_path / "handlers.keys").write_text(f"chore: {handler_key}\n")
    (tmp_path / "callers.pub").write_text(f"{scheduler_key}\n")
    options = [
        *("--curve-key-file", str(tmp_path / "scheduler.key")),
        *("--curve-clients-file", str(tmp_path / "handlers.pub")),
        *("--server-keys-file", str(tmp_path / "handlers.keys")),
    ]
    with SchedulerProcess(f"sqlite:///{tmp_path / 'scheduler.db'}", *options) as scheduler:
        curve = {
            "key_file": str(tmp_path / "handler.key"),
            "clients_file": str(tmp_path / "callers.pub"),
            "scheduler_key": scheduler_key,
        }
        with (
            running_chore(tmp_path / "plain", scheduler, "plain"),
            running_chore(tmp_path / "keyed", scheduler, "chore", curve=curve),
        ):
            scheduler.wait_for_handler("chore")
            body = {"handler_id": "chore", "job_method": "note", "job_params": {"text": "keyed"}}
            answer = scheduler.api.post("/api/run_now", json=body)
            listed = scheduler.api.get("/api/handlers").json()["handlers"]

    assert answer.json()["result"]["text"] == "keyed"
    assert [one["id"] for one in listed] == ["chore"]


@contextmanager
def running_chore(
    folder: Path, scheduler: SchedulerProcess, handler_id: str, **more: Any
) -> Iterator[None]:
    """A chore that a registry file describes, as a process."""
    folder.mkdir()
    section = {
        "handler_id": handler_id,
        "module_path": "tests.scheduler.chore",
        "class_name": "Chore",
        "port": 0,
        "state_dir": str(folder / "state"),
        "config": {"notes": str(folder / "notes")},
        **more,
    }
    registry = {"scheduler": scheduler.zmq_address, "handlers": [section]}
    (folder / "registry.yaml").write_text(yaml.safe_dump(registry))
    command = [*CATALOGZERO, "run", handler_id, "--registry", str(folder / "registry.yaml")]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    try:
        yield
    finally:
        process.kill()
        process.wait()

"""What instances of a processor need beside their store, each refused by its field."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from catalogzero import HandlerClient
from catalogzero.clock import SystemClock
from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox.outbox import Opening, Outbox, Sealing
from catalogzero.errors import ConfigError
from catalogzero.testing import serving

from tests.cloud.processors import Plain
from tests.cloud.test_checking import section
from tests.core.support import running, served_address
from tests.scheduler.conftest import postgresql as postgresql
from tests.scheduler.toys import Toy
from tests.warm import run_command

NOWHERE = "postgresql://catalogzero@127.0.0.1:1/none"
"""For what is refused before anybody asks the database."""


def made(folder: Path) -> Plain:
    """A processor with one data root."""
    (folder / "exports").mkdir(exist_ok=True)
    roots = [folder / "exports"]
    return Plain(endpoint="http://127.0.0.1:9/v1", api_key="key", data_roots=roots)


async def refusal(handler: Any, **runtime: Any) -> str:
    """Why a handler does not start."""
    with pytest.raises(ConfigError) as raised:
        async with serving(handler, handler_id="site", **runtime):
            raise AssertionError("it was started")
    return str(raised.value)


async def test_all_that_is_missing_is_named_by_its_field_a_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)  # as if it were not installed

    said = await refusal(made(tmp_path), state=NOWHERE, egress={"hash_sources": True})
    first, *lines = said.splitlines()

    assert first == "section of site:"
    assert [line.strip().partition(":")[0] for line in lines] == [
        "installation_id",
        "egress.hash_key_file",
        "state",
    ]
    assert "the same for all" in lines[0]
    assert "copy it to each host" in lines[1]
    assert "catalogzero[postgresql]" in lines[2]
    assert NOWHERE not in said


async def test_what_keeps_nothing_is_refused_as_nothing_would_be_shared() -> None:
    said = await refusal(Toy(), state=NOWHERE)

    assert "state: Toy is no CloudProcessor" in said
    assert "take `state` out" in said


def check(folder: Path, **more: Any) -> tuple[int, list[dict[str, str]]]:
    """The exit code of `check`, and what it says of `state`."""
    registry = folder / "handler_registry.yaml"
    handlers = [section(folder, "http://127.0.0.1:9/v1", **more)]
    registry.write_text(json.dumps({"scheduler": "none", "handlers": handlers}))
    done = run_command("check", "site", "--registry", str(registry), "--json")
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)["findings"]
    return done.returncode, [one for one in found if one["name"] == "state"]


def test_check_names_the_same_faults_each_with_its_field(tmp_path: Path) -> None:
    code, lines = check(tmp_path, state=NOWHERE, egress={"hash": ["name"]})

    assert code == 1
    failed = [one for one in lines if one["status"] == "fail"]
    assert [one["found"].partition(":")[0] for one in failed] == [
        "installation_id",
        "egress.hash_key_file",
    ]
    assert failed[0]["fix"] == "correct `installation_id` in the section of site"


def test_check_names_it_of_a_handler_that_is_no_processor_and_nothing_without_state(
    tmp_path: Path,
) -> None:
    named = {"module_path": "tests.scheduler.toys", "class_name": "Toy"}
    registry = tmp_path / "handler_registry.yaml"
    handlers = [{"handler_id": "site", "state_dir": str(tmp_path / "state"), **named}]
    registry.write_text(json.dumps({"scheduler": "none", "handlers": handlers}))
    without = run_command("check", "site", "--registry", str(registry), "--json")
    handlers[0]["state"] = NOWHERE
    registry.write_text(json.dumps({"scheduler": "none", "handlers": handlers}))
    with_it = run_command("check", "site", "--registry", str(registry), "--json")

    assert "CloudProcessor" not in without.stdout
    [found] = [one for one in json.loads(with_it.stdout)["findings"] if one["name"] == "state"]
    assert (found["status"], with_it.returncode) == ("fail", 1)
    assert "Toy is no CloudProcessor" in found["found"]


def test_a_run_that_lacks_something_ends_with_the_exit_code_of_a_configuration(
    tmp_path: Path,
) -> None:
    registry = tmp_path / "handler_registry.yaml"
    handlers = [section(tmp_path, "http://127.0.0.1:9/v1", state=NOWHERE)]
    registry.write_text(json.dumps({"scheduler": "none", "handlers": handlers}))
    command = [sys.executable, "-m", "catalogzero", "run", "site", "--registry", str(registry)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 3
    assert "installation_id: instances on several hosts" in done.stderr
    assert not (tmp_path / "exports" / ".catalogzero-root").exists()


@pytest.mark.parametrize("instance_id", [None, "a"])
def test_uploads_in_the_folder_of_one_that_was_alone_would_be_left_behind(
    tmp_path: Path, instance_id: str | None
) -> None:
    state = {"state": NOWHERE, "installation_id": "i", "instance_id": instance_id}
    outbox = Outbox(tmp_path / "state" / "site", SystemClock())
    outbox.begin(Opening("u1", "K", "exports/a.csv", "replace", full=False, params={}))
    _, [building] = check(tmp_path, **state)
    outbox.add("u1", Chunk(0, 1, b'{"n":1}', "identity", "application/x-ndjson"))
    outbox.seal(Sealing(upload_id="u1", upload_key="k"))
    outbox.close()
    code, [waiting, _] = check(tmp_path, **state)
    path = tmp_path / "state" / "site" / "outbox.sqlite"
    path.write_bytes(b"no database" * 999)
    _, [damaged, _] = check(tmp_path, **state)

    assert building["status"] == "pass"
    assert (code, waiting["status"]) == (1, "fail")
    assert waiting["found"].startswith(f"state: 1 uploads in {path} would be left behind")
    assert damaged["found"].startswith(f"state: whether uploads wait in {path} cannot be read")


def test_a_registry_file_with_the_store_s_password_is_its_owner_s_alone(tmp_path: Path) -> None:
    key = tmp_path / "api_key"
    key.write_text("key")
    key.chmod(0o600)
    found = {}
    for user in ("me", "me:a-password"):
        url, config = f"postgresql://{user}@127.0.0.1:1/none", {"api_key_file": str(key)}
        one = section(tmp_path, "http://127.0.0.1:9/v1", state=url, config=config)
        del one["config"]["api_key"]
        registry = tmp_path / "handler_registry.yaml"
        registry.write_text(json.dumps({"scheduler": "none", "handlers": [one]}))
        registry.chmod(0o644)
        done = run_command("check", "site", "--registry", str(registry), "--json")
        found[user] = [one["name"] for one in json.loads(done.stdout)["findings"]]
        assert "a-password" not in done.stdout + done.stderr

    assert ("keys" in found["me"], "keys" in found["me:a-password"]) == (False, True)


def test_its_own_process_loads_no_driver_and_its_worker_is_given_the_store(
    tmp_path: Path, postgresql: str
) -> None:
    """In a process of its own: others' tests have loaded it in this one."""
    registry, one = tmp_path / "handler_registry.yaml", section(tmp_path, "http://127.0.0.1:9/v1")
    one |= {"module_path": "tests.cloud.showing", "class_name": "Showing"}
    one |= {"state": postgresql, "installation_id": "i"}
    registry.write_text(json.dumps({"scheduler": "none", "handlers": [one]}))
    with running("run", "site", "--registry", str(registry)) as process:
        modules, given, shown = asyncio.run(answers(served_address(process)))

    assert not {"psycopg", "sqlalchemy", "pyarrow"} & set(modules)
    assert given["state"] == postgresql
    assert {"state", "installation_id"} <= set(given["set"])
    assert "min_file_age_s" not in given["set"]
    assert postgresql not in json.dumps(shown)


async def answers(address: str) -> tuple[Any, Any, Any]:
    """What a `Showing` says of itself."""
    async with HandlerClient(address) as client:
        modules, given = [await client.call(name, timeout_s=30) for name in ("modules", "given")]
        return modules, given, await client.call("describe", timeout_s=30)

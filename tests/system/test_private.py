"""What another user of the machine can read of what this software keeps: nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from catalogzero import HandlerClient

from tests.core.support import finished, running, served_address

NOBODY = 65_534
CANARY = "DE02120300000000202051"
REGISTRY = """
scheduler: none
handlers:
  - handler_id: uploader
    module_path: file_processor.handler
    class_name: FileProcessor
    min_file_age_s: 0
    upload_wait_s: 0
    config: {{endpoint: "http://127.0.0.1:9/v1", data_roots: [{data}], on_bad_record: quarantine}}
  - handler_id: conductor
    module_path: conductorzero
    class_name: ConductorZero
    config: {{handler_registry: {{}}, dashboard_port: 0}}
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A home folder that every user may walk, under an umask that hides nothing."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    before = os.umask(0)
    yield folder
    os.umask(before)
    shutil.rmtree(folder)


def seen_by_another_user(folder: Path) -> list[str]:
    """What another user can open below a folder, by being one; as nobody special, by its mode."""
    test = ["-readable"] if os.getuid() == 0 else ["-perm", "/077"]
    who: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    command = ["find", str(folder), "-mindepth", "1", *test, "-print"]
    found: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, **(who if os.getuid() == 0 else {})
    )
    return found.stdout.splitlines()


async def test_state_is_its_owner_s_alone_while_everything_runs(home: Path) -> None:
    data = home / "data"
    data.mkdir(mode=0o700)
    (data / "accounts.csv").write_text(f"iban,sum\n{CANARY},1\n")
    (data / "bad.csv").write_text(f"iban,sum\n{CANARY},1,2,3\n")
    registry = home / "handler_registry.yaml"
    registry.touch(mode=0o600)
    registry.write_text(REGISTRY.format(data=data))
    known = {
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "deep" / "state"),
        "CATALOGZERO_LOG_FORMAT": "json",
        "FILE_PROCESSOR_API_KEY": "a-key-of-the-test",
    }
    state, control = home / "deep", home / "seen"
    control.touch()
    assert finished("check", "uploader", cwd=home, **known).returncode == 1  # no backend there
    key_file = home / "key"
    finished("backend", "tenants", "add", "acme", "--key-file", str(key_file), cwd=home, **known)

    with ExitStack() as stack:
        for service in (
            ("scheduler", "--port", "0", "--zmq-port", "0", "--json"),
            ("backend", "serve", "--port", "0", "--json"),
        ):
            process = stack.enter_context(running(*service, cwd=home, **known))
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline)
        for handler in ("conductor", "uploader"):
            process = stack.enter_context(running("run", handler, cwd=home, **known))
            address = await asyncio.to_thread(served_address, process)
        async with HandlerClient(address) as client:
            told = await client.call("process_and_upload", {"data_source": str(data)})
        written = {path.name for path in state.rglob("*") if path.is_file()}
        seen = seen_by_another_user(home)

    assert (told["status"], told["records"], told["bad_records"]) == ("queued", 1, 1)
    assert {"outbox.sqlite", "outbox.sqlite-wal", "outbox.sqlite-shm", "lock"} <= written
    assert {"scheduler.db-wal", "backend.db-wal", "history.sqlite3-wal", "audit.jsonl"} <= written
    assert any(CANARY in path.read_text("latin-1") for path in state.rglob("*.sqlite-wal"))
    assert seen == [str(control)]


async def test_state_that_others_can_read_is_warned_of_and_left_as_it_is(home: Path) -> None:
    data = home / "data"
    data.mkdir()
    registry = home / "handler_registry.yaml"
    registry.write_text(REGISTRY.format(data=data))
    folder = home / "state" / "uploader"
    folder.mkdir(mode=0o755, parents=True)
    (folder / "installation_id").write_text("site\n")
    known = {"CATALOGZERO_STATE_DIR": str(home / "state"), "CATALOGZERO_LOG_FORMAT": "json"}
    known["FILE_PROCESSOR_API_KEY"] = "a-key-of-the-test"

    checked = finished("check", "uploader", cwd=home, **known)
    with running("run", "uploader", cwd=home, **known) as process:
        assert process.stderr is not None
        first = await asyncio.to_thread(process.stderr.readline)

    fix = f"chmod -R go-rwx {folder}"
    assert f"others on this machine can read {folder} " in checked.stdout
    assert fix in checked.stdout
    assert "state_readable_by_others" in first
    assert fix in first
    await asyncio.to_thread(subprocess.run, fix.split(), check=True)
    assert fix not in finished("check", "uploader", cwd=home, **known).stdout


@pytest.mark.parametrize(("mode", "group"), [(0o644, None), (0o640, NOBODY)])
def test_a_database_that_others_can_read_is_warned_of(
    home: Path, mode: int, group: int | None
) -> None:
    database = home / "backend.db"
    database.touch(mode=mode)
    if group is not None:
        if os.getuid() != 0:
            pytest.skip("only root gives a file to any group")
        os.chown(database, -1, group)

    listed = finished("backend", "tenants", "list", "--database", str(database), cwd=home)

    assert listed.returncode == 0
    assert f"can read the database {database}: chmod 600 {database}*" in listed.stderr


def test_a_preview_s_bodies_and_a_bundle_are_private(home: Path) -> None:
    data = home / "data"
    data.mkdir(mode=0o700)
    (data / "accounts.csv").write_text(f"iban,sum\n{CANARY},1\n")
    (home / "handler_registry.yaml").touch(mode=0o600)
    (home / "handler_registry.yaml").write_text(REGISTRY.format(data=data))
    known = {"HOME": str(home), "FILE_PROCESSOR_API_KEY": "a-key-of-the-test"}

    shown = finished("preview", "uploader", str(data), "--out", "bodies", cwd=home, **known)
    bundled = finished("bundle", "uploader", cwd=home, **known)

    assert (shown.returncode, bundled.returncode) == (0, 0), shown.stderr + bundled.stderr
    assert list((home / "bodies").iterdir())
    assert (home / "support.zip").exists()
    assert seen_by_another_user(home) == []


def test_what_is_made_for_others_keeps_the_user_s_own_umask(home: Path) -> None:
    made = finished("new", "product", "--no-input", cwd=home, HOME=str(home))

    assert made.returncode == 0, made.stderr
    (written,) = (home / "product").glob("*/pyproject.toml")
    assert str(written) in seen_by_another_user(home)

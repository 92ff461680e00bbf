"""What docs/how-to/run-on-several-hosts.md gives: NATS keys, with which instances are called."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack
from pathlib import Path

import nkeys
import pytest

from tests.core.nats_servers import nats_server
from tests.scheduler.conftest import postgresql  # noqa: F401 - a fixture
from tests.scheduler.processes import SchedulerProcess, executions, handler_process, until

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "run-on-several-hosts.md"
AUTHORIZATION = re.compile(r"^authorization \{.*?^\] \}", re.DOTALL | re.MULTILINE)


def new_key(path: Path) -> str:
    """A new NKEY of a user in a file of its own; its public half."""
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    path.write_bytes(seed)
    path.chmod(0o600)
    public: bytes = nkeys.from_seed(bytearray(seed)).public_key
    return public.decode()


@pytest.mark.postgresql
def test_two_schedulers_share_instances_behind_nats_with_the_page_s_permissions(
    tmp_path: Path,
    postgresql: str,  # noqa: F811 - the fixture
) -> None:
    (text,) = AUTHORIZATION.findall(PAGE.read_text())
    publics = {name: new_key(tmp_path / name) for name in ("render", "scheduler")}
    for name, public in publics.items():
        text = text.replace(f"U…{name.upper()}", public)
    named = ("--nats-key-file", str(tmp_path / "scheduler"))
    with ExitStack() as undo:
        port = undo.enter_context(nats_server(tmp_path, text))
        first = undo.enter_context(SchedulerProcess(postgresql, *named))
        second = undo.enter_context(SchedulerProcess(postgresql, *named))
        given = ("--handler-id", "render", "--transport", f"nats://127.0.0.1:{port}")
        key = f'nats={{"key_file": "{tmp_path / "render"}"}}'
        for host in ("a", "b"):
            (tmp_path / host).mkdir()
            own = ("--set", f"instance_id={host}", "--set", key)
            undo.enter_context(handler_process(first.zmq_address, tmp_path / host, 0, *given, *own))

        def both_there() -> bool:
            handlers = second.api.get("/api/handlers").json()["handlers"]
            instances = [one for each in handlers for one in each["instances"]]
            return [one["status"] for one in instances] == ["Connected"] * 2

        until(both_there)
        first.kill()
        for text in ("1", "2", "3", "4"):
            body = {"handler_id": "render", "job_method": "note", "wait": False}
            body |= {"job_params": {"text": text, "seconds": 0.5}}
            assert second.api.post("/api/run_now", json=body).status_code == 202
        until(lambda: len([one for one in executions(second.api) if one["completed_at"]]) == 4)
        found = executions(second.api)

    assert {one["status"] for one in found} == {"success"}
    assert {one["instance_id"] for one in found} == {"a", "b"}

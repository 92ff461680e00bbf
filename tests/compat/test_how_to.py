"""The blocks of docs/how-to/move-a-schedulezero-handler.md run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from catalogzero import HandlerClient
from catalogzero.runtime.launch import make_handler
from catalogzero.testing import serving

from examples.quickstart.processes import free_ports
from tests.cloud.reference import ReferenceBackend

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "move-a-schedulezero-handler.md"


def blocks(language: str) -> list[str]:
    """The page's blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


STOCK, PRESS, ACME = blocks("python")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the page's modules, importable."""
    for name, code in [("stock_handler", STOCK), ("press_handler", PRESS), ("acme_handler", ACME)]:
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("stock_handler", "press_handler", "acme_handler"):
        sys.modules.pop(name, None)


def test_the_changed_line_is_the_only_one() -> None:
    (diff,) = blocks("diff")

    assert diff.count("\n+") + diff.startswith("+") == 1
    assert "from catalogzero.compat import ZMQHandlerBase" in STOCK


def test_the_script_answers_the_commands_below_it(folder: Path) -> None:
    (port,) = free_ports(1)
    environment = {**os.environ, "STOCK_PORT": str(port), "CATALOGZERO_STATE_DIR": str(folder)}
    command = (sys.executable, "stock_handler.py")
    script = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    try:
        answers = []
        for line in blocks("sh")[0].replace("5001", str(port)).splitlines():
            words = [sys.executable, "-m", *shlex.split(line), *(["--json"] * ("call" not in line))]
            answers.append(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    finally:
        script.terminate()
        assert script.wait(40) == 0

    assert '"on_shelf":5' in answers[0].replace(" ", "")
    assert '"message":"pong"' in answers[1].replace(" ", "")
    assert '"handler_id":"stock"' in answers[2].replace(" ", "")


async def test_the_section_serves_the_same_class(folder: Path) -> None:
    (section,) = blocks("yaml")
    path = folder / "handler_registry.yaml"
    path.write_text(section)
    handler = make_handler("stock", registry=path)

    assert (handler.runtime.port, handler.handler_id) == (5001, "stock")
    async with serving(handler, port=0) as at:
        assert await at.client.call("take_inventory") == {"shelf": {"tea": 3}}


async def test_the_added_lines_work(folder: Path) -> None:
    import press_handler  # type: ignore[import-not-found]

    press: Any = press_handler.PressHandler()
    async with serving(press) as at:
        page = await at.client.call("proof", {"page": "cover"})
        printed = await at.client.call("print_all", {"copies": 2})
        await at.client.call("sleep")
        assert press.cache == {}
        again = await at.client.call("proof", {"page": "cover"})

    assert printed == {"printed": 2}
    assert again["page"] > page["page"]


async def test_the_cloud_handler_uploads(folder: Path) -> None:
    import acme_handler  # type: ignore[import-not-found]

    async with ReferenceBackend() as backend:
        acme = acme_handler.AcmeHandler("test-key", backend.url)
        async with serving(acme) as at:
            result = await at.client.call("process_and_upload", {"data_source": "orders"})

    assert (result["status"], result["records"]) == ("uploaded", 1)
    assert backend.rows() == [{"order": 2, "total": 900}]


async def test_a_number_beyond_64_bits_fails_with_a_reason(folder: Path) -> None:
    from catalogzero.compat import ZMQHandlerBase

    class Big(ZMQHandlerBase):
        def number(self) -> int:
            return 1 << 70

    async with serving(Big()) as at, HandlerClient(at.address) as client:
        reply = await client.request_plain("number")

    assert (reply.success, "64-bit" in reply.error) == (False, True)

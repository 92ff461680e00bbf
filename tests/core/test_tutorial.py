"""Every block of the tutorial "Write a handler" runs."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from catalogzero.config.registry import load_registry

from tests.core.support import finished, running, served_address

PAGE = Path(__file__).parents[2] / "docs" / "tutorial" / "write-a-handler.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def of_kind(kind: str) -> list[str]:
    return [text for found, text in BLOCKS if found == kind]


def lines_of_shell() -> list[str]:
    return [line for block in of_kind("sh") for line in block.splitlines()]


@pytest.fixture
def weather(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """All Python blocks as one module, `weather.py`, imported from there."""
    path = tmp_path / "weather.py"
    path.write_text("\n\n".join(of_kind("python")))
    spec = importlib.util.spec_from_file_location("weather", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "weather", module)
    spec.loader.exec_module(module)
    return module


def test_the_page_s_tests_pass_by_the_command_that_it_prints(weather: Any) -> None:
    (command,) = (line for line in lines_of_shell() if line.startswith("pytest"))

    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)],
        cwd=Path(weather.__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )

    assert "6 passed" in done.stdout, done.stdout


def test_the_shell_blocks_run(weather: Any) -> None:
    folder = Path(weather.__file__).parent
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    commands = [
        shlex.split(line.replace("5001", port))[1:]
        for line in lines_of_shell()
        if line.startswith("catalogzero")
    ]
    serve, *asks = commands
    state = {"STATE_DIRECTORY": str(folder), "CATALOGZERO_LOG_FORMAT": "json"}
    with running(*serve, cwd=folder, **state) as process:
        assert served_address(process).endswith(port)
        answers = [finished(*ask, cwd=folder) for ask in asks]
        assert [answer.returncode for answer in answers] == [0, 0, 0, 0], answers
        assert json.loads(answers[0].stdout) == {"mean": 20.5}


def test_the_registry_block_is_a_registry_file(weather: Any) -> None:
    folder = Path(weather.__file__).parent
    (text,) = of_kind("yaml")
    assert yaml.safe_load(text)
    (folder / "handler_registry.yaml").write_text(text)
    section = load_registry(folder / "handler_registry.yaml").find("zurich")
    assert section.config == {"station": "Zurich"}

"""What the page on production shows: a unit and a compose file that do as they say."""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from catalogzero.backend import BackendSettings

from tests.backend.test_command import COMMAND
from tests.house.test_docs import ROOT

FOLDER = ROOT / "docs" / "how-to" / "production"
UNIT, COMPOSE = FOLDER / "catalogzero-backend.service", FOLDER / "compose.yml"


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("file", [UNIT, COMPOSE], ids=lambda path: path.name)
def test_each_setting_is_one_that_is_read(file: Path) -> None:
    named = set(re.findall(r"CATALOGZERO_BACKEND_(\w+)", file.read_text()))

    assert named
    assert {name.lower() for name in named} <= set(BackendSettings.model_fields)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd")
def test_the_unit_is_one_that_systemd_takes_and_keeps_small(tmp_path: Path) -> None:
    text = UNIT.read_text().replace("/opt/catalogzero/bin/catalogzero", sys.executable)
    (unit := tmp_path / UNIT.name).write_text(text)

    verified = run("systemd-analyze", "verify", "--man=no", str(unit))
    judged = run("systemd-analyze", "security", "--offline=yes", "--threshold=20", str(unit))

    assert (verified.returncode, verified.stderr) == (0, "")
    assert judged.returncode == 0, judged.stdout


@pytest.mark.parametrize("file", [UNIT, COMPOSE], ids=lambda path: path.name)
def test_the_command_takes_its_options(file: Path) -> None:
    (line,) = re.findall(r'catalogzero[", ]+backend[", ]+serve(.*?)\]?$', file.read_text(), re.M)
    options = re.findall(r"--[a-z-]+", line)
    told = run(*COMMAND, "serve", "--help").stdout

    assert options
    assert [option for option in options if option not in told] == []


@pytest.fixture
def composed(tmp_path: Path) -> Any:
    """The folder of the compose file, with secrets and this source as a wheel; taken down after."""
    if run("docker", "compose", "version").returncode or run("docker", "info").returncode:
        pytest.skip("no container engine runs here")
    shutil.copy(COMPOSE, tmp_path)
    wheel = ("pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path / "wheels"), str(ROOT))
    assert run(sys.executable, "-m", *wheel).returncode == 0
    (folder := tmp_path / "secrets").mkdir()
    password = secrets.token_hex(16)
    (folder / "database_password").write_text(password)
    (folder / "operator_token").write_text(secrets.token_hex(32))
    (folder / "pgpass").write_text(f"database:5432:catalogzero:backend:{password}\n")
    for name in ("operator_token", "pgpass"):
        shutil.chown(folder / name, 10001)
        (folder / name).chmod(0o400)
    yield tmp_path
    run("docker", "compose", "down", "--volumes", "--rmi", "local", cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_compose_file_starts_a_backend_that_is_ready(composed: Path) -> None:
    started = run("docker", "compose", "up", "--build", "--wait", cwd=composed)
    add = ("catalogzero", "backend", "tenants", "add", "skylark")
    added = run("docker", "compose", "exec", "-T", "backend", *add, cwd=composed)

    assert started.returncode == 0, started.stderr
    assert added.stdout.startswith("czk_"), added.stderr


def test_the_compose_file_publishes_to_this_machine_alone() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]

    assert services["backend"]["ports"] == ["127.0.0.1:8800:8800"]
    assert "ports" not in services["database"]

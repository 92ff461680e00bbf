"""What the page on production shows: a compose file that does as it says."""

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
COMPOSE = FOLDER / "compose.yml"
PAGE = FOLDER.with_name("run-a-backend-in-production.md")


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("file", [PAGE, COMPOSE], ids=lambda path: path.name)
def test_each_setting_is_one_that_is_read(file: Path) -> None:
    named = set(re.findall(r"CATALOGZERO_BACKEND_(\w+)", file.read_text()))
    options = {"port", "certificate", "private_key"}

    assert named
    assert {name.lower() for name in named} <= {*BackendSettings.model_fields, *options}


def test_the_command_takes_its_options() -> None:
    text = COMPOSE.read_text()
    (line,) = re.findall(r'catalogzero[", ]+backend[", ]+serve(.*?)\]?$', text, re.M)
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

"""Every block of the how-tos for a client's machine does what its page says, or says why not."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from catalogzero.config.registry import load_registry
from catalogzero.entry.index import build_catalog
from catalogzero.entry.lock import Origin

from tests.cloud.reference import ReferenceBackend
from tests.cloud.test_connecting import Proxy, behind_tls, certificate  # noqa: F401 - a fixture
from tests.entry.wheels import LOCK, OURS, write_entry, write_wheel
from tests.house.test_command_line import taken

pytestmark = pytest.mark.timeout(400)
ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "how-to"
BIN = Path(sys.executable).parent
BLOCK = re.compile(r"(<!-- not run here: .+ -->\n)?^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
HANDLER = """\
from catalogzero import CloudProcessor


class AcmeProcessor(CloudProcessor):
    def process(self, batches, params):
        yield from batches
"""
SYSTEMCTL = """\
#!/bin/sh
# What systemd does for the unit of one handler, as far as the pages need it.
stop() {
    [ -f "$MACHINE/pid" ] || return 0
    pid=$(cat "$MACHINE/pid")
    kill "$pid" 2>/dev/null
    while [ -d "/proc/$pid" ] && ! grep -q '^State:.Z' "/proc/$pid/status"; do sleep 0.05; done
    rm "$MACHINE/pid"
}
start() {
    rm -f "$MACHINE/acme.sock"
    STATE_DIRECTORY=$MACHINE/state catalogzero run acme \\
        --registry "$MACHINE/etc/acme/handler_registry.yaml" >>"$MACHINE/log" 2>&1 &
    echo $! >"$MACHINE/pid"
    while [ ! -S "$MACHINE/acme.sock" ]; do
        [ -d "/proc/$(cat "$MACHINE/pid")" ] && sleep 0.05 || exit 1
    done
}
case "$*" in
daemon-reload) ;;
"stop acme" | "disable --now acme") stop ;;
"start acme" | "enable --now acme") start ;;
"restart acme") stop && start ;;
*) echo "unknown: $*" >&2; exit 1 ;;
esac
"""


def blocks(page: str, language: str = "sh") -> list[str]:
    """The blocks of a language that are to be run, in their order."""
    found = BLOCK.findall((PAGES / page).read_text())
    return [text for mark, kind, text in found if kind == language and not mark]


class Machine:
    """A client's machine in a folder: what the pages name lies below it.

    Args:
        folder: The folder.
        endpoint: Of the backend.
    """

    def __init__(self, folder: Path, endpoint: str) -> None:
        self.folder = folder
        self.places = {
            "/var/lib/private/catalogzero/acme": folder / "state",
            "/var/lib/catalogzero/acme": folder / "state",
            "/etc/logrotate.d": folder / "etc" / "logrotate.d",
            "/etc/systemd/system": folder / "etc" / "systemd",
            "/var/log/acme": folder / "log.d",
            "/media/catalog": folder / "catalog",
            "/data/exports": folder / "exports",
            "/etc/acme": folder / "etc" / "acme",
            "/opt/acme": folder / "opt",
            "/backup": folder / "backup",
        }
        for place in ("bin", "lib", "backup", "etc/acme", "etc/systemd", "exports", "state"):
            (folder / place).mkdir(parents=True)
        (folder / "lib" / "acme_processor").mkdir()
        (folder / "lib" / "acme_processor" / "handler.py").write_text(HANDLER)
        (folder / "etc" / "acme" / "api_key").write_text("test-key")
        (folder / "etc" / "acme" / "api_key").chmod(0o600)
        (folder / "bin" / "systemctl").write_text(SYSTEMCTL)
        (folder / "bin" / "systemctl").chmod(0o755)
        self.section: dict[str, Any] = {
            "handler_id": "acme",
            "module_path": "acme_processor.handler",
            "class_name": "AcmeProcessor",
            "host": f"ipc://{folder}/acme.sock",
            "min_file_age_s": 0,
            "config": {
                "endpoint": endpoint,
                "api_key_file": str(folder / "etc" / "acme" / "api_key"),
                "data_roots": [str(folder / "exports")],
            },
        }
        self.configure()

    def configure(self) -> None:
        """Write the registry file."""
        registry = {"scheduler": "none", "handlers": [self.section]}
        path = self.folder / "etc" / "acme" / "handler_registry.yaml"
        path.write_text(yaml.safe_dump(registry))

    def here(self, text: str) -> str:
        """A text with this machine's places."""
        named = "|".join(re.escape(place) for place in self.places)
        return re.sub(rf"(?:{named})\b", lambda found: str(self.places[found[0]]), text)

    async def run(self, block: str, **more: str) -> str:
        """Run a block as it stands; its standard output. A command that fails fails the test."""
        path = f"{self.folder}/bin:{BIN}:{os.environ['PATH']}"
        lib = f"{self.folder}/lib"
        env = {**os.environ, "PATH": path, "PYTHONPATH": lib, "MACHINE": str(self.folder), **more}
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euc", self.here(block)),
            stdout=asyncio.subprocess.PIPE,
            stderr=(log := (self.folder / "errors").open("w+")),
            env=env,
            cwd=self.folder,
        )
        with log:
            out, _ = await process.communicate()
        told = f"{out.decode()}\n{(self.folder / 'errors').read_text()}"
        assert process.returncode == 0, f"{block}\n{told}"
        return out.decode()

    async def job(self) -> dict[str, Any]:
        """Send what is new, as the operator's page does it."""
        _, _, _, _, block, *_ = blocks("operate-a-handler.md")
        answer: dict[str, Any] = json.loads(await self.run(block))
        return answer

    async def paused(self) -> str | None:
        """Why nothing is sent; None where it is."""
        registry = "--registry /etc/acme/handler_registry.yaml"
        metrics = json.loads(await self.run(f"catalogzero metrics acme --json {registry}"))
        why: str | None = metrics["outbox"]["paused"]
        return why

    @property
    def is_running(self) -> bool:
        """Whether its service is."""
        return (self.folder / "pid").exists()


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog of a small entry, made without an index."""
    folder = tmp_path_factory.mktemp("how-tos")
    wheels = [write_entry(folder / "shelf"), write_wheel(folder / "shelf", "catalogzero", "0.1.0")]
    write_wheel(folder / "shelf", "acme-helper", "2.0")
    origin = Origin(find_links=(folder / "shelf",), no_index=True)
    build_catalog(wheels, folder / "catalog", origin=origin, pythons=(OURS,))
    return folder / "catalog"


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


@pytest.fixture
async def machine(tmp_path: Path, backend: ReferenceBackend) -> AsyncIterator[Machine]:
    made = Machine(tmp_path, backend.url)
    (tmp_path / "exports" / "a.csv").write_text("n\n1\n2\n")
    yield made
    await made.run("systemctl stop acme")


async def test_a_handler_is_operated_as_its_page_says(
    machine: Machine, backend: ReferenceBackend
) -> None:
    check, unit, status, look, job, stop, bundle = blocks("operate-a-handler.md")

    assert "fail" not in await machine.run(check)
    await machine.run(unit)
    sent = json.loads(await machine.run(job))
    shown = await machine.run(look)
    well = await machine.run(status)
    archived = await machine.run(bundle)
    await machine.run(stop)

    assert sent["status"] == "uploaded"
    assert backend.rows() == [{"n": "1"}, {"n": "2"}]
    assert "process_and_upload" in shown
    assert well.startswith("all is well")
    assert "ExecStart=" in (machine.folder / "etc" / "systemd" / "acme.service").read_text()
    assert "support.zip" in archived
    assert not machine.is_running


async def test_a_machine_that_is_restored_sends_what_is_lacking_and_nothing_twice(
    machine: Machine, backend: ReferenceBackend
) -> None:
    back_up, restore = blocks("back-up-a-machine.md")
    await machine.run("systemctl start acme")
    await machine.job()
    await machine.run(back_up)
    (machine.folder / "exports" / "b.csv").write_text("n\n3\n")
    await machine.job()

    await machine.run(restore)
    await machine.job()

    assert await machine.paused() is None
    assert sorted(row["n"] for row in backend.rows()) == ["1", "2", "3"]
    (machine.folder / "exports" / "c.csv").write_text("n\n4\n")
    assert (await machine.job())["status"] == "uploaded"
    assert sorted(row["n"] for row in backend.rows()) == ["1", "2", "3", "4"]


async def test_a_machine_is_moved_and_cloned_as_its_page_says(
    machine: Machine, backend: ReferenceBackend
) -> None:
    pack, unpack, adopt, clone = blocks("move-or-clone-a-machine.md")
    state, old = machine.folder / "state", machine.folder / "old"
    await machine.run("systemctl start acme")
    await machine.job()
    await machine.run(pack)
    state.rename(old)

    await machine.run(unpack)
    moved = await machine.job()
    await machine.run("systemctl stop acme")
    state.rename(machine.folder / "new")
    old.rename(state)
    await machine.run("systemctl start acme")
    (machine.folder / "exports" / "b.csv").write_text("n\n3\n")
    await machine.run(
        "catalogzero call acme process_and_upload --registry "
        '/etc/acme/handler_registry.yaml --params \'{"data_source": "/data/exports"}\' || true'
    )
    paused = await machine.paused()
    await machine.run(adopt)
    while len(backend.rows()) < 3:
        await machine.job()

    assert moved["status"] == "unchanged"
    assert "took this installation over" in str(paused)
    assert await machine.paused() is None
    assert sorted(row["n"] for row in backend.rows()) == ["1", "2", "3"]
    made = await machine.run(clone)
    assert "this folder is installation " in made
    assert machine.is_running


async def test_an_entry_is_installed_from_the_folder_of_a_catalog(
    catalog: Path, tmp_path: Path
) -> None:
    install, look = blocks("air-gapped.md")
    machine = Machine(tmp_path, "http://127.0.0.1:9/v1")
    (tmp_path / "catalog").symlink_to(catalog)

    await machine.run(install.replace("py3.12-manylinux_2_28_x86_64", LOCK), PIP_FIND_LINKS="")
    shown = await machine.run(look)

    installed = {path.name for path in (tmp_path / "opt").glob("lib/*/site-packages/*.dist-info")}
    assert {"acme_processor-1.0.0.dist-info", "catalogzero-0.1.0.dist-info"} <= installed
    assert "Cleans rows" in shown


@pytest.mark.usefixtures("certificate")
async def test_a_check_asks_the_backend_through_the_proxy(
    tmp_path: Path,
    certificate: Path,  # noqa: F811 - the fixture
) -> None:
    (section,), (check, installing) = (
        blocks("proxy-and-ca.md", "yaml"),
        blocks("proxy-and-ca.md"),
    )
    async with behind_tls(certificate) as (_, endpoint), Proxy("right") as proxy:
        machine = Machine(tmp_path, endpoint)
        shutil.copy(certificate, tmp_path / "etc" / "acme" / "ca.pem")
        text = machine.here(section).replace("https://api.acme.example/v1/process", endpoint)
        through = f"http://site:right@127.0.0.1:{proxy.port}"
        config = yaml.safe_load(text.replace("http://proxy.example:3128", through))
        machine.section["config"] = config["handlers"][0]["config"]
        machine.configure()
        shown = await machine.run(check)
        asked = set(proxy.asked)

    assert asked == {f"CONNECT {endpoint.removeprefix('https://').removesuffix('/v1')}"}
    assert "right" not in shown
    catalog = tmp_path / "catalog"
    catalog.mkdir()
    (catalog / "catalog.json").write_text('{"catalog_version": 1, "entries": []}')
    *variables, command = installing.splitlines()
    assert [line.split("=")[0] for line in variables] == ["export HTTPS_PROXY", "export PIP_CERT"]
    taken(command.split())


@pytest.mark.skipif(not shutil.which("logrotate"), reason="there is no logrotate")
async def test_a_log_is_rotated_and_written_on(tmp_path: Path) -> None:
    (rules,), (rotate,) = blocks("rotate-logs.md", "text"), blocks("rotate-logs.md")
    (unit,) = blocks("rotate-logs.md", "ini")
    machine = Machine(tmp_path, "http://127.0.0.1:9/v1")
    log = tmp_path / "log.d" / "acme.log"
    for folder in (log.parent, tmp_path / "etc" / "logrotate.d"):
        folder.mkdir()
        folder.chmod(0o755)
    (tmp_path / "etc" / "logrotate.d" / "acme").write_text(machine.here(rules))
    with log.open("a") as appended:
        appended.write("before\n")
        appended.flush()
        state = f"--state {tmp_path}/rotated"
        await machine.run(rotate.replace("--force", f"--force {state}"), PATH=os.environ["PATH"])
        appended.write("after\n")

    assert log.read_text() == "after\n"
    assert list(log.parent.glob("acme.log.1*"))
    assert f"append:{log}" in machine.here(unit)


def test_the_compose_file_runs_commands_that_are_taken_on_files_that_are_read(
    tmp_path: Path,
) -> None:
    compose = yaml.safe_load((PAGES / "production" / "handler-compose.yml").read_text())
    (registry,) = blocks("docker-compose.md", "yaml")
    (tmp_path / "handler_registry.yaml").write_text(registry)

    sections = load_registry(tmp_path / "handler_registry.yaml").handlers

    names = {section.handler_id for section in sections}
    for service in compose["services"].values():
        taken(service["command"])
        assert service["command"][1] == "scheduler" or service["command"][2] in names
        assert service["network_mode"] == "host"
        assert service["read_only"] is True
        for check in filter(None, [service.get("healthcheck")]):
            taken(check["test"][1:])
    inline = compose["services"]["scheduler"]["build"]["dockerfile_inline"]
    assert '--index-url "$$CATALOG/simple"' in inline
    assert "--extra-index-url" not in inline


async def test_catalogzero_is_installed_from_a_checkout_and_from_a_catalog(
    catalog: Path, tmp_path: Path
) -> None:
    checkout, wheel, index = blocks("get-catalogzero.md")
    machine = Machine(tmp_path, "http://127.0.0.1:9/v1")
    (tmp_path / "catalogzero").symlink_to(ROOT)
    # The packages of this checkout's environment stand for the index that pip would ask.
    more = {
        "PYTHONPATH": sysconfig.get_paths()["purelib"],
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
    }

    said = await machine.run(checkout, **more)
    await machine.run(wheel, **more)
    shutil.rmtree(tmp_path / ".venv")
    await machine.run(index, CATALOG=catalog.as_uri(), PIP_CONFIG_FILE=os.devnull)

    assert re.search(r"^\d+\.\d+", said, re.MULTILINE)
    assert list((tmp_path / "wheels").glob("catalogzero-*.whl"))
    assert list((tmp_path / ".venv").glob("lib/*/site-packages/catalogzero-0.1.0.dist-info"))


@pytest.mark.parametrize(
    "page", ["upgrade.md", "air-gapped.md", "rotate-logs.md", "docker-compose.md"]
)
def test_a_block_that_is_not_run_says_why(page: str) -> None:
    marks = [mark for mark, _, _ in BLOCK.findall((PAGES / page).read_text()) if mark]

    assert marks

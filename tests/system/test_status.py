"""`catalogzero status`: one look at a machine of handlers, outboxes, schedules, certificates."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.cloud.reference import ReferenceBackend
from tests.core.support import finished, running, served_address


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def section(folder: Path, name: str, endpoint: str, **more: Any) -> dict[str, Any]:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "a.csv").write_text("n,name\n1,one\n2,two\n")
    config = {"endpoint": endpoint, "api_key": "key", "data_roots": [str(folder / name)]}
    return {
        "handler_id": name,
        "module_path": "tests.cloud.processors",
        "class_name": "Plain",
        "port": free_port(),
        "state_dir": str(folder / "state"),
        "installation_id": name,
        "min_file_age_s": 0,
        "upload_wait_s": 2,
        "config": config,
        **more,
    }


def written(folder: Path, *sections: dict[str, Any], scheduler: str = "none") -> Path:
    path = folder / "handler_registry.yaml"
    path.write_text(json.dumps({"scheduler": scheduler, "handlers": sections}, indent=1))
    path.chmod(0o600)
    return path


def look(registry: Path, *more: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the report."""
    done = finished("status", "--registry", str(registry), "--json", *more)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def served(name: str, registry: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    """A handler's process, with its log as JSON."""
    option = ("--registry", str(registry))
    return running("run", name, *option, CATALOGZERO_LOG_FORMAT="json")


def troubles(report: dict[str, Any]) -> dict[str, list[str]]:
    """The next commands, by what is in trouble."""
    found: dict[str, list[str]] = {}
    for one in report["troubles"]:
        found.setdefault(one["of"], []).append(one["next"])
    return found


async def test_a_machine_is_shown_in_one_look_and_each_trouble_has_its_next_command(
    tmp_path: Path,
) -> None:
    async with ReferenceBackend("key") as backend, ReferenceBackend("another") as refusing:
        registry = written(
            tmp_path,
            section(tmp_path, "well", backend.url),
            section(tmp_path, "paused", refusing.url),
            section(tmp_path, "stopped", refusing.url),
        )
        option = f"--registry {registry}"

        def run(name: str) -> None:
            params = json.dumps({"data_source": f"{tmp_path}/{name}"})
            asked = ("call", name, "process_and_upload", "--params", params)
            finished(*asked, "--registry", str(registry))

        def act() -> list[Any]:
            with running(
                "run", "stopped", "--registry", str(registry), CATALOGZERO_LOG_FORMAT="json"
            ) as third:
                served_address(third)
                run("stopped")
                third.terminate()
                third.wait()
            with (
                running(
                    "run", "well", "--registry", str(registry), CATALOGZERO_LOG_FORMAT="json"
                ) as one,
                running(
                    "run", "paused", "--registry", str(registry), CATALOGZERO_LOG_FORMAT="json"
                ) as two,
            ):
                for name, process in (("well", one), ("paused", two)):
                    served_address(process)
                    run(name)
                seen = look(registry), finished("status", "--registry", str(registry)).stdout
                check = json.loads(
                    finished("check", "well", "--registry", str(registry), "--json").stdout
                )
            return [*seen, look(registry), check]

        (code, report), text, (later_code, later), check = await asyncio.to_thread(act)

    rows = {row["handler_id"]: row for row in report["handlers"]}
    assert (code, report["ok"]) == (1, False)
    assert rows["well"]["status"] in ("active", "idle")
    assert (rows["well"]["outbox"]["uploads"], rows["well"]["reasons"]) == (0, [])
    assert rows["well"]["last_successful_run"]["method"] == "process_and_upload"
    assert rows["paused"]["outbox"]["paused_code"] == "http_401"
    assert (rows["stopped"]["status"], rows["stopped"]["outbox"]["uploads"]) == ("stopped", 1)
    assert rows["stopped"]["outbox"]["paused_code"] == "http_401"
    found = troubles(report)
    assert "well" not in found
    assert f"catalogzero check paused {option}" in found["paused"]
    assert f"catalogzero run stopped {option}" in found["stopped"]
    assert text.splitlines()[0] == "in trouble: paused, stopped"
    assert "1 wait" in text
    assert f"next: catalogzero run stopped {option}" in text
    assert {row["status"] for row in later["handlers"]} == {"stopped"}
    assert later_code == 1
    assert {f["name"]: f["status"] for f in check["findings"]}["handler"] == "pass"
    assert check["next"] == f"catalogzero metrics well {option}"


def test_a_registry_file_with_faults_is_named_by_line_and_the_rest_is_shown(tmp_path: Path) -> None:
    good = section(tmp_path, "good", "http://127.0.0.1:9")
    bad = {**section(tmp_path, "bad", "http://127.0.0.1:9"), "prot": 1}
    registry = written(tmp_path, good, bad)
    line = registry.read_text().splitlines().index('   "prot": 1') + 1

    code, report = look(registry)
    registry.write_text("handlers: [\n")
    broken_code, broken = look(registry)

    assert (code, broken_code) == (2, 2)
    assert [row["handler_id"] for row in report["handlers"]] == ["good"]
    what = [one["what"] for one in report["troubles"] if one["of"] == "registry"]
    assert what == [f"{registry}:{line}: unknown key `prot`; did you mean `port`?"]
    assert broken["handlers"] == []
    assert f"{registry}:2: not YAML" in broken["troubles"][0]["what"]


def test_schedules_that_failed_and_certificates_that_expire_are_troubles(tmp_path: Path) -> None:
    cert = tmp_path / "cert.pem"
    openssl = shutil.which("openssl")
    assert openssl
    made = (openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=site")
    files = ("-keyout", str(tmp_path / "key.pem"), "-out", str(cert), "-days", "3")
    subprocess.run([*made, *files], check=True, capture_output=True)
    one = section(tmp_path, "site", "http://127.0.0.1:9")
    one["config"] |= {"client_cert_file": str(cert), "client_key_file": str(tmp_path / "key.pem")}
    registry_port, port = free_port(), free_port()
    registry = written(tmp_path, one, scheduler=f"tcp://127.0.0.1:{registry_port}")
    url = f"http://127.0.0.1:{port}"
    scheduler = ("scheduler", "--port", str(port), "--zmq-port", str(registry_port), "--json")
    database = ("--database", f"sqlite:///{tmp_path}/s.db")
    with (
        running(*scheduler, *database) as serving,
        running(
            "run", "site", "--registry", str(registry), CATALOGZERO_LOG_FORMAT="json"
        ) as handler,
    ):
        assert serving.stdout is not None
        serving.stdout.readline()
        served_address(handler)
        assert handler.stderr is not None
        next(line for line in handler.stderr if '"registered"' in line)
        add = ("schedule", "--url", url, "add", "site", "process_and_upload", "--every", "1d")
        job = ("--job-id", "nightly", "--params", '{"data_source": "/nowhere"}')
        assert finished(*add, *job).returncode == 0
        finished("schedule", "--url", url, "run", "nightly")
        code, report = look(registry, "--url", url)
    away_code, away = look(registry, "--url", url)

    assert (code, away_code) == (1, 1)
    found = report["scheduler"]
    assert (found["status"], found["schedules"]) == ("running", 1)
    assert [one["job_id"] for one in found["failed"]] == ["nightly"]
    assert troubles(report)["schedule nightly"] == [
        "catalogzero schedule executions --job-id nightly"
    ]
    assert [one["setting"] for one in report["certificates"]] == ["client_cert_file"]
    assert "expires in 2 days" in str(report["troubles"])
    assert troubles(away)["scheduler"] == ["catalogzero scheduler"]


def test_all_is_well_where_nothing_is_wrong(tmp_path: Path) -> None:
    registry = written(tmp_path)

    done = finished("status", "--registry", str(registry))

    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "all is well")


def test_an_entry_that_is_not_installed_is_named_with_the_command_that_installs_it(
    tmp_path: Path,
) -> None:
    registry = written(tmp_path, {"handler_id": "lone", "entry": "lone-processor", "port": 6999})

    _, report = look(registry)

    assert troubles(report) == {"lone": ["catalogzero catalog install lone-processor"]}

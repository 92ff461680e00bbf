"""Secrets: not on a command line, not in a URL that is shown, not in a file that others write."""

from __future__ import annotations

import asyncio
import json
import zipfile
from pathlib import Path

import pytest
from catalogzero import HandlerClient

from tests.core.support import finished, running, served_address, until

CANARY = "q7-canary-9"
NESTED = '{"orders": {"query": "SELECT 1", "url": "postgresql://me:pw@db.example/shop"}}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A registry file with a processor whose endpoint carries a secret, and its key file."""
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_text("the-key-of-the-test")
    write_registry(tmp_path, "api_key_file: key")
    return tmp_path


def write_registry(folder: Path, key: str) -> Path:
    path = folder / "handler_registry.yaml"
    path.write_text(
        f"""\
scheduler: none
handlers:
  - handler_id: uploader
    module_path: file_processor.handler
    class_name: FileProcessor
    state_dir: {folder}
    upload_wait_s: 0
    config:
      endpoint: http://127.0.0.1:9/v1?code={CANARY}&colour=blue
      {key}
      data_roots: [{folder / "data"}]
"""
    )
    return path


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ("api_key=canary-on-the-line", "FILE_PROCESSOR_API_KEY"),
        ("proxy=http://me:pw@proxy.example", "FILE_PROCESSOR_PROXY"),
        (f"sources={NESTED}", "FILE_PROCESSOR_SOURCES"),
    ],
)
def test_a_secret_on_the_command_line_is_refused(folder: Path, given: str, where: str) -> None:
    done = finished("run", "uploader", "--config", given, cwd=folder)

    assert done.returncode == 3
    assert f"({where})" in done.stderr
    assert given.partition("=")[2] not in done.stderr


async def test_a_secret_in_the_query_of_an_endpoint_is_shown_nowhere(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "a.csv").write_text("a\n1\n")
    settings = {"CATALOGZERO_LOG_FORMAT": "json", "CATALOGZERO_SETTLE_S": "0"}

    with running("run", "uploader", cwd=folder, **settings) as process:
        address = await asyncio.to_thread(served_address, process)
        async with HandlerClient(address) as client:
            described = await client.call("describe")
            await client.call("process_and_upload", {"data_source": str(folder / "data")})
        log = folder / "uploader" / "audit.jsonl"
        audit = await until(lambda: log.read_text())
    bundled = finished("bundle", "uploader", "--with-messages", cwd=folder)

    assert bundled.returncode == 0, bundled.stderr
    assert described["settings"]["endpoint"].endswith("/v1?code=**********&colour=blue")
    with zipfile.ZipFile(folder / "support.zip") as archive:
        shown = "".join(archive.read(name).decode() for name in archive.namelist())
    assert "code=*****" in audit.replace("%2A", "*")
    assert "colour=blue" in shown
    assert CANARY not in json.dumps(described) + audit + shown


@pytest.mark.parametrize("name", ["sas", "jwt", "session", "access", "X-Amz-Signature"])
def test_a_preview_shows_no_secret_of_the_endpoint_either(folder: Path, name: str) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "a.csv").write_text("a\n1\n")
    path = write_registry(folder, "api_key_file: key")
    path.write_text(path.read_text().replace("?code=", f"?{name}="))

    shown = [
        finished("preview", "uploader", str(folder / "data"), *flags, cwd=folder)
        for flags in ((), ("--json",))
    ]

    assert all(done.returncode == 0 and "colour=blue" in done.stdout for done in shown)
    assert CANARY not in "".join(done.stdout + done.stderr for done in shown)


def test_a_database_is_named_without_the_secrets_of_its_url(folder: Path) -> None:
    url = f"postgresql://me@127.0.0.1:9/shop?password={CANARY}&application_name=shop"

    done = finished("backend", "tenants", "list", "--database", url, cwd=folder)

    assert done.returncode == 4
    assert "application_name=shop" in done.stderr
    assert CANARY not in done.stderr


async def test_a_key_that_others_may_write_is_refused_one_that_they_may_read_warned_of(
    folder: Path,
) -> None:
    key = folder / "key"
    key.chmod(0o666)
    for verb in ("run", "check"):
        refused = finished(verb, "uploader", cwd=folder)
        assert refused.returncode == 3
        assert "holds a secret, and others may write it" in refused.stdout + refused.stderr

    key.chmod(0o444)  # as containers mount secrets
    checked = json.loads(finished("check", "uploader", "--json", cwd=folder).stdout)
    (found,) = (one for one in checked["findings"] if one["name"] == "keys")
    with running("run", "uploader", cwd=folder, CATALOGZERO_LOG_FORMAT="json") as process:
        assert process.stderr is not None
        first = json.loads(await asyncio.to_thread(process.stderr.readline))

    assert (found["status"], found["found"]) == ("warn", "others may read key")
    assert (first["event"], first["path"]) == ("key_readable_by_others", "key")


def test_a_registry_file_counts_as_a_key_file_where_a_key_stands_in_it(folder: Path) -> None:
    (folder / "handler_registry.yaml").chmod(0o666)
    assert finished("check", "uploader", cwd=folder).returncode == 1  # nobody at its endpoint

    write_registry(folder, "api_key: the-key-of-the-test")
    refused = finished("check", "uploader", cwd=folder)

    assert refused.returncode == 3
    assert "handler_registry.yaml holds a secret, and others may write it" in refused.stdout


def test_a_token_that_others_may_write_is_refused_by_the_scheduler(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-of-the-tests")
    (tmp_path / "token").chmod(0o622)
    given = ("--port", "0", "--zmq-port", "0", "--database", "./s.db", "--token-file", "token")

    refused = finished("scheduler", *given, cwd=tmp_path)

    assert refused.returncode == 3
    assert "token holds a secret, and others may write it" in refused.stderr

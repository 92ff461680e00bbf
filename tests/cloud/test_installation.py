"""`catalogzero installation` and `outbox purge --skip`: what an operator types after a copy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from catalogzero.cli.main import app
from catalogzero.clock import SystemClock
from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox.outbox import Opening, Outbox, Sealing
from typer.testing import CliRunner

from tests.cloud.reference import ReferenceBackend
from tests.cloud.site import Site, until

CSV = "n\n1\n2\n"


@pytest.fixture
async def backend() -> AsyncIterator[ReferenceBackend]:
    async with ReferenceBackend() as reference:
        yield reference


def registry(folder: Path, **more: Any) -> Path:
    """A registry file of one handler, `site`."""
    (folder / "exports").mkdir(exist_ok=True)
    section = {
        "handler_id": "site",
        "module_path": "tests.cloud.processors",
        "class_name": "Plain",
        "state_dir": str(folder / "state"),
        "config": {
            "endpoint": "http://127.0.0.1:9/v1",
            "api_key": "test-key",
            "data_roots": [str(folder / "exports")],
        },
        **more,
    }
    path = folder / "handler_registry.yaml"
    path.write_text(yaml.safe_dump({"scheduler": "none", "handlers": [section]}))
    return path


def invoke(*arguments: object) -> Any:
    """The command, in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def box(folder: Path) -> Outbox:
    return Outbox(folder / "state" / "site", SystemClock())


def fill(folder: Path, mode: str = "replace") -> None:
    """An outbox with one sealed upload of two rows."""
    outbox = box(folder)
    outbox.begin(Opening("u1", "K", "exports/a.csv", mode, full=False, params={}))
    outbox.add("u1", Chunk(0, 2, b'{"n":1}\n{"n":2}\n', "identity", "application/x-ndjson"))
    outbox.seal(Sealing(upload_id="u1", upload_key="k", until=9))
    outbox.close()


async def test_adopt_brings_a_folder_back_that_was_refused(
    backend: ReferenceBackend, tmp_path: Path
) -> None:
    path = registry(tmp_path, installation_id="site")
    async with Site(backend.url, tmp_path) as site:
        site.write("a.csv", CSV)
        await site.run()
        backend.start({"epoch": 0, "nonce": "another host"})
    async with Site(backend.url, tmp_path) as site:
        await until(lambda: (site.status.get("outbox") or {}).get("paused"))
        said = invoke("installation", "adopt", "site", "--registry", path)
        await until(lambda: site.status["outbox"]["paused"] is None)

    assert said.exit_code == 0, said.output
    assert "takes the installation over" in said.output


def test_new_names_what_it_drops_and_makes_another_id(tmp_path: Path) -> None:
    path = registry(tmp_path)
    fill(tmp_path)
    kept = tmp_path / "state" / "site" / "installation_id"
    kept.write_text("old-id\n")

    refused = CliRunner().invoke(
        app, ["installation", "new", "site", "--registry", str(path)], input="n\n"
    )
    before = kept.read_text()
    done = invoke("installation", "new", "site", "--registry", path, "--yes")
    outbox = box(tmp_path)
    uploads, mark = outbox.store.uploads(), outbox.store.mark("K")
    moved_old, moved_new = outbox.moved_text("old-id"), outbox.moved_text(kept.read_text().strip())
    outbox.close()

    assert (refused.exit_code, before) == (1, "old-id\n")
    assert done.exit_code == 0, done.output
    assert "2 records of exports/a.csv (sealed) are dropped" in done.output
    made = kept.read_text().strip()
    assert made not in {"old-id", ""}
    assert made in done.output
    assert (uploads, mark.upload_key) == ([], None)
    assert "installation adopt" in moved_old
    assert moved_new == ""


def test_new_wants_another_id_where_the_registry_file_sets_it(tmp_path: Path) -> None:
    path = registry(tmp_path, installation_id="site")
    fill(tmp_path)
    refused = invoke("installation", "new", "site", "--registry", path, "--yes")
    outbox = box(tmp_path)
    outbox.remember("installation_id", "site")
    kept = len(outbox.store.uploads())
    outbox.close()
    registry(tmp_path, installation_id="other-site")
    done = invoke("installation", "new", "site", "--registry", path, "--yes")

    assert refused.exit_code == 1
    assert "stands in the registry file (site)" in str(refused.exception)
    assert kept == 1
    assert done.exit_code == 0, done.output
    assert "other-site" in done.output


def test_purge_skip_names_the_rows_that_are_given_up(tmp_path: Path) -> None:
    path = registry(tmp_path)
    fill(tmp_path, "append")
    outbox = box(tmp_path)
    outbox.die("u1", {"reason": "422"})
    outbox.close()

    done = invoke("outbox", "purge", "site", "u1", "--skip", "--yes", "--registry", path)
    outbox = box(tmp_path)
    [waiting] = outbox.store.uploads(["sealed"])
    outbox.close()

    assert done.exit_code == 0, done.output
    assert "gave up 2 records of exports/a.csv" in done.output
    assert (waiting.chunks, waiting.records) == (0, 0)
    assert waiting.until[0] == 9

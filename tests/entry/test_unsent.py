"""An entry is not removed while its uploads wait: without it, nothing sends them."""

from __future__ import annotations

import socket
import sys
import venv
from pathlib import Path

from tests.core.support import finished

REGISTRY = """\
scheduler: none
handlers:
  - handler_id: files
    entry: file-processor
    upload_wait_s: 0
    min_file_age_s: 0
    config:
      endpoint: http://127.0.0.1:{port}/v1
      api_key_file: {folder}/key
      data_roots: ["{folder}/exports"]
"""


def test_an_entry_stays_while_its_uploads_wait(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    (tmp_path / "key").write_text("czk_none")
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "flights.csv").write_text("n\n1\n2\n")
    registry = tmp_path / "handler_registry.yaml"
    registry.write_text(REGISTRY.format(port=port, folder=tmp_path))
    state = {"CATALOGZERO_STATE_DIR": str(tmp_path / "state"), "STATE_DIRECTORY": ""}
    named = ("--registry", str(registry))
    params = f'{{"data_source": "{tmp_path}/exports"}}'
    queued = finished(
        *("run", "files", *named, "--once", "process_and_upload", "--params", params),
        cwd=tmp_path,
        **state,
    )
    venv.create(tmp_path / "other", with_pip=False)
    elsewhere = ("--python", str(tmp_path / "other" / "bin" / Path(sys.executable).name))
    remove = ("catalog", "remove", "file-processor", *named, *elsewhere)

    (tmp_path / "key").unlink()
    registry.write_text(registry.read_text().replace("api_key_file", "# api_key_file"))
    listed = finished("outbox", "list", "files", *named, cwd=tmp_path, **state)
    refused = finished(*remove, cwd=tmp_path, **state)
    discarded = finished(*remove, "--discard", cwd=tmp_path, **state)

    assert '"status":"queued"' in queued.stdout, queued.stderr
    assert listed.returncode == 0, listed.stderr
    assert "exports/flights.csv" in listed.stdout
    assert refused.returncode == 3
    assert "files: exports/flights.csv: 2 records (sealed)" in refused.stderr
    assert "nothing was changed" in refused.stderr
    assert "not sent: files: exports/flights.csv: 2 records (sealed)" in discarded.stdout
    assert "file-processor is not installed in" in discarded.stderr

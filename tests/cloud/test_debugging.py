"""What an author has where `process` does not do what it should: rows, tracebacks, a debugger."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from catalogzero import Batch, FailedError, Params
from catalogzero.cli.main import app
from typer.testing import CliRunner, Result

from tests.cloud.processors import Plain
from tests.cloud.test_matrix import folder, plain_bodies

__all__ = ["folder"]

MODULE = '''
from typing import Literal

from catalogzero import CloudProcessor, CloudSettings
from pydantic_settings import SettingsConfigDict


class AcmeSettings(CloudSettings):
    model_config = SettingsConfigDict(env_prefix="ACME_")
    on_bad_record: Literal["fail", "skip", "quarantine"] = "skip"


class Acme(CloudProcessor):
    """Keeps what costs more than 5, and ends with a total."""

    settings_model = AcmeSettings

    def process(self, batches, params):
        total = 0.0
        for batch in batches:
            kept = []
            for row in batch:
                if row["price"] == "?":
                    self.reject(row, "no price")
                    continue
                price = priced(row)
                if params.get("stop") == row["id"]:
                    breakpoint()
                total += price
                kept += [{**row, "price": price}] if price > 5 else []
            yield kept
        yield [{"total": total}]


def priced(row):
    return float(row["price"])


class Own(Acme):
    """Reads a source of its own, which has no end that is known."""

    def read(self, data_source, params, after=None):
        for number in range(1, 101):
            yield [{"id": str(number), "price": "9"}]
'''
BACKEND = ["--config", "endpoint=http://127.0.0.1:9", "--set", "upload_wait_s=0"]


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a processor and a file."""
    (tmp_path / "debugged.py").write_text(MODULE)
    (tmp_path / "a.csv").write_text("id,price\n1,3\n2,7\n3,?\n4,9\n")
    (tmp_path / "bad.csv").write_text("id,price\n1,3\n2,x\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CATALOGZERO_STATE_DIR", str(tmp_path / "state"))
    yield tmp_path
    sys.modules.pop("debugged", None)


def preview(*words: str) -> Result:
    return CliRunner().invoke(app, ["preview", *words])


def test_rows_shows_what_was_made_of_each(acme: Path) -> None:
    done = preview("debugged:Acme", "a.csv", "--rows", "--params", '{"stop": "no"}')

    name = acme.name
    assert done.exit_code == 0, done.output
    assert done.output.startswith(
        f'{name}/a.csv, row 1\n  in       {{"id":"1","price":"3"}}\n  out      (nothing)\n'
        f'{name}/a.csv, row 2\n  in       {{"id":"2","price":"7"}}\n'
        '  out      {"id":"2","price":7.0}\n'
        f'{name}/a.csv, row 3\n  in       {{"id":"3","price":"?"}}\n  rejected no price\n'
    )
    assert f'{name}/a.csv, beside its rows\n  out      {{"total":19.0}}\n' in done.output
    assert "PUT " not in done.output


def test_rows_are_in_the_json_too_beside_the_requests(acme: Path) -> None:
    done = preview("debugged:Acme", "a.csv", "--rows", "--limit", "2", "--json")

    found = json.loads(done.stdout)
    assert [(one["row"], one["out"]) for one in found["rows"]] == [
        (1, []),
        (2, [{"id": "2", "price": 7.0}]),
        (None, [{"total": 10.0}]),
    ]
    assert found["rows"][0]["in"] == {"id": "1", "price": "3"}
    assert [request["method"] for request in found["requests"]] == ["PUT", "POST"]


def test_rows_up_to_the_one_that_fails_are_shown(acme: Path) -> None:
    done = preview("debugged:Acme", "bad.csv", "--rows")

    assert done.exit_code == 1
    assert f"{acme.name}/bad.csv, row 1\n" in done.output
    assert '  in       {"id":"2","price":"x"}' in done.output


@pytest.mark.parametrize(
    ("source", "more", "records", "is_cut"),
    [
        ("a.csv", (), 3, False),
        ("a.csv", ("--limit", "2"), 2, True),
        ("large.csv", (), 21, True),
        ("a.csv", ("--limit", "0"), 3, False),
        (".", ("--limit", "6"), 6, True),
    ],
)
def test_of_a_large_source_few_rows_are_read_unless_all_are_asked_for(
    acme: Path, source: str, more: tuple[str, ...], records: int, is_cut: bool
) -> None:
    (acme / "bad.csv").unlink()
    if source == "large.csv":
        rows = "".join(f"{n},9.{'0' * 180}\n" for n in range(600_000))
        (acme / source).write_text(f"id,price\n{rows}")
    else:
        (acme / "b.csv").write_text("id,price\n1,7\n2,8\n3,9\n")

    done = preview("debugged:Acme", str(acme / source), *more)

    assert done.exit_code == 0, done.output
    assert f"nothing was sent: {records} records" in done.output
    assert ("--limit 0 reads all" in done.output) == is_cut


@pytest.mark.parametrize(("more", "records"), [((), 21), (("--limit", "0"), 101)])
def test_of_a_source_whose_size_nobody_knows_few_rows_are_read(
    acme: Path, more: tuple[str, ...], records: int
) -> None:
    done = preview("debugged:Own", "any:thing", *more)

    assert f"nothing was sent: {records} records" in done.output, done.output


def test_a_traceback_names_source_row_and_calls(acme: Path) -> None:
    plain = preview("debugged:Acme", "bad.csv")
    shown = preview("debugged:Acme", "bad.csv", "--traceback")

    assert "Traceback" not in plain.output
    assert "in process\n" in shown.output
    assert "in priced\n" in shown.output
    assert "ValueError: could not convert string to float: 'x'" in shown.output
    assert f"{acme.name}/bad.csv, row 2: ValueError" in str(shown.exception)


@pytest.mark.parametrize(
    "more",
    [("--traceback", "--set", "log_level=error"), ("--set", "log_level=warning")],
    ids=["asked for", "log"],
)
def test_run_once_and_the_log_show_the_traceback(acme: Path, more: tuple[str, ...]) -> None:
    params = json.dumps({"data_source": str(acme / "bad.csv")})
    command = [sys.executable, "-m", "catalogzero", "run", "debugged:Acme", *BACKEND]
    config = ["--config", f"data_roots={json.dumps([str(acme)])}", "--set", "min_file_age_s=0"]
    once = ["--once", "process_and_upload", "--params", params, *more]

    done = subprocess.run(
        [*command, *config, *once],
        env={**ENVIRONMENT, "CATALOGZERO_STATE_DIR": str(acme / "state")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 1, done.stderr
    assert ", in process" in done.stderr
    assert ", in priced" in done.stderr
    assert f"{acme.name}/bad.csv, row 2: ValueError" in done.stderr


ENVIRONMENT = {"PATH": "/usr/bin:/bin", "ACME_API_KEY": "k"}
SPAWN = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


def debugged(*words: str, cwd: Path) -> str:
    """What a command writes on a terminal, where it stops at row 2 and is asked about it."""
    command = [sys.executable, "-c", SPAWN, sys.executable, "-m", "catalogzero", *words]
    environment = {**ENVIRONMENT, "CATALOGZERO_STATE_DIR": str(cwd / "state"), "TERM": "dumb"}
    with subprocess.Popen(
        command, cwd=cwd, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin
        assert process.stdout
        said = b""
        for answer in (b"p 'price of', row['id'], price\n", b"c\n"):
            said += until_prompt(process.stdout)
            process.stdin.write(answer)
        said += process.stdout.read()
    return said.decode()


def until_prompt(stream: Any) -> bytes:
    """What comes up to the debugger's next prompt, or the end."""
    said = b""
    while not said.endswith(b"(Pdb) ") and (part := stream.read(1)):
        said += part
    return said


def test_a_breakpoint_stops_a_preview_on_the_terminal(acme: Path) -> None:
    said = debugged("preview", "debugged:Acme", "a.csv", "--params", '{"stop": "2"}', cwd=acme)

    assert "('price of', '2', 7.0)" in said
    assert "nothing was sent: 3 records" in said


def test_a_breakpoint_stops_run_once_on_the_terminal(acme: Path) -> None:
    params = json.dumps({"data_source": str(acme / "a.csv"), "params": {"stop": "2"}})
    config = ["--config", f"data_roots={json.dumps([str(acme)])}", "--set", "min_file_age_s=0"]
    once = ["--once", "process_and_upload", "--params", params]

    said = debugged("run", "debugged:Acme", *BACKEND, *config, *once, cwd=acme)

    assert "('price of', '2', 7.0)" in said
    assert '"status":"queued"' in said


@pytest.mark.parametrize("chunk_format", ["ndjson", "csv", "parquet"])
@pytest.mark.parametrize(
    ("batch", "place"),
    [
        ([{"a": 1}, {"a": object()}], "row 2, column a: "),
        ([{"a": "x"}, {"a": "\ud800"}], "row 2, column a: "),
        ([{"a": "x"}, {"\ud800": "y"}], r"row 2, column \\ud800: "),
        (pd.DataFrame({"b": [1, 2], "a": [1, "x"]}), "row 2, column a: a str does not fit"),
    ],
    ids=["object", "surrogate", "name", "pandas"],
)
def test_a_value_that_no_format_holds_is_named_by_row_and_column(
    tmp_path: Path, folder: Path, chunk_format: str, batch: Any, place: str
) -> None:
    def read(self: Any, data_source: str, params: Params, after: Any = None) -> Iterator[Batch]:
        yield batch

    author = type("Author", (Plain,), {"read": read, "__module__": __name__})

    with pytest.raises(FailedError, match=place):
        plain_bodies(tmp_path, author, "mine", chunk_format)


def test_numbers_beside_texts_are_cells_of_csv(tmp_path: Path, folder: Path) -> None:
    def read(self: Any, data_source: str, params: Params, after: Any = None) -> Iterator[Batch]:
        yield [{"a": 1, "b": 1.5}, {"a": "text", "b": "text"}, {"a": None, "b": None}]

    author = type("Author", (Plain,), {"read": read, "__module__": __name__})

    _, bodies = plain_bodies(tmp_path, author, "mine", "csv")

    assert bodies == [b"a,b\n1,1.5\ntext,text\n,\n"]

"""One command runs every benchmark, and each has its place on the page of figures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from benchmarks.report import Figure, bar_of
from benchmarks.suite import END, PAGE, ROOT, Said, names, table, with_tables


def test_every_benchmark_has_its_place_on_the_page() -> None:
    page = PAGE.read_text()
    assert re.findall(r"<!-- bench: (\w+) -->", page) != []
    assert sorted(re.findall(r"<!-- bench: (\w+) -->", page)) == names()
    assert page.count(END) == len(names())


def test_a_benchmark_without_a_place_is_named() -> None:
    with pytest.raises(SystemExit, match="other"):
        with_tables(PAGE.read_text(), {"other": "|"})


def test_a_table_shows_medians_their_spread_and_what_became_of_a_bar() -> None:
    figures = [
        Figure(what="ours", samples=[3.0, 1.0, 2.0], unit="s"),
        Figure(what="ours / theirs", samples=[1.5], unit="x", at_most=1.4),
        Figure(what="a rate", samples=[1234.0], unit="/s", at_least=1000),
    ]
    said: Said = {"command": "python x", "duration_s": 1.0, "figures": figures, "series": []}
    made = with_tables(
        f"before\n<!-- bench: one -->\nold\n{END}\nafter\n", {"one": table(said, "now")}
    )

    assert "| ours | 2.00 s | 1.00 to 3.00 |  |" in made
    assert "| ours / theirs | 1.50 x | 1.50 to 1.50 | ≤ 1.4: missed |" in made
    assert "| a rate | 1,234 /s | 1,234 to 1,234 | ≥ 1000: met |" in made
    assert "old" not in made
    assert made.startswith("before\n")
    assert made.endswith(f"{END}\nafter\n")
    assert bar_of(figures[0]) == ""


def test_a_quick_run_reports_what_it_measured_and_changes_no_page(tmp_path: Path) -> None:
    before, report = PAGE.read_text(), tmp_path / "report.json"
    command = [sys.executable, "-m", "benchmarks.suite", "--quick", "--only", "backlog"]
    done = subprocess.run(
        [*command, "--report", str(report)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    found = orjson.loads(report.read_bytes())

    assert done.returncode == 0, done.stderr
    assert "figures" in done.stdout
    section = found["sections"]["backlog"]
    assert {one["what"] for one in section["figures"]} > {"an upload, 30 queued"}
    assert all(one["samples"] for one in section["figures"])
    assert section["series"][0]["per"] == "queued uploads"
    assert PAGE.read_text() == before

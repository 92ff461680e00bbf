"""What `process` does with rows: the vendor's own test."""

import csv
from pathlib import Path
from typing import Any

{{ cookiecutter.module_path | import_line(cookiecutter.class_name) }}

SAMPLE = Path(__file__).parent.parent / "src/{{ cookiecutter.__package_dir }}/sample.csv"


def processed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that the handler makes of rows."""
    handler = {{ cookiecutter.class_name }}(
        api_key="not-a-real-key",
        data_roots=[SAMPLE.parent],
    )
    return [row for batch in handler.process([rows], {}) for row in batch]


def test_the_sample_keeps_every_row_that_says_something() -> None:
    with SAMPLE.open(encoding="utf-8", newline="") as file:
        rows = processed(list(csv.DictReader(file)))

    assert [row["order_id"] for row in rows] == [str(number) for number in range(1001, 1008)]


def test_texts_lose_the_blanks_around_them() -> None:
    assert processed([{"note": "  call first ", "amount": 3}]) == [
        {"note": "call first", "amount": 3}
    ]

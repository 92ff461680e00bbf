{% if cookiecutter.kind == "handler" %}
"""{{ (cookiecutter.product_name ~ " by " ~ cookiecutter.vendor_name ~ ": what a client's machine can ask of it.") | docstring }}"""

from catalogzero import Handler

{{ (cookiecutter.__package ~ ".settings") | import_line(cookiecutter.__settings_class) }}


class {{ cookiecutter.class_name }}(Handler):
    """{{ cookiecutter.description | docstring(4) }}"""

    settings_model = {{ cookiecutter.__settings_class }}
    settings: {{ cookiecutter.__settings_class }}

    def folder_size(self) -> dict[str, int]:
        """How many files the folder of the settings holds, and their bytes."""
        folder = self.settings.folder.resolve(strict=True)
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        return {"files": len(sizes), "bytes": sum(sizes)}
{% else %}
"""{{ (cookiecutter.product_name ~ " by " ~ cookiecutter.vendor_name ~ ": what it does with a client's rows.") | docstring }}"""

{% if cookiecutter.source == "custom" %}
import csv
{% endif %}
from collections.abc import Iterable, Iterator
{% if cookiecutter.source == "custom" %}
from itertools import islice
from pathlib import Path
{% endif %}
from typing import Any

from catalogzero import CloudProcessor, Params, Rows

{{ (cookiecutter.__package ~ ".settings") | import_line(cookiecutter.__settings_class) }}


class {{ cookiecutter.class_name }}(CloudProcessor):
    """{{ cookiecutter.description | docstring(4) }}"""

    settings_model = {{ cookiecutter.__settings_class }}
    settings: {{ cookiecutter.__settings_class }}

{% if cookiecutter.source == "custom" %}
    def read(self, data_source: str, params: Params, after: Any = None) -> Iterator[Rows]:
        """Read a CSV file of `source_folder`: put your own source, such as an API, in its place."""
        path = self.settings.source_folder / Path(data_source).name
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            while batch := list(islice(rows, self.batch_rows)):
                yield batch

{% endif %}
    def process(self, batches: Iterable[Rows], params: Params) -> Iterator[Rows]:
        """Strip every text and leave out the rows that say nothing; the order is kept."""
        for batch in batches:
            rows = [cleaned(row) for row in batch]
            yield [row for row in rows if any(value not in (None, "") for value in row.values())]


def cleaned(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose texts have no blanks around them."""
    return {key: v.strip() if isinstance(v, str) else v for key, v in row.items()}
{% endif %}

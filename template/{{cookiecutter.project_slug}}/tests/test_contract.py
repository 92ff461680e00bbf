"""What every {{ cookiecutter.kind }} must do: catalogzero's contract suite, run against this one."""

{% if cookiecutter.source == "sql" %}
import csv
import sqlite3
from contextlib import closing
{% endif %}
{% set own_config = cookiecutter.source in ("sql", "custom") %}
{% set names = (["Any"] if own_config else []) + (["ClassVar"] if cookiecutter.upload_form == "simple" else []) %}
{% if names %}
from typing import {{ names | join(", ") }}

{% endif %}
from catalogzero.testing import {{ "Lab, " if own_config }}{{ cookiecutter.kind | title }}Contract

{{ cookiecutter.module_path | import_line(cookiecutter.class_name) }}


class Test{{ cookiecutter.class_name }}({{ cookiecutter.kind | title }}Contract):
    """Each check has a name: `exclude = {"name": "why it does not hold here"}` leaves one out."""

    handler_class = {{ cookiecutter.class_name }}
{% if cookiecutter.upload_form == "simple" %}
    exclude: ClassVar = {
        "full_sends_again_and_doubles_nothing": "the simple form names no source to replace",
    }
{% endif %}
{% if cookiecutter.source == "sql" %}

    def config(self, lab: Lab) -> dict[str, Any]:
        """A database with the sample in it, and the query that the client would configure."""
        database = lab.folder / "orders.sqlite"
        if not database.exists():
            with self.sample_path().open(encoding="utf-8", newline="") as file:
                header, *rows = csv.reader(file)
            with closing(sqlite3.connect(database)) as connection, connection:
                connection.execute(f"CREATE TABLE orders ({', '.join(header)})")
                places = ", ".join("?" * len(header))
                connection.executemany(f"INSERT INTO orders VALUES ({places})", rows)  # noqa: S608
        query = {"url": f"sqlite:///{database}", "query": "SELECT * FROM orders"}
        return {**super().config(lab), "sources": {"orders": query}}

    def data_source(self, lab: Lab) -> str:
        """The query's name, as a call gives it."""
        return "sql:orders"
{% elif cookiecutter.source == "custom" %}

    def config(self, lab: Lab) -> dict[str, Any]:
        """The folder that `read` reads."""
        return {**super().config(lab), "source_folder": str(lab.folder / "data")}

    def data_source(self, lab: Lab) -> str:
        """The sample's name: `read` takes names, not paths."""
        super().data_source(lab)
        return self.sample_path().name
{% endif %}

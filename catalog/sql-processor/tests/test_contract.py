"""What every processor must do: catalogzero's contract suite, run against this one."""

import csv
import sqlite3
from contextlib import closing
from typing import Any

from catalogzero.testing import Lab, ProcessorContract

from sql_processor.handler import SqlProcessor


class TestSqlProcessor(ProcessorContract):
    """Each check has a name: `exclude = {"name": "why it does not hold here"}` leaves one out."""

    handler_class = SqlProcessor

    def config(self, lab: Lab) -> dict[str, Any]:
        """A database with the sample in it, and the query that the client would configure."""
        database = lab.folder / "orders.sqlite"
        if not database.exists():
            with self.sample_path().open(encoding="utf-8", newline="") as file:
                header, *rows = csv.reader(file)
            with closing(sqlite3.connect(database)) as connection, connection:
                connection.execute(
                    f"CREATE TABLE orders ({', '.join([f'{header[0]} INTEGER', *header[1:]])})"
                )
                places = ", ".join("?" * len(header))
                connection.executemany(f"INSERT INTO orders VALUES ({places})", rows)  # noqa: S608
        url, query = f"sqlite:///{database}", "SELECT * FROM orders"
        source = {"url": url, "query": query, "watermark": "order_id"}
        return {**super().config(lab), "sources": {"orders": source}}

    def data_source(self, lab: Lab) -> str:
        """The query's name, as a call gives it."""
        return "sql:orders"

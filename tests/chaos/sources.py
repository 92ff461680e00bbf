"""What the client has: files whose content changes, and a table that only grows."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

MIN_FILES, FILE_ROWS = 10, 40_000
TABLE_SHARE = 50


def files_of(rows: int) -> int:
    """How many files that number of rows stands in."""
    return max(rows // FILE_ROWS, MIN_FILES)


class Sources:
    """Files and a table below a folder.

    Args:
        folder: Where `exports/` and `orders.db` are made.
        rows: Rows in all files together.
        dice: Choose files and contents.
    """

    def __init__(self, folder: Path, rows: int, dice: random.Random) -> None:
        self.exports, self._table = folder / "exports", folder / "orders.db"
        self._files, self._dice = files_of(rows), dice
        self._rows = max(rows // self._files, 1)
        self._contents: dict[str, list[int]] = {}
        self._made = 0
        self.exports.mkdir()
        with closing(sqlite3.connect(self._table)) as table:
            table.execute("PRAGMA journal_mode=WAL")  # a run that reads holds no writer up
            table.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
        for number in range(self._files):
            self.renew(f"f{number}.csv")
        self.add_orders()

    @property
    def table_url(self) -> str:
        """The table's database, as SQLAlchemy names it."""
        return f"sqlite:///{self._table}"

    def some(self) -> str:
        """The name of a file."""
        return f"f{self._dice.randrange(self._files)}.csv"

    def path(self, name: str) -> Path:
        """Where a file is."""
        return self.exports / name

    def renew(self, name: str) -> None:
        """A content that this file never had."""
        self._made += 1
        self._contents.setdefault(name, []).append(self._made)
        self._write(name, self._made)

    def take_back(self, name: str, versions: int = 1) -> None:
        """The content that the file had that number of versions ago, or its first."""
        had = self._contents[name]
        self._write(name, had[max(-1 - versions, -len(had))])

    def touch(self, name: str) -> None:
        """The same content, written again."""
        text = self.path(name).read_text()
        self._replace(name, text)

    def add_orders(self) -> None:
        """Some more rows in the table."""
        many = max(self._rows // TABLE_SHARE, 10)
        with closing(sqlite3.connect(self._table)) as table, table:
            table.executemany("INSERT INTO orders (id) VALUES (?)", [(None,)] * many)

    def rows(self) -> dict[str, Counter[str]]:
        """Every row that the backend must show, by its source's name there."""
        found = {
            f"exports/{path.name}": Counter(path.read_text().split()[1:])
            for path in self.exports.glob("*.csv")
        }
        with closing(sqlite3.connect(self._table)) as table:
            orders = table.execute("SELECT id FROM orders").fetchall()
        return {**found, "sql:orders": Counter(str(row[0]) for row in orders)}

    def _write(self, name: str, number: int) -> None:
        lines = "".join(f"{name}-{number}-{n}\n" for n in range(self._rows))
        self._replace(name, f"id\n{lines}")

    def _replace(self, name: str, text: str) -> None:
        part = self.path(name).with_suffix(".part")
        part.write_text(text)
        part.rename(self.path(name))

"""What the client has: files and a table that grows; lines of two streams; accounts with a key."""

from __future__ import annotations

import random
import sqlite3
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

from tests.chaos.verdict import Record

ORDERS = "sql:orders"
ACCOUNTS = "sql:accounts"
MIN_FILES, FILE_ROWS = 10, 40_000
TABLE_SHARE = 50
SMALL, SMALL_ROWS = "small.csv", 10


def files_of(rows: int) -> int:
    """How many files that number of rows stands in."""
    return max(rows // FILE_ROWS, MIN_FILES)


class Client(ABC):
    """What one client has, below a folder, and what of it the backend must show.

    Args:
        folder: Where it is made.
        rows: How much of it there is.
        dice: Choose what changes.

    Attributes:
        author: The class of `processors` that sends it.
        config: Of its handler: what may be read.
        calls: The data_sources that a run is called with.
    """

    author: ClassVar[str]
    config: Mapping[str, Any]
    calls: tuple[str, ...]

    @abstractmethod
    def __init__(self, folder: Path, rows: int, dice: random.Random) -> None: ...

    @abstractmethod
    def change(self) -> None:
        """Something is there that was not."""

    def change_of(self, call: str) -> None:
        """The same of what one call reads."""
        self.change()

    @abstractmethod
    def rows(self) -> dict[str, Counter[str]]:
        """Every row that the backend must show, by where it must."""

    @abstractmethod
    def shown(self, records: Iterable[Record]) -> dict[str, Counter[str]]:
        """The same of what the backend has."""


class Sources(Client):
    """Files and a table that only grows, `exports/` and `orders.db`; rows are of all files."""

    author = "Mortal"

    def __init__(
        self, folder: Path, rows: int, dice: random.Random, files: int | None = None
    ) -> None:
        self.exports, self._table = folder / "exports", folder / "orders.db"
        url = f"sqlite:///{self._table}"
        orders = {"url": url, "query": "SELECT id FROM orders", "watermark": "id"}
        self.config = {"data_roots": [str(self.exports)], "sources": {"orders": orders}}
        self.calls = (str(self.exports), ORDERS)
        self._files, self._dice = files or files_of(rows), dice
        self._rows = max(rows // self._files, 1)
        self._contents: dict[str, list[int]] = {}
        self._made = 0
        self.exports.mkdir()
        with closing(sqlite3.connect(self._table)) as table:
            table.execute("PRAGMA journal_mode=WAL")  # a run that reads holds no writer up
            table.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
        for number in range(self._files):
            self.renew(f"f{number}.csv")
        self.renew(SMALL)
        self.add_orders()

    def change(self) -> None:
        """A file has another content, a small one too, the table has more rows."""
        self.renew(self.some())
        self.renew(SMALL)
        self.add_orders()

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
        """See `Client.rows`: by the source's name."""
        found = {
            f"exports/{path.name}": Counter(path.read_text().split()[1:])
            for path in self.exports.glob("*.csv")
        }
        with closing(sqlite3.connect(self._table)) as table:
            orders = table.execute("SELECT id FROM orders").fetchall()
        return {**found, ORDERS: Counter(str(row[0]) for row in orders)}

    def shown(self, records: Iterable[Record]) -> dict[str, Counter[str]]:
        """See `Client.shown`: by source."""
        found: dict[str, Counter[str]] = {}
        for record in records:
            found.setdefault(record.source, Counter())[str(record.row["id"])] += 1
        return found

    def _write(self, name: str, number: int) -> None:
        many = SMALL_ROWS if name == SMALL else self._rows
        lines = "".join(f"{name}-{number}-{n}\n" for n in range(many))
        self._replace(name, f"id\n{lines}")

    def _replace(self, name: str, text: str) -> None:
        part = self.path(name).with_suffix(".part")
        part.write_text(text)
        part.rename(self.path(name))


class ManyCalls(Sources):
    """The same with a run for each file, and tables that are sent whole, by a query each.

    Nobody notices that a table has changed since it was read, but whoever seals it. Every other one
    has several chunks, which are stored while the rest is read.
    """

    FILES, WHOLES = 90, 6
    WHOLE_ROWS = (10, 1_500)

    def __init__(self, folder: Path, rows: int, dice: random.Random) -> None:
        super().__init__(folder, rows, dice, self.FILES)
        self._wholes = folder / "wholes.db"
        self._whole_calls = tuple(f"sql:whole{number}" for number in range(self.WHOLES))
        with closing(sqlite3.connect(self._wholes)) as table:
            table.execute("PRAGMA journal_mode=WAL")
            table.execute("CREATE TABLE wholes (name TEXT, id TEXT)")
        for call in self._whole_calls:
            query = f"SELECT id FROM wholes WHERE name = '{call}' ORDER BY rowid"  # noqa: S608  # our own name
            about = {"url": f"sqlite:///{self._wholes}", "query": query}
            self.config["sources"][call.partition(":")[2]] = about
            self.change_of(call)
        files = sorted(str(path) for path in self.exports.glob("*.csv"))
        self.calls = (*files, *self._whole_calls, ORDERS)

    def change_of(self, call: str) -> None:
        """What a call reads has another content, or more of it."""
        if call == ORDERS:
            self.add_orders()
        elif call in self._whole_calls:
            self._made += 1
            many = self.WHOLE_ROWS[self._whole_calls.index(call) % 2]
            rows = [(call, f"{call}-{self._made}-{n}") for n in range(many)]
            with closing(sqlite3.connect(self._wholes)) as table, table:
                table.execute("DELETE FROM wholes WHERE name = ?", (call,))
                table.executemany("INSERT INTO wholes VALUES (?, ?)", rows)
        else:
            self.renew(Path(call).name)

    def rows(self) -> dict[str, Counter[str]]:
        """See `Client.rows`."""
        found = super().rows()
        with closing(sqlite3.connect(self._wholes)) as table:
            for name, row in table.execute("SELECT name, id FROM wholes"):
                found.setdefault(name, Counter())[row] += 1
        return found


class Lines(Client):
    """A table of numbered lines; an own `read` gives them in pages, odd and even are streams."""

    author = "Pages"
    config: Mapping[str, Any] = {}

    def __init__(self, folder: Path, rows: int, dice: random.Random) -> None:
        self._table, self._rows, self._dice = folder / "lines.db", rows, dice
        self.calls = (str(self._table),)
        with closing(sqlite3.connect(self._table)) as table:
            table.execute("PRAGMA journal_mode=WAL")
            table.execute("CREATE TABLE lines (id INTEGER PRIMARY KEY)")
        self.change()

    def change(self) -> None:
        """Some pages more; now and then of one stream alone."""
        with closing(sqlite3.connect(self._table)) as table, table:
            last = table.execute("SELECT COALESCE(MAX(id), 0) FROM lines").fetchone()[0]
            step = self._dice.choice((1, 1, 2))
            numbers = range(last + 1, last + 1 + step * self._rows, step)
            table.executemany("INSERT INTO lines (id) VALUES (?)", [(n,) for n in numbers])

    def rows(self) -> dict[str, Counter[str]]:
        """See `Client.rows`: by stream."""
        found: dict[str, Counter[str]] = {"odd": Counter(), "even": Counter()}
        with closing(sqlite3.connect(self._table)) as table:
            for (number,) in table.execute("SELECT id FROM lines"):
                found["odd" if number % 2 else "even"][str(number)] += 1
        return found

    def shown(self, records: Iterable[Record]) -> dict[str, Counter[str]]:
        """See `Client.shown`: by stream."""
        found: dict[str, Counter[str]] = {}
        for record in records:
            found.setdefault(record.stream, Counter())[str(record.row["id"])] += 1
        return found


class Accounts(Client):
    """A table with a key, read by `at`: rows change, come late within `LOOKBACK`, are closed."""

    LOOKBACK = 3
    author = "Keyed"
    calls = (ACCOUNTS,)

    def __init__(self, folder: Path, rows: int, dice: random.Random) -> None:
        self._table, self._rows, self._dice = folder / "accounts.db", rows, dice
        self._at, self._changes = self.LOOKBACK, 0
        accounts = {
            "url": f"sqlite:///{self._table}",
            "query": "SELECT account, at, balance, closed FROM accounts",
            "watermark": "at",
            "lookback": self.LOOKBACK,
        }
        self.config = {"sources": {"accounts": accounts}}
        with closing(sqlite3.connect(self._table)) as table:
            table.execute("PRAGMA journal_mode=WAL")
            columns = "account INTEGER PRIMARY KEY, at INTEGER, balance INTEGER, closed INTEGER"
            table.execute(f"CREATE TABLE accounts ({columns})")
        self.change()

    def change(self) -> None:
        """Accounts are opened, some of them late; others change, or are closed."""
        self._at += self._dice.choice((0, 1, 1, 2))
        self._changes += 1
        with closing(sqlite3.connect(self._table)) as table, table:
            for _ in range(self._rows):
                late = self._dice.choice((0, 0, self._dice.randint(1, self.LOOKBACK)))
                opened = (self._at - late, self._changes)
                table.execute("INSERT INTO accounts (at, balance, closed) VALUES (?, ?, 0)", opened)
            [(last,)] = table.execute("SELECT MAX(account) FROM accounts")
            for _ in range(self._rows):
                closed = int(self._dice.random() < 0.1)
                changed = (self._at, self._changes, closed, self._dice.randint(1, last))
                table.execute(
                    "UPDATE accounts SET at = ?, balance = ?, closed = ? WHERE account = ?", changed
                )

    def set_balance(self, balance: int) -> None:
        """The first account has another balance, without a change of `at`."""
        with closing(sqlite3.connect(self._table)) as table, table:
            changed = (balance, self._at)
            table.execute(
                "UPDATE accounts SET balance = ?, at = ?, closed = 0 WHERE account = 1", changed
            )

    def rows(self) -> dict[str, Counter[str]]:
        """See `Client.rows`: the newest of each key that is not closed."""
        with closing(sqlite3.connect(self._table)) as table:
            found = table.execute("SELECT account, at, balance FROM accounts WHERE NOT closed")
            return {"accounts": Counter(str(row) for row in found)}

    def shown(self, records: Iterable[Record]) -> dict[str, Counter[str]]:
        """See `Client.shown`: of each key the row of the greatest (source_seq, chunk, row)."""
        newest: dict[int, Record] = {}
        for record in records:
            there = newest.setdefault(record.row["account"], record)
            if there.order < record.order:
                newest[record.row["account"]] = record
        rows = [record.row for record in newest.values() if not record.row["closed"]]
        return {"accounts": Counter(str((r["account"], r["at"], r["balance"])) for r in rows)}

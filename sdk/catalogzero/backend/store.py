"""The database behind the backend, and the statements that its two dialects write differently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite

from catalogzero.backend import schema
from catalogzero.sql import engines

READERS = 4
WRITERS = 8


class Database(engines.Database):
    """The backend's database, with its schema; see `engines.Database`."""

    def __init__(self, url: str, answer_s: float = engines.ANSWER_S) -> None:
        super().__init__(
            url,
            schema.SCHEMA,
            setting="database",
            name="backend",
            writers=WRITERS,
            readers=READERS,
            answer_s=answer_s,
        )


def insert_new(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless its key is there already; whether it was inserted."""
    statement = insert_into(connection, table).values(dict(values)).on_conflict_do_nothing()
    counting = {"preserve_rowcount": True}
    return connection.execute(statement, execution_options=counting).rowcount == 1


def upsert(
    connection: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    key: Sequence[str],
    changed: Iterable[str],
) -> None:
    """Insert rows; where a key is there already, set its `changed` columns to the row's."""
    statement = insert_into(connection, table)
    changes = {name: statement.excluded[name] for name in changed}
    connection.execute(
        statement.on_conflict_do_update(index_elements=list(key), set_=changes),
        [dict(row) for row in rows],
    )


def insert_into(connection: Connection, table: Table) -> Any:
    """The dialect's own INSERT, which knows ON CONFLICT."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)

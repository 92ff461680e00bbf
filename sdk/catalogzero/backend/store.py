"""The database behind the backend, and the statements that its two dialects write differently."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from catalogzero.backend import schema
from catalogzero.sql import engines

Columns = dict[str, Any]
"""The values of a row's columns, by their names."""

READERS = 4
WRITERS = 8


class BackendDatabase(engines.Database):
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


def insert_new(connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless its key is there already; whether it was inserted."""
    statement = insert_into(connection, table).values(dict(values)).on_conflict_do_nothing()
    # SQLAlchemy keeps the row count of an INSERT only where it is asked to
    counting = {"preserve_rowcount": True}
    return connection.execute(statement, execution_options=counting).rowcount == 1


def held(
    connection: sa.Connection,
    table: sa.Table,
    key: Mapping[str, Any],
    new: Mapping[str, Any],
    *columns: sa.ColumnElement[Any],
    share: bool = False,
) -> sa.Row[Any]:
    """The row of a key, made of `new` where there is none, and locked to the transaction's end.

    One that another transaction deletes between the two statements is made again. Most are there,
    so that looking first takes one statement.

    Args:
        connection: Of a running transaction.
        table: The row's.
        key: Columns that are unique together.
        new: The other columns of a row that is made.
        columns: Those that are read: a wide row takes longer to read than to find.
        share: Others may hold it so at the same time.
    """
    one = (table.c[name] == value for name, value in key.items())
    locked = sa.select(*columns).where(*one).with_for_update(read=share)
    made = insert_into(connection, table).values(**key, **new)
    made = made.on_conflict_do_nothing().returning(*columns)
    while True:
        row = connection.execute(locked).one_or_none() or connection.execute(made).one_or_none()
        if row is not None:
            return row


def insert_many(
    connection: sa.Connection,
    table: sa.Table,
    rows: Sequence[Mapping[str, Any]],
    key: Sequence[str] = (),
    changes: Callable[[Any], Mapping[str, Any]] | None = None,
) -> None:
    """Insert rows of the same columns, on PostgreSQL by one statement.

    Args:
        connection: Of a running transaction.
        table: Where they go.
        rows: At least one, each with another key.
        key: The columns by which one is there already.
        changes: What such a one becomes, by the new row's columns; without it that is an error.
    """
    names = list(rows[0])
    statement, given = insert_into(connection, table), [dict(row) for row in rows]
    if connection.dialect.name == "postgresql":
        typed = (sa.column(name, table.c[name].type) for name in names)
        # one parameter for all rows: a statement of PostgreSQL's has 65,535 at most
        given_rows = sa.cast(sa.bindparam("rows", type_=sa.Text), sa.JSON)
        read = sa.func.json_to_recordset(given_rows).table_valued(*typed)
        read = read.render_derived(with_types=True)
        statement = statement.from_select(names, sa.select(*read.c))
        given = [{"rows": orjson.dumps(given).decode()}]
    if changes is not None:
        new = changes(statement.excluded)
        statement = statement.on_conflict_do_update(index_elements=list(key), set_=new)
    connection.execute(statement, given)


def insert_into(connection: sa.Connection, table: sa.Table) -> Any:
    """The dialect's own INSERT, which knows ON CONFLICT."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)


def count_rows(connection: sa.Connection, table: sa.Table, which: sa.ColumnElement[bool]) -> int:
    """How many rows of a table there are of which `which` is true."""
    return connection.scalar(sa.select(sa.func.count()).select_from(table).where(which)) or 0

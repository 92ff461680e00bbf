"""Named queries as sources: SQL and URL stand in the client's config, never in a call.

With a watermark, the range is fixed first (`after` < watermark <= `until`) and read in the same
transaction, so that a row written meanwhile belongs to the next run. Rows with a key are read from
the watermark on, less `lookback`: those that tie with it, or come late, are not lost. Needs the
extra `sql`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self, cast

from sqlalchemy import column, func, make_url, select, text
from sqlalchemy.exc import DataError, SQLAlchemyError

from catalogzero.cloud.reading.ahead import read_ahead
from catalogzero.cloud.reading.items import Item, RowReading
from catalogzero.cloud.reading.records import BadRecords, ReadOptions
from catalogzero.cloud.rows.streams import Stream
from catalogzero.cloud.rows.values import Row, UnfitError, refuse_twice, where
from catalogzero.cloud.settings import Batch, CloudSettings, QuerySource
from catalogzero.config.key_files import read_key
from catalogzero.errors import BadParamsError, ConfigError, FailedError
from catalogzero.protocol.identities import Mode, digest_of
from catalogzero.sql.engines import open_source

if TYPE_CHECKING:
    import pyarrow as pa

    from catalogzero.cloud.rows.tables import Tables

PREFIX = "sql:"
_NAMED = 20
ASKED_WITHOUT_ROWS = ("postgresql", "sqlite", "mysql", "mariadb")
"""Dialects in which every query can be a table of another."""


def query_item(
    settings: CloudSettings, data_source: str, options: ReadOptions, streams: Sequence[Stream]
) -> QueryItem:
    """The item of `sql:<name>`.

    Args:
        settings: The client's config.
        data_source: As called.
        options: How its rows are batched.
        streams: What the class declares: where each has a key, the rows at the watermark, and those
            within `lookback`, are read again.

    Raises:
        BadParamsError: The config has no query of that name, or it looks back without a key.
    """
    name = data_source.removeprefix(PREFIX)
    query = settings.sources.get(name)
    if query is None:
        known = ", ".join(sorted(settings.sources)) or "none"
        message = f"no query {name!r} in the config's sources; there are: {known}"
        raise BadParamsError(message, details=[{"field": "data_source", "message": message}])
    if fault := lookback_fault(data_source, query, streams):
        message = ": ".join(fault)
        raise BadParamsError(message, details=[{"field": "data_source", "message": message}])
    reads_again = all(stream.key for stream in streams)
    return QueryItem(data_source, query, options, reads_again)


def lookback_fault(
    name: str, query: QuerySource, streams: Sequence[Stream]
) -> tuple[str, str] | None:
    """Why a query may not read rows again, and the fix; None where it may, or does not."""
    keyless = [stream.name for stream in streams or (Stream(""),) if not stream.key]
    if not query.lookback or not keyless:
        return None
    which = f"stream {keyless[0]!r}" if keyless[0] else "its class"
    return (
        f"{name}: lookback reads rows again, and {which} has no key, so that they would be twice",
        "take `lookback` out of the config, or declare a key in the class",
    )


@dataclass(frozen=True)
class QueryItem(Item):
    """A named query; with `reads_again`, from the watermark on instead of behind it."""

    name: str
    query: QuerySource
    options: ReadOptions
    reads_again: bool = False

    @property
    def mode(self) -> Mode:
        """A query with a watermark appends."""
        return "replace" if self.query.watermark is None else "append"

    @property
    def bound(self) -> dict[str, str] | None:
        """The watermark's column, its database without user and password, and the query's text."""
        if self.query.watermark is None:
            return None
        url = make_url(database_url(self.query))
        place = [url.get_backend_name(), url.host, url.port, url.database]
        text = " ".join(self.query.query.split()).rstrip("; ")
        return {
            "column": self.query.watermark,
            "database": ":".join(str(part or "") for part in place),
            "query": digest_of(text),
        }

    def open(self, after: Any, bad: BadRecords) -> QueryReading:
        """See `Item.open`."""
        return QueryReading(self, after, bad)


class QueryReading(RowReading):
    """One pass over a query's rows, streamed, in one transaction: of one state of the database."""

    def __init__(self, item: QueryItem, after: Any, bad: BadRecords) -> None:
        super().__init__(item.mode, after)
        self._item, self._bad = item, bad
        self._tables: Tables | None = None
        self._rows = 0

    def __enter__(self) -> Self:
        query = self._item.query
        try:
            source = open_source(database_url(query), query.answer_timeout_s)
            self._connection = self._stack.enter_context(source)
            if self._connection.dialect.driver == "psycopg":
                from catalogzero.cloud.reading.dates import load_as_text

                load_as_text(cast("Any", self._connection.connection.driver_connection))
        except SQLAlchemyError as error:
            raise query_error(self._item.name, error) from error
        return self

    def batches(self) -> Iterator[Batch]:
        """See `Reading.batches`."""
        return read_ahead(self._batches(), self._item.options.batches_ahead, self._stack)

    def _batches(self) -> Iterator[Batch]:
        options = self._item.options
        try:
            statement, values = self._statement()
            rows = self._connection.execution_options(
                stream_results=True, max_row_buffer=options.batch_rows
            ).execute(statement, values)
            names = list(rows.keys())
            refuse_twice(names, self._item.name)
            for part in self._parts(rows.partitions(options.batch_rows), names):
                batch = [dict(zip(names, row, strict=True)) for row in part]
                self.digest(batch)
                yield batch if not options.arrow else self._table(batch)
        except SQLAlchemyError as error:
            raise query_error(self._item.name, error) from error

    def _parts(self, parts: Iterator[Any], names: list[str]) -> Iterator[Any]:
        """The rows as the driver gives them.

        Raises:
            FailedError: The driver has no value for one; its columns are named.
        """
        count = 0
        while True:
            try:
                # A driver meets a value that Python cannot hold only as the rows are fetched.
                part = next(parts, None)
            except (DataError, ValueError, ArithmeticError) as error:
                why = getattr(error, "orig", error)
                raise FailedError(
                    f"{self._item.name}, after row {count}: {why}; cast to text in the query which "
                    f"of these has no form in Python: {', '.join(names[:_NAMED])}"
                ) from error
            if part is None:
                return
            count += len(part)
            yield part

    def _table(self, batch: list[Row]) -> pa.Table:
        """The Arrow table of some rows, the first batch's columns and types in all of them."""
        from catalogzero.cloud.rows.tables import Tables

        def refuse(row: int, error: UnfitError, record: Any) -> None:
            self._bad.take(self._item.name, None, where(row, error), repr(record))

        self._tables = self._tables or Tables(None, refuse, 0)
        start, self._rows = self._rows + 1, self._rows + len(batch)
        return self._tables.whole(batch, start)

    def _statement(self) -> tuple[Any, dict[str, Any]]:
        """The query, or the part of it above the watermark."""
        query = self._item.query
        sql = query.query.strip().rstrip(";").replace(":", r"\:")  # it takes no parameters
        if query.watermark is None:
            return text(sql), {}
        rows = text(sql).columns(column(query.watermark)).subquery("source")
        mark = rows.c[query.watermark]
        until = self._connection.execute(select(func.max(mark))).scalar()
        name = self._connection.dialect.identifier_preparer.quote(query.watermark)
        whole = "SELECT * FROM (" + sql + "\n) AS source WHERE "  # noqa: S608  # the client's own config
        low, after = "", self.after
        if after is not None and self._item.reads_again:
            low = f"{name} >= :after AND "
            above = text(f"SELECT max({name}) FROM ({sql}\n) AS source WHERE {name} >= :after")  # noqa: S608  # as above
            after = looked_back(self._item.name, after, until, query.lookback)
            if self._connection.execute(above, {"after": self.after}).scalar() is None:
                until = self.after  # a last row that is gone does not take the watermark back
        elif after is not None:
            low = f"{name} > :after AND "
        if until is not None:
            self.until = watermark_json(until)
        bounds = {"until": until, "after": after}
        return text(f"{whole}{low}{name} <= :until ORDER BY {name}"), bounds


def columns_of(query: QuerySource, name: str, answer_s: float) -> list[str]:
    """The columns of a query's result, without a row of it; empty where that cannot be asked for.

    Raises:
        FailedError: Its database does not answer, or has not what the query names.
    """
    sql = query.query.strip().rstrip(";").replace(":", r"\:")
    try:
        with open_source(database_url(query), answer_s) as connection:
            # Without a watermark a query is sent as it is: elsewhere it may be no table of another.
            if query.watermark is None and connection.dialect.name not in ASKED_WITHOUT_ROWS:
                return []
            asked = f"SELECT * FROM ({sql}\n) AS source WHERE 1 = 0"  # noqa: S608  # as above
            return list(connection.execute(text(asked)).keys())
    except SQLAlchemyError as error:
        raise query_error(name, error) from error


def database_url(query: QuerySource) -> str:
    """The URL of a query's database.

    Raises:
        ConfigError: `url_file` cannot be read.
    """
    if query.url is not None:
        return query.url.get_secret_value()
    try:
        return (read_key(query.url_file) if query.url_file else "").strip()
    except OSError as error:
        raise ConfigError(f"url_file {query.url_file} cannot be read: {error.strerror}") from error


def watermark_json(value: Any) -> Any:
    """A watermark as JSON; the database reads its text back."""
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) else value


def looked_back(source: str, after: Any, newest: Any, lookback: float) -> Any:
    """A watermark less `lookback`: seconds where it is a time or a date, else its own units.

    Args:
        source: The query's name.
        after: The watermark, as JSON.
        newest: The greatest value that the database has now, which says what kind it is of; None
            where it has none.
        lookback: How far back.

    Raises:
        FailedError: It is of a kind that nothing can be taken from.
    """
    if not lookback or newest is None:
        return after
    try:
        if isinstance(after, int | float):
            return after - (int(lookback) if float(lookback).is_integer() else lookback)
        if isinstance(newest, Decimal):
            return str(Decimal(after) - Decimal(str(lookback)))
        if isinstance(newest, date) and not isinstance(newest, datetime):
            days = timedelta(days=math.ceil(lookback / 86_400))
            return (date.fromisoformat(after) - days).isoformat()
        moment = datetime.fromisoformat(after) - timedelta(seconds=lookback)
        return moment.isoformat(sep="T" if "T" in after else " ")
    except (ValueError, TypeError, ArithmeticError) as error:
        raise FailedError(
            f"{source}: lookback takes {lookback:g} from the watermark {after!r}, which is neither "
            f"a number nor a time: {error}; take `lookback` out of the config"
        ) from error


def query_error(name: str, error: SQLAlchemyError) -> FailedError:
    """The error of a query; the driver's own words, without the statement and its values."""
    cause = getattr(error, "orig", None) or type(error).__name__
    return FailedError(f"{name}: {str(cause).strip()}")

"""Streams: what a class declares of its output, and the check of each row against it.

A schema is a pyarrow one or a pydantic model; the latter needs no pyarrow but for Parquet.
"""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, NaiveDatetime, ValidationError

from catalogzero.cloud.rows.batches import parts_of, rows_of
from catalogzero.cloud.rows.values import Refuse, Row, UnfitError
from catalogzero.cloud.settings import Batch, ProcessOutput
from catalogzero.errors import ConfigError
from catalogzero.wire.messages import JsonObject

if TYPE_CHECKING:
    import pyarrow as pa

    from catalogzero.cloud.rows.tables import Part


MAX_KEY_COLUMNS = 16


@dataclass(frozen=True, slots=True)
class Stream:
    """What a processor declares of its results.

    Attributes:
        name: Names the results at the backend; the entry's handler name where it is empty.
        schema: Their columns: a `pyarrow.Schema`, or a pydantic model of one row. Every chunk has
            these columns in this order; a row that does not fit is a bad record.
        key: The columns that name a row, at most 16. Of a source with a watermark, a row then
            takes the place of the earlier one of its key (mode `merge`); a row with a null or
            missing key is a bad record.
        tombstone: With a key, the column that says that the key is deleted: where it is neither
            missing, null, false nor 0 (also as the texts "false" and "0").
    """

    name: str
    schema: Any = None
    key: tuple[str, ...] = ()
    tombstone: str | None = None

    def __post_init__(self) -> None:
        """Refuse a schema of another kind, or with a name twice; a key that cannot be one."""
        columns = self._columns()
        at_fault = f"stream {self.name!r}: "
        given: Any = self.key
        if not isinstance(given, tuple) or not all(isinstance(one, str) for one in given):
            raise TypeError(f"{at_fault}`key` is a tuple of column names, as in ('order_id',)")
        if len(set(self.key)) < len(self.key) or len(self.key) > MAX_KEY_COLUMNS:
            raise TypeError(f"{at_fault}`key` has a column twice, or more than {MAX_KEY_COLUMNS}")
        if self.tombstone is not None and not self.key:
            raise TypeError(f"{at_fault}`tombstone` needs a `key`: what is deleted is a key's row")
        if self.tombstone in self.key:
            raise TypeError(f"{at_fault}`tombstone` is a column of the key")
        for name in (*self.key, *filter(None, [self.tombstone])):
            if columns is not None and name not in columns:
                raise TypeError(f"{at_fault}the schema has no column {name!r}")

    def _columns(self) -> list[str] | None:
        """The names of the schema's columns, None without one."""
        if self.schema is None:
            return None
        if is_model(self.schema):
            return list(self.schema.model_fields)
        names = getattr(self.schema, "names", None)
        if not isinstance(names, list) or not hasattr(self.schema, "field"):
            raise TypeError(
                f"stream {self.name!r}: `schema` is a pyarrow.Schema or a pydantic model, and this "
                f"is a {type(self.schema).__name__}"
            )
        if len(set(names)) < len(names):
            raise TypeError(f"stream {self.name!r}: a column of the schema stands twice")
        return names

    def describe(self) -> JsonObject:
        """Its name, the JSON Schema of a row, and its key."""
        shown: JsonObject = {"name": self.name} if self.name else {}
        if self.schema is not None:
            schema, model = self.schema, is_model(self.schema)
            shown["schema"] = schema.model_json_schema() if model else object_schema(schema)
        if self.key:
            shown["key"] = list(self.key)
        if self.tombstone is not None:
            shown["tombstone"] = self.tombstone
        return shown


def streams_of(cls: type) -> tuple[Stream, ...]:
    """What a class declares by `streams`, or by `schema` alone; empty where it declares nothing.

    Raises:
        TypeError: Streams without a name of their own, or two that say different things.
    """
    streams = tuple(getattr(cls, "streams", ()))
    schema, name = getattr(cls, "schema", None), getattr(cls, "stream", None)
    if not all(isinstance(stream, Stream) for stream in streams):
        raise TypeError(f"{cls.__qualname__}.streams is a tuple of `Stream` objects")
    names = [stream.name for stream in streams]
    if len(streams) > 1 and (not all(names) or len(set(names)) < len(names)):
        raise TypeError(f"{cls.__qualname__}.streams: each of several needs a name of its own")
    if streams and (schema is not None or name not in (None, streams[0].name)):
        raise TypeError(
            f"{cls.__qualname__} says twice what it sends: leave `schema` and `stream` out where "
            "`streams` stands"
        )
    if streams or schema is None:
        return streams
    return (Stream(name or "", schema),)


def with_stream(made: ProcessOutput) -> tuple[str | None, Batch]:
    """What `process` yielded: the stream that it names (None: it names none), and the batch."""
    return made if isinstance(made, tuple) else (None, made)


class RowCheck:
    """Numbers the rows of batches, and checks them against what the class declares.

    Args:
        schema: What a `Stream` declares; None for nothing.
        refuse: Takes each row that does not fit.
        as_tables: Whether the chunks need the types of Arrow, as Parquet does.
        key: The columns in which no row may have a null.
    """

    def __init__(
        self,
        schema: Any,
        refuse: Refuse,
        *,
        as_tables: bool = False,
        key: Sequence[str] = (),
    ) -> None:
        self._key = key
        self._model: type[BaseModel] | None = schema if is_model(schema) else None
        fields = {} if self._model is None else self._model.model_fields
        aliases = {name: field.validation_alias for name, field in fields.items()}
        # The key under which the model takes each of its fields.
        self._keys = {n: key if isinstance(key, str) else n for n, key in aliases.items()}
        self._refuse, self._rows, self._tables = refuse, 0, None
        arrow = schema if self._model is None else arrow_schema(schema) if as_tables else None
        if arrow is not None:
            from catalogzero.cloud.rows.tables import Tables

            self._tables = Tables(arrow, refuse, 0)

    def __call__(self, batch: Batch) -> Iterator[tuple[int, Part]]:
        """The parts of a batch that fit, each with the number of its first row."""
        for part in parts_of(batch):
            start, self._rows = self._rows + 1, self._rows + len(part)
            checked = [(start, part)] if self._model is None else self._runs(part, start)
            for first, rows in checked:
                typed = [(first, rows)] if self._tables is None else self._tables.add(rows, first)
                for number, fitting in typed:
                    yield from self._with_key(fitting, number) if self._key else [(number, fitting)]

    def _with_key(self, part: Part, first: int) -> Iterator[tuple[int, Part]]:
        """What of a part has a key, cut where a row is refused."""
        start = 0
        for index, column in sorted(self._without_key(part)):
            if start <= index:
                if start < index:
                    yield first + start, part[start:index]
                start = index + 1
                [row] = rows_of(part[index:start])
                why = UnfitError("a row without it has no key", column)
                self._refuse(first + index, why, row)
        if start < len(part):
            yield first + start, part[start:]

    def _without_key(self, part: Part) -> Iterator[tuple[int, str]]:
        """The rows that lack a column of the key, by index, each with that column."""
        for name in self._key:
            missing: Iterable[bool]
            if isinstance(part, list):
                missing = (row.get(name) is None for row in part)
            elif name in part.column_names:
                column = part.column(name)
                missing = column.is_null().to_pylist() if column.null_count else ()
            else:
                missing = [True] * len(part)
            yield from ((index, name) for index, lacks in enumerate(missing) if lacks)

    def _runs(self, part: Part, start: int) -> Iterator[tuple[int, list[Row]]]:
        """What the model takes, cut where a row is refused."""
        run: list[Row] = []
        number = start
        for row in rows_of(part):
            made = self._checked(row, number)
            number += 1
            if made is not None:
                run.append(made)
            elif run:
                yield number - 1 - len(run), run
                run = []
        if run:
            yield number - len(run), run

    def _checked(self, row: Mapping[str, Any], number: int) -> Row | None:
        """A row as the model has it; None where it is refused."""
        model = typing.cast("type[BaseModel]", self._model)
        if extra := sorted(map(str, row.keys() - self._keys.keys())):
            self._refuse(number, UnfitError("the schema has no such column", extra[0]), row)
            return None
        given = {self._keys[name]: value for name, value in row.items()}
        for name, field in model.model_fields.items():
            # A key that is missing is null, as in a table: the model says whether it may be.
            if field.is_required():
                given.setdefault(self._keys[name], None)
        try:
            return model.model_validate(given, strict=True).model_dump()
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False, include_context=False)[0]
            column = ".".join(map(str, first["loc"])) or None
            self._refuse(number, UnfitError(first["msg"], column), row)
            return None


def is_model(schema: Any) -> bool:
    """Whether it is a pydantic model."""
    return isinstance(schema, type) and issubclass(schema, BaseModel)


def arrow_schema(model: type[BaseModel]) -> pa.Schema:
    """The Arrow schema of a pydantic model.

    Raises:
        ConfigError: A field's type has no Arrow type; it names the field.
    """
    import pyarrow as pa

    fields = []
    for name, field in model.model_fields.items():
        try:
            kind = arrow_type(field.annotation, field.metadata)
        except TypeError as error:
            raise ConfigError(
                f"field {name}: {error}; use another type, or a pyarrow schema"
            ) from error
        nullable = type(None) in typing.get_args(field.annotation)
        fields.append(pa.field(name, kind, nullable=nullable))
    return pa.schema(fields)


def arrow_type(annotation: Any, metadata: list[Any]) -> pa.DataType:
    """The Arrow type of an annotation.

    Raises:
        TypeError: No type fits.
    """
    import pyarrow as pa

    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return arrow_type(args[0], [*metadata, *args[1:]])
    if origin in (typing.Union, types.UnionType):
        kinds = {arrow_type(arg, metadata) for arg in args if arg is not type(None)}
        if len(kinds) == 1:
            return kinds.pop()
    elif origin in (list, set, frozenset):
        return pa.list_(arrow_type(args[0], []))
    elif origin is dict:
        return pa.map_(arrow_type(args[0], []), arrow_type(args[1], []))
    elif origin is Literal:
        return arrow_type(type(args[0]), [])
    elif annotation is Decimal:
        digits = [getattr(part, "max_digits", None) for part in metadata]
        places = [getattr(part, "decimal_places", None) for part in metadata]
        if any(digits) and any(p is not None for p in places):
            precision = next(filter(None, digits))
            make = pa.decimal128 if precision <= 38 else pa.decimal256
            return make(precision, next(p for p in places if p is not None))
        raise TypeError("a Decimal needs Field(max_digits=…, decimal_places=…) for Parquet")
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return pa.struct(list(arrow_schema(annotation)))
    elif isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return arrow_type(type(next(iter(annotation)).value), [])
    elif annotation in plain_types():
        return plain_types()[annotation]
    raise TypeError(f"{annotation} has no Arrow type")


def plain_types() -> dict[Any, pa.DataType]:
    """Python's types that have one Arrow type each."""
    import pyarrow as pa

    moment = pa.timestamp("us")
    return {
        **{str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()},
        **{bytes: pa.binary(), UUID: pa.string(), date: pa.date32(), time: pa.time64("us")},
        **{datetime: moment, NaiveDatetime: moment, AwareDatetime: pa.timestamp("us", "UTC")},
        timedelta: pa.duration("us"),
    }


def object_schema(fields: Any) -> JsonObject:
    """The JSON Schema of rows, or of a struct."""
    return {
        "type": "object",
        "properties": {field.name: field_schema(field) for field in fields},
        "required": [field.name for field in fields if not field.nullable],
        "additionalProperties": False,
    }


def field_schema(field: Any) -> JsonObject:
    """The JSON Schema of a column, with its Arrow type."""
    schema = type_schema(field.type)
    schema = {"anyOf": [schema, {"type": "null"}]} if field.nullable else schema
    if about := (field.metadata or {}).get(b"description"):
        schema |= {"description": about.decode()}
    return {**schema, "x-arrow-type": str(field.type)}


def type_schema(kind: Any) -> JsonObject:
    """The JSON Schema of an Arrow type, as NDJSON writes it."""
    import pyarrow as pa

    is_a = pa.types
    looks: tuple[tuple[Any, JsonObject], ...] = (
        (is_a.is_boolean, {"type": "boolean"}),
        (is_a.is_integer, {"type": "integer"}),
        (is_a.is_floating, {"type": "number"}),
        (is_a.is_decimal, {"type": "number"}),
        (is_a.is_timestamp, {"type": "string", "format": "date-time"}),
        (is_a.is_date, {"type": "string", "format": "date"}),
        (is_a.is_time, {"type": "string", "format": "time"}),
        (is_a.is_duration, {"type": "string", "format": "duration"}),
        (is_a.is_binary, {"type": "string", "contentEncoding": "base64"}),
    )
    for look, schema in looks:
        if look(kind):
            return schema
    if is_a.is_struct(kind):
        return object_schema(kind)
    if is_a.is_list(kind) or is_a.is_large_list(kind):
        return {"type": "array", "items": type_schema(kind.value_type)}
    if is_a.is_map(kind):
        return {"type": "object", "additionalProperties": type_schema(kind.item_type)}
    return {"type": "string"}

"""The keys of rows in mode `merge`: by them the newest row of each key is found.

Owns the rows of `record_keys`. They are written before their upload is visible, chunk by chunk, so
that the transaction that shows it has nothing left to write, however many rows it has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import orjson
import sqlalchemy as sa

from catalogzero.backend.clearing import STEP, StepSize
from catalogzero.backend.decoding import EXACT
from catalogzero.backend.schema import chunks, record_keys, records, uploads
from catalogzero.backend.store import Columns, insert_many
from catalogzero.protocol.bodies import Complete
from catalogzero.protocol.judging import UploadState
from catalogzero.protocol.problems import Kind, ProblemError

ROWS_AT_ONCE = 1_000
PLAIN = {str, int, bool}
"""Values of these kinds are one text, however they are read."""
NOT_DELETED = (None, False, "false", "0")
"""False is 0 in databases that know no booleans, and either is a text in CSV."""


def merge_key(body: Complete) -> str:
    """Key and tombstone column of an upload as one text; empty in the other modes."""
    if not body.key:
        return ""
    return orjson.dumps({"key": body.key, "tombstone": body.tombstone}).decode()


def write_ahead(
    connection: sa.Connection, tenant_id: int, upload_id: str, body: Complete, size: StepSize = STEP
) -> bool:
    """Write the keys of some chunks of an upload that is still open; whether there may be more.

    Raises:
        ProblemError: A row has no key.
    """
    still_open = {"tenant_id": tenant_id, "upload_id": upload_id, "state": UploadState.OPEN.value}
    one = sa.select(uploads.c.upload_no).filter_by(**still_open).with_for_update()
    upload_no = connection.scalar(one)
    return upload_no is not None and _write_some(connection, tenant_id, upload_no, body, size)


def write(connection: sa.Connection, tenant_id: int, upload_no: int, body: Complete) -> None:
    """Write the keys of every chunk that has none for this body yet; the upload is held.

    Raises:
        ProblemError: A row has no key.
    """
    while _write_some(connection, tenant_id, upload_no, body, STEP):
        pass


def _write_some(
    connection: sa.Connection, tenant_id: int, upload_no: int, body: Complete, size: StepSize
) -> bool:
    """Write the keys of as many chunks as fit, one at least; whether there may be more."""
    source = orjson.dumps([tenant_id, body.installation_id, body.source_key])
    rule = orjson.dumps([body.source_seq, body.key, body.tombstone])
    keyed_by = hashlib.sha256(source + rule).hexdigest()
    other = chunks.c.keyed_by.is_distinct_from(keyed_by)
    due = sa.select(chunks.c.seq, chunks.c.records).where(chunks.c.upload_no == upload_no, other)
    taken: list[int] = []
    count = 0
    for chunk in connection.execute(due.order_by(chunks.c.seq).limit(size.chunks)).all():
        if taken and count + chunk.records > size.records:
            break
        taken.append(chunk.seq)
        count += chunk.records
    if not taken:
        return False
    # what an earlier `complete` of this upload noted for another key, or another place
    old = sa.and_(record_keys.c.upload_no == upload_no, record_keys.c.seq.in_(taken))
    connection.execute(sa.delete(record_keys).where(old))
    found = sa.select(records).where(records.c.upload_no == upload_no, records.c.seq.in_(taken))
    of_source = hashlib.blake2b(source, digest_size=16)
    # streamed: a chunk's texts together may be many megabytes
    with connection.execute(found, execution_options={"yield_per": ROWS_AT_ONCE}) as streamed:
        rows = [_keyed(record, body, of_source) for record in streamed]
    if rows:
        insert_many(connection, record_keys, rows)
    noted = sa.update(chunks).where(chunks.c.upload_no == upload_no, chunks.c.seq.in_(taken))
    connection.execute(noted.values(keyed_by=keyed_by))
    return True


def _keyed(record: sa.Row[Any], body: Complete, of_source: Any) -> Columns:
    """The row of `record_keys` for a record; `of_source` is the digest of what stands before."""
    try:
        text, is_tombstone = key_of(record.payload, body.key, body.tombstone)
    except ValueError as error:
        named = f"record {record.row_index + 1} of chunk {record.seq}"
        raise ProblemError(Kind.REFUSED_RECORDS, f"{named} {error}") from None
    digest = of_source.copy()
    digest.update(text)
    place = {name: getattr(record, name) for name in ("upload_no", "seq", "row_index")}
    kept = {"key_digest": digest.hexdigest(), "source_seq": body.source_seq}
    return {**place, **kept, "tombstone": is_tombstone}


def key_of(payload: str, columns: Sequence[str], tombstone: str | None) -> tuple[bytes, bool]:
    """The canonical JSON text of a record's key, and whether the record is a tombstone.

    Two keys are one where their values are: names sorted, texts by their characters, numbers as
    they are written. In a tombstone the column is there, and not one of `NOT_DELETED`.

    Raises:
        ValueError: A key column is missing or null; the sentence goes on after the record's place.
    """
    record = orjson.loads(payload)
    values = [record.get(column) for column in columns]
    if None in values:
        name = columns[values.index(None)]
        raise ValueError(f"has no value in the key column {name!r}")
    mark = None if tombstone is None else record.get(tombstone)
    is_tombstone = mark not in NOT_DELETED
    if {type(value) for value in values} <= PLAIN:
        return orjson.dumps(values), is_tombstone
    try:
        exact = EXACT.decode(payload)
        named = [exact[column] for column in columns]
        text = orjson.dumps(named, default=orjson.Fragment, option=orjson.OPT_SORT_KEYS)
    except (RecursionError, orjson.JSONEncodeError):
        raise ValueError("has a key that is nested too deeply") from None
    return text, is_tombstone

"""Uploads in the database: chunks stored, completes judged, each in one transaction.

Owns the statements around `judge`; every function takes the connection of a running
transaction. Rows are locked upload first, then source, so that on PostgreSQL two completes of one
source go one after the other; on SQLite there is one writer.
"""

from __future__ import annotations

import hashlib
import itertools
import uuid
from dataclasses import dataclass
from enum import Enum
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, Row, select, update

from catalogzero.backend import feed, generations, hours, installations, row_keys, witness
from catalogzero.backend.decoding import PORTION_BYTES, Records, portions, same_records
from catalogzero.backend.schema import chunks, records, sources, uploads
from catalogzero.backend.store import Columns, held, insert_new
from catalogzero.protocol.bodies import Complete
from catalogzero.protocol.judging import Completion, Judgement, Standing, UploadState, judge
from catalogzero.protocol.problems import Kind, ProblemError
from catalogzero.sql.engines import driver_errors

MAX_MISSING = 10_000
UPLOAD_COLUMNS = [
    uploads.c[name] for name in ("upload_no", "state", "source_id", "job_id", "visible")
]
SOURCE_COLUMNS = [
    sources.c[name]
    for name in ("source_id", "highest_seq", "watermark", "mode", "watermark_of", "merge_key")
]
INSERT_RECORDS = (
    "INSERT INTO records (upload_no, seq, row_index, payload)"
    " SELECT :upload_no, :seq, :start + key, value FROM json_each(:payloads)"
)
"""One statement for many rows of a chunk, on SQLite: less than half the time of one for each."""
INSERT_RECORD = (
    "INSERT INTO records (upload_no, seq, row_index, payload)"
    " VALUES (:upload_no, :seq, :start, CAST(:payload AS TEXT))"
)
"""Of a record that is better not copied more often than this."""


class Stored(Enum):
    """What became of one chunk."""

    NEW = "new"
    SAME = "same"
    DIFFERENT = "different"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class UploadOutcome:
    """The answer to a `complete`: the verdict, and what the answer carries.

    `job_id` is that of the visible upload; `source_seq` and `watermark` are the source's. `number`
    rises with each upload of the installation that is answered as there.
    """

    verdict: Judgement
    job_id: str | None
    source_seq: int
    watermark: Any
    generation: str
    missing: tuple[int, ...] = ()
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """What is stored of an upload."""

    state: UploadState
    chunks: list[int]
    job_id: str | None


def put_chunk(
    connection: Connection, tenant_id: int, upload_id: str, seq: int, body: Records, at: str
) -> Stored:
    """Store the records of one chunk, or say why they are not stored."""
    # shared: chunks of one upload are stored side by side, and its `complete` waits for them all
    upload = _upload(connection, tenant_id, upload_id, at, share=True)
    # The client may still repeat chunks of an upload whose end it has not heard of.
    if upload.state != UploadState.OPEN.value:
        return Stored.FINISHED
    if _insert_chunk(connection, upload.upload_no, seq, body, at):
        return Stored.NEW
    return _compare(connection, upload.upload_no, seq, body)


def complete(
    connection: Connection,
    tenant_id: int,
    upload_id: str,
    body: Complete,
    at: str,
    *,
    with_hook: bool = False,
) -> UploadOutcome:
    """Judge one `complete`, and carry the verdict out; accepted `with_hook`, it waits for that.

    Raises:
        ProblemError: It comes from a folder that another one took the place of, the totals of its
            chunks are not those of the body, or a row of it has no key.
    """
    # the first lock: whatever completes or removes for this installation waits here for its turn
    row = installations.held(connection, tenant_id, body.installation_id, at)
    current = generations.current(connection)
    with generations.named(generations.of(current, row.generation)):
        installations.admit(connection, row, body.installation_epoch, at)
    generation = witness.heard(connection, current, row, body.acknowledged, body.generation)
    with generations.named(generation):
        return _judged(connection, row, upload_id, body, at, generation, with_hook=with_hook)


def _judged(
    connection: Connection,
    installation: Row[Any],
    upload_id: str,
    body: Complete,
    at: str,
    generation: str,
    *,
    with_hook: bool,
) -> UploadOutcome:
    """The outcome of one `complete` that was let in."""
    tenant_id, number = installation.tenant_id, None
    upload = _upload(connection, tenant_id, upload_id, at, share=False)
    # The order of the locks is the same everywhere (installation, upload, source): with two orders,
    # two transactions would wait for each other.
    source = _source(connection, tenant_id, upload, body)
    twin = _visible_twin(connection, source, body)
    of_upload = select(chunks.c.seq, chunks.c.records).where(chunks.c.upload_no == upload.upload_no)
    stored = {row.seq: row.records for row in connection.execute(of_upload)}
    # Lazily: `chunks` is the client's word, and may be any number.
    absent = (seq for seq in range(body.chunks) if seq not in stored)
    missing = tuple(itertools.islice(absent, MAX_MISSING))
    claim = Completion(
        body.mode,
        body.full,
        body.source_seq,
        opaque_text(body.after),
        body.watermark_of,
        row_keys.merge_key(body),
    )
    standing = Standing(
        UploadState(upload.state),
        twin is not None,
        source.highest_seq,
        source.watermark,
        bool(missing),
        source.mode,
        source.watermark_of,
        source.merge_key,
    )
    verdict = judge(claim, standing)
    job_id = twin if verdict is Judgement.SAME_KEY else upload.job_id
    if verdict is Judgement.ACCEPTED:
        check_totals(stored, body)
        if body.mode == "merge":
            row_keys.write(connection, tenant_id, upload.upload_no, body)
        job_id = uuid.uuid4().hex
        _hide_older(connection, source, body, at)
        said = columns_of(body, source)
        _end(connection, upload.upload_no, said, at, job_id=job_id, with_hook=with_hook)
    elif verdict is Judgement.SUPERSEDED:
        _end(connection, upload.upload_no, columns_of(body, source), at)
    highest = _advance(connection, source, body, verdict)
    if verdict in (Judgement.ACCEPTED, Judgement.DUPLICATE, Judgement.SAME_KEY):
        given = witness.next_number(installation, upload_id)
        number = given["last_number"]
        if verdict is Judgement.ACCEPTED:
            given["last_upload_at"] = at
            hours.add_upload(connection, tenant_id, body.installation_id, body.records, at)
        installations.seen(connection, installation, at, **given)
    watermark = orjson.loads(source.watermark)
    return UploadOutcome(verdict, job_id, highest, watermark, generation, missing, number)


def store_simple(
    connection: Connection,
    tenant_id: int,
    key: str | None,
    body: Records,
    at: str,
    *,
    sender: tuple[str, int | None] | None = None,
    with_hook: bool = False,
) -> UploadOutcome:
    """Store the one array of the simple form as an upload of its own, visible at once.

    The same key with the same records answers the first job_id; without a key nothing is known
    twice. Its upload_id holds a colon, so that no chunked upload can have it.

    Args:
        sender: The installation that sends and its epoch, where the request names them.

    Raises:
        ProblemError: The key came with other records before, or another folder took the sender's
            place.
    """
    row, epoch = None, None
    if sender is not None:
        installation_id, epoch = sender
        row = installations.held(connection, tenant_id, installation_id, at)
    generation = generations.of(generations.current(connection), row.generation if row else "")
    with generations.named(generation):
        if row is not None:
            installations.admit(connection, row, epoch, at)
        upload_id = f"simple:{uuid.uuid4().hex if key is None else key_digest(key)[:48]}"
        upload = _upload(connection, tenant_id, upload_id, at, share=False)
        if upload.state == UploadState.COMPLETE.value:
            shown = upload.visible and _compare(connection, upload.upload_no, 0, body)
            if shown and shown is not Stored.SAME:
                raise ProblemError(Kind.KEY_REUSED, "this Idempotency-Key came with other records")
            return UploadOutcome(Judgement.DUPLICATE, upload.job_id, 0, None, generation)
        count = len(body.payloads)
        _insert_chunk(connection, upload.upload_no, 0, body, at)
        said: Columns = {"chunks": 1, "records": count, "upload_key": key, "mode": "append"}
        if row is not None:
            said["installation_id"] = row.installation_id
        job_id = uuid.uuid4().hex
        _end(connection, upload.upload_no, said, at, job_id=job_id, with_hook=with_hook)
        if row is not None:
            installations.seen(connection, row, at, last_upload_at=at)
            hours.add_upload(connection, tenant_id, row.installation_id, count, at)
        return UploadOutcome(Judgement.ACCEPTED, job_id, 0, None, generation)


def progress(connection: Connection, tenant_id: int, upload_id: str) -> Progress | None:
    """What is stored of an upload; none where it is not known."""
    one = select(uploads).filter_by(tenant_id=tenant_id, upload_id=upload_id)
    upload = connection.execute(one).one_or_none()
    if upload is None:
        return None
    stored = select(chunks.c.seq).where(chunks.c.upload_no == upload.upload_no)
    numbers = connection.scalars(stored.order_by(chunks.c.seq))
    return Progress(UploadState(upload.state), list(numbers), upload.job_id)


def opaque_text(value: Any) -> str:
    """An opaque value as the text that is stored and compared."""
    # Sorted: two that differ only in the order of their keys are one.
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _upload(
    connection: Connection, tenant_id: int, upload_id: str, at: str, *, share: bool
) -> Row[Any]:
    """The upload's row, opened where there is none, and locked: shared among chunks."""
    key = {"tenant_id": tenant_id, "upload_id": upload_id}
    new = {"state": UploadState.OPEN.value, "opened_at": at}
    return held(connection, uploads, key, new, *UPLOAD_COLUMNS, share=share)


def _source(connection: Connection, tenant_id: int, upload: Row[Any], body: Complete) -> Row[Any]:
    """The source's row, locked: that of a finished upload is the one it was finished for."""
    if upload.source_id is not None:
        found = select(*SOURCE_COLUMNS).where(sources.c.source_id == upload.source_id)
        return connection.execute(found).one()
    key = {
        "tenant_id": tenant_id,
        "installation_id": body.installation_id,
        "key_digest": key_digest(body.source_key),
    }
    return held(connection, sources, key, {"source_key": body.source_key}, *SOURCE_COLUMNS)


def _visible_twin(connection: Connection, source: Row[Any], body: Complete) -> str | None:
    """The job_id of the source's visible upload with the same upload_key, if there is one."""
    return connection.scalar(
        select(uploads.c.job_id).where(
            uploads.c.source_id == source.source_id,
            uploads.c.visible,
            uploads.c.key_digest == key_digest(body.upload_key),
        )
    )


def check_totals(stored: dict[int, int], body: Complete) -> None:
    """Refuse an upload with chunks past its last, or with another number of records."""
    records_stored = sum(stored.values())
    if (len(stored), records_stored) != (body.chunks, body.records):
        raise ProblemError(
            Kind.TOTALS_DIFFER,
            f"{len(stored)} chunks with {records_stored} records are stored, "
            f"complete says {body.chunks} with {body.records}",
        )


def _hide_older(connection: Connection, source: Row[Any], body: Complete, at: str) -> None:
    """In mode replace, and with `full`, what the source showed until now is hidden."""
    if body.mode == "replace" or body.full:
        older = (uploads.c.source_id == source.source_id) & uploads.c.visible
        hide(connection, older, at)


def hide(
    connection: Connection,
    which: ColumnElement[bool],
    at: str,
    what: feed.What = feed.What.HIDDEN,
) -> int:
    """Take uploads out of sight, for good: their rows may go from now on; how many they are."""
    # Locked before the feed notes them: what a parallel transaction hides is noted once.
    if not connection.execute(select(uploads.c.upload_no).where(which).with_for_update()).all():
        return 0
    feed.note(connection, what, which, at)
    hidden = {"visible": False, "clear_since": at, "hook_due_at": None, "hook_failed_at": None}
    return connection.execute(update(uploads).where(which).values(**hidden)).rowcount


def columns_of(body: Complete, source: Row[Any]) -> Columns:
    """The columns that a `complete` fills in."""
    said = body.model_dump(include={"upload_key", "source_seq", "mode", "chunks", "records"})
    said |= body.model_dump(include={"installation_id", "stream", "source", "entry", "version"})
    said |= {"source_id": source.source_id, "key_digest": key_digest(body.upload_key)}
    return {
        **said,
        "params": orjson.dumps(body.params).decode(),
        "merge_key": row_keys.merge_key(body) or None,
    }


def _end(
    connection: Connection,
    upload_no: int,
    said: Columns,
    at: str,
    *,
    job_id: str | None = None,
    with_hook: bool = False,
) -> None:
    """Write an upload's end: complete and visible with a `job_id`, superseded without one."""
    is_shown = job_id is not None
    state = UploadState.COMPLETE if is_shown else UploadState.SUPERSEDED
    one = uploads.c.upload_no == upload_no
    end = {"state": state.value, "visible": is_shown, "job_id": job_id, "ended_at": at}
    end |= {"clear_since": None if is_shown else at, "hook_due_at": at if with_hook else None}
    connection.execute(update(uploads).where(one).values(**said, **end))
    if is_shown:
        feed.note(connection, feed.What.VISIBLE, one, at)


def _advance(connection: Connection, source: Row[Any], body: Complete, verdict: Judgement) -> int:
    """Raise the source's highest source_seq, set its watermark; the highest afterwards."""
    if verdict not in (Judgement.ACCEPTED, Judgement.SAME_KEY):
        return int(source.highest_seq)
    # A repeated content counts too: what was sent before it, and comes after it, is late.
    highest = max(int(source.highest_seq), body.source_seq)
    values: Columns = {"highest_seq": highest}
    if verdict is Judgement.ACCEPTED:
        values["watermark"] = opaque_text(None if body.mode == "replace" else body.until)
        values |= {"mode": body.mode, "watermark_of": body.watermark_of}
        values["merge_key"] = row_keys.merge_key(body)
        values |= {"removed_at": None, "removed_in": None}
        if body.full:
            values["full_seq"] = body.source_seq
    one = update(sources).filter_by(source_id=source.source_id)
    connection.execute(one.values(**values))
    return highest


def _compare(connection: Connection, upload_no: int, seq: int, body: Records) -> Stored:
    """Whether the chunk that is stored under this number holds the same records."""
    one = select(chunks.c.digest, chunks.c.records).filter_by(upload_no=upload_no, seq=seq)
    stored = connection.execute(one).one()
    if stored.digest == body.digest:
        return Stored.SAME
    # The digest is of the bytes: the same records may come in another
    # coding, or from another writer.
    if stored.records != len(body.payloads):
        return Stored.DIFFERENT
    rows = select(records.c.payload).filter_by(upload_no=upload_no, seq=seq)
    payloads = connection.scalars(rows.order_by(records.c.row_index))
    return Stored.SAME if same_records(payloads, body.payloads) else Stored.DIFFERENT


def _insert_chunk(connection: Connection, upload_no: int, seq: int, body: Records, at: str) -> bool:
    """Insert a chunk, its rows by the driver's fastest way, unless it is there; whether it was not.

    That way is COPY, or one statement for some rows at a time.
    """
    payloads, row = body.payloads, {"upload_no": upload_no, "seq": seq, "digest": body.digest}
    row |= {"records": len(payloads), "stored_at": at}
    # the chunk's row decides between two at once: the second waits for the first, then compares
    if not insert_new(connection, chunks, row):
        return False
    if connection.dialect.name == "postgresql":
        with driver_errors(connection):
            _copy(connection.connection.cursor(), b"%d\t%d\t" % (upload_no, seq), payloads)
        return True
    for start, some in portions(payloads):
        if len(some[0]) > PORTION_BYTES:
            whole = {"upload_no": upload_no, "seq": seq, "start": start, "payload": some[0]}
            connection.exec_driver_sql(INSERT_RECORD, whole)
            continue
        texts = orjson.dumps([payload.decode() for payload in some]).decode()
        given = {"upload_no": upload_no, "seq": seq, "start": start, "payloads": texts}
        connection.exec_driver_sql(INSERT_RECORDS, given)
    return True


def _copy(cursor: Any, prefix: bytes, payloads: list[bytes]) -> None:
    """COPY the rows in text form; a payload's backslashes, tabs and returns are escaped."""
    with cursor.copy("COPY records (upload_no, seq, row_index, payload) FROM STDIN") as copy:
        for start, some in portions(payloads):
            if len(some[0]) > PORTION_BYTES:
                copy.write(b"%s%d\t" % (prefix, start))
                # In pieces: escaping makes a second copy of what it is given.
                for at in range(0, len(some[0]), PORTION_BYTES):
                    copy.write(escaped(some[0][at : at + PORTION_BYTES]))
                copy.write(b"\n")
                continue
            rows = enumerate(some, start)
            copy.write(b"".join([b"%s%d\t%s\n" % (prefix, i, escaped(text)) for i, text in rows]))


def escaped(text: bytes) -> bytes:
    """A value in COPY's text form; JSON text holds no line feed here."""
    return text.replace(b"\\", b"\\\\").replace(b"\t", b"\\t").replace(b"\r", b"\\r")


def key_digest(key: str) -> str:
    """A key's fixed-length digest, which an index can hold."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()

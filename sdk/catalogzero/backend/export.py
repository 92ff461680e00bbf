"""The lake: each visible upload as a Parquet file, in a folder or in an object store.

One consumer of the feed. A file is named by its upload's job_id and written once; what is hidden
or removed later is named under `_hidden/`, so that a reader leaves it out. How far the lake has
come stands in it too, so that a run that was killed goes on, and repeats at most.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson
from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from catalogzero.backend import feed
from catalogzero.backend.schema import records
from catalogzero.backend.store import BackendDatabase
from catalogzero.config.install_hint import install_hint
from catalogzero.config.logs import make_logger
from catalogzero.config.settings import Mask
from catalogzero.errors import ConfigError, UnreachableError
from catalogzero.web import stop_signal

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CURSOR, HIDDEN = "_catalogzero/cursor.json", "_hidden/{}.json"
NO_STREAM = "__HIVE_DEFAULT_PARTITION__"
ROWS_AT_ONCE = 10_000
POLL_S, MAX_WAIT_S, STOP_WITHIN_S = 2.0, 60.0, 30.0
WHOLE_BYTES = 64 << 20
COLUMNS = ("installation_id", "source", "source_key", "upload_id", "job_id", "completed_at")


@dataclass(slots=True)
class Exported:
    """What a run did: files written, uploads named as hidden, files deleted, the last place."""

    written: int = 0
    hidden: int = 0
    removed: int = 0
    cursor: int = 0


def open_lake(url: str) -> ObjectStore:
    """The object store of `s3://`, `gs://`, `az://`, `file://`, or a folder's path.

    Credentials are those of the environment, as its own tools read them.

    Raises:
        ConfigError: obstore or pyarrow is not installed, or no such store.
    """
    try:
        import pyarrow.parquet  # noqa: F401
        from obstore.exceptions import BaseError
        from obstore.store import LocalStore, from_url
    except ModuleNotFoundError:
        raise ConfigError(f"--to needs more: {install_hint('export')}") from None
    try:
        if "://" not in url:
            return LocalStore(Path(url).resolve(), mkdir=True)
        if url.startswith("file://"):
            return LocalStore.from_url(url, mkdir=True)
        return from_url(url)
    except (BaseError, ValueError, OSError) as error:
        raise ConfigError(f"--to {url}: {error}") from None


class Lake:
    """Brings a lake up to the feed of a database.

    Args:
        database: The backend's.
        store: Where the lake is.
        whole_bytes: A larger file goes up in parts, which cannot be made to refuse one that is
            there: it is looked for before.
    """

    def __init__(
        self, database: BackendDatabase, store: ObjectStore, whole_bytes: int = WHOLE_BYTES
    ) -> None:
        self._database, self._store, self._whole_bytes = database, store, whole_bytes

    async def catch_up(self) -> Exported:
        """Take every event that there is.

        Raises:
            UnreachableError: The store does not take something; what was taken is noted there.
        """
        generation, after = await asyncio.to_thread(self._begin)
        done = Exported(cursor=after)
        while True:
            now, events = await feed.read_page(self._database, done.cursor)
            if now != generation:
                generation, done.cursor = now, 0
                continue
            if not events:
                return done
            for event in events:
                await asyncio.to_thread(self._take, event, done)
                done.cursor = event.place
            nameless = {f"{event.job_id}.parquet" for event in events if event.tenant is None}
            known = orjson.dumps({"generation": generation, "after": done.cursor})
            await asyncio.to_thread(self._end_page, nameless, known)

    def _begin(self) -> tuple[str, int]:
        """The generation and the place that the lake has come to."""
        import obstore
        from obstore.exceptions import NotFoundError

        with _reached():
            try:
                known = orjson.loads(bytes(obstore.get(self._store, CURSOR).bytes()))
                return str(known["generation"]), int(known["after"])
            except (NotFoundError, FileNotFoundError):
                self.put(HIDDEN.format("none"), orjson.dumps({"job_id": "", "kind": "none"}))
                return "", 0

    def _take(self, event: Any, done: Exported) -> None:
        """Do what one event asks for; a second time it changes nothing."""
        import obstore
        from obstore.exceptions import NotFoundError

        path = None if event.tenant is None else path_of(event)
        with _reached():
            if event.kind == feed.What.VISIBLE.value:
                if path is None:
                    return
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder) / "upload.parquet"
                    if self._write(event, file):
                        done.written += self.put(path, file)
                return
            content = orjson.dumps({**feed.shown(event), "path": path})
            named = HIDDEN.format(event.job_id)
            if event.kind == feed.What.HIDDEN.value:
                self.put(named, content)
                done.hidden += 1
                return
            obstore.put(self._store, named, content)
            done.removed += 1
            with suppress(NotFoundError, FileNotFoundError):
                if path is not None:
                    obstore.delete(self._store, path)

    def _end_page(self, names: set[str], cursor: bytes) -> None:
        """Note how far the lake has come, once files are gone whose events name no place any more.

        Such files are found by listing the lake.
        """
        import obstore

        with _reached():
            for some in obstore.list(self._store) if names else ():
                found = [item["path"] for item in some]
                gone = [path for path in found if path.rpartition("/")[2] in names]
                if gone:
                    obstore.delete(self._store, gone)
            # last: a run that is killed before takes the page again, and writes nothing twice
            obstore.put(self._store, CURSOR, cursor)

    def put(self, path: str, content: bytes | Path) -> bool:
        """Write an object once; whether it was new."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotFoundError

        if isinstance(content, Path) and content.stat().st_size > self._whole_bytes:
            try:
                obstore.head(self._store, path)
                return False
            except (NotFoundError, FileNotFoundError):
                obstore.put(self._store, path, content)
                return True
        try:
            obstore.put(self._store, path, content, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def _write(self, event: Any, file: Path) -> bool:
        """Write an upload's rows to a file; False where they are gone, as an event will say."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        text, whole = pa.string(), pa.int64()
        fields = [*((name, text) for name in COLUMNS), ("source_seq", whole)]
        fields += [("seq", whole), ("row_index", whole), ("payload", text)]
        schema, count = pa.schema(fields), 0
        about = {name: getattr(event, name) for name in (*COLUMNS, "source_seq")}
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            place = (-1, -1)
            while rows := self._database.read_now(_rows(event.upload_no, place)):
                count, place = count + len(rows), (rows[-1].seq, rows[-1].row_index)
                own = [{**about, **row._mapping} for row in rows]
                writer.write_table(pa.Table.from_pylist(own, schema))
        return bool(count == event.records)


async def run(lake: Lake, show: Callable[[Exported], None], *, follow: bool) -> None:
    """Bring a lake up to the feed once, or, to `follow`, until SIGINT or SIGTERM.

    Each run that did something is shown. A follower tries again where a store or the database is
    away, after a wait that doubles up to a minute.

    Raises:
        UnreachableError: The store does not answer, and nobody follows.
    """
    if not follow:
        show(await lake.catch_up())
        return
    wait_s, log = POLL_S, make_logger(mask=Mask())
    with stop_signal(STOP_WITHIN_S) as stop:
        while not stop.is_set():
            try:
                done = await lake.catch_up()
                wait_s = POLL_S
                if done.written or done.hidden or done.removed:
                    show(done)
            except (UnreachableError, DBAPIError, PoolTimeoutError) as error:
                wait_s = min(2 * wait_s, MAX_WAIT_S)
                log.warning("export_failed", error=str(error), again_in_s=wait_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await stop.wait()


def path_of(event: Any) -> str:
    """Where an upload's file is: `tenant=/stream=/date=/`, each name percent-encoded."""
    tenant, stream = quote(event.tenant, safe=" "), quote(event.stream or NO_STREAM, safe=" ")
    day = str(event.completed_at)[:10]
    return f"tenant={tenant}/stream={stream}/date={day}/{event.job_id}.parquet"


def _rows(upload_no: int, after: tuple[int, int]) -> Any:
    """Reads the next rows of an upload."""
    seq, index = records.c.seq, records.c.row_index
    later = (seq > after[0]) | ((seq == after[0]) & (index > after[1]))
    statement = (
        select(seq, index, records.c.payload)
        .where(records.c.upload_no == upload_no, later)
        .order_by(seq, index)
        .limit(ROWS_AT_ONCE)
    )

    def read(connection: Connection) -> list[Any]:
        return list(connection.execute(statement))

    return read


@contextmanager
def _reached() -> Iterator[None]:
    """What the store refuses, as our error."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError) as error:
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UnreachableError(f"the store does not answer as it should: {why[:300]}") from None

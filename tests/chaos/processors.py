"""The processors of the chaos runs: a test can say where to die, what time to believe, to wait.

They are controlled by files in the state folder: `die_at`, `clock_offset`, `grow`, `hold` and
`linger`.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, cast

from catalogzero import Checkpoint, CloudProcessor, Params, Rows, Stream
from catalogzero.clock import SystemClock
from catalogzero.cloud.settings import ProcessOutput

from tests.chaos.death import die_at

HOLD_S = 60.0
PAGE = "SELECT id FROM lines WHERE id > ? ORDER BY id LIMIT 100"


class JumpingClock(SystemClock):
    """The machine's clock, set off by what a file says, in seconds."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def now(self) -> datetime:
        try:
            offset_s = float(self._file.read_text())
        except (OSError, ValueError):
            offset_s = 0.0
        return super().now() + timedelta(seconds=offset_s)


class Mortal(CloudProcessor):
    """Passes rows on; dies with -9 at the commit point that the file `die_at` names."""

    batch_rows = 500

    def process(self, batches: Iterable[Rows], params: Params) -> Iterator[ProcessOutput]:
        for batch in batches:
            self._linger()
            yield batch
            self._grow_a_file()
            self._hold()

    def _linger(self) -> None:
        """Between reading and storing, take as long as the dice say, up to what `linger` says."""
        order = self.runtime.state_dir / "linger"
        if order.exists():
            threading.Event().wait(random.uniform(0, float(order.read_text())))  # noqa: S311  # dice

    def _grow_a_file(self) -> None:
        """Once, in the middle of a run, append to the file that `grow` names."""
        order = self.runtime.state_dir / "grow"
        if order.exists():
            path = Path(order.read_text())
            order.unlink()
            with path.open("a") as file:
                file.write(f"{path.name}-grown-{os.urandom(6).hex()}\n")

    def _hold(self) -> None:
        """Wait in the middle of a run while `hold` is there; `held` says that it waits."""
        hold, held = (self.runtime.state_dir / name for name in ("hold", "held"))
        never = threading.Event()
        for _ in range(int(HOLD_S / 0.02)):
            if not hold.exists():
                return
            held.touch()
            never.wait(0.02)

    def _engine(self) -> Any:
        control = self.runtime.state_dir
        if not isinstance(self.clock, JumpingClock):
            self.clock = JumpingClock(control / "clock_offset")
            if os.environ.get("CHAOS_MUTANT") == "mark_first":
                seals_in_two_steps()
            watch = dies_at_commits if self.runtime.state is None else dies_at_shared_commits
            watch(control / "die_at")
        return super()._engine()


class Pages(Mortal):
    """Reads the table `lines` of the database that is its source, page by page, a part each."""

    mode = "append"
    streams = (Stream("odd"), Stream("even"))

    def read(
        self, data_source: str, params: Params, after: int | None = None
    ) -> Generator[Rows | Checkpoint, None, int | None]:
        with (self.runtime.state_dir / "read_from").open("a") as begun:
            begun.write(f"{after or 0}\n")
        with closing(sqlite3.connect(data_source)) as table:
            while found := table.execute(PAGE, (after or 0,)).fetchall():
                yield [{"id": number} for (number,) in found]
                after = found[-1][0]
                yield Checkpoint(after)
        return after

    def process(self, batches: Iterable[Rows], params: Params) -> Iterator[ProcessOutput]:
        for batch in super().process(batches, params):
            rows = cast("Rows", batch)
            for odd, stream in enumerate(("even", "odd")):
                yield stream, [row for row in rows if row["id"] % 2 == odd]


class Keyed(Mortal):
    """Passes on rows that have a key."""

    streams = (Stream("accounts", key=("account",), tombstone="closed"),)


def seals_in_two_steps() -> None:
    """The fault that the outbox must not have: the mark advances before the upload is sealed."""
    from catalogzero.cloud.outbox import outbox

    seal_whole = outbox.Outbox.seal_whole

    @outbox.transaction
    def mark_first(self: outbox.Outbox, upload: outbox.WholeUpload) -> None:
        key, sealing = upload.opening.source_key, upload.sealing
        self.store.know_source(key)
        stamp = json.dumps(sealing.stamp)
        self.store.set_source(
            key, upload_id=sealing.upload_id, upload_key=sealing.upload_key, stamp=stamp
        )

    def in_two_steps(
        self: outbox.Outbox, items: Sequence[Sequence[outbox.WholeUpload]]
    ) -> list[Exception | None]:
        for upload in chain.from_iterable(items):
            mark_first(self, upload)
        return seal_whole(self, items)

    outbox.Outbox.seal_whole = in_two_steps  # type: ignore[method-assign]  # the mutant


def dies_at_commits(order: Path) -> None:
    """Watch the outbox's commits; `order` holds `<method>:<before|after>` once."""
    from catalogzero.cloud.outbox.outbox_file import OutboxFile

    plain = OutboxFile.execute

    def execute(self: OutboxFile, sql: str, args: Sequence[Any] = ()) -> list[Any]:
        if sql != "COMMIT":
            return plain(self, sql, args)
        with watched_commit(order):
            return plain(self, sql, args)

    OutboxFile.execute = execute  # type: ignore[method-assign]  # the point of this class


def dies_at_shared_commits(order: Path) -> None:
    """The same of an outbox in PostgreSQL; `<method>:cut` lets a proxy meet the next commit."""
    from catalogzero.sql.postgresql import BoundedConnection

    plain = BoundedConnection.execute

    def execute(self: BoundedConnection, query: Any, *args: Any, **named: Any) -> Any:
        if query != "COMMIT":
            return plain(self, query, *args, **named)
        with watched_commit(order):
            return plain(self, query, *args, **named)

    BoundedConnection.execute = execute  # type: ignore[assignment, method-assign]  # the same


@contextmanager
def watched_commit(order: Path) -> Iterator[None]:
    """Die before or after a commit where the order is of what it writes."""
    names = committed_methods()
    for name in names:
        die_at(order, f"{name}:before")
        if order.exists() and order.read_text() == f"{name}:cut":
            order.rename(order.with_name("cut"))
    yield
    for name in names:
        die_at(order, f"{name}:after")


def committed_methods() -> list[str]:
    """The methods whose work is in the transaction that ends: several may share a commit."""
    frame = sys._getframe()
    while Path(frame.f_code.co_filename).name not in ("outbox.py", "shared_commits.py"):
        if frame.f_back is None:
            return []
        frame = frame.f_back
    works = [getattr(one.work, "func", one.work) for one in frame.f_locals.get("group") or ()]
    return [work.__name__ for work in works] or [frame.f_code.co_name]

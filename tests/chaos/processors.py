"""The processor of the chaos runs: it can be told where to die, and what time to believe."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from catalogzero import Batch, CloudProcessor, Params
from catalogzero.clock import SystemClock


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

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        yield from batches

    def _engine(self) -> Any:
        control = self.runtime.state_dir
        if not isinstance(self.clock, JumpingClock):
            self.clock = JumpingClock(control / "clock_offset")
            if os.environ.get("CHAOS_MUTANT") == "mark_first":
                seals_in_two_steps()
            dies_at_commits(control / "die_at")
        return super()._engine()


def seals_in_two_steps() -> None:
    """The fault that the outbox must not have: the mark advances before the upload is sealed."""
    from catalogzero.cloud import outbox, outbox_file

    seal = outbox.Outbox.seal

    @outbox_file.transaction
    def mark_first(self: outbox.Outbox, upload_id: str, key: str, stamp: Any) -> None:
        self.execute(
            "INSERT OR REPLACE INTO sources (source_key, upload_id, upload_key, stamp)"
            " SELECT source_key, upload_id, ?, ? FROM uploads WHERE upload_id = ?",
            (key, json.dumps(stamp), upload_id),
        )

    def in_two_steps(self: outbox.Outbox, upload_id: str, upload_key: str, **more: Any) -> int:
        mark_first(self, upload_id, upload_key, more["stamp"])
        return seal(self, upload_id, upload_key, **more)

    outbox.Outbox.seal = in_two_steps  # type: ignore[method-assign]  # the mutant


def dies_at_commits(die_at: Path) -> None:
    """Watch the outbox's commits; `die_at` holds `<method>:<before|after>` once."""
    from catalogzero.cloud.outbox_file import OutboxFile

    plain = OutboxFile.execute

    def execute(self: OutboxFile, sql: str, args: Sequence[Any] = ()) -> sqlite3.Cursor:
        if sql != "COMMIT":
            return plain(self, sql, args)
        method = sys._getframe(1).f_locals["method"].__name__
        _die(die_at, f"{method}:before")
        done = plain(self, sql, args)
        _die(die_at, f"{method}:after")
        return done

    OutboxFile.execute = execute  # type: ignore[method-assign]  # the point of this class


def _die(die_at: Path, here: str) -> None:
    try:
        wanted = die_at.read_text()
    except OSError:
        return
    if wanted == here:
        die_at.unlink()
        os.kill(os.getpid(), signal.SIGKILL)

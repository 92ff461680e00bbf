"""The processor of the chaos runs: a test can say where to die, what time to believe, and to wait.

It is controlled by files in the state folder: `die_at`, `clock_offset`, `grow` and `hold`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from catalogzero import Batch, CloudProcessor, Params
from catalogzero.clock import SystemClock

from tests.chaos.death import die_at

HOLD_S = 60.0


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
        for batch in batches:
            yield batch
            self._grow_a_file()
            self._hold()

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
            dies_at_commits(control / "die_at")
        return super()._engine()


def seals_in_two_steps() -> None:
    """The fault that the outbox must not have: the mark advances before the upload is sealed."""
    from catalogzero.cloud.outbox import outbox

    seal = outbox.Outbox.seal

    @outbox.transaction
    def mark_first(self: outbox.Outbox, sealing: outbox.Sealing) -> None:
        self.store.execute(
            "INSERT OR REPLACE INTO sources (source_key, upload_id, upload_key, stamp)"
            " SELECT source_key, upload_id, ?, ? FROM uploads WHERE upload_id = ?",
            (sealing.upload_key, json.dumps(sealing.stamp), sealing.upload_id),
        )

    def in_two_steps(self: outbox.Outbox, *sealings: outbox.Sealing) -> list[int]:
        for sealing in sealings:
            mark_first(self, sealing)
        return seal(self, *sealings)

    outbox.Outbox.seal = in_two_steps  # type: ignore[method-assign]  # the mutant


def dies_at_commits(order: Path) -> None:
    """Watch the outbox's commits; `order` holds `<method>:<before|after>` once."""
    from catalogzero.cloud.outbox.store import OutboxStore

    plain = OutboxStore.execute

    def execute(self: OutboxStore, sql: str, args: Sequence[Any] = ()) -> list[Any]:
        if sql != "COMMIT":
            return plain(self, sql, args)
        caller = sys._getframe(3)  # above `transaction` and the `with` that it ends
        method = getattr(caller.f_locals.get("method"), "__name__", caller.f_code.co_name)
        die_at(order, f"{method}:before")
        done = plain(self, sql, args)
        die_at(order, f"{method}:after")
        return done

    OutboxStore.execute = execute  # type: ignore[method-assign]  # the point of this class

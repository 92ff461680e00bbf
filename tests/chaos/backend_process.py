"""`catalogzero backend`, which can be made to die: at a commit point of its own.

    CHAOS_DIE_AT=FILE python -m tests.chaos.backend_process backend serve …

`FILE` holds `<function>:<before|after>`. CHAOS_MUTANT names a fault to build in.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from catalogzero.backend import housekeeping, installations, store, uploads
from catalogzero.backend.schema import sources
from catalogzero.backend.schema import uploads as table
from catalogzero.cli.main import main
from catalogzero.protocol.judging import Completion, Judgement, Standing, UploadState

from tests.chaos.death import die_at

STEPS: dict[str, Any] = {
    "put_chunk": uploads,
    "complete": uploads,
    "register": installations,
    "clear_hidden": housekeeping,
    "collect_unfinished": housekeeping,
}
EMPTY = (None, False)


def dies_at_commits(order: Path) -> None:
    """Watch the transactions that did one of the steps, and changed something."""
    here = threading.local()
    plain = store.BackendDatabase.write_now

    def noting(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **more: Any) -> Any:
            done = step(*args, **more)
            here.step = None if done in EMPTY else name
            return done

        return run

    def write_now(self: store.BackendDatabase, work: Callable[[sa.Connection], Any]) -> Any:
        here.step = None
        done = plain(self, work)
        if here.step:
            die_at(order, f"{here.step}:after")
        return done

    @sa.event.listens_for(sa.Engine, "commit")
    def _before_commit(_: sa.Connection) -> None:
        if getattr(here, "step", None):
            die_at(order, f"{here.step}:before")

    for name, module in STEPS.items():
        setattr(module, name, noting(name, getattr(module, name)))
    store.BackendDatabase.write_now = write_now  # type: ignore[method-assign, assignment]  # the point of this file


def deduplicates_by_chunk_alone() -> None:
    """The fault that the rules must not have: what has all its chunks is shown, whatever it is."""

    def judge(claim: Completion, standing: Standing) -> Judgement:
        if standing.state is UploadState.COMPLETE:
            return Judgement.DUPLICATE
        return Judgement.MISSING if standing.missing else Judgement.ACCEPTED

    setattr(uploads, "judge", judge)  # noqa: B010  # the mutant; the name is not exported
    uploads._hide_older = lambda *_: None


def completes_in_two_steps(order: Path) -> None:
    """The fault that a `complete` must not have: finished in one transaction, shown in another.

    The first one raises the source's number, else the compare of the next start heals it.
    """
    end = uploads._end

    def in_two_steps(connection: sa.Connection, upload_no: int, *more: Any, **named: Any) -> None:
        if named.get("job_id"):
            one = sa.update(table).where(table.c.upload_no == upload_no)
            connection.execute(one.values(state="complete", job_id=named["job_id"]))
            source = sa.update(sources).where(sources.c.source_id == more[0]["source_id"])
            connection.execute(source.values(highest_seq=more[0]["source_seq"]))
            connection.exec_driver_sql("COMMIT")
            die_at(order, "complete_first:after")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        end(connection, upload_no, *more, **named)

    uploads._end = in_two_steps


if __name__ == "__main__":
    place = Path(os.environ["CHAOS_DIE_AT"])
    if os.environ.get("CHAOS_MUTANT") == "chunk_alone":
        deduplicates_by_chunk_alone()
    if os.environ.get("CHAOS_MUTANT") == "complete_first":
        completes_in_two_steps(place)
    dies_at_commits(place)
    main()

"""The outbox in PostgreSQL, which instances share, against that in a file.

    python -m benchmarks.outboxes [--quick] [--rounds 15] [--chunks 4] [--small 100] [--json]

An upload of 16 MiB that does not compress is begun, stored in chunks of 4 MiB, sealed, read back
and ended; then 100 uploads of 1 KiB are sealed in one transaction, as a run over small files does.
Both engines take turns, and both have what they answered on this machine's disk: the file lies in
`build/`, the database where its server keeps it. Where that is another disk, the figures compare
the disks.

Bar: the upload of 16 MiB takes at most 1.3 times as long in PostgreSQL.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from catalogzero.clock import SystemClock
from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox.outbox import Opening, Outbox, Sealing, WholeUpload
from catalogzero.cloud.outbox.stored import SharedStore

from benchmarks.report import Figure, Section, main, ratios
from benchmarks.scaleout import own_database
from benchmarks.scheduler import POSTGRESQL, ROOT

FULL = {"rounds": 15, "chunks": 4, "small": 100, "postgresql": POSTGRESQL}
QUICK = {**FULL, "rounds": 1, "small": 10}
CHUNK_BYTES, SMALL_BYTES = 4 << 20, 1 << 10
BUDGET = 1.3

Work = Callable[[Outbox, list[bytes]], None]


@contextmanager
def outboxes(postgresql: str) -> Iterator[dict[str, Outbox]]:
    """An outbox of each engine."""
    (ROOT / "build").mkdir(exist_ok=True)
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(dir=ROOT / "build")))
        database = undo.enter_context(own_database(postgresql))
        made = {
            "SQLite": Outbox(folder, SystemClock()),
            "PostgreSQL": Outbox(folder, SystemClock(), SharedStore(database, "bench", "one")),
        }
        for outbox in made.values():
            undo.enter_context(closing(outbox))
            outbox.join()
        yield made


def opening(upload_id: str) -> Opening:
    """That of a source of its own."""
    return Opening(upload_id, upload_id, f"{upload_id}.csv", "replace", full=False, params={})


def chunk(number: int, body: bytes) -> Chunk:
    """A chunk of one record."""
    return Chunk(number, 1, body, "zstd", "application/x-ndjson")


def one_large(outbox: Outbox, bodies: list[bytes]) -> None:
    """One upload on its way through the outbox."""
    upload_id = uuid.uuid4().hex
    outbox.begin(opening(upload_id))
    for number, body in enumerate(bodies):
        outbox.add(upload_id, chunk(number, body))
    outbox.seal(Sealing(upload_id=upload_id, upload_key=upload_id))
    assert [one.body for one in outbox.store.bodies(upload_id)] == bodies
    outbox.completing(upload_id)
    outbox.done(upload_id, "job")


def many_small(outbox: Outbox, bodies: list[bytes]) -> None:
    """Uploads that are sealed together."""
    items = []
    for body in bodies:
        upload_id = uuid.uuid4().hex
        sealing = Sealing(upload_id=upload_id, upload_key=upload_id)
        upload = WholeUpload(opening=opening(upload_id), chunks=[chunk(0, body)], sealing=sealing)
        items.append([upload])
    assert not any(outbox.seal_whole(items))


def took_ms(work: Work, outbox: Outbox, bodies: list[bytes]) -> float:
    """How long some work takes."""
    begun = time.perf_counter()
    work(outbox, bodies)
    return (time.perf_counter() - begun) * 1_000


def measure(rounds: int, chunks: int, small: int, postgresql: str) -> Section:
    """Both engines in turns; a first round of each does not count.

    Args:
        rounds: How often each is measured.
        chunks: How many of 4 MiB the large upload has.
        small: How many uploads of 1 KiB are sealed together.
        postgresql: A server on which a database may be made.
    """
    megabytes = chunks * CHUNK_BYTES >> 20
    works: dict[str, tuple[Work, int, int, float | None]] = {
        f"an upload of {megabytes} MiB": (one_large, chunks, CHUNK_BYTES, BUDGET),
        f"{small} uploads of 1 KiB, sealed together": (many_small, small, SMALL_BYTES, None),
    }
    figures = []
    with outboxes(postgresql) as made:
        for what, (work, count, size, budget) in works.items():
            took: dict[str, list[float]] = {name: [] for name in made}
            for number in range(rounds + 1):
                bodies = [os.urandom(size) for _ in range(count)]
                for name, outbox in made.items():
                    ms = took_ms(work, outbox, bodies)
                    took[name] += [ms] if number else []
            figures += [
                Figure(what=f"{what}, {name}", samples=took[name], unit="ms") for name in made
            ]
            times = ratios(took["PostgreSQL"], took["SQLite"])
            figures.append(
                Figure(what=f"{what}, PostgreSQL / SQLite", samples=times, unit="x", at_most=budget)
            )
    return Section(figures=figures)


if __name__ == "__main__":
    sys.exit(main(__name__))

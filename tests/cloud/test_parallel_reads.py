"""Threads that read an outbox side by side: each gets its own answer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from catalogzero.clock import SystemClock
from catalogzero.cloud.encoding import Chunk
from catalogzero.cloud.outbox.outbox import Opening, Outbox, Sealing

BOTH_STORES = True

THREADS = 4
ROUNDS = 2_000


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    """An outbox with a sealed upload for each thread: one chunk, its number the thread's."""
    outbox = Outbox(tmp_path, SystemClock())
    for name in map(str, range(THREADS)):
        outbox.begin(
            Opening(f"upload-{name}", f"key-{name}", name, "replace", full=False, params={})
        )
        outbox.add(f"upload-{name}", Chunk(int(name), 1, name.encode(), "identity", "text/csv"))
        outbox.seal(Sealing(upload_id=f"upload-{name}", upload_key=f"content-{name}", stamp=name))
        outbox.remember(f"fact-{name}", name)
    yield outbox
    outbox.close()


@pytest.fixture(autouse=True)
def _threads_change_often() -> Iterator[None]:
    """Threads take turns so often that one comes between any two steps of another."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def chunk(outbox: Outbox, name: str) -> object:
    """The body of the thread's own chunk."""
    found = outbox.store.chunk(f"upload-{name}", int(name))
    return found and found.body.decode()


READS: dict[str, Callable[[Outbox, str], object]] = {
    "mark": lambda outbox, name: outbox.store.mark(f"key-{name}").stamp,
    "chunk": chunk,
    "bodies": lambda outbox, name: b"".join(
        c.body for c in outbox.store.bodies(f"upload-{name}")
    ).decode(),
    "unsent": lambda outbox, name: "".join(map(str, outbox.store.unsent(f"upload-{name}", 9))),
    "fact": lambda outbox, name: outbox.store.fact(f"fact-{name}"),
}


@pytest.mark.parametrize("read", READS)
def test_each_thread_reads_its_own(outbox: Outbox, read: str) -> None:
    """Since Python 3.12 threads share a cached statement: one that is read from outside of the
    lock answers what another thread has asked meanwhile."""
    together = Barrier(THREADS)

    def answers(name: str) -> set[object]:
        together.wait()
        return {READS[read](outbox, name) for _ in range(ROUNDS)}

    names = [str(number) for number in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(answers, names))

    assert found == [{name} for name in names]

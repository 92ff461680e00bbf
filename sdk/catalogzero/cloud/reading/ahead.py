"""Reading ahead: the next batches of a source are read while those before them are processed.

Never for an author's own code, which stays in the run's thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")

BATCHES_AHEAD = 2


def read_ahead(batches: Iterator[T], count: int, stack: ExitStack) -> Iterator[T]:
    """Batches in their order, each read in a thread of their own; what that raises comes in place.

    Args:
        batches: What is read.
        count: How many are read at most beyond the one that was taken last; 0 for no thread.
        stack: The thread has ended once this is closed, whoever still holds the batches.
    """
    if not count:
        yield from batches
        return
    pool, context = ThreadPoolExecutor(1, "catalogzero-reading"), copy_context()
    stack.callback(pool.shutdown, cancel_futures=True)

    def read() -> T | None:
        return next(batches, None)

    begun = deque(pool.submit(context.run, read) for _ in range(count))
    while (batch := begun.popleft().result()) is not None:
        begun.append(pool.submit(context.run, read))
        yield batch

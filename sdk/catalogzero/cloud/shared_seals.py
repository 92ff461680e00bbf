"""Small results of one run, sealed together: each waits a moment for others, none for long.

Owns how long they are held, and how much of them. What is held is not stored yet: a killed run
reads it again. Never knows how anything is sealed, nor what a failure means.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from catalogzero.cloud.counters import Place
from catalogzero.cloud.outbox.outbox import Outbox, WholeUpload
from catalogzero.cloud.reading.records import BadRecords

HELD_S = 0.05
"""The longest time that a result is held, in seconds."""
MAX_BYTES, MAX_ITEMS = 4 << 20, 256
"""What is held at most; whoever has more waits until some of it is sealed."""
SMALL_BYTES = 256 << 10
"""The largest chunk of a result that is held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldItem:
    """What one item made, to be sealed in one transaction.

    Attributes:
        place: The item, and its attempt.
        bad: Its malformed records.
        uploads: One for each stream that has something new.
    """

    place: Place
    bad: BadRecords
    uploads: Sequence[WholeUpload]

    @property
    def size(self) -> int:
        """The bytes of its chunks."""
        return sum(len(chunk.body) for upload in self.uploads for chunk in upload.chunks)


class SharedSeals:
    """Seals held items, those of `HELD_S` in one transaction, in a thread of its own.

    Args:
        outbox: Where they are sealed.
        on_sealed: Takes the ids of uploads that were sealed, in that thread; raises nothing.
    """

    def __init__(self, outbox: Outbox, on_sealed: Callable[[Sequence[str]], None]) -> None:
        self._outbox, self._on_sealed = outbox, on_sealed
        self._state = threading.Condition()
        self._held: list[HeldItem] = []
        self._size = 0
        self._failed: list[tuple[HeldItem, Exception]] = []
        self._thread: threading.Thread | None = None
        self._is_writing = self._is_urgent = self._is_closed = False

    def add(self, item: HeldItem) -> None:
        """Hold an item until it is sealed; waits where too much is held."""
        with self._state:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="seals", daemon=True)
                self._thread.start()
            self._held.append(item)
            self._size += item.size
            if len(self._held) == 1 or self._is_full:
                self._state.notify_all()
                self._state.wait_for(lambda: not self._is_full)

    def drain(self) -> None:
        """Seal what is held now, and wait for it."""
        with self._state:
            self._is_urgent = True
            self._state.notify_all()
            self._state.wait_for(lambda: not self._held and not self._is_writing)
            self._is_urgent = False

    def failed(self) -> list[tuple[HeldItem, Exception]]:
        """The items that could not be sealed since the last call, each with the reason."""
        with self._state:
            failed, self._failed = self._failed, []
            return failed

    def close(self) -> None:
        """Seal what is held, and end the thread."""
        with self._state:
            self._is_closed = True
            self._state.notify_all()
        if self._thread is not None:
            self._thread.join()

    @property
    def _is_full(self) -> bool:
        return self._size >= MAX_BYTES or len(self._held) >= MAX_ITEMS

    def _run(self) -> None:
        """Seal what is held, again and again, until it is closed and nothing is."""
        while True:
            with self._state:
                self._is_writing = False
                self._state.notify_all()
                self._state.wait_for(lambda: self._held or self._is_closed)
                if not self._held:
                    return
                self._state.wait_for(
                    lambda: self._is_full or self._is_urgent or self._is_closed, HELD_S
                )
                items, self._held, self._size = self._held, [], 0
                self._is_writing = True
                self._state.notify_all()
            errors = self._outbox.seal_whole([item.uploads for item in items])
            ended = list(zip(items, errors, strict=True))
            sealed = [item for item, error in ended if error is None]
            self._on_sealed([one.opening.upload_id for item in sealed for one in item.uploads])
            with self._state:
                self._failed += [(item, error) for item, error in ended if error is not None]

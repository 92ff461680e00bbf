"""The audit log of instances that share a store: one chain, in the store's database.

The lines are those of `audit`; each is written in a transaction of its own, under the store's lock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import orjson

from catalogzero.clock import Clock
from catalogzero.cloud.audit import GENESIS, KEPT_FILES, MAX_BYTES, AuditReport, verify_lines
from catalogzero.cloud.outbox.outbox import Outbox
from catalogzero.cloud.outbox.store import STORE_FAULTS, OutboxStore
from catalogzero.wire.messages import JsonObject

_LOOKED_AT = 1_000
_CLEANED_EACH = 1_000


class SharedAudit:
    """The append-only log of pushes in a shared store; each instance writes it.

    Args:
        outbox: Whose store it is in.
        clock: For the times that it writes.
        max_bytes: With `kept_files`, how much is kept: as much as a log of files would.
        kept_files: See `max_bytes`.
    """

    def __init__(
        self,
        outbox: Outbox,
        clock: Clock,
        *,
        max_bytes: int = MAX_BYTES,
        kept_files: int = KEPT_FILES,
    ) -> None:
        self._outbox, self._clock = outbox, clock
        self._kept_bytes = max_bytes * (kept_files + 1)
        self._settling = ThreadPoolExecutor(1, "audit")

    @property
    def head(self) -> str:
        """The digest of the newest line."""
        return _digest(self._outbox.store.last_audited()[3])

    def close(self) -> None:
        """Wait until what became of each push is written."""
        self._settling.shutdown()

    def begin(self, **about: Any) -> int:
        """Write that a push is about to leave; returns its number.

        Raises:
            UnreachableError: The database does not answer, so the push must not leave.
        """
        return self._outbox.commits.run(partial(self._append, {"event": "push", **about}))

    def settle(self, number: int, **outcome: Any) -> None:
        """Write, soon, what became of a push; where that fails, it stays unsettled."""
        self._settling.submit(self._settle, {"n": number, "event": "settled", **outcome})

    def _settle(self, entry: JsonObject) -> None:
        with suppress(*STORE_FAULTS):
            self._outbox.commits.run(partial(self._append, entry))

    def _append(self, entry: JsonObject) -> int:
        """Write an entry; its number, which is the next one where it has none."""
        store = self._outbox.store
        last, pushes, total_bytes, before = store.last_audited()
        pushes += "n" not in entry
        entry = {"at": self._clock.now().isoformat(), "n": pushes, **entry, "prev": _digest(before)}
        line = orjson.dumps(entry)
        total_bytes += len(line) + 1
        store.insert("audit", number=last + 1, pushes=pushes, total_bytes=total_bytes, line=line)
        if last % _CLEANED_EACH == 0:
            store.forget_audited(total_bytes - self._kept_bytes)
        return int(entry["n"])


def verify_shared_audit(store: OutboxStore) -> AuditReport:
    """Follow the chain of the audit log in a shared store.

    Where its oldest lines were dropped, it begins with the first that is left.
    """
    first = next((number for number, _ in store.audited(0, 1)), 1)
    report = verify_lines([(store.base.label, shared_lines(store))], is_begun=first == 1)
    report.files = 1
    return report


def shared_lines(store: OutboxStore) -> Iterator[bytes]:
    """The lines of the audit log in a shared store, the oldest first."""
    above = 0
    while found := store.audited(above, _LOOKED_AT):
        above = found[-1][0]
        yield from (line for _, line in found)


def _digest(line: bytes | None) -> str:
    return GENESIS if line is None else hashlib.sha256(line).hexdigest()

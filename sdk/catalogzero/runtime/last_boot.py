"""What a handler that ends in order leaves for its next start: which calls it began.

A call may arrive, and a reply may leave, in the moment in which the socket closes. The next boot
answers such a call from here: with the reply that was lost, or that it never began, so that its
caller sends it again. After a crash there is nothing to read, and such a call is `expired`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from catalogzero.runtime.ended_runs import EndedRun
from catalogzero.runtime.runs import AnyRun
from catalogzero.wire.messages import Call, JsonObject

NAME = "last_boot.json"
MAX_REPLY_BYTES = 64 << 10
MAX_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class LastBoot:
    """The calls of a boot that ended in order.

    Attributes:
        boot_id: Of that boot.
        ended_s: Its uptime at the end: what had to begin by then is not known here.
        began: The calls that it began, each with its reply; None where that was not kept.
        was_killed: Whether the boot before began and did not end in order; the rest is then empty.
    """

    boot_id: str = ""
    ended_s: float = 0.0
    began: dict[str | int, str | None] = field(default_factory=dict)
    was_killed: bool = False

    def reply_to(self, call: Call) -> bytes | None:
        """The reply that a call had, where it was kept."""
        text = self.began.get(call.request_id or "") if self._stamped(call) else None
        return text.encode() if text else None

    def never_began(self, call: Call) -> bool:
        """Whether a call surely never began."""
        # What had to begin by `ended_s` may have run, and been forgotten.
        is_late = call.start_by is not None and call.start_by.uptime_s > self.ended_s
        # A call without an id is not kept here, whether it began or not.
        is_kept = call.request_id is not None and call.request_id not in self.began
        return self._stamped(call) and is_late and is_kept

    def _stamped(self, call: Call) -> bool:
        return call.start_by is not None and call.start_by.boot_id == self.boot_id


def read_last_boot(folder: Path) -> LastBoot:
    """What the boot before left; nothing after a crash."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        found = orjson.loads((folder / NAME).read_bytes())
        if "ended_s" not in found:
            return LastBoot(was_killed=True)
        return LastBoot(str(found["boot_id"]), float(found["ended_s"]), dict(found["began"]))
    return LastBoot()


def boot_in(folder: Path) -> str:
    """The boot that began in a folder and did not end in order; empty without one."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        found = orjson.loads((folder / NAME).read_bytes())
        return "" if "ended_s" in found else str(found["boot_id"])
    return ""


def begin_boot(folder: Path, boot_id: str) -> None:
    """Take away what the boot before left: from here on this boot answers for itself."""
    (folder / NAME).unlink(missing_ok=True)
    _write(folder, {"boot_id": boot_id})


def write_last_boot(folder: Path, boot_id: str, ended_s: float, runs: Iterable[AnyRun]) -> None:
    """Leave what this boot began, the newest first, for the next; no more than 8 MiB of it."""
    began: list[tuple[str | int, str | None]] = []
    left = MAX_BYTES
    for run in runs:
        if math.isnan(run.times.start_by_s) or run.request_id is None or run.state == "refused":
            continue
        reply = run.reply if isinstance(run, EndedRun) else b""
        fits = 0 < len(reply) <= min(MAX_REPLY_BYTES, left)
        left -= len(reply) if fits else 0
        began.append((run.request_id, reply.decode() if fits else None))
    _write(folder, {"boot_id": boot_id, "ended_s": ended_s, "began": began})


def _write(folder: Path, word: JsonObject) -> None:
    """Replace the file."""
    made = folder / f"{NAME}.new"
    with suppress(OSError):  # a full disk: the next boot then knows no more than after a crash
        file = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(file, "wb") as out:
            out.write(orjson.dumps(word))
        made.replace(folder / NAME)

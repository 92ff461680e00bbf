"""Egress: what may leave, how fast, and the proof of what left.

The audit log is JSON Lines: an entry before each push, one after it, each with the SHA-256 of the
line before, so that a line changed, taken out or put in shows. Its head goes out with each health
report. Columns are the business of `encoding.ColumnFilter`. Never talks to a backend.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from catalogzero.clock import Clock
from catalogzero.config.settings import EgressPolicy
from catalogzero.config.state_folder import create_private
from catalogzero.errors import ConfigError
from catalogzero.protocol.identities import digest_of

GENESIS = "0" * 64
KEY_BYTES = 32
_TAIL_BYTES = 1 << 16
_UNSEEN = frozenset({"Cc", "Cf"})
_PATH = re.compile(r"\s*(?:file:|~\w*|[A-Za-z]:)?[/\\]", re.IGNORECASE)


def check_host(policy: EgressPolicy, url: str) -> None:
    """Raise `ConfigError` when the policy does not allow the host of a URL."""
    parts = urlsplit(url)
    allowed = {host.lower() for host in policy.hosts or ()}
    host = (parts.hostname or "").lower()
    if policy.hosts is not None and not {host, parts.netloc.lower()} & allowed:
        raise ConfigError(
            f"egress.hosts does not allow {parts.netloc}: add it to the list, or fix the endpoint"
        )


def loose(name: str) -> str:
    """What a column looks like: NFKC, case-folded, trimmed, without marks that do not show."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    shown = (char for char in folded if unicodedata.category(char) not in _UNSEEN)
    return "".join(shown).strip()


def policy_digest(policy: EgressPolicy) -> str:
    """What of a policy decides in which form a source leaves; equal while that is the same."""
    looks = [sorted(set(map(loose, names))) for names in (policy.drop, policy.hash)]
    keep = None if policy.keep is None else sorted(set(policy.keep))
    return digest_of([*looks, keep, policy.hash_sources])


def name_below(text: str, roots: Sequence[Path]) -> str:
    """A path by its name below its data root, any other path by its last part; else the text."""
    for root in roots:
        for start in (str(root), os.path.realpath(root)):
            if text == start or text.startswith(f"{start}/"):
                return os.path.normpath(f"{root.name}/{os.path.relpath(text, start)}")
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] if _PATH.match(text) else text


def shown_params(value: Any, shown: Callable[[str], str]) -> Any:
    """A call's params as they may leave: each text in it, names too, as `shown` gives it."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, Mapping):
        return {
            shown(name) if _PATH.match(name) else name: shown_params(one, shown)
            for name, one in value.items()
        }
    return [shown_params(one, shown) for one in value] if isinstance(value, list) else value


def egress_key(policy: EgressPolicy, folder: Path) -> bytes:
    """The key of hashed columns and source names; made in the state folder when none is named.

    Raises:
        ConfigError: The key file cannot be read, or is shorter than 16 bytes.
    """
    path = policy.hash_key_file or folder / "egress.key"
    if policy.hash_key_file is None and not path.exists():
        if not (policy.hash or policy.hash_sources):
            return b""
        _make_key(path)
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"egress.hash_key_file {path}: {error.strerror}") from error
    if len(key) < 16:
        raise ConfigError(f"egress.hash_key_file {path}: a key has at least 16 bytes")
    return key


def _make_key(path: Path) -> None:
    """A new key in a private file, which is there as a whole or not at all."""
    part = path.with_suffix(".part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secrets.token_hex(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)


class Throttle:
    """A limit of bytes a second, shared by all pushes; None is no limit."""

    def __init__(self, bytes_per_s: float | None, clock: Clock) -> None:
        self.bytes_per_s, self._clock = bytes_per_s, clock
        self._free_at = 0.0

    async def take(self, count: int) -> None:
        """Wait until `count` more bytes may leave."""
        if self.bytes_per_s is None:
            return
        now = self._clock.monotonic()
        start = max(now, self._free_at)
        self._free_at = start + count / self.bytes_per_s
        if start > now:
            await self._clock.sleep(start - now)


class AuditLog:
    """The append-only log of pushes in a state folder; one process writes it.

    Args:
        folder: The handler's state folder.
        clock: For the times that it writes.
        make_room: Called when a push cannot be written; True where it may fit now.
    """

    def __init__(
        self, folder: Path, clock: Clock, make_room: Callable[[], bool] = lambda: False
    ) -> None:
        self.path, self._clock, self._make_room = folder / "audit.jsonl", clock, make_room
        self._lock = threading.Lock()
        create_private(self.path)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        self.head, self._number, self._torn = self._last()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def begin(self, **about: Any) -> int:
        """Write that a push is about to leave; returns its number.

        Raises:
            OSError: It could not be written, so the push must not leave.
        """
        with self._lock:
            self._number += 1
            entry = {"n": self._number, "event": "push", **about}
            try:
                self._append(entry)
            except OSError:
                if not self._make_room():
                    raise
                self._append(entry)
            os.fdatasync(self._descriptor)
            return self._number

    def settle(self, number: int, **outcome: Any) -> None:
        """Write what became of a push; where that fails, it stays unsettled."""
        with self._lock, suppress(OSError):
            self._append({"n": number, "event": "settled", **outcome})

    def _append(self, entry: dict[str, Any]) -> None:
        entry = {"at": self._clock.now().isoformat(), **entry, "prev": self.head}
        line = orjson.dumps(entry)
        data = (b"\n" if self._torn else b"") + line + b"\n"
        self._torn = True
        if os.write(self._descriptor, data) < len(data):
            raise OSError("the audit log's line was cut short")
        self._torn, self.head = False, hashlib.sha256(line).hexdigest()

    def _last(self) -> tuple[str, int, bool]:
        """Digest and number of the last line, and whether the file ends inside a line."""
        size = os.fstat(self._descriptor).st_size
        tail = os.pread(self._descriptor, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        lines = [line for line in tail.split(b"\n") if line]
        if not lines:
            return GENESIS, 0, False
        numbers = [0]
        for line in lines:
            with suppress(orjson.JSONDecodeError, KeyError, TypeError):
                numbers.append(orjson.loads(line)["n"])
        return hashlib.sha256(lines[-1]).hexdigest(), max(numbers), not tail.endswith(b"\n")


@dataclass(slots=True)
class AuditReport:
    """What a look through an audit log found."""

    entries: int = 0
    pushes: int = 0
    records: int = 0
    bytes: int = 0
    head: str = GENESIS
    unsettled: list[int] = field(default_factory=list)
    torn: int = 0
    broken_at: int | None = None
    """The first line whose `prev` is not the digest of the line before it."""


def verify_audit(path: Path) -> AuditReport:
    """Follow the chain of an audit log from its first line."""
    report, open_pushes = AuditReport(), set[int]()
    with suppress(FileNotFoundError), path.open("rb") as file:
        for number, line in enumerate(filter(None, (line.rstrip(b"\n") for line in file)), 1):
            entry = None
            with suppress(orjson.JSONDecodeError):
                entry = orjson.loads(line)
            if isinstance(entry, dict):
                if entry.get("prev") != report.head and report.broken_at is None:
                    report.broken_at = number
                _count(report, entry, open_pushes)
            else:
                report.torn += 1
            report.head = hashlib.sha256(line).hexdigest()
    report.unsettled = sorted(open_pushes)
    return report


def _count(report: AuditReport, entry: dict[str, Any], open_pushes: set[int]) -> None:
    """Add one entry to the figures."""
    report.entries += 1
    if entry.get("event") == "push":
        report.pushes += 1
        report.records += entry.get("records", 0)
        report.bytes += entry.get("bytes", 0)
        open_pushes.add(entry["n"])
    else:
        open_pushes.discard(entry.get("n", 0))

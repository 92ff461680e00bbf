"""Egress: what may leave, and how fast.

Columns are the business of `encoding.ColumnFilter`, the proof of what left that of `audit`. Never
talks to a backend.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from catalogzero.clock import Clock
from catalogzero.config.settings import EgressPolicy
from catalogzero.config.state_folder import make_private
from catalogzero.errors import ConfigError
from catalogzero.protocol.identities import digest_of

KEY_BYTES = 32
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
        make_private(folder)
        part = path.with_suffix(".part")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_hex(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)  # a key cut short by a power cut would be used, and its hashes sent
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"egress.hash_key_file {path}: {error.strerror}") from error
    if len(key) < 16:
        raise ConfigError(f"egress.hash_key_file {path}: a key has at least 16 bytes")
    return key


class Throttle:
    """A limit of bytes a second, shared by all pushes; None is no limit.

    Args:
        bytes_per_s: The limit.
        clock: By which it is kept.
        book: Where other processes share the limit: books seconds of it, and returns how many to
            wait before they begin.
    """

    def __init__(
        self,
        bytes_per_s: float | None,
        clock: Clock,
        book: Callable[[float], float] | None = None,
    ) -> None:
        self.bytes_per_s, self._clock, self._book = bytes_per_s, clock, book
        self._free_at = 0.0

    async def take(self, count: int) -> None:
        """Wait until `count` more bytes may leave."""
        if self.bytes_per_s is None:
            return
        if self._book is not None:
            await self._clock.sleep(await asyncio.to_thread(self._book, count / self.bytes_per_s))
            return
        now = self._clock.monotonic()
        start = max(now, self._free_at)
        # Booked before the wait, so that pushes that wait at once leave one after another.
        self._free_at = start + count / self.bytes_per_s
        if start > now:
            await self._clock.sleep(start - now)

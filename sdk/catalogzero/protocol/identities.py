"""Who sends, and under which names: installations, sources, uploads and their URLs.

Owns the digests by which client and backend distinguish sources, and contents of a source.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict
from urllib.parse import urlsplit, urlunsplit

from catalogzero.wire.messages import encode_json

Mode = Literal["replace", "append", "merge"]
"""Whether an upload replaces what its source had, adds to it, or adds newer rows of its keys."""


class Keyed(TypedDict):
    """In merge: the columns that name a row, and the one that says that it is deleted."""

    key: list[str]
    tombstone: str | None


def url_under(base: str, *path: str) -> str:
    """The URL of a path below the endpoint, its own query kept and its trailing slash ignored."""
    parts = urlsplit(base)
    below = "/".join(path)
    joined = parts.path.rstrip("/") + f"/{below}" if below else parts.path
    return urlunsplit((parts.scheme, parts.netloc, joined, parts.query, ""))


def digest_of(value: Any, key: bytes | None = None) -> str:
    """SHA-256 in hex of a value's canonical JSON; with a key, its HMAC."""
    text = encode_json(value, sort_keys=True)
    digest = hashlib.sha256(text) if key is None else hmac.new(key, text, hashlib.sha256)
    return digest.hexdigest()


def source_key(
    installation_id: str,
    stream: str,
    name: str,
    params: Mapping[str, Any],
    key: bytes | None = None,
) -> str:
    """The identity of a source at the backend; under a key of the client's it hides the names."""
    kept = {k: v for k, v in params.items() if k not in {"format", "full"}}
    return digest_of([installation_id, stream, name, kept], key)


def upload_key(source: str, content: Any, output_version: int) -> str:
    """The identity of one content of one source: a digest of the bytes, or `[after, until]`."""
    return digest_of([source, content, output_version])


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who sends: what every request and report carries."""

    installation_id: str
    handler_id: str
    entry: str
    version: str
    stream: str
    sdk_version: str

    @property
    def user_agent(self) -> str:
        """The `User-Agent` of every request."""
        return f"{self.entry}/{self.version} catalogzero/{self.sdk_version}"

"""What the backend refuses, as problem documents (RFC 9457): the types, and the one exception.

Owns the list of problem types that docs/reference/upload-protocol.md explains; it knows neither
requests nor the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from catalogzero.wire.messages import JsonObject

PROBLEM_MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:catalogzero:problem:"


class Kind(Enum):
    """A problem type: its name in the `type` URI, the HTTP status, the title."""

    INVALID_REQUEST = ("invalid-request", 400, "The request does not fit the protocol")
    DIGEST_MISMATCH = ("digest-mismatch", 400, "The body is not the one that was digested")
    UNDECODABLE = ("undecodable-body", 400, "The body does not decode as its Content-Encoding")
    UNAUTHORIZED = ("unauthorized", 401, "No valid key")
    FORBIDDEN = ("forbidden", 403, "Not from here")
    NOT_FOUND = ("not-found", 404, "Nothing of that name")
    METHOD_NOT_ALLOWED = ("method-not-allowed", 405, "Not this method")
    CHUNKS_MISSING = ("chunks-missing", 409, "The upload is not whole yet")
    CHUNK_DIFFERS = ("chunk-differs", 409, "Other records are stored under that number")
    MODE_CHANGED = ("mode-changed", 409, "The source is shown in another mode")
    INSTALLATION_MOVED = ("installation-moved", 409, "Another folder took the installation over")
    GENERATION_CHANGED = ("generation-changed", 409, "The backend is of another generation")
    UPLOAD_FINISHED = ("upload-finished", 410, "The upload is complete or superseded")
    TOO_LARGE = ("too-large", 413, "Over a limit of this backend")
    UNSUPPORTED = ("unsupported-media-type", 415, "Not a format or encoding of this backend")
    REFUSED_RECORDS = ("refused-records", 422, "The records are not acceptable")
    TOTALS_DIFFER = ("totals-differ", 422, "The totals are not those of the stored chunks")
    KEY_REUSED = ("idempotency-key-reused", 422, "Other records came under that key")
    RATE_LIMITED = ("rate-limited", 429, "Too many requests")
    INTERNAL = ("internal", 500, "The backend failed")
    UNAVAILABLE = ("unavailable", 503, "The backend cannot do that right now")

    def __init__(self, label: str, status: int, title: str) -> None:
        self.uri = TYPE_PREFIX + label
        self.status = status
        self.title = title


class ProblemError(Exception):
    """A request that is answered with a problem document.

    Args:
        kind: The problem type.
        detail: One sentence for the engineer at the other end; never the body's own content.
        headers: Response headers, such as `Retry-After`.
        members: Extension members of the document, such as `missing`.
    """

    def __init__(
        self, kind: Kind, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members

    def document(self) -> JsonObject:
        """The JSON object of RFC 9457."""
        return {
            "type": self.kind.uri,
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
            **self.members,
        }

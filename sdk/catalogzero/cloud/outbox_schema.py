"""The outbox's schema: its versions, and the refusal of one that this release does not know.

Imports no SQLite: a handler looks at the version before it serves, and stays small.
"""

from __future__ import annotations

from pathlib import Path

from catalogzero.errors import ConfigError

_SCHEMA = """
CREATE TABLE uploads (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    upload_id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    source_key TEXT NOT NULL,
    source TEXT NOT NULL,
    mode TEXT NOT NULL,
    "full" INTEGER NOT NULL,
    params TEXT NOT NULL,
    upload_key TEXT,
    source_seq INTEGER,
    after TEXT,
    until TEXT,
    chunks INTEGER NOT NULL DEFAULT 0,
    records INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    bytes_sent INTEGER NOT NULL DEFAULT 0,
    seal_order INTEGER,
    created_at TEXT NOT NULL,
    ended_at TEXT,
    job_id TEXT,
    answer TEXT
);
CREATE INDEX uploads_by_state ON uploads (state, number);
CREATE INDEX uploads_by_source ON uploads (source_key, seal_order);
CREATE TABLE chunks (
    number INTEGER PRIMARY KEY,
    upload_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    records INTEGER NOT NULL,
    content_type TEXT NOT NULL,
    coding TEXT NOT NULL,
    acked INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (upload_id, seq)
);
CREATE TABLE sources (
    source_key TEXT PRIMARY KEY,
    upload_id TEXT,
    upload_key TEXT,
    stamp TEXT,
    watermark TEXT,
    last_full TEXT,
    high INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
MIGRATIONS = (_SCHEMA,)
"""What brings a file from each schema version to the next, from an empty file on; append only."""

_MAGIC = b"SQLite format 3\0"
_VERSION_AT = 60


def version_in(path: Path) -> int:
    """The schema version in an outbox's file; 0 where there is none, or it is damaged.

    SQLite keeps `user_version` at a fixed place of its header.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_VERSION_AT + 4)
    except FileNotFoundError:
        return 0
    return int.from_bytes(head[_VERSION_AT:], "big") if head.startswith(_MAGIC) else 0


def refuse_newer(path: Path, version: int) -> None:
    """Refuse an outbox of a schema that this release does not know.

    Raises:
        ConfigError: The version is newer than the newest known one.
    """
    if version > len(MIGRATIONS):
        raise ConfigError(
            f"{path} was written by a newer release (schema {version}, this one knows "
            f"{len(MIGRATIONS)}): install that release again; nothing was touched"
        )

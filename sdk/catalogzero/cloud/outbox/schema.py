"""The outbox's schema, step by step: a handler looks at the version before it serves."""

from __future__ import annotations

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
_IDENTITY = """
ALTER TABLE chunks ADD COLUMN crc INTEGER;
ALTER TABLE uploads ADD COLUMN base INTEGER;
ALTER TABLE uploads ADD COLUMN watermark_of TEXT NOT NULL DEFAULT '';
ALTER TABLE sources ADD COLUMN source TEXT;
ALTER TABLE sources ADD COLUMN params TEXT;
ALTER TABLE sources ADD COLUMN found_by TEXT;
ALTER TABLE sources ADD COLUMN mode TEXT;
ALTER TABLE sources ADD COLUMN bound TEXT;
ALTER TABLE sources ADD COLUMN source_seq INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sources ADD COLUMN base INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sources ADD COLUMN full_seq INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sources ADD COLUMN owed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sources ADD COLUMN missing INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sources ADD COLUMN policy TEXT;
CREATE INDEX sources_by_name ON sources (source);
CREATE INDEX sources_by_call ON sources (found_by, params);
UPDATE sources SET base = high,
    source_seq = COALESCE((SELECT u.source_seq FROM uploads u
        WHERE u.upload_id = sources.upload_id), high),
    full_seq = COALESCE((SELECT u.source_seq FROM uploads u
        WHERE u.upload_id = sources.last_full), 0),
    source = (SELECT u.source FROM uploads u
        WHERE u.source_key = sources.source_key ORDER BY u.number DESC LIMIT 1),
    params = (SELECT u.params FROM uploads u
        WHERE u.source_key = sources.source_key ORDER BY u.number DESC LIMIT 1),
    mode = CASE WHEN watermark <> 'null' THEN 'append'
        WHEN upload_key IS NOT NULL THEN 'replace' END;
"""
"""Version 2: what a mark was sealed on (`base`), as what, found by which call, and what is owed.

`base` is the source_seq that was known of the source as its content was read; NULL in uploads of
version 1. `missing` is a mark that the backend did not have, `owed` a `full` that it lost, `policy`
the digest of the egress policy that a source's records left by.
"""
_STREAMS = """
ALTER TABLE uploads ADD COLUMN stream TEXT;
ALTER TABLE uploads ADD COLUMN keyed TEXT;
ALTER TABLE sources ADD COLUMN keyed TEXT;
ALTER TABLE sources ADD COLUMN recent BLOB;
CREATE INDEX uploads_open ON uploads (COALESCE(seal_order, 9e18), number) WHERE ended_at IS NULL;
CREATE INDEX uploads_by_seal_order ON uploads (seal_order);
"""
"""Version 3: several streams, keys, and what waits in the order in which it goes.

`stream` is NULL in uploads of the handler's own stream; `keyed` is the key of mode merge, as JSON;
`recent` the digests, 16 bytes each, of the rows that the last sealed read of a keyed source held.
"""
MIGRATIONS = (_SCHEMA, _IDENTITY, _STREAMS)
"""What brings a file from each schema version to the next, from an empty file on; append only."""

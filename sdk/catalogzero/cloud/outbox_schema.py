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
MIGRATIONS = (_SCHEMA, "ALTER TABLE sources ADD COLUMN policy TEXT")
"""What brings a file from each schema version to the next, from an empty file on; append only."""

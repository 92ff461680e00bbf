BEGIN TRANSACTION;
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
INSERT INTO "chunks" VALUES(1,'a2',0,1,'application/x-ndjson','identity',0,8,X'7B226E223A317D0A');
INSERT INTO "chunks" VALUES(2,'b2',0,1,'application/x-ndjson','identity',0,8,X'7B226E223A317D0A');
INSERT INTO "chunks" VALUES(3,'c1',0,1,'application/x-ndjson','identity',0,8,X'7B226E223A317D0A');
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO "facts" VALUES('form','{"http://x":"chunked"}');
CREATE TABLE sources (
    source_key TEXT PRIMARY KEY,
    upload_id TEXT,
    upload_key TEXT,
    stamp TEXT,
    watermark TEXT,
    last_full TEXT,
    high INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "sources" VALUES('A','a2','k-a2','[2]','null',NULL,1767225605000);
INSERT INTO "sources" VALUES('B','b2','k-b2','null','9','b1',1767225610000);
INSERT INTO "sources" VALUES('C','c1','k-c1','[3]','null',NULL,1767225612000);
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
INSERT INTO "uploads" VALUES(1,'a1','done','A','exports/a.csv','replace',0,'{"site":1}','k-a1',1767225602000,'null','null',1,1,8,0,1,'2026-01-01T00:00:01+00:00','2026-01-01T00:00:03+00:00','j1','null');
INSERT INTO "uploads" VALUES(2,'a2','sealed','A','exports/a.csv','replace',0,'{"site":1}','k-a2',1767225605000,'null','null',1,1,8,0,2,'2026-01-01T00:00:04+00:00',NULL,NULL,NULL);
INSERT INTO "uploads" VALUES(3,'b1','done','B','sql:orders','append',1,'{"site":1}','k-b1',1767225607000,'null','5',1,1,8,0,3,'2026-01-01T00:00:06+00:00','2026-01-01T00:00:08+00:00','j2','null');
INSERT INTO "uploads" VALUES(4,'b2','sealed','B','sql:orders','append',0,'{"site":1}','k-b2',1767225610000,'5','9',1,1,8,0,4,'2026-01-01T00:00:09+00:00',NULL,NULL,NULL);
INSERT INTO "uploads" VALUES(5,'c1','dead','C','exports/c.csv','replace',0,'{"site":1}','k-c1',1767225612000,'null','null',1,1,8,0,5,'2026-01-01T00:00:11+00:00','2026-01-01T00:00:13+00:00',NULL,'{"reason":"422"}');
CREATE INDEX uploads_by_state ON uploads (state, number);
CREATE INDEX uploads_by_source ON uploads (source_key, seal_order);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('uploads',5);
COMMIT;
PRAGMA user_version=1;

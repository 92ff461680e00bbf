"""A receiver of the chunked form, with every rule of the upload protocol in one transaction each.

usage: OWN_BACKEND_KEY="KEY [KEY…]" python chunked.py [PORT] [DATABASE]

Each key is that of a tenant, which has a database of its own: DATABASE, DATABASE1, and so on.
"""

import base64
import hashlib
import hmac
import json
import os
import re
import sqlite3
import sys
import time
import uuid
import zlib
from contextlib import closing
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

BASE = "/v1"
DATABASE = sys.argv[2] if len(sys.argv) > 2 else "own_backend.db"
KEYS = os.environ["OWN_BACKEND_KEY"].split()
FILES = {f"Bearer {key}": f"{DATABASE}{number or ''}" for number, key in enumerate(KEYS)}
BODY_LIMIT, LIMIT, MEMBERS, NONCES, LISTED = 32 << 20, 64 << 20, 1_000, 64, 10_000
NOT_DELETED = (None, False, "false", {"#": "0"}, "0")
"""What a tombstone's column does not hold: databases without booleans have 0, and CSV has texts."""
SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS backend (generation TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS installations (name TEXT PRIMARY KEY, about TEXT, since TEXT,
  epoch INTEGER NOT NULL DEFAULT 0, nonces TEXT NOT NULL DEFAULT '[]');
CREATE TABLE IF NOT EXISTS sources (source TEXT PRIMARY KEY, installation TEXT, name TEXT,
  highest INTEGER NOT NULL DEFAULT 0, full_seq INTEGER NOT NULL DEFAULT 0,
  watermark TEXT NOT NULL DEFAULT 'null', watermark_of TEXT NOT NULL DEFAULT '', mode TEXT,
  merge_key TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS uploads (upload_id TEXT PRIMARY KEY, state TEXT NOT NULL,
  visible INTEGER, source TEXT, key TEXT, job_id TEXT, label TEXT);
CREATE TABLE IF NOT EXISTS chunks (upload_id TEXT, seq INTEGER, count INTEGER, records TEXT,
  PRIMARY KEY (upload_id, seq));
CREATE TABLE IF NOT EXISTS latest (home TEXT, key TEXT, source TEXT, record TEXT,
  PRIMARY KEY (home, key));
CREATE TABLE IF NOT EXISTS health (client_id TEXT NOT NULL, report TEXT NOT NULL);
CREATE VIEW IF NOT EXISTS visible AS SELECT label AS source, value AS record
  FROM uploads JOIN chunks USING (upload_id), json_each(chunks.records) WHERE visible;
"""
Answer = tuple[int, dict[str, Any]]
Body = dict[str, Any]


class RefusedError(Exception):
    """A request that is answered with a status, the name of a problem, and what belongs to it."""

    def __init__(self, status: int, name: str, **members: Any) -> None:
        kind = f"urn:catalogzero:problem:{name}"
        self.answer = status, {"type": kind, "title": name, "status": status, **members}


def put_chunk(database: sqlite3.Connection, upload: str, seq: int, records: list[str]) -> Answer:
    """Store one chunk of an upload that is not finished; its records are compared as they came."""
    state = "SELECT state FROM uploads WHERE upload_id = ?"
    if database.execute(state, [upload]).fetchone():
        raise RefusedError(410, "upload-finished")
    text = f"[{','.join(records)}]"
    one = "SELECT records FROM chunks WHERE upload_id = ? AND seq = ?"
    stored = database.execute(one, [upload, seq]).fetchone()
    if stored is None:
        values = [upload, seq, len(records), text]
        database.execute("INSERT INTO chunks VALUES (?, ?, ?, ?)", values)
        return 201, {}
    if stored[0] != text:
        raise RefusedError(409, "chunk-differs")
    return 200, {}


def complete(database: sqlite3.Connection, upload: str, body: Body) -> Answer:
    """Answer one complete: moved? finished? the same key? late? another mode? missing? else new."""
    check(body)
    admit(database, body["installation_id"], body.get("installation_epoch"))
    wanted, full, number = body.get("mode", "replace"), body.get("full", False), body["source_seq"]
    append = wanted != "replace"
    source = json.dumps([body["installation_id"], body["source_key"]])
    given = "SELECT state, source, job_id FROM uploads WHERE upload_id = ?"
    state, home, job = database.execute(given, [upload]).fetchone() or ("open", source, None)
    add = "INSERT OR IGNORE INTO sources (source, installation, name) VALUES (?, ?, ?)"
    database.execute(add, [home, body["installation_id"], body["source_key"]])
    known = "SELECT highest, watermark, mode, watermark_of, merge_key FROM sources WHERE source = ?"
    highest, watermark, mode, of, merge_key = database.execute(known, [home]).fetchone()
    superseded = {"superseded": True, "source_seq": highest, "watermark": json.loads(watermark)}
    if state == "complete":
        return 200, {"job_id": job, "duplicate": True, "by": "upload_id", "source_seq": highest}
    if state == "superseded":
        return 200, superseded
    same = "SELECT job_id FROM uploads WHERE source = ? AND key = ? AND visible"
    twin = database.execute(same, [source, body["upload_key"]]).fetchone()
    rise = "UPDATE sources SET highest = MAX(highest, ?) WHERE source = ?"
    if twin and not full:
        database.execute(rise, [number, source])
        known_by = {"by": "upload_key", "source_seq": max(highest, number)}
        return 200, {"job_id": twin[0], "duplicate": True, **known_by}
    chained = append and not full
    if canonical(body.get("after")) != watermark if chained else number <= highest:
        end = "INSERT INTO uploads VALUES (?, 'superseded', 0, ?, ?, NULL, NULL)"
        database.execute(end, [upload, source, body["upload_key"]])
        return 200, superseded
    key = json.dumps([body.get("key") or [], body.get("tombstone")])
    counted = body.get("watermark_of", "")
    other = mode != wanted or merge_key != key or (counted and of and counted != of)
    if not full and mode and other:
        raise RefusedError(409, "mode-changed")
    check_chunks(database, upload, body)
    if not chained:
        database.execute("UPDATE uploads SET visible = 0 WHERE source = ?", [source])
        database.execute("DELETE FROM latest WHERE home = ?", [source])
    if wanted == "merge":
        merge(database, source, upload, body)
    job, until = uuid.uuid4().hex, canonical(body.get("until") if append else None)
    end = "INSERT INTO uploads VALUES (?, 'complete', 1, ?, ?, ?, ?)"
    database.execute(end, [upload, source, body["upload_key"], job, body.get("source", "")])
    database.execute(rise, [number, source])
    now = "UPDATE sources SET watermark = ?, mode = ?, watermark_of = ?, merge_key = ?"
    database.execute(f"{now} WHERE source = ?", [until, wanted, counted, key, source])
    if full:
        database.execute("UPDATE sources SET full_seq = ? WHERE source = ?", [number, source])
    return 201, {"job_id": job}


def merge(database: sqlite3.Connection, source: str, upload: str, body: Body) -> None:
    """Let each row take the place of the one with its key; a tombstone leaves nothing there."""
    stored = "SELECT value FROM chunks, json_each(records) WHERE upload_id = ? ORDER BY seq, id"
    for (record,) in database.execute(stored, [upload]).fetchall():
        # a number as its text, to the last digit, and apart from a string of the same digits
        row = json.loads(record, parse_int=lambda n: {"#": n}, parse_float=lambda n: {"#": n})
        values = [row.get(column) for column in body["key"]]
        if None in values:
            raise RefusedError(422, "refused-records")
        place = [source, canonical(values)]
        database.execute("DELETE FROM latest WHERE home = ? AND key = ?", place)
        if row.get(body.get("tombstone")) in NOT_DELETED:
            values = [*place, body.get("source", ""), record]
            database.execute("INSERT INTO latest VALUES (?, ?, ?, ?)", values)


def check(body: Body) -> None:
    """Refuse a complete whose fields do not fit."""
    for name, low, high in (
        ("source_seq", 1, 2**63),
        ("chunks", 0, 10**6 + 1),
        ("records", 0, 2**63),
    ):
        if type(body[name]) is not int or not low <= body[name] < high:
            raise RefusedError(400, "invalid-request", errors=[{"field": name}])
    for name in ("upload_key", "source_key", "installation_id"):
        if not (isinstance(body[name], str) and 0 < len(body[name]) <= 2_000) or "\0" in body[name]:
            raise RefusedError(400, "invalid-request", errors=[{"field": name}])
    if body.get("mode", "replace") not in ("append", "merge", "replace"):
        raise RefusedError(400, "invalid-request", errors=[{"field": "mode"}])
    if bool(body.get("key")) != (body.get("mode") == "merge"):
        raise RefusedError(400, "invalid-request", errors=[{"field": "key"}])


def check_chunks(database: sqlite3.Connection, upload: str, body: Body) -> None:
    """Refuse an upload of which chunks are missing, or more is stored than it says."""
    rows = database.execute("SELECT seq, count FROM chunks WHERE upload_id = ?", [upload])
    counts = dict(rows.fetchall())
    missing = [seq for seq in range(body["chunks"]) if seq not in counts]
    if missing:
        raise RefusedError(409, "chunks-missing", missing=missing[:LISTED])
    if (len(counts), sum(counts.values())) != (body["chunks"], body["records"]):
        raise RefusedError(422, "totals-differ")


def admit(database: sqlite3.Connection, name: str, given: int | None) -> None:
    """Refuse a folder whose place another one took."""
    known = "SELECT epoch, since FROM installations WHERE name = ?"
    epoch, since = database.execute(known, [name]).fetchone() or (0, None)
    if (given or 0) < epoch:
        raise RefusedError(409, "installation-moved", since=since)
    if given is not None and given > epoch:
        database.execute("INSERT OR IGNORE INTO installations (name) VALUES (?)", [name])
        rise = "UPDATE installations SET epoch = ?, since = ? WHERE name = ?"
        database.execute(rise, [given, now(), name])


def start(database: sqlite3.Connection, name: str, body: Body) -> Answer:
    """An installation says what it is, takes the next epoch, and gets its sources."""
    add = "INSERT OR IGNORE INTO installations (name) VALUES (?)"
    is_new = database.execute(add, [name]).rowcount == 1
    stored = "SELECT epoch, since, nonces FROM installations WHERE name = ?"
    epoch, since, nonces = database.execute(stored, [name]).fetchone()
    if "epoch" in body:
        generation, taken = generation_of(database), json.loads(nonces)
        nonce, newest = body.get("nonce", ""), taken[0] if taken else ""
        if body.get("generation") not in (None, generation):
            raise RefusedError(409, "generation-changed", generation=generation)
        is_known = newest != "" and newest in (nonce, body.get("last_nonce"))
        is_old = (nonce != "" and nonce in taken) or 0 < body["epoch"] < epoch
        if is_old and not is_known:
            raise RefusedError(409, "installation-moved", since=since)
        epoch = max(epoch + 1, body["epoch"] + 1, int(time.time() * 1000))
        nonces, since = json.dumps([nonce, *taken][:NONCES]), now()
    change = "UPDATE installations SET about = ?, epoch = ?, since = ?, nonces = ? WHERE name = ?"
    database.execute(change, [json.dumps(body), epoch, since, nonces, name])
    known = "SELECT * FROM sources WHERE installation = ? AND highest > 0"
    database.row_factory = sqlite3.Row
    states = {
        row["name"]: {
            "source_seq": row["highest"],
            "watermark": json.loads(row["watermark"]),
            "full_seq": row["full_seq"],
            "mode": row["mode"],
        }
        for row in database.execute(known, [name])
    }
    database.row_factory = None
    answer: Body = {"sources": {key: state["source_seq"] for key, state in states.items()}}
    if "epoch" in body:
        answer |= {"generation": generation_of(database), "epoch": epoch, "states": states}
    return 201 if is_new else 200, answer


def show(database: sqlite3.Connection, upload: str) -> Answer:
    """What is stored of an upload."""
    rows = database.execute("SELECT seq FROM chunks WHERE upload_id = ? ORDER BY seq", [upload])
    chunks = [row[0] for row in rows]
    ended = "SELECT state, job_id FROM uploads WHERE upload_id = ?"
    state, job = database.execute(ended, [upload]).fetchone() or ("open", None)
    if not chunks and state == "open":
        raise RefusedError(404, "not-found")
    return 200, {"chunks": chunks, "state": state, **({"job_id": job} if job else {})}


def report(database: sqlite3.Connection, body: Body) -> Answer:
    """Keep a health report."""
    values = [body["client_id"], json.dumps(body)]
    database.execute("INSERT INTO health VALUES (?, ?)", values)
    return 200, {"server_time": now()}


def now() -> str:
    """The time, in ISO 8601."""
    return datetime.now(UTC).isoformat()


def canonical(value: Any) -> str:
    """The text by which watermarks are compared: 5, 5.0, "5" and true differ."""
    return json.dumps(value, sort_keys=True)


def generation_of(database: sqlite3.Connection) -> str:
    """The database's random id. After a restore from a backup: DELETE FROM backend."""
    return str(database.execute("SELECT generation FROM backend").fetchone()[0])


def records_in(body: bytes, encoding: str, media_type: str) -> list[str]:
    """The text of each record of a chunk: JSON Lines, plain or gzip."""
    if encoding not in ("", "identity", "gzip") or media_type != "application/x-ndjson":
        raise RefusedError(415, "unsupported-media-type")
    text = (unpacked(body) if encoding == "gzip" else body).decode()
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    for line in lines:
        if type(json.loads(line, parse_int=str, parse_constant=refuse)) is not dict:
            raise ValueError(line)
    return lines


def refuse(name: str) -> None:
    """Refuse NaN and infinities, which are no JSON."""
    raise ValueError(name)


def unpacked(body: bytes) -> bytes:
    """What gzip members hold, within the limits."""
    parts, size = [], 0
    for _ in range(MEMBERS):
        unpacker = zlib.decompressobj(wbits=31)
        parts.append(unpacker.decompress(body, LIMIT + 1 - size))
        size += len(parts[-1])
        if size > LIMIT:
            break
        if not unpacker.eof:
            raise RefusedError(400, "undecodable-body")
        body = unpacker.unused_data
        if not body:
            return b"".join(parts)
    raise RefusedError(413, "too-large")


class Receiver(BaseHTTPRequestHandler):
    """Answers the requests of the protocol below `BASE`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    generation = ""

    def answer(self) -> None:
        """Answer one request, in one transaction."""
        try:
            file, body = self.tenant(), self.body()
            with closing(sqlite3.connect(file, timeout=30)) as database, database:
                database.execute("BEGIN IMMEDIATE")
                self.generation = generation_of(database)
                status, answer = self.act(database, body)
        except RefusedError as refusal:
            status, answer = refusal.answer
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, zlib.error):
            status, answer = RefusedError(400, "invalid-request").answer
        content = json.dumps(answer).encode()
        self.send_response(status)
        kind = "application/json" if status < 400 else "application/problem+json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Catalogzero-Generation", self.generation)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = answer

    def tenant(self) -> str:
        """The database of the key that is shown."""
        shown = self.headers.get("Authorization", "").encode()
        for key, file in FILES.items():
            if hmac.compare_digest(shown, key.encode()):
                return file
        self.close_connection = True
        raise RefusedError(401, "unauthorized")

    def body(self) -> bytes:
        """The whole body, which is the one that was digested; one that was cut off is refused."""
        self.close_connection = True
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline(16), 16):
                if len(body) + size > BODY_LIMIT:
                    raise RefusedError(413, "too-large")
                body += self.rfile.read(size)
                self.rfile.readline(2)
            self.rfile.readline(2)
        else:
            length = int(self.headers.get("Content-Length", 0))
            if length > BODY_LIMIT:
                raise RefusedError(413, "too-large")
            body = self.rfile.read(length)
            if len(body) < length:
                raise RefusedError(400, "undecodable-body")
        self.close_connection = False
        said = re.search("sha-256=:(.*?):", self.headers.get("Content-Digest", ""))
        if said and base64.b64decode(said[1]) != hashlib.sha256(body).digest():
            raise RefusedError(400, "digest-mismatch")
        return body

    def act(self, database: sqlite3.Connection, body: bytes) -> Answer:
        """What a request asks for."""
        path = [unquote(part) for part in self.path.removeprefix(BASE + "/").split("/")]
        if path[0] == "uploads" and not re.fullmatch(r"[A-Za-z0-9._~-]{1,128}", path[1]):
            raise RefusedError(400, "invalid-request")
        match self.command, path:
            case "PUT", ["uploads", upload, "chunks", seq]:
                if not re.fullmatch("[0-9]{1,6}", seq):
                    raise RefusedError(400, "invalid-request")
                encoding = self.headers.get("Content-Encoding", "")
                records = records_in(body, encoding, self.headers.get_content_type())
                return put_chunk(database, upload, int(seq), records)
            case "POST", ["uploads", upload, "complete"]:
                return complete(database, upload, json.loads(body))
            case "GET", ["uploads", upload]:
                return show(database, upload)
            case "PUT", ["installations", name]:
                return start(database, name, json.loads(body))
            case "POST", ["health"]:
                return report(database, json.loads(body))
        raise RefusedError(404, "not-found")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def main() -> None:
    """Serve until interrupted."""
    kept_open = [sqlite3.connect(file) for file in FILES.values()]
    for database in kept_open:
        with database:
            database.executescript(SCHEMA)
            once = "INSERT INTO backend SELECT ? WHERE NOT EXISTS (SELECT 1 FROM backend)"
            database.execute(once, [uuid.uuid4().hex])
    port = int(sys.argv[1]) if sys.argv[1:] else 8802
    with ThreadingHTTPServer(("127.0.0.1", port), Receiver) as server:
        print(f"http://127.0.0.1:{server.server_port}{BASE}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()

"""A receiver of the chunked form, with every rule of the upload protocol in one transaction each.

usage: OWN_BACKEND_KEY=… python chunked.py [PORT] [DATABASE]
"""

import hmac
import json
import os
import sqlite3
import sys
import uuid
import zlib
from contextlib import closing
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

BASE = "/v1"
KEY = os.environ["OWN_BACKEND_KEY"]
DATABASE = sys.argv[2] if len(sys.argv) > 2 else "own_backend.db"
LIMIT = 64 << 20
SCHEMA = """
CREATE TABLE IF NOT EXISTS sources (source TEXT PRIMARY KEY, installation TEXT, name TEXT,
  highest INTEGER NOT NULL DEFAULT 0, watermark TEXT NOT NULL DEFAULT 'null');
CREATE TABLE IF NOT EXISTS uploads (upload_id TEXT PRIMARY KEY, state TEXT NOT NULL,
  visible INTEGER, source TEXT, key TEXT, job_id TEXT);
CREATE TABLE IF NOT EXISTS chunks (upload_id TEXT, seq INTEGER, records TEXT,
  PRIMARY KEY (upload_id, seq));
CREATE TABLE IF NOT EXISTS health (client_id TEXT NOT NULL, report TEXT NOT NULL);
"""
Answer = tuple[int, dict[str, Any]]


class RefusedError(Exception):
    """A request that is answered with a status and a reason."""


def put_chunk(database: sqlite3.Connection, upload: str, seq: int, records: list[Any]) -> Answer:
    """Store one chunk of an upload that is not finished."""
    state = database.execute("SELECT state FROM uploads WHERE upload_id = ?", [upload]).fetchone()
    if state:
        raise RefusedError(410, "this upload is finished: post complete")
    one = "SELECT records FROM chunks WHERE upload_id = ? AND seq = ?"
    stored = database.execute(one, [upload, seq]).fetchone()
    if stored is None:
        values = [upload, seq, json.dumps(records)]
        database.execute("INSERT INTO chunks VALUES (?, ?, ?)", values)
        return 201, {}
    if json.loads(stored[0]) != records:
        raise RefusedError(409, "other records are stored under that number")
    return 200, {}


def complete(database: sqlite3.Connection, upload: str, body: dict[str, Any]) -> Answer:
    """Answer one complete: finished? the same key? too late? chunks missing? else it is visible."""
    append, full, number = body["mode"] == "append", bool(body["full"]), int(body["source_seq"])
    if body["mode"] not in ("append", "replace"):
        raise RefusedError(400, "mode is replace or append")
    source = json.dumps([body["installation_id"], body["source_key"]])
    given = "SELECT state, source, job_id FROM uploads WHERE upload_id = ?"
    state, home, job = database.execute(given, [upload]).fetchone() or ("open", source, None)
    values = [home, body["installation_id"], body["source_key"]]
    add = "INSERT OR IGNORE INTO sources (source, installation, name) VALUES (?, ?, ?)"
    database.execute(add, values)
    known = "SELECT highest, watermark FROM sources WHERE source = ?"
    highest, watermark = database.execute(known, [home]).fetchone()
    superseded = {"superseded": True, "source_seq": highest, "watermark": json.loads(watermark)}
    if state != "open":
        return 200, {"job_id": job, "duplicate": True} if state == "complete" else superseded
    same = "SELECT job_id FROM uploads WHERE source = ? AND key = ? AND visible"
    twin = database.execute(same, [source, body["upload_key"]]).fetchone()
    rise = "UPDATE sources SET highest = MAX(highest, ?) WHERE source = ?"
    if twin and not full:
        database.execute(rise, [number, source])
        return 200, {"job_id": twin[0], "duplicate": True}
    chained = append and not full
    if json.dumps(body.get("after")) != watermark if chained else number <= highest:
        end = "INSERT INTO uploads VALUES (?, 'superseded', 0, ?, ?, NULL)"
        database.execute(end, [upload, source, body["upload_key"]])
        return 200, superseded
    rows = database.execute("SELECT seq, records FROM chunks WHERE upload_id = ?", [upload])
    counts = {seq: len(json.loads(records)) for seq, records in rows}
    missing = [seq for seq in range(int(body["chunks"])) if seq not in counts]
    if missing:
        return 409, {"missing": missing}
    if (len(counts), sum(counts.values())) != (body["chunks"], body["records"]):
        raise RefusedError(422, "other totals are stored")
    if not chained:
        database.execute("UPDATE uploads SET visible = 0 WHERE source = ?", [source])
    job, until = uuid.uuid4().hex, json.dumps(body.get("until") if append else None)
    end = "INSERT INTO uploads VALUES (?, 'complete', 1, ?, ?, ?)"
    database.execute(end, [upload, source, body["upload_key"], job])
    database.execute(rise, [number, source])
    database.execute("UPDATE sources SET watermark = ? WHERE source = ?", [until, source])
    return 201, {"job_id": job}


def show(database: sqlite3.Connection, upload: str) -> Answer:
    """The chunks that are stored of an upload."""
    rows = database.execute("SELECT seq FROM chunks WHERE upload_id = ? ORDER BY seq", [upload])
    chunks = [row[0] for row in rows]
    return (200, {"chunks": chunks}) if chunks else (404, {"error": "no such upload"})


def installation(database: sqlite3.Connection, name: str) -> Answer:
    """The highest source_seq of each source of an installation."""
    known = "SELECT name, highest FROM sources WHERE installation = ?"
    return 200, {"sources": dict(database.execute(known, [name]).fetchall())}


def report(database: sqlite3.Connection, body: dict[str, Any]) -> Answer:
    """Keep a health report."""
    values = [body["client_id"], json.dumps(body)]
    database.execute("INSERT INTO health VALUES (?, ?)", values)
    return 200, {"server_time": datetime.now(UTC).isoformat()}


def records_in(body: bytes, encoding: str, media_type: str) -> list[Any]:
    """The records of a chunk: JSON Lines, plain or gzip."""
    if encoding not in ("", "gzip") or media_type != "application/x-ndjson":
        raise RefusedError(415, "send application/x-ndjson, plain or gzip")
    if encoding:
        unpacker = zlib.decompressobj(wbits=31)
        body = unpacker.decompress(body, LIMIT)
        if unpacker.unconsumed_tail:
            raise RefusedError(413, "more than 64 MiB")
        if not unpacker.eof or unpacker.unused_data:
            raise RefusedError(400, "send one whole gzip member")
    return [json.loads(line) for line in body.decode().split("\n") if line.strip()]


class Receiver(BaseHTTPRequestHandler):
    """Answers the requests of the protocol below `BASE`."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        """Answer one request, in one transaction."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            with closing(sqlite3.connect(DATABASE, timeout=30)) as database, database:
                database.execute("BEGIN IMMEDIATE")
                status, answer = self.act(database, body)
        except RefusedError as refusal:
            status, answer = refusal.args[0], {"title": refusal.args[1]}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, zlib.error):
            status, answer = 400, {"title": "not what this path takes"}
        content = json.dumps(answer).encode()
        kind = "application/json" if status < 400 else "application/problem+json"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = answer

    def act(self, database: sqlite3.Connection, body: bytes) -> Answer:
        """What a request asks for."""
        shown = self.headers.get("Authorization", "")
        if not hmac.compare_digest(shown.encode(), f"Bearer {KEY}".encode()):
            raise RefusedError(401, "send the key: Authorization: Bearer …")
        path = [unquote(part) for part in self.path.removeprefix(BASE + "/").split("/")]
        match self.command, path:
            case "PUT", ["uploads", upload, "chunks", seq]:
                encoding = self.headers.get("Content-Encoding", "")
                records = records_in(body, encoding, self.headers.get_content_type())
                return put_chunk(database, upload, int(seq), records)
            case "POST", ["uploads", upload, "complete"]:
                return complete(database, upload, json.loads(body))
            case "GET", ["uploads", upload]:
                return show(database, upload)
            case "PUT", ["installations", name]:
                return installation(database, name)
            case "POST", ["health"]:
                return report(database, json.loads(body))
        raise RefusedError(404, "no such path")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def main() -> None:
    """Serve until interrupted."""
    with closing(sqlite3.connect(DATABASE)) as database:
        database.executescript("PRAGMA journal_mode=WAL;" + SCHEMA)
    port = int(sys.argv[1]) if sys.argv[1:] else 8802
    with ThreadingHTTPServer(("127.0.0.1", port), Receiver) as server:
        print(f"http://127.0.0.1:{server.server_port}{BASE}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()

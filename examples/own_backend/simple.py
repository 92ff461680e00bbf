"""A receiver of the simple form: one JSON array a request, stored once for each key.

usage: OWN_BACKEND_KEY=… python simple.py [PORT] [DATABASE]
"""

import hashlib
import hmac
import json
import os
import sqlite3
import sys
import uuid
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY, BASE = os.environ["OWN_BACKEND_KEY"], "/v1"
PORT, DATABASE = [*sys.argv[1:], *["8801", "own_backend.db"][len(sys.argv) - 1 :]]
SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS uploads (key TEXT PRIMARY KEY, job_id TEXT NOT NULL,
  digest TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rows (job_id TEXT NOT NULL, payload TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS health (client_id TEXT NOT NULL, report TEXT NOT NULL);
CREATE VIEW IF NOT EXISTS visible AS SELECT key AS source, payload AS record
  FROM uploads JOIN rows USING (job_id);
"""


def store(key: str, records: list[Any]) -> tuple[int, dict[str, Any]]:
    """Store an array in one transaction; the same key again gets the first answer."""
    with closing(sqlite3.connect(DATABASE, timeout=30)) as database, database:
        database.execute("BEGIN IMMEDIATE")
        rows = [json.dumps(record) for record in records]
        digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()
        known = "SELECT job_id, digest FROM uploads WHERE key = ?"
        found = database.execute(known, [key]).fetchone()
        if found and found[1] != digest:
            return 422, {"error": "other records came under that Idempotency-Key"}
        if found:
            return 200, {"job_id": found[0], "duplicate": True}
        job_id = uuid.uuid4().hex
        database.execute("INSERT INTO uploads VALUES (?, ?, ?)", [key, job_id, digest])
        database.executemany("INSERT INTO rows VALUES (?, ?)", [(job_id, row) for row in rows])
    return 201, {"job_id": job_id}


def report(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Keep a health report."""
    with closing(sqlite3.connect(DATABASE, timeout=30)) as database, database:
        database.execute("INSERT INTO health VALUES (?, ?)", [body["client_id"], json.dumps(body)])
    return 200, {}


class Receiver(BaseHTTPRequestHandler):
    """Answers POST requests below `BASE`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        """Read a JSON body, take it, send the JSON answer."""
        try:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = self.take(self.path.rstrip("/"), body)
        except (ValueError, TypeError, KeyError, RecursionError):
            status, answer = 400, {"error": "not what this path takes"}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def take(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        """The status and the answer to a JSON body."""
        shown = self.headers.get("Authorization", "")
        if not hmac.compare_digest(shown.encode(), f"Bearer {KEY}".encode()):
            return 401, {"error": "send the key: Authorization: Bearer …"}
        if path == BASE and isinstance(body, list):
            return store(self.headers.get("Idempotency-Key") or uuid.uuid4().hex, body)
        if path == BASE + "/health":
            return report(body)
        return 400 if path == BASE else 404, {"error": "POST one JSON array to " + BASE}


with closing(sqlite3.connect(DATABASE)) as opened:
    opened.executescript(SCHEMA)
with ThreadingHTTPServer(("127.0.0.1", int(PORT)), Receiver) as server:
    print(f"http://127.0.0.1:{server.server_port}{BASE}", flush=True)
    server.serve_forever()

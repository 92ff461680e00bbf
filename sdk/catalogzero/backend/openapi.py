"""The OpenAPI document of the upload protocol: for client generators, and for tests.

Owns the document, made from the models of `protocol.bodies` and the problem types;
`/openapi.json` below the protocol's base serves it.
"""

from __future__ import annotations

from catalogzero.protocol import bodies
from catalogzero.protocol.problems import PROBLEM_MEDIA_TYPE, Kind
from catalogzero.web import (
    Operation,
    Schema,
    object_schema,
    openapi_document,
    parameter,
    type_schema,
)

COMMON = (400, 401, 408, 413, 415, 429, 500, 503)
MEANINGS = {
    408: "The body did not arrive in time",
    **{
        status: "; ".join(kind.title for kind in Kind if kind.status == status)
        for status in {kind.status for kind in Kind}
    },
}
TEXT, WHOLE = {"type": "string"}, {"type": "integer"}
WHOLES = {"type": "array", "items": WHOLE}
JOB = {
    "type": "object",
    "properties": {
        "job_id": TEXT,
        "duplicate": {"type": "boolean"},
        "by": {"enum": ["upload_id", "upload_key"]},
        "source_seq": WHOLE,
        "number": WHOLE,
    },
}
RECORDS = {"type": "array", "items": {"type": "object"}}
SUPERSEDED = object_schema(superseded={"const": True}, source_seq=WHOLE)
CHUNK = object_schema(seq=WHOLE, records=WHOLE)
KNOWN = type_schema(bodies.Known)
KNOWN["properties"]["sources"] = {"type": "object", "additionalProperties": WHOLE}
NUMBERS = object_schema(sources=KNOWN["properties"]["sources"])
STORED = object_schema(chunks=WHOLES, state={"enum": ["open", "complete", "superseded"]})
STORED["properties"]["job_id"] = TEXT
SEEN = object_schema(server_time=TEXT)
SEEN["properties"]["next_interval_s"] = {"type": "number"}
PROBLEM = object_schema(
    type={"enum": ["about:blank", *(kind.uri for kind in Kind)]},
    title=TEXT,
    status=WHOLE,
    detail=TEXT,
)
PROBLEM["properties"].update(missing=WHOLES, errors=RECORDS, since=TEXT, generation=TEXT)
UPLOAD = parameter("upload_id", "path", **TEXT, pattern=f"^{bodies.UPLOAD_ID}$")
SEQ = parameter("seq", "path", **WHOLE, minimum=0, maximum=bodies.MAX_SEQ)
INSTALLATION = parameter("installation_id", "path", **TEXT, minLength=1, maxLength=200)
KEY = parameter("Idempotency-Key", "header", **TEXT, minLength=1, maxLength=bodies.MAX_KEY_CHARS)
NEXT = parameter("next", "query", **TEXT, pattern=f"^[0-9]{{1,{bodies.MAX_PLACE_DIGITS}}}$")
FROM = parameter(bodies.INSTALLATION, "header", **TEXT, pattern="^[A-Za-z0-9._~%-]{1,600}$")
AT_EPOCH = parameter(bodies.EPOCH, "header", **WHOLE, minimum=0, maximum=bodies.MAX_EPOCH)
OPERATIONS = {
    "PUT /uploads/{upload_id}/chunks/{seq}": Operation(
        "putChunk",
        "Store one chunk of an upload's records",
        {201: CHUNK, 200: CHUNK},
        (409, 410, 422),
        [UPLOAD, SEQ],
        {"type": "string", "format": "binary"},
        (bodies.NDJSON, bodies.CSV, bodies.PARQUET),
    ),
    "POST /uploads/{upload_id}/complete": Operation(
        "complete",
        "Make an upload visible, or learn why not",
        {201: JOB, 200: {"anyOf": [SUPERSEDED, JOB]}},
        (409, 422),
        [UPLOAD],
        type_schema(bodies.Complete),
    ),
    "GET /uploads/{upload_id}": Operation(
        "showUpload", "What is stored of an upload", {200: STORED}, (404,), [UPLOAD]
    ),
    "PUT /installations/{installation_id}": Operation(
        "putInstallation",
        "An installation says what it is, takes the next epoch, and learns its sources",
        {status: {"anyOf": [KNOWN, NUMBERS]} for status in (201, 200)},
        (404, 409),
        [INSTALLATION],
        type_schema(bodies.Installation),
    ),
    "GET /installations/{installation_id}": Operation(
        "showSources",
        "A further page of an installation's sources",
        {200: KNOWN},
        (404,),
        [INSTALLATION, NEXT],
    ),
    "POST /health": Operation(
        "postHealth", "A health report", {200: SEEN}, body=type_schema(bodies.HealthReport)
    ),
    "POST /": Operation(
        "postRecords",
        "The simple form: one array of records",
        {201: JOB, 200: JOB},
        (409, 422),
        [KEY, FROM, AT_EPOCH],
        RECORDS,
    ),
}


def document(base_path: str) -> Schema:
    """The OpenAPI 3.1 document of a backend whose protocol is below `base_path`."""
    return openapi_document(
        "catalogzero upload protocol",
        OPERATIONS,
        error=PROBLEM,
        error_type=PROBLEM_MEDIA_TYPE,
        common=COMMON,
        meanings=MEANINGS,
        base_path=base_path or "/",
    )

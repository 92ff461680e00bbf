"""The OpenAPI document of the upload protocol: for client generators, and for tests.

Owns the document, made from the models of `contract` and the problem types; `/openapi.json` below
the protocol's base serves it.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from catalogzero.protocol.bodies import (
    CSV,
    MAX_KEY_CHARS,
    MAX_SEQ,
    NDJSON,
    PARQUET,
    UPLOAD_ID,
    Complete,
    HealthReport,
    Installation,
)
from catalogzero.protocol.problems import PROBLEM_MEDIA_TYPE, Kind
from catalogzero.version import __version__

COMMON = (400, 401, 413, 415, 429, 500, 503)
JOB = {
    "type": "object",
    "properties": {"job_id": {"type": "string"}, "duplicate": {"type": "boolean"}},
}
RECORDS = {"type": "array", "items": {"type": "object"}}
SUPERSEDED = {
    "type": "object",
    "properties": {"superseded": {"const": True}, "source_seq": {"type": "integer"}},
    "required": ["superseded", "source_seq"],
}
STORED = {
    "type": "object",
    "properties": {
        "chunks": {"type": "array", "items": {"type": "integer"}},
        "state": {"enum": ["open", "complete", "superseded"]},
        "job_id": {"type": "string"},
    },
    "required": ["chunks", "state"],
}


def document(base_path: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a backend whose protocol is below `base_path`."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "catalogzero upload protocol", "version": __version__},
        "servers": [{"url": base_path or "/"}],
        "security": [{"key": []}],
        "paths": {
            "/uploads/{upload_id}/chunks/{seq}": {"put": _put_chunk()},
            "/uploads/{upload_id}/complete": {"post": _complete()},
            "/uploads/{upload_id}": {"get": _show()},
            "/installations/{installation_id}": {"put": _installation()},
            "/health": {"post": _health()},
            "/": {"post": _simple()},
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Problem": _problem()},
        },
    }


def _put_chunk() -> dict[str, Any]:
    body = {"type": "string", "format": "binary"}
    stored = _object(seq={"type": "integer"}, records={"type": "integer"})
    return {
        "summary": "Store one chunk of an upload's records",
        "parameters": [_upload_id(), _path("seq", type="integer", minimum=0, maximum=MAX_SEQ)],
        "requestBody": _content(NDJSON, CSV, PARQUET, schema=body),
        "responses": _responses({201: stored, 200: stored}, 409, 410, 422),
    }


def _complete() -> dict[str, Any]:
    return {
        "summary": "Make an upload visible, or learn why not",
        "parameters": [_upload_id()],
        "requestBody": _model(Complete),
        "responses": _responses({201: JOB, 200: {"anyOf": [SUPERSEDED, JOB]}}, 409, 422),
    }


def _show() -> dict[str, Any]:
    return {
        "summary": "What is stored of an upload",
        "parameters": [_upload_id()],
        "responses": _responses({200: STORED}, 404),
    }


def _installation() -> dict[str, Any]:
    numbers = {"type": "object", "additionalProperties": {"type": "integer"}}
    known = _object(sources=numbers)
    return {
        "summary": "An installation says what it is, and learns its sources' numbers",
        "parameters": [_path("installation_id", type="string", minLength=1, maxLength=200)],
        "requestBody": _model(Installation),
        "responses": _responses({201: known, 200: known}, 404),
    }


def _health() -> dict[str, Any]:
    answer = {
        "type": "object",
        "properties": {
            "server_time": {"type": "string"},
            "next_interval_s": {"type": "number"},
        },
        "required": ["server_time"],
    }
    return {
        "summary": "A health report",
        "requestBody": _model(HealthReport),
        "responses": _responses({200: answer}),
    }


def _simple() -> dict[str, Any]:
    text = {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARS}
    key = {"name": "Idempotency-Key", "in": "header", "required": False, "schema": text}
    return {
        "summary": "The simple form: one array of records",
        "parameters": [key],
        "requestBody": _content("application/json", schema=RECORDS),
        "responses": _responses({201: JOB, 200: JOB}, 422),
    }


def _object(**properties: Any) -> dict[str, Any]:
    """An object that has all these properties."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _path(name: str, **schema: Any) -> dict[str, Any]:
    """A parameter in the path."""
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _upload_id() -> dict[str, Any]:
    return _path("upload_id", type="string", pattern=f"^{UPLOAD_ID}$")


def _content(*media_types: str, schema: Any) -> dict[str, Any]:
    """A required body of one of these media types."""
    return {"required": True, "content": {name: {"schema": schema} for name in media_types}}


def _model(model: type[BaseModel]) -> dict[str, Any]:
    """A JSON body that a model describes."""
    schema = model.model_json_schema()
    schema.pop("$defs", None)
    return _content("application/json", schema=schema)


def _responses(answers: dict[int, Any], *refusals: int) -> dict[str, Any]:
    """The answers, and the problems: those of this request, and those of every one."""
    problem = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    described: dict[str, Any] = {
        str(status): {"description": "", "content": {"application/json": {"schema": schema}}}
        for status, schema in answers.items()
    }
    for status in sorted({*refusals, *COMMON}):
        titles = "; ".join(kind.title for kind in Kind if kind.status == status)
        described[str(status)] = {"description": titles, "content": problem}
    return described


def _problem() -> dict[str, Any]:
    """RFC 9457, with the types of this protocol."""
    return {
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"enum": [kind.uri for kind in Kind]},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "missing": {"type": "array", "items": {"type": "integer"}},
            "errors": {"type": "array", "items": {"type": "object"}},
        },
    }

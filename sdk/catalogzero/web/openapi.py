"""OpenAPI documents, built from the models that requests are checked with.

Owns the form of a document, so that every service's is alike; a service names its operations. It
never looks at an application's routes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from catalogzero.version import __version__

Schema = dict[str, Any]
"""A JSON Schema."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    `answers` are the schemas of successes by status, `refusals` the statuses of errors besides
    those of the whole document, `body` the schema of a required body in one of `media_types`.
    """

    operation_id: str
    summary: str
    answers: Mapping[int, Schema]
    refusals: Iterable[int] = ()
    parameters: Iterable[Schema] = ()
    body: Schema | None = None
    media_types: Iterable[str] = ("application/json",)


def openapi_document(
    title: str,
    operations: Mapping[str, Operation],
    *,
    error: Schema,
    error_type: str,
    common: Iterable[int],
    meanings: Mapping[int, str],
    base_path: str = "/",
    open_too: bool = False,
) -> Schema:
    """An OpenAPI 3.1 document.

    Args:
        title: Of the API.
        operations: By method and path, such as `GET /records/{record_id}`.
        error: The schema of every error, in media type `error_type`.
        error_type: See `error`.
        common: Statuses of errors that every operation may have.
        meanings: What each status of an error stands for.
        base_path: What the paths are below.
        open_too: Requests may come without a token as well.
    """
    paths: dict[str, Schema] = {}
    for place, one in operations.items():
        method, path = place.split()
        refused = {status: meanings[status] for status in {*one.refusals, *common}}
        paths.setdefault(path, {})[method.lower()] = described(one, refused, error_type)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__},
        "servers": [{"url": base_path}],
        "security": [*([{}] if open_too else []), {"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": error},
        },
    }


def described(one: Operation, refused: Mapping[int, str], error_type: str) -> Schema:
    """One operation, with what its errors stand for."""
    error = {error_type: {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: dict[int, Any] = {
        status: {"description": meaning, "content": error} for status, meaning in refused.items()
    }
    for status, schema in one.answers.items():
        content = {"application/json": {"schema": schema}}
        responses[status] = {"description": "Success.", "content": content}
    made: Schema = {"operationId": one.operation_id, "summary": one.summary}
    if one.parameters:
        made["parameters"] = list(one.parameters)
    if one.body is not None:
        content = {name: {"schema": one.body} for name in one.media_types}
        made["requestBody"] = {"required": True, "content": content}
    made["responses"] = {str(status): responses[status] for status in sorted(responses)}
    return made


def parameter(name: str, where: str, description: str = "", **schema: Any) -> Schema:
    """A parameter in `path`, `query` or `header`; in a path it is required."""
    found = {"name": name, "in": where, "required": where == "path", "schema": schema}
    return {**found, "description": description} if description else found


def object_schema(**properties: Schema) -> Schema:
    """An object that has all these properties."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def type_schema(of: Any) -> Schema:
    """The schema of a model or a `TypedDict`, with what it refers to in its place.

    Raises:
        KeyError: It refers to itself.
    """
    schema = TypeAdapter(of).json_schema()
    return dict(inlined(schema, schema.pop("$defs", {})))


def inlined(part: Any, named: Mapping[str, Schema]) -> Any:
    """The part with each named schema where it is referred to."""
    if isinstance(part, list):
        return [inlined(one, named) for one in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        return inlined(named[name], {key: one for key, one in named.items() if key != name})
    return {key: inlined(one, named) for key, one in part.items()}

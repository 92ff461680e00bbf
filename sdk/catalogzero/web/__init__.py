"""The one HTTP edge: what stands between a socket and a service's own answers.

It owns who may ask (`Guard`), the answer to every failure (`edge_application`), request bodies
within their bounds (`read_body`, `read_json`), the pages that a package carries (`Pages`) and what
they share (`shared_pages`), tokens in files (`read_token`, `token_in`), listening with bounds on
connections (`listening`), the end of a process after a signal (`stop_signal`), and OpenAPI
documents (`openapi_document`). It never knows what a service answers, and never opens a database.
"""

from catalogzero.config.address import is_loopback
from catalogzero.web.edge import NOT_KEPT, HttpError, edge_application, json_response
from catalogzero.web.guard import Guard, shown_token
from catalogzero.web.listen import ConnectionLimits, listening, stop_signal
from catalogzero.web.openapi import (
    Operation,
    Schema,
    object_schema,
    openapi_document,
    parameter,
    type_schema,
)
from catalogzero.web.pages import Pages, shared_pages
from catalogzero.web.request_reading import body_parts, header_text, query_int, read_body, read_json
from catalogzero.web.tokens import read_token, token_in

__all__ = [
    "NOT_KEPT",
    "ConnectionLimits",
    "Guard",
    "HttpError",
    "Operation",
    "Pages",
    "Schema",
    "body_parts",
    "edge_application",
    "header_text",
    "is_loopback",
    "json_response",
    "listening",
    "object_schema",
    "openapi_document",
    "parameter",
    "query_int",
    "read_body",
    "read_json",
    "read_token",
    "shared_pages",
    "shown_token",
    "stop_signal",
    "token_in",
    "type_schema",
]

"""The one HTTP edge: what stands between a socket and a service's own answers.

It owns who may ask (`Guard`), the answer to every failure (`edge_application`), request bodies
within their bounds (`read_body`, `read_json`), the pages that a package carries (`Pages`),
tokens in files (`read_token`), listening with bounds on connections (`listening`), the end of a
process after a signal (`stop_signal`), and OpenAPI documents (`openapi_document`). It never knows
what a service answers, and never opens a database.
"""

from catalogzero.config.address import is_loopback
from catalogzero.web.bodies import body_parts, header_text, query_int, read_body, read_json
from catalogzero.web.edge import NOT_KEPT, HttpError, edge_application, json_response
from catalogzero.web.guard import Guard, shown_token
from catalogzero.web.listen import Limits, listening, stop_signal
from catalogzero.web.openapi import (
    Operation,
    Schema,
    object_schema,
    openapi_document,
    parameter,
    type_schema,
)
from catalogzero.web.pages import Pages
from catalogzero.web.tokens import read_token

__all__ = [
    "NOT_KEPT",
    "Guard",
    "HttpError",
    "Limits",
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
    "shown_token",
    "stop_signal",
    "type_schema",
]

"""The JSON bodies of the upload protocol, as models that bound every field.

Owns the shapes of `complete`, of an installation and of a health report; unknown fields are
passed over, so that a newer client is understood by an older backend.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from catalogzero.backend.problems import Kind, ProblemError
from catalogzero.backend.rules import Mode

MAX_CHUNKS = 1_000_000
MAX_SEQ = MAX_CHUNKS - 1
MAX_KEY_CHARS = 2_000
MAX_INT = 2**63 - 1
MAX_OPAQUE_CHARS = 4_096
MAX_NESTED_BYTES = 65_536
UPLOAD_ID = r"[A-Za-z0-9._~-]{1,128}"


def _storable(text: str) -> str:
    """Text that every database can hold."""
    if "\0" in text:
        raise ValueError("a NUL character cannot be stored")
    return text


def _small(value: JsonValue) -> JsonValue:
    """A nested value of bounded size."""
    if len(orjson.dumps(value)) > MAX_NESTED_BYTES:
        raise ValueError(f"more than {MAX_NESTED_BYTES} bytes as JSON")
    return value


def _opaque(value: JsonValue) -> JsonValue:
    """A watermark: any JSON value of a few kilobytes."""
    if len(orjson.dumps(value)) > MAX_OPAQUE_CHARS:
        raise ValueError(f"more than {MAX_OPAQUE_CHARS} bytes as JSON")
    return value


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_storable)]
Text = Annotated[str, Field(max_length=2_000), AfterValidator(_storable)]
Key = Annotated[str, Field(min_length=1, max_length=MAX_KEY_CHARS), AfterValidator(_storable)]
Count = Annotated[int, Field(ge=0, le=MAX_INT, strict=True)]
Nested = Annotated[JsonValue, AfterValidator(_small)]
Opaque = Annotated[JsonValue, AfterValidator(_opaque)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


class Complete(_Body):
    """The body of `POST uploads/{upload_id}/complete`."""

    upload_key: Key
    source_key: Key
    source_seq: Annotated[int, Field(ge=1, le=MAX_INT, strict=True)]
    mode: Mode = "replace"
    full: bool = False
    after: Opaque = None
    until: Opaque = None
    chunks: Annotated[int, Field(ge=0, le=MAX_CHUNKS, strict=True)]
    records: Count
    stream: Text = ""
    source: Text = ""
    params: Nested = None
    entry: Text = ""
    version: Text = ""
    installation_id: Name


class Installation(_Body):
    """The body of `PUT installations/{installation_id}`."""

    entry: Text = ""
    version: Text = ""
    handler: Text = ""
    host: Nested = None
    methods: Nested = None


class HealthReport(_Body):
    """The body of `POST health`: the seed's three keys; the rest is stored as it comes."""

    client_id: Name
    metrics: JsonValue = None
    timestamp: Text = ""


ModelT = TypeVar("ModelT", bound=BaseModel)


def read_model(model: type[ModelT], body: bytes) -> ModelT:
    """The model in a JSON body.

    Raises:
        ProblemError: No JSON, or fields that do not fit; each is named in `errors`.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProblemError(Kind.INVALID_REQUEST, f"the body is no JSON: {error}") from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = [
            {"field": ".".join(map(str, fault["loc"])), "message": fault["msg"]}
            for fault in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        fields = ", ".join(sorted({fault["field"] or "the body" for fault in faults}))
        raise ProblemError(
            Kind.INVALID_REQUEST, f"does not fit the protocol: {fields}", errors=faults
        ) from None

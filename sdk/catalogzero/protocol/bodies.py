"""The bodies of the upload protocol: their media types, their digest, and the JSON ones as models.

Owns the shapes of `complete`, of an installation and of a health report, each field bounded;
unknown fields are passed over, so that a newer client is understood by an older backend.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
)

from catalogzero.protocol.identities import Mode
from catalogzero.protocol.problems import Kind, ProblemError

JSON, NDJSON, CSV = "application/json", "application/x-ndjson", "text/csv"
PARQUET = "application/vnd.apache.parquet"
AS_JSON = {"Content-Type": JSON}
CONTENT_TYPES = {"ndjson": NDJSON, "parquet": PARQUET, "csv": f"{CSV}; charset=utf-8"}
"""What a client sends, by the name of its format."""
HEALTH_SCHEMA = "catalogzero.health/1"
DIGESTS = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}
MAX_CHUNKS = 1_000_000
MAX_SEQ = MAX_CHUNKS - 1
MAX_KEY_CHARS = 2_000
MAX_KEY_COLUMNS = 16
MAX_INT = 2**63 - 1
MAX_EPOCH = 2**62
MAX_PLACE_DIGITS = 18
GENERATION = "Catalogzero-Generation"
"""The header of an answer that names the backend's generation."""
EPOCH, INSTALLATION = "Catalogzero-Epoch", "Catalogzero-Installation"
"""The headers by which the simple form says whose array comes, the id percent-encoded."""
UPLOAD_ID = r"[A-Za-z0-9._~-]{1,128}"

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=BaseModel)


def storable(text: str) -> str:
    """Text that every database can hold."""
    if "\0" in text:
        raise ValueError("a NUL character cannot be stored")
    return text


def bounded(value: JsonValue, max_bytes: int) -> JsonValue:
    """A value of bounded size."""
    if len(orjson.dumps(value)) > max_bytes:
        raise ValueError(f"more than {max_bytes} bytes as JSON")
    return value


def only_in_merge(value: T, info: ValidationInfo) -> T:
    """What mode `merge` needs or may have, and no other mode has."""
    mode = info.data.get("mode", "merge")
    if value and mode != "merge":
        raise ValueError(f"mode {mode} has none")
    return value


def key_columns(value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    """The columns of a key: at least one in mode `merge`, none twice."""
    if not value and info.data.get("mode") == "merge":
        raise ValueError("mode merge needs the columns of its key")
    if len({*value}) != len(value):
        raise ValueError("a column stands in it twice")
    return only_in_merge(value, info)


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(storable)]
Text = Annotated[str, Field(max_length=2_000), AfterValidator(storable)]
Key = Annotated[str, Field(min_length=1, max_length=MAX_KEY_CHARS), AfterValidator(storable)]
Count = Annotated[int, Field(ge=0, le=MAX_INT, strict=True)]
Epoch = Annotated[int, Field(ge=0, le=MAX_EPOCH, strict=True)]
Nested = Annotated[JsonValue, AfterValidator(lambda value: bounded(value, max_bytes=65_536))]
Opaque = Annotated[JsonValue, AfterValidator(lambda value: bounded(value, max_bytes=4_096))]
"""A watermark."""
KeyColumns = Annotated[
    tuple[Key, ...],
    Field(max_length=MAX_KEY_COLUMNS, validate_default=True),
    AfterValidator(key_columns),
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


class Acknowledged(_Body):
    """The greatest number that a backend gave to an answer, and the upload that it answered."""

    number: Count
    upload_id: Text


class Complete(_Body):
    """The body of `POST uploads/{upload_id}/complete`.

    In mode `merge`, `key` names the columns whose values a row takes an older one's place by, and
    `tombstone` the column that says that it only takes it away.
    """

    upload_key: Key
    source_key: Key
    source_seq: Annotated[int, Field(ge=1, le=MAX_INT, strict=True)]
    mode: Mode = "replace"
    key: KeyColumns = ()
    tombstone: Annotated[Key | None, AfterValidator(only_in_merge)] = None
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
    installation_epoch: Epoch | None = None
    watermark_of: Text = ""
    generation: Text | None = None
    acknowledged: Acknowledged | None = None


class Installation(_Body):
    """The body of `PUT installations/{installation_id}`.

    `epoch` is the folder's, 0 where it has none; `nonce` is known again when the answer was lost;
    `last_nonce` is that of the folder's last start that was answered. `generation` is the
    backend's that the start is for, empty where the folder knows none.
    """

    epoch: Epoch | None = None
    nonce: Text = ""
    last_nonce: Text = ""
    generation: Text | None = None
    entry: Text = ""
    version: Text = ""
    handler: Text = ""
    host: Nested = None
    methods: Nested = None


class SourceState(_Body):
    """What a backend says of a source: what it knows beyond the rows themselves.

    `source_seq` is the highest one, `full_seq` that of the newest `full` upload, `mode` that of the
    visible uploads; `removed` says that an operator removed its rows, in this generation. A source
    of which it knows nothing is reported as this class without arguments.
    """

    source_seq: Count = 0
    watermark: Opaque = None
    full_seq: Count = 0
    mode: Mode | None = None
    removed: bool = False


class Known(_Body):
    """The answer to `PUT installations/{installation_id}`, or a further page of it."""

    generation: Name
    epoch: Epoch
    states: dict[Key, SourceState]
    next: Text | None = None
    acknowledged: Acknowledged | None = None


class Completed(_Body):
    """The answer to `complete` that ends an upload, and to an array of the simple form."""

    job_id: Key | Count
    by: Text = ""
    source_seq: Count | None = None
    number: Count | None = None


class Superseded(_Body):
    """The answer to a `complete` that came too late."""

    superseded: Literal[True]
    source_seq: Epoch = 0
    watermark: Opaque = None


class HealthReport(_Body):
    """The body of `POST health`: the seed's three keys; the rest is stored as it comes."""

    client_id: Name
    metrics: JsonValue = None
    timestamp: Text = ""
    generation: Text | None = None
    acknowledged: Acknowledged | None = None


def fitting(model: type[ModelT], value: Any) -> ModelT | None:
    """The model of an answer's JSON; None where it does not fit."""
    try:
        return model.model_validate(value)
    except ValidationError:
        return None


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
        text = f"does not fit the protocol: {fields}"
        raise ProblemError(Kind.INVALID_REQUEST, text, errors=faults) from None


def content_digest(body: bytes) -> str:
    """The `Content-Digest` of a body (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def check_digest(body: bytes, header: str | None) -> None:
    """Compare the body as sent with its `Content-Digest` (RFC 9530), where there is one.

    Algorithms other than sha-256 and sha-512 are passed over, as the RFC asks.

    Raises:
        ProblemError: The header cannot be read, or the body is another one.
    """
    for item in (header or "").split(","):
        name, _, value = item.strip().partition("=")
        algorithm = DIGESTS.get(name.lower())
        if algorithm is None:
            continue
        if algorithm(body).digest() != byte_sequence(value):
            message = f"the body's {name} is not that of Content-Digest"
            raise ProblemError(Kind.DIGEST_MISMATCH, message)


def byte_sequence(value: str) -> bytes:
    """A structured field's byte sequence: `:base64:` (RFC 8941)."""
    try:
        if len(value) < 2 or value[0] != ":" or value[-1] != ":":
            raise ValueError(value)
        return base64.b64decode(value[1:-1], validate=True)
    except ValueError:
        message = "Content-Digest is written sha-256=:base64:"
        raise ProblemError(Kind.INVALID_REQUEST, message) from None

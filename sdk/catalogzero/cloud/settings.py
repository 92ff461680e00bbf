"""The settings of a processor: where to send, as whom, and what may be read.

Owns their checks, and the names of what an author's `process` takes and yields.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeAlias
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from catalogzero.config.address import is_loopback
from catalogzero.config.settings import HandlerSettings

Rows: TypeAlias = list[dict[str, Any]]
"""A batch as a list of dicts: what `process` is given unless `batch_type = "arrow"`."""


class ArrowStream(Protocol):
    """A frame of pyarrow, pandas, Polars, DuckDB or their like, by the Arrow PyCapsule interface.

    With `batch_type = "arrow"` what `process` is given is one of them, a `pyarrow.Table`.
    """

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """See Arrow's documentation."""


Batch: TypeAlias = Rows | ArrowStream
"""Rows in memory, as `process` and `read` may yield them."""

ProcessOutput: TypeAlias = Batch | tuple[str, Batch]
"""What `process` may yield: a batch, or with several streams the name of one and a batch."""

Params: TypeAlias = Mapping[str, Any]
"""What the call gave under `params`, without `format` and `full`."""


class QuerySource(BaseModel):
    """A query that the client's config names: `data_source: "sql:<name>"` calls it.

    `watermark` names a column of the query's result that only grows: each run then reads the rows
    above the last one read and appends them. Rows where it is null are never read.
    `lookback` has the rows of the last span read again, for those that come late: seconds where the
    watermark is a time, else its own units; the class must declare a key for it.
    `answer_timeout_s` is the longest wait for the next rows, on PostgreSQL.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    query: str
    url: SecretStr | None = None
    url_file: Path | None = None
    watermark: str | None = None
    lookback: float = Field(default=0.0, ge=0)
    answer_timeout_s: float = Field(default=3_600.0, gt=0)

    @model_validator(mode="after")
    def _one_url(self) -> QuerySource:
        """Exactly one of the two places that may hold the database's URL."""
        if (self.url is None) == (self.url_file is None):
            raise ValueError(
                "give one of `url_file` (a file that holds the database URL) and `url`"
            )
        if self.lookback and self.watermark is None:
            raise ValueError(
                "`lookback` goes back from a watermark: name its column in `watermark`"
            )
        return self


class TapSource(BaseModel):
    """A Singer tap that the client's config names: `data_source: "singer:<name>"` calls it.

    It runs as a child process, without a shell and with few variables of the environment.
    `config_file` holds its settings and secrets; `catalog_file` says what of it is selected, and
    how each stream is read: without one the tap is asked (`--discover`), and all is selected.
    `answer_timeout_s` is the longest time without a word of it.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    command: Path
    config_file: Path | None = None
    catalog_file: Path | None = None
    answer_timeout_s: float = Field(default=3_600.0, gt=0)

    @field_validator("command")
    @classmethod
    def _is_one_file(cls, value: Path) -> Path:
        """A file's path: no name that is looked for, no line with arguments."""
        if not value.is_absolute():
            raise ValueError("write the tap's command as an absolute path, without arguments")
        return value


class CloudSettings(HandlerSettings):
    """The settings of a `CloudProcessor`: where to send, as whom, and what may be read.

    `endpoint` is the backend's base URL; plain http is allowed to loopback alone. Times are in
    seconds. How files are read is in docs/reference/sources.md.
    """

    former_values: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "on_bad_record": {"set_aside": "quarantine"}
    }

    endpoint: str = Field(description="The backend's URL, to which results go.")
    api_key: SecretStr | None = Field(
        default=None, description="The API key itself; better keep it in a file, or with systemd."
    )
    api_key_file: Path | None = Field(
        default=None,
        validate_default=True,
        description="A file that holds the API key and nothing else.",
    )
    data_roots: list[Path] = Field(
        default_factory=list, description="The only folders that a call's data_source may lie in."
    )
    sources: dict[str, QuerySource] = Field(
        default_factory=dict, description="Database queries by name; a call says sql:<name>."
    )
    taps: dict[str, TapSource] = Field(
        default_factory=dict, description="Singer taps by name; a call says singer:<name>."
    )
    upload_form: Literal["auto", "chunked", "simple"] = Field(
        default="auto", description="How results are uploaded; auto asks the backend."
    )
    upload_concurrency: int = Field(
        default=8, ge=1, le=64, description="Requests of uploads that are sent at the same time."
    )
    upload_timeout_s: float = Field(
        default=60.0, gt=0, description="Longest wait for an answer of the backend, in seconds."
    )
    on_bad_record: Literal["fail", "skip", "quarantine"] = Field(
        default="fail", description="What a malformed row does to its run."
    )
    allow_empty: bool = Field(
        default=False,
        description="Whether a file without a line, or without a header, is an empty export.",
    )
    encoding: str | None = Field(
        default=None,
        description="Of text files, such as cp1252; not set: by their mark, else utf-8.",
    )
    delimiter: str | None = Field(
        default=None,
        pattern='^[^"\\r\\n\\x00]$',
        description="Of CSV files, one character; not set: the one that fits the first rows.",
    )
    proxy: SecretStr | None = Field(
        default=None, description="URL of an HTTP proxy, with its user where it has one."
    )
    ca_file: Path | None = Field(
        default=None, description="Certificates to trust instead of the system's, as PEM."
    )
    client_cert_file: Path | None = Field(
        default=None, description="A client certificate for TLS, as PEM."
    )
    client_key_file: Path | None = Field(default=None, description="Its private key, as PEM.")

    @field_validator("endpoint")
    @classmethod
    def _endpoint_is_safe(cls, value: str) -> str:
        """An absolute http(s) URL without credentials; plain http to loopback alone."""
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("write the endpoint as https://host/path")
        if parts.username or parts.password or parts.fragment:
            raise ValueError("an endpoint holds no user, password or fragment: use api_key_file")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise ValueError("plain http is allowed to this machine alone: write https://")
        return value

    @field_validator("api_key_file")
    @classmethod
    def _has_a_key(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        """A key from one place at least; of a field, so that it is reported with the others."""
        if value is None and info.data.get("api_key", "at fault") is None:
            raise ValueError("set api_key_file (a file that holds the API key) or api_key")
        return value

    @field_validator("data_roots")
    @classmethod
    def _roots_are_distinct(cls, value: list[Path]) -> list[Path]:
        """A root's last folder name is part of every source's identity: no two may share it."""
        names = [root.name for root in value]
        if not all(root.is_absolute() and root.name for root in value):
            raise ValueError("write each data root as an absolute path of a folder below /")
        if len(set(names)) < len(names):
            raise ValueError("the last folder names of data_roots must differ from each other")
        return value


def root_fault(root: Path) -> tuple[str, str] | None:
    """What is wrong with a data root, and the fix; None where it can be read."""
    try:
        os.scandir(root).close()
    except PermissionError:
        fix = "let this user read it, as with `chmod -R o+rX`, or SupplementaryGroups= in its unit"
        return f"data_roots: {root} may not be read by this user", fix
    except OSError as error:
        fix = "create it, or mount the share that it is on, or correct `data_roots`"
        return f"data_roots: {root}: {error.strerror}", fix
    return None

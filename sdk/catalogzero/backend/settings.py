"""What the operator of a backend can set: limits, times, the database.

Owns the settings model alone; it opens nothing and starts nothing.
Environment variables carry the prefix `CATALOGZERO_BACKEND_`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, PrivateAttr, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from catalogzero.config.key_files import read_key
from catalogzero.config.renewal import Renewed
from catalogzero.config.settings import default_database
from catalogzero.errors import ConfigError

MIB = 1 << 20
DAY_S = 86_400.0


def _base_path(value: str) -> str:
    """A path that starts with a slash and ends without one; empty for a mount's own prefix."""
    trimmed = value.strip("/")
    return f"/{trimmed}" if trimmed else ""


class BackendSettings(BaseSettings):
    """Settings of one backend; every one has a default that suits a first run.

    `base_path` is where the upload protocol is mounted: a handler's `endpoint` is the service's
    address and this path. `database` is a SQLAlchemy URL (SQLite or PostgreSQL) or a file's path.
    """

    model_config = SettingsConfigDict(
        env_prefix="CATALOGZERO_BACKEND_", extra="forbid", hide_input_in_errors=True
    )

    database: str = Field(
        default_factory=lambda: f"sqlite:///{default_database('backend.db')}", repr=False
    )
    database_timeout_s: float = Field(default=30.0, gt=0)
    """Longest wait for an answer of the database, or for its lock."""
    base_path: Annotated[str, AfterValidator(_base_path)] = "/v1"
    max_body_bytes: int = Field(default=32 * MIB, ge=1024)
    """Largest body as sent."""
    max_decoded_bytes: int = Field(default=128 * MIB, ge=1024)
    """Largest body once decompressed."""
    max_chunk_records: int = Field(default=1_000_000, ge=1)
    """Most records in one chunk."""
    max_concurrent_chunks: int = Field(default=8, ge=1)
    """Chunks decoded or being stored at once; more wait in memory, as sent."""
    max_held_bytes: int = Field(default=512 * MIB, ge=1024)
    """Bodies in memory at once, as sent; past that, requests are answered 503."""
    health_commit_window_s: float = Field(default=0.01, ge=0, le=1)
    """How long a health report waits for others to share its transaction."""
    health_interval_s: float | None = Field(default=None, gt=0)
    """What installations are asked to report at (`next_interval_s`); none: theirs."""
    max_requests_per_s: float = Field(default=1_000, gt=0)
    """What one tenant may ask for, on average; twice that in a burst."""
    tenant_held_bytes: int = Field(default=128 * MIB, ge=1024)
    """Bodies of one tenant in memory at once, as sent; past that, 429. At least one body fits."""
    tenant_chunks: int = Field(default=4, ge=1)
    """Chunks of one tenant above 64 KiB decoded or being stored at once; past that, 429."""
    tenant_rows_per_s: float | None = Field(default=None, gt=0)
    """Rows that one tenant may store, on average; past that, 429. None: as many as it can."""
    open_upload_ttl_s: float = Field(default=7 * DAY_S, gt=0)
    """How long chunks of an upload that is not completed are kept."""
    health_history_s: float = Field(default=30 * DAY_S, gt=0)
    """How long health reports are kept; the latest of each installation always is."""
    stream_retention_s: dict[str, Annotated[float, Field(gt=0)]] = {}
    """How long uploads of a stream are shown, by the stream's name; others for ever."""
    housekeeping_interval_s: float = Field(default=60, gt=0)
    """How often rows that can go are looked for."""
    hook_timeout_s: float = Field(default=300, gt=0)
    """Longest time that one call of the hook may take; then it is called again."""
    hook_attempts: int = Field(default=20, ge=1)
    """Calls of the hook for one upload, before it is a dead letter: 20 take about eight hours."""
    hook_secret: SecretStr | None = None
    """What `CompletedUpload.signature()` is made with."""
    access_log: bool = True
    """A line in the log for each request; health probes and scrapes that succeed are left out."""
    operator_token: SecretStr | None = None
    """Opens the fleet page and `/metrics` (Bearer, or the password of Basic authentication)."""
    operator_token_file: Path | None = None
    """A file that holds `operator_token`."""

    _operator: Renewed[str] | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _read_token_file(self) -> Self:
        """Take the operator's token from its file."""
        if self.operator_token is None and self.operator_token_file is not None:
            self._operator = Renewed(
                partial(_token_of, self.operator_token_file), self.operator_token_file
            )
            self.operator_token = SecretStr(self._operator())
        return self

    def operator(self) -> Callable[[], str] | None:
        """What gives the operator's token of now; None without one."""
        token = self.operator_token
        if self._operator is not None or token is None:
            return self._operator
        return token.get_secret_value


def _token_of(path: Path) -> str:
    """The operator's token in its file."""
    try:
        token = read_key(path, warn=True).strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"operator_token_file {path}: no text to read") from None
    if not token:
        raise ConfigError(f"operator_token_file {path} is empty")
    return token

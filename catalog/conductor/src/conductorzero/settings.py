"""The conductor's settings, as they stand under `config` in the registry file.

Layer: catalog entry, imports public names of catalogzero only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Self

from catalogzero import HandlerSettings, NatsSettings
from pydantic import AliasChoices, Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from conductorzero.peers import peers_of_mapping

DEFAULT_REGISTRY = "handler_registry.yaml"

CurveKey = Annotated[
    str, Field(min_length=40, max_length=40, pattern=r"^[0-9a-zA-Z.:+=^!/*?&<>()\[\]{}@%$#-]*$")
]


class ConductorSettings(HandlerSettings):
    """Where the handlers are, how often to look, and where the dashboard listens.

    Without `handler_registry` and `scheduler_url` the handlers are those of the registry file
    that CATALOGZERO_REGISTRY names, or of handler_registry.yaml in the current folder.
    """

    model_config = SettingsConfigDict(env_prefix="CONDUCTOR_", populate_by_name=True)

    handler_registry: dict[str, int | str] | Path | None = Field(
        default=None,
        validation_alias=AliasChoices("handler_registry", "registry"),
        description="{handler_id[/instance_id]: port or address}, or the path of a"
        " handler_registry.yaml.",
    )
    scheduler_url: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="A scheduler's HTTP address, such as http://127.0.0.1:8888: its handlers too.",
    )
    scheduler_token_file: Path | None = Field(
        default=None, description="Holds the Bearer token that the scheduler's HTTP asks for."
    )
    discovery_interval_s: float = Field(
        default=15.0, ge=1.0, description="The scheduler's list is read again this often."
    )
    curve_key_file: Path | None = Field(
        default=None, description="The conductor's own CURVE key pair (`catalogzero keys new`)."
    )
    server_keys: dict[str, CurveKey] = Field(
        default_factory=dict,
        description="Public CURVE keys by handler_id, or handler_id/instance_id, of the handlers"
        " that are reached with keys.",
    )
    nats: NatsSettings = Field(
        default_factory=NatsSettings,
        description="The conductor's own key for NATS servers (key_file), and their CA (ca_file).",
    )
    timeout_s: float = Field(default=5.0, gt=0, description="How long a handler may take to reply.")
    interval_s: float = Field(
        default=5.0, ge=0.2, description="A handler's death shows at most this many seconds late."
    )
    dashboard_host: str = Field(default="127.0.0.1", description="Where the dashboard listens.")
    dashboard_port: int | None = Field(
        default=5998, ge=0, le=65535, description="Its port; 0 takes a free one, null serves none."
    )
    dashboard_hosts: list[str] = Field(
        default_factory=list,
        description="Names beside the loopback ones under which browsers may ask for it.",
    )
    token_file: Path | None = Field(
        default=None,
        description="Holds the token for signals; made in the state folder when not named.",
    )
    history_days: float = Field(default=30.0, gt=0, description="Samples go after this many days.")
    history_max_rows: int = Field(
        default=1_000_000, ge=1_000, description="Rows of samples kept at most."
    )

    @field_validator("handler_registry")
    @classmethod
    def _addresses_are_addresses(
        cls, value: dict[str, int | str] | Path | None
    ) -> dict[str, int | str] | Path | None:
        """Refuse a registry whose values are no ports and no addresses, at once."""
        if isinstance(value, dict):
            peers_of_mapping(value)
        return value

    @model_validator(mode="after")
    def _server_keys_need_an_own_pair(self) -> Self:
        """Refuse keys of handlers without a pair to answer them with."""
        if self.server_keys and self.curve_key_file is None:
            raise ValueError(
                "server_keys need curve_key_file: make one with `catalogzero keys new`"
            )
        return self

    def registry_file(self) -> Path | None:
        """The registry file to read, or None when the handlers come from elsewhere."""
        if isinstance(self.handler_registry, Path):
            return self.handler_registry
        if self.handler_registry is not None or self.scheduler_url is not None:
            return None
        return Path(os.environ.get("CATALOGZERO_REGISTRY") or DEFAULT_REGISTRY)

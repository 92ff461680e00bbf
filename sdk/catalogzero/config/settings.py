"""Settings: those of the runtime, and the base of an entry's own.

Order of precedence: flags, environment, systemd credentials, file, default. Secrets are
`SecretStr` to the end; `Mask` hides their values in every text that leaves the process.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import CoreSchema
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from catalogzero.config.address import Address
from catalogzero.errors import ConfigError

DEFAULT_SCHEDULER = "tcp://127.0.0.1:4242"
HIDDEN = "**********"
MIN_SECRET_CHARS = 4
LONG_CHARS = 16
QUERY_SECRETS = r"key|code|sig|token|secret|pass|pwd|auth|cred|sas|jwt|sess|cookie|access|otp"
MAX_SECRET_FILE_BYTES = 1 << 16
MAX_MESSAGE_BYTES = 16 << 20
"""The longest message that a handler may be set to take; no client reads a longer reply."""


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class EgressPolicy(BaseModel):
    """What the client allows to leave: the `egress` block of its registry file."""

    model_config = ConfigDict(extra="forbid")

    hosts: list[str] | None = Field(None, description="Allowed endpoint hosts; all when absent.")
    drop: list[str] = Field([], description="Columns that never leave.")
    keep: list[str] | None = Field(None, description="The only columns that leave.")
    hash: list[str] = Field([], description="Columns that leave as a keyed hash.")
    strict: bool = Field(False, description="Refuse a run in which a rule matched no column.")
    hash_key_file: Path | None = Field(None, description="Key of the hashes; made when absent.")
    hash_sources: bool = Field(False, description="Source names leave as a keyed hash.")
    bytes_per_s: float | None = Field(None, gt=0, description="Limit of the upload's bandwidth.")


class CurveSettings(BaseModel):
    """Keys of the encrypted wire: the `curve` block of the registry file."""

    model_config = ConfigDict(extra="forbid")

    key_file: Path = Field(description="The handler's own key pair (`catalogzero keys new`).")
    clients_file: Path = Field(description="Public keys that may call, one a line.")
    scheduler_key: str | None = Field(
        None,
        pattern=r"^[0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]{40}$",
        description="The scheduler's public key, where it takes registrations over CURVE.",
    )


class RuntimeSettings(BaseSettings):
    """Settings of the runtime: any key of a handler's section beside `config`.

    The environment names them `CATALOGZERO_…`: `CATALOGZERO_SLEEP_AFTER_S=5`.
    """

    model_config = SettingsConfigDict(
        env_prefix="CATALOGZERO_", extra="forbid", hide_input_in_errors=True
    )

    handler_id: str | None = Field(None, description="Its name to schedulers and conductors.")
    host: str = Field(
        "127.0.0.1",
        description="Address to bind, loopback unless keys are set; or ipc:///folder/name.sock.",
    )
    port: int = Field(0, ge=0, le=65_535, description="Port to bind; 0: any free one.")
    scheduler: str = Field(DEFAULT_SCHEDULER, description="Where to register; `none`: nowhere.")
    advertise_host: str | None = Field(None, description="Host to register, where it differs.")
    allow_plaintext: bool = Field(False, description="Serve beyond loopback without keys.")
    curve: CurveSettings | None = None
    egress: EgressPolicy = EgressPolicy()
    idle_after_s: Seconds = 60.0
    sleep_after_s: Seconds = Field(300.0, description="0: never asleep.")
    max_concurrent_jobs: Count = 4
    max_queued_jobs: int = Field(100, ge=0)
    early_reply_s: Seconds = 8.0
    drain_timeout_s: Seconds = 30.0
    dedupe_window_s: Seconds = 600.0
    max_message_bytes: int = Field(1 << 20, ge=1024, le=MAX_MESSAGE_BYTES)
    health_interval_s: float | None = Field(None, gt=0, description="Push health by itself.")
    state_dir: Path = Field(default_factory=lambda: default_state_dir())
    installation_id: str | None = Field(None, min_length=1, max_length=200)
    chunk_bytes: int = Field(4 << 20, ge=1024)
    outbox_max_bytes: int = Field(10 << 30, ge=1 << 20)
    upload_wait_s: Seconds = 30.0
    settle_s: Seconds = Field(2.0, description="Files younger than this wait.")
    log_format: str | None = Field(None, pattern="^(console|json)$")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$")

    @field_validator("scheduler", mode="before")
    @classmethod
    def _none_is_a_word(cls, value: Any) -> Any:
        """YAML's `none`, `null` and an empty value all turn registration off."""
        return "none" if value is None or str(value).lower() in {"", "none", "null"} else value

    @field_validator("scheduler")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if fault := scheduler_fault(value):
            raise ValueError(fault)
        return value

    @field_validator("host")
    @classmethod
    def _a_place_to_bind(cls, value: str) -> str:
        if "://" in value and not (value.startswith("ipc://") and _is_address(value)):
            raise ValueError("a host name, an IP address, or ipc:///folder/name.sock")
        return value

    @field_validator("port")
    @classmethod
    def _a_socket_file_has_no_port(cls, value: int, info: ValidationInfo) -> int:
        if value and str(info.data.get("host", "")).startswith("ipc://"):
            raise ValueError("a socket file has no port: leave `port` out")
        return value

    @field_validator("handler_id")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        """The handler_id names a folder, so it is a plain name."""
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError("letters, digits, `.`, `_` and `-` only, at most 100")
        return value

    @property
    def address(self) -> Address:
        """Where it binds."""
        return Address.of(self.host, self.port)

    @property
    def exposed(self) -> bool:
        """Whether other machines can reach it, and nothing is encrypted."""
        return not self.address.is_local and self.curve is None

    @property
    def registers(self) -> bool:
        """Whether the handler registers with a scheduler."""
        return self.scheduler != "none"


class HandlerSettings(BaseSettings):
    """Base of an entry's own settings: the `config` of its section.

    A subclass names its environment prefix:
    `model_config = SettingsConfigDict(env_prefix="ACME_")`.
    """

    model_config = SettingsConfigDict(extra="forbid", hide_input_in_errors=True)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """A setting whose default a subclass sets anew keeps the meaning that its base gives it."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        for name, shown in schema.get("properties", {}).items():
            meanings = (
                base.model_fields[name].description
                for base in cls.__mro__
                if issubclass(base, HandlerSettings) and name in base.model_fields
            )
            if meaning := next(filter(None, meanings), None):
                shown["description"] = meaning
        return schema


def scheduler_fault(value: str) -> str | None:
    """What is wrong with a `scheduler` setting: an address with its port, or `none`."""
    if value == "none" or (_is_address(value) and not value.endswith((":0", ":*"))):
        return None
    return "write it as tcp://host:port or ipc:///folder/name.sock, or none"


def _is_address(value: str) -> bool:
    try:
        Address.parse(value)
    except ConfigError:
        return False
    return True


def default_state_dir() -> Path:
    """systemd's STATE_DIRECTORY, else the platform's per-user state folder."""
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    import platformdirs  # a service names its folder, and never needs it

    return platformdirs.user_state_path("catalogzero")


def merged_settings(
    model: type[BaseSettings], *, file: Mapping[str, Any], flags: Mapping[str, Any]
) -> dict[str, Any]:
    """The values for a model: flags beat environment beats systemd credentials beats file."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    secrets = SecretsSettingsSource(model, secrets_dir=credentials)() if credentials else {}
    return {**file, **secrets, **EnvSettingsSource(model)(), **flags}


def problems_of(error: ValidationError, known: Iterable[str] = ()) -> Iterator[tuple[str, str]]:
    """Each fault of a validation: (dotted field, sentence); never the value itself.

    Args:
        error: What pydantic found.
        known: The names that there are, for one that is misspelled.
    """
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        field = ".".join(str(part) for part in fault["loc"]) or "config"
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(field, () if "." in field else known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            yield field, f"there is no such key{hint}"
        else:
            yield field, fault["msg"].removeprefix("Value error, ")


def config_error(error: ValidationError, *, where: str, known: Iterable[str] = ()) -> ConfigError:
    """The error that names every field at fault, a line each; `known` as for `problems_of`."""
    faults = [{"field": field, "message": shown} for field, shown in problems_of(error, known)]
    lines = "".join(f"\n  {fault['field']}: {fault['message']}" for fault in faults)
    return ConfigError(f"{where}:{lines}", details=faults)


class Mask:
    """Hides the values of secrets in texts, in whatever form they are written there.

    A file that stands for a secret (`api_key_file` beside `api_key`) is read for this too, and
    again when it has changed.
    """

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._files: dict[Path, tuple[tuple[int, int], str]] = {}
        self._forms: list[str] = []

    def learn(self, value: Any) -> None:
        """Remember every secret inside a settings model (or mapping, or list)."""
        self._given.update(secrets_in(value), _secrets_in_urls(value))
        for path in secret_files_in(value):
            self._files.setdefault(path, ((0, 0), ""))
        self._arrange()

    def __call__(self, text: str) -> str:
        """The text with each known secret as `**********`."""
        for path in self._files:
            self._look_at(path)
        for form in self._forms:
            text = text.replace(form, HIDDEN)
        return text

    def every(self, value: Any) -> Any:
        """A JSON value with each text in it masked."""
        if isinstance(value, dict):
            return {key: self.every(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.every(one) for one in value]
        return self(value) if isinstance(value, str) else value

    def _look_at(self, path: Path) -> None:
        try:
            found = path.stat()
            stamp = found.st_mtime_ns, found.st_size
            if stamp != self._files[path][0] and found.st_size <= MAX_SECRET_FILE_BYTES:
                self._files[path] = stamp, path.read_text("utf-8").strip()
                self._arrange()
        except (OSError, UnicodeDecodeError):  # who needs the file tells of it
            return

    def _arrange(self) -> None:
        """The longest first: a secret may hold another."""
        secrets = self._given | {text for _, text in self._files.values()}
        forms = {form for secret in secrets for form in _forms_of(secret)}
        self._forms = sorted((f for f in forms if len(f) >= MIN_SECRET_CHARS), key=len)[::-1]


def _forms_of(secret: str) -> Iterator[str]:
    """A secret as it is, as a URL, JSON and Python write it; and the secrets of a URL."""
    yield from (secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1])
    yield from _url_secrets(secret)


def shown_url(url: str) -> str:
    """A URL as it may be seen: its password, and what of its query is a secret, masked."""
    for secret in sorted(filter(None, _url_secrets(url)), key=len, reverse=True):
        url = url.replace(secret, HIDDEN)
    return url


def _url_secrets(url: str) -> Iterator[str]:
    """The password of a URL, and the values of its query that are long or named like a secret."""
    with suppress(ValueError):
        parts = urlsplit(url) if "://" in url else urlsplit("")
        found = [parts.password or ""]
        for pair in parts.query.split("&"):
            name, _, text = pair.partition("=")
            if len(text) >= LONG_CHARS or re.search(QUERY_SECRETS, name, re.IGNORECASE):
                found.append(text)
        for text in found:
            yield from (text, unquote(text))


def _secrets_in_urls(value: Any) -> Iterator[str]:
    """The secrets of every URL inside a value: an endpoint may carry one in its query."""
    if isinstance(value, str):
        yield from _url_secrets(value)
    for item in _items_of(value):
        yield from _secrets_in_urls(item)


def secret_files_in(value: Any) -> Iterator[Path]:
    """The files that hold a secret: `x_file` of a model that has a secret `x`, and any key file."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        for name in fields:
            path, known = getattr(value, name), fields.get(name.removesuffix("_file"))
            stands_for_one = known is not None and "SecretStr" in str(known.annotation)
            if isinstance(path, Path) and (stands_for_one or name.endswith("key_file")):
                yield path
    for item in _items_of(value):
        yield from secret_files_in(item)


def secrets_in(value: Any) -> Iterator[str]:
    """Every secret's text inside a value."""
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    for item in _items_of(value):
        yield from secrets_in(item)


def _items_of(value: Any) -> Iterable[Any]:
    """What a model, a mapping or a list holds; nothing for any other value."""
    if isinstance(value, BaseModel):
        return [getattr(value, name) for name in type(value).model_fields]
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()

"""Settings: those of the runtime, and the base of an entry's own.

Order of precedence: flags, environment, systemd credentials, file, default. Secrets are
`SecretStr` to the end; `Mask` hides their values in every text that leaves the process.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self
from urllib.parse import quote, unquote, urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from catalogzero.config.address import Address
from catalogzero.errors import ConfigError

DEFAULT_SCHEDULER = "tcp://127.0.0.1:4242"
POSTGRESQL = frozenset({"postgresql", "postgres"})
"""The schemes of a PostgreSQL URL."""
HIDDEN = "**********"
MIN_SECRET_CHARS = 4
LONG_CHARS = 16
SHOWN_CHARS = 60
QUERY_SECRETS = r"key|code|sig|token|secret|pass|pwd|auth|cred|sas|jwt|sess|cookie|access|otp"
MAX_SECRET_FILE_BYTES = 1 << 16
MAX_MESSAGE_BYTES = 16 << 20
"""The longest message that a handler may be set to take; no client reads a longer reply."""

Values = dict[str, Any]
"""Settings by name, as they were given: their names are their author's to choose."""

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def read_labels(value: Any) -> Any:
    """Labels as the environment writes them: a JSON object, or `site=berlin,line=4`."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):
        return json.loads(value)
    pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
    if not all(sign for _, sign, _ in pairs):
        raise ValueError("write labels as name=value,name=value, or as a JSON object")
    return {name.strip(): text.strip() for name, _, text in pairs}


LabelName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
LabelText = Annotated[str, Field(max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")]
Labels = Annotated[
    dict[LabelName, LabelText], NoDecode, BeforeValidator(read_labels), Field(max_length=20)
]


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


class NatsSettings(BaseModel):
    """How the NATS server is reached: the `nats` block of the registry file."""

    model_config = ConfigDict(extra="forbid")

    key_file: Path | None = Field(
        None, description="An NKEY seed, or a credentials file (`.creds`), for the NATS server."
    )
    ca_file: Path | None = Field(
        None, description="CA of the NATS server, where it is a private one; demands TLS."
    )


class RenamingSettings(BaseSettings):
    """Settings of which the former names and values stay readable for one release."""

    former_keys: ClassVar[Mapping[str, str]] = {}
    """Former key to the present one."""
    former_values: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Key to its former values, each with the present one."""
    _deprecations: list[str] = PrivateAttr(default_factory=list)

    @property
    def deprecations(self) -> Sequence[str]:
        """What was given by a former name or value, each with the present one to write."""
        return self._deprecations

    @model_validator(mode="wrap")
    @classmethod
    def _read_former_names(cls, given: Any, make: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(given, Mapping):
            return make(given)
        values, found = dict(given), []
        environment = former_in_environment(cls)
        for former, key in cls.former_keys.items():
            # Given by name, it beats the present key, which may come of the environment.
            if former in values:
                values[key] = values.pop(former)
            elif former in environment and key not in values:
                values[key] = environment[former]
            else:
                continue
            found.append(f"`{former}` is deprecated: write `{key}`")
        for key, known in cls.former_values.items():
            # The default is looked at, too: a subclass of an older release may have a former one.
            value = values.get(key, cls.model_fields[key].default)
            if isinstance(value, str) and value in known:
                found.append(f"`{key}: {value}` is deprecated: write `{known[value]}`")
                values[key] = known[value]
        made = make(values)
        made._deprecations = found
        return made


class RuntimeSettings(RenamingSettings):
    """Settings of the runtime: any key of a handler's section beside `config`.

    The environment names them `CATALOGZERO_…`: `CATALOGZERO_SLEEP_AFTER_S=5`.
    """

    model_config = SettingsConfigDict(
        env_prefix="CATALOGZERO_", extra="forbid", hide_input_in_errors=True
    )
    former_keys: ClassVar[Mapping[str, str]] = {"settle_s": "min_file_age_s"}

    handler_id: str | None = Field(None, description="Its name to schedulers and conductors.")
    instance_id: str | None = Field(
        None, description="Its name among several processes that share the calls of one handler_id."
    )
    host: str = Field(
        "127.0.0.1",
        description="Address to bind, loopback unless keys are set; or ipc:///folder/name.sock.",
    )
    port: int = Field(0, ge=0, le=65_535, description="Port to bind; 0: any free one.")
    transport: str = Field(
        "zeromq",
        description="What carries its calls: zeromq, at `host` and `port`; or a NATS server, "
        "nats://host:port or tls://host:port, behind which it is called by its handler_id.",
    )
    nats: NatsSettings = NatsSettings()
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
    labels: Labels = Field(
        default_factory=dict,
        description="Words of your own for this installation, shown in metrics and health.",
    )
    state_dir: Path = Field(default_factory=lambda: default_state_dir())
    state: SecretStr | None = Field(
        None,
        description="postgresql://user@host/database: where a processor keeps its marks and its "
        "outbox, shared by its instances; by default a file in its folder of `state_dir`.",
    )
    installation_id: str | None = Field(None, min_length=1, max_length=200)
    chunk_bytes: int = Field(4 << 20, ge=1024)
    outbox_max_bytes: int = Field(10 << 30, ge=1 << 20)
    upload_wait_s: Seconds = 30.0
    min_file_age_s: Seconds = Field(2.0, description="Files younger than this wait.")
    audit_max_bytes: int = Field(64 << 20, ge=1024, description="Where the audit log rotates.")
    audit_kept_files: Count = Field(
        30, description="Rotated files of the audit log that are kept; older ones are deleted."
    )
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

    @field_validator("transport")
    @classmethod
    def _a_carrier(cls, value: str) -> str:
        if value != "zeromq":
            try:
                Address.nats_server(value)
            except ConfigError as error:
                raise ValueError(f"{error}; or zeromq") from None
        return value

    @field_validator("state")
    @classmethod
    def _a_shared_store(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and urlsplit(value.get_secret_value()).scheme not in POSTGRESQL:
            raise ValueError("write it as postgresql://user@host/database")
        return value

    @field_validator("host")
    @classmethod
    def _a_place_to_bind(cls, value: str) -> str:
        if "://" in value and not (value.startswith("ipc://") and is_address(value)):
            raise ValueError("a host name, an IP address, or ipc:///folder/name.sock")
        return value

    @field_validator("port")
    @classmethod
    def _a_socket_file_has_no_port(cls, value: int, info: ValidationInfo) -> int:
        if value and str(info.data.get("host", "")).startswith("ipc://"):
            raise ValueError("a socket file has no port: leave `port` out")
        return value

    @field_validator("handler_id", "instance_id")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        """Both name a folder, so they are plain names."""
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError("letters, digits, `.`, `_` and `-` only, at most 100")
        return value

    @property
    def address(self) -> Address:
        """Where it listens: what it binds, or the NATS server that it is called through."""
        if self.transport != "zeromq":
            return Address.nats_server(self.transport)
        return Address.of(self.host, self.port)

    def state_dir_of(self, handler_id: str) -> Path:
        """The state folder of a handler: `<state_dir>/<handler_id>[/<instance_id>]`."""
        return self.state_dir / handler_id / (self.instance_id or "")

    @property
    def encrypted_by(self) -> str:
        """The setting that lets it be served beyond loopback."""
        return "curve" if self.transport == "zeromq" else "nats.key_file"

    @property
    def exposed(self) -> bool:
        """Whether other machines can reach it, and nothing is encrypted.

        Through NATS: whether others can reach its server, to which it has neither TLS nor a key.
        """
        address = self.address
        if address.is_nats:
            known = self.nats.key_file or self.nats.ca_file or address.scheme == "tls"
            return not (address.is_local or known)
        return not address.is_local and self.curve is None

    @property
    def registers(self) -> bool:
        """Whether the handler registers with a scheduler."""
        return self.scheduler != "none"


class HandlerSettings(RenamingSettings):
    """Base of an entry's own settings: the `config` of its section.

    A subclass names its environment prefix:
    `model_config = SettingsConfigDict(env_prefix="ACME_")`.
    """

    model_config = SettingsConfigDict(extra="forbid", hide_input_in_errors=True)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> Values:
        """A setting whose default a subclass replaces keeps the meaning that its base gives it."""
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
    if value == "none" or (
        value.startswith(("tcp://", "ipc://"))
        and is_address(value)
        and not value.endswith((":0", ":*"))
    ):
        return None
    return "write it as tcp://host:port or ipc:///folder/name.sock, or none"


def is_address(value: str) -> bool:
    """Whether a text is an address, with its port where it has one."""
    try:
        Address.parse(value)
    except ConfigError:
        return False
    return True


def default_state_dir() -> Path:
    """CATALOGZERO_STATE_DIR, else systemd's STATE_DIRECTORY, else the user's state folder."""
    given = os.environ.get("CATALOGZERO_STATE_DIR")
    return Path(given) if given else _service_state_dir()


def default_database(name: str) -> Path:
    """Where a service keeps its SQLite file: in the state folder.

    Earlier releases did not look at CATALOGZERO_STATE_DIR: a file that they made is used on, with
    a warning that names it, for an empty one beside it would look as if all had been lost.
    """
    path, former = default_state_dir() / name, _service_state_dir() / name
    if path != former and former.exists() and not path.exists():
        logging.getLogger(__name__).warning(
            "the database %s of an earlier release is used on: stop every service that uses it, "
            "and move it with its -wal and -shm to %s",
            former,
            path,
        )
        return former
    return path


def _service_state_dir() -> Path:
    """systemd's STATE_DIRECTORY, else the platform's per-user state folder."""
    given = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    # A service names its folder, and never needs it.
    import platformdirs

    return platformdirs.user_state_path("catalogzero")


def merged_settings(
    model: type[BaseSettings], *, file: Mapping[str, Any], flags: Mapping[str, Any]
) -> Values:
    """The values for a model: flags beat environment beats systemd credentials beats file."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    secrets = SecretsSettingsSource(model, secrets_dir=credentials)() if credentials else {}
    environment = {**former_in_environment(model), **EnvSettingsSource(model)()}
    former_keys: Mapping[str, str] = getattr(model, "former_keys", {})
    merged: Values = {}
    for source in (file, secrets, environment, flags):
        # A former key is the same setting: whichever name the stronger source uses, it wins.
        for former, key in former_keys.items():
            if former in source or key in source:
                merged.pop(former, None)
                merged.pop(key, None)
        merged.update(source)
    return merged


def former_in_environment(model: type[BaseSettings]) -> dict[str, str]:
    """The settings that the environment gives by a former name."""
    prefix = model.model_config.get("env_prefix") or ""
    named = {former: f"{prefix}{former}".upper() for former in getattr(model, "former_keys", {})}
    return {former: os.environ[name] for former, name in named.items() if name in os.environ}


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


def setting_faults(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """The same of settings, with the value that was given where it is no secret."""
    fields = model.model_fields
    given = {str(one["loc"][0]): one["input"] for one in error.errors() if len(one["loc"]) == 1}
    for field, text in problems_of(error, fields):
        value, secret = given.get(field), bool(re.search(QUERY_SECRETS, field, re.IGNORECASE))
        is_shown = field in fields and "SecretStr" not in str(fields[field].annotation)
        if is_shown and not secret and isinstance(value, str | int | float):
            yield field, f"{text} (it is {shown_url(str(value))[:SHOWN_CHARS]!r})"
        else:
            yield field, text


def config_error(error: ValidationError, *, where: str, model: type[BaseModel]) -> ConfigError:
    """The error that names every setting of a model at fault, a line each."""
    faults = [{"field": field, "message": shown} for field, shown in setting_faults(error, model)]
    return faults_error(where, faults)


def faults_error(where: str, faults: list[Values]) -> ConfigError:
    """The error of fields at fault, each with its `field` and `message`."""
    lines = "".join(f"\n  {fault['field']}: {fault['message']}" for fault in faults)
    return ConfigError(f"{where}:{lines}", details=faults)


class Mask:
    """Hides the values of secrets in texts, in whatever form they are written there.

    A file that holds secrets (`api_key_file` beside `api_key`, a tap's `config_file`) is read for
    this too, and again when it has changed.
    """

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._files: dict[Path, tuple[tuple[int, int], set[str]]] = {}
        self._forms: list[str] = []

    def learn(self, value: Any) -> None:
        """Remember every secret inside a settings model (or mapping, or list)."""
        self._given.update(secrets_in(value), secrets_in_urls(value))
        for path in secret_files_in(value):
            self._files.setdefault(path, ((0, 0), set()))
        self._arrange()

    def __call__(self, text: str) -> str:
        """The text with each known secret as `**********`."""
        for path, (known, _) in self._files.items():
            # Who needs a file that cannot be read reports it; the text is masked all the same.
            with suppress(OSError, UnicodeDecodeError):
                found = path.stat()
                stamp = found.st_mtime_ns, found.st_size
                if stamp != known and found.st_size <= MAX_SECRET_FILE_BYTES:
                    self._files[path] = stamp, set(secrets_of_text(path.read_text("utf-8")))
                    self._arrange()
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

    def _arrange(self) -> None:
        """The longest first: a secret may hold another."""
        secrets = self._given.union(*(found for _, found in self._files.values()))
        forms = {form for secret in secrets for form in forms_of(secret)}
        self._forms = sorted((f for f in forms if len(f) >= MIN_SECRET_CHARS), key=len)[::-1]


def forms_of(secret: str) -> Iterator[str]:
    """A secret as it is, as a URL, JSON and Python write it; and the secrets of a URL.

    One of several lines, as a private key is, may be met line by line.
    """
    yield from (secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1])
    yield from secrets_of_url(secret)
    lines = secret.splitlines()
    yield from (line for line in lines if len(lines) > 1 and len(line) >= LONG_CHARS)


def secrets_of_text(text: str) -> Iterator[str]:
    """What of the text of a secret file is secret: all of it, but of a JSON object its values."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    yield from secrets_of_json(found) if isinstance(found, dict) else [text.strip()]


def secrets_of_json(value: Any, name: str = "") -> Iterator[str]:
    """The texts in JSON that are long or named like a secret; of a URL, as of every URL."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from secrets_of_json(one, key)
    elif isinstance(value, list):
        for one in value:
            yield from secrets_of_json(one, name)
    elif isinstance(value, str):
        is_long = len(value) >= LONG_CHARS and "://" not in value
        if is_long or re.search(QUERY_SECRETS, name, re.IGNORECASE):
            yield value
        yield from secrets_of_url(value)


def shown_url(url: str) -> str:
    """A URL as it may be seen: its password, and what of its query is a secret, masked."""
    for secret in sorted(filter(None, secrets_of_url(url)), key=len, reverse=True):
        url = url.replace(secret, HIDDEN)
    return url


def secrets_of_url(url: str) -> Iterator[str]:
    """The password of a URL, and the values of its query that are long or named like a secret."""
    with suppress(ValueError):
        parts = urlsplit(url) if "://" in url else urlsplit("")
        found = [parts.password or ""]
        if parts.scheme in ("nats", "tls"):  # a token stands where others have a name
            found.append(parts.username or "")
        for pair in parts.query.split("&"):
            name, _, text = pair.partition("=")
            if len(text) >= LONG_CHARS or re.search(QUERY_SECRETS, name, re.IGNORECASE):
                found.append(text)
        for text in found:
            yield from (text, unquote(text))


def secrets_in_urls(value: Any) -> Iterator[str]:
    """The secrets of every URL inside a value: an endpoint may carry one in its query."""
    if isinstance(value, str):
        yield from secrets_of_url(value)
    for item in items_of(value):
        yield from secrets_in_urls(item)


def secret_files_in(value: Any) -> Iterator[Path]:
    """The files that hold a secret: `x_file` of a model that has a secret `x`, any key file, and
    the config file of a tap.
    """
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        for name in fields:
            path, known = getattr(value, name), fields.get(name.removesuffix("_file"))
            stands_for_one = known is not None and "SecretStr" in str(known.annotation)
            if isinstance(path, Path) and (
                stands_for_one or name.endswith(("key_file", "config_file"))
            ):
                yield path
    for item in items_of(value):
        yield from secret_files_in(item)


def secrets_in(value: Any) -> Iterator[str]:
    """Every secret's text inside a value."""
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    for item in items_of(value):
        yield from secrets_in(item)


def items_of(value: Any) -> Iterable[Any]:
    """What a model, a mapping or a list holds; nothing for any other value."""
    if isinstance(value, BaseModel):
        return [getattr(value, name) for name in type(value).model_fields]
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()

"""What a client configures: under `config` in its handler_registry.yaml, or in the environment."""

from catalogzero import CloudSettings
from pydantic_settings import SettingsConfigDict


class SingerProcessorSettings(CloudSettings):
    """Its settings; in the environment: `SINGER_PROCESSOR_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="SINGER_PROCESSOR_")

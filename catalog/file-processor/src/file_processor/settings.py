"""What a client configures: under `config` in its handler_registry.yaml, or in the environment."""

from catalogzero import CloudSettings
from pydantic_settings import SettingsConfigDict


class FileProcessorSettings(CloudSettings):
    """Its settings; in the environment: `FILE_PROCESSOR_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="FILE_PROCESSOR_")

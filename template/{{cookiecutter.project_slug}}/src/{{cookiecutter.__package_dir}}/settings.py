"""What a client configures: under `config` in its handler_registry.yaml, or in the environment."""

{% if cookiecutter.source == "custom" %}
from pathlib import Path
{% endif %}
{% if cookiecutter.upload_form != "auto" %}
from typing import Literal
{% endif %}
{% if cookiecutter.source == "custom" or cookiecutter.upload_form != "auto" %}

{% endif %}
from catalogzero import CloudSettings
from pydantic_settings import SettingsConfigDict


class {{ cookiecutter.__settings_class }}(CloudSettings):
    """Its settings; in the environment: `{{ cookiecutter.__env_prefix }}<NAME>`.

    Add your own below: a name with a type, and a default where it needs none from the client.
    """

    model_config = SettingsConfigDict(env_prefix="{{ cookiecutter.__env_prefix }}")

    endpoint: str = {{ cookiecutter.endpoint | quoted }}
{% if cookiecutter.upload_form != "auto" %}
    upload_form: Literal["auto", "chunked", "simple"] = {{ cookiecutter.upload_form | quoted }}
{% endif %}
{% if cookiecutter.source == "custom" %}
    source_folder: Path = Path()
{% endif %}

"""What a client configures: under `config` in its handler_registry.yaml, or in the environment."""

{% if cookiecutter.source == "custom" or cookiecutter.kind == "handler" %}
from pathlib import Path
{% endif %}
{% if cookiecutter.upload_form != "auto" %}
from typing import Literal
{% endif %}
{% if cookiecutter.source == "custom" or cookiecutter.upload_form != "auto" or cookiecutter.kind == "handler" %}

{% endif %}
{% set base = "CloudSettings" if cookiecutter.kind == "processor" else "HandlerSettings" %}
from catalogzero import {{ base }}
{% if cookiecutter.source == "custom" or cookiecutter.kind == "handler" %}
from pydantic import Field
{% endif %}
from pydantic_settings import SettingsConfigDict


class {{ cookiecutter.__settings_class }}({{ base }}):
    """Its settings; in the environment: `{{ cookiecutter.__env_prefix }}<NAME>`.

    Add your own below: a name with a type, and a default where it needs none from the client.
    """

    model_config = SettingsConfigDict(env_prefix="{{ cookiecutter.__env_prefix }}")

{% if cookiecutter.kind == "handler" %}
    folder: Path = Field(default=Path("/data/exports"), description="What is looked at.")
{% else %}
    endpoint: str = {{ cookiecutter.endpoint | quoted }}
{% endif %}
{% if cookiecutter.upload_form != "auto" %}
    upload_form: Literal["auto", "chunked", "simple"] = {{ cookiecutter.upload_form | quoted }}
{% endif %}
{% if cookiecutter.source == "custom" %}
    source_folder: Path = Field(default=Path(), description="The only folder that is read.")
{% endif %}

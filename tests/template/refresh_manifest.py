"""Writes into the template's manifest what the SDK's own classes declare of a processor.

Run it after a change of `CloudProcessor`'s methods or of `CloudSettings`:
`python tests/template/refresh_manifest.py`. A test fails until that is done.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from catalogzero.entry import lint
from catalogzero.entry.manifest import GENERATED_MARK
from catalogzero.entry.package_source import read_package
from catalogzero.entry.scaffold import scaffold, template_folder

ENDPOINT = "https://placeholder.example/v1"
ANSWERS = {"endpoint": ENDPOINT, "packaging": "none", "ci": "none"}
PLACES = {
    f'"{ENDPOINT}"': "{{ cookiecutter.endpoint | quoted }}",
    'upload_form = { default = "auto"': (
        "upload_form = { default = {{ cookiecutter.upload_form | quoted }}"
    ),
}


def manifest_template() -> Path:
    """The template's manifest."""
    (path,) = template_folder().glob("*cookiecutter*/src/*/catalogzero.toml")
    return path


def refreshed() -> str:
    """The text that the template's manifest should have."""
    generated = generated_part({"source": "custom"})
    of_handlers = generated_part({"kind": "handler"}).removeprefix(GENERATED_MARK).strip()
    for plain, placeholder in PLACES.items():
        assert plain in generated
        generated = generated.replace(plain, placeholder)
    lines = [
        f'{{% if cookiecutter.source == "custom" %}}\n{line}\n{{% endif %}}'
        if line.startswith("source_folder =")
        else line
        for line in generated.removeprefix(GENERATED_MARK).strip().splitlines()
    ]
    own = manifest_template().read_text("utf-8").partition(GENERATED_MARK)[0]
    choice = [
        '{% if cookiecutter.kind == "handler" %}',
        *of_handlers.splitlines(),
        "{% else %}",
        *lines,
        "{% endif %}",
    ]
    return f"{own.rstrip()}\n\n{GENERATED_MARK}\n\n" + "\n".join(choice) + "\n"


def generated_part(answers: dict[str, str]) -> str:
    """What `catalog lint --fix` writes into the manifest of a package of these answers."""
    with tempfile.TemporaryDirectory() as folder:
        package = read_package(scaffold({**ANSWERS, **answers}, Path(folder)))
        lint.fix(package)
        (entry_id,) = package.entries
        text = package.manifest_path(entry_id).read_text("utf-8")
    return text[text.index(GENERATED_MARK) :]


if __name__ == "__main__":
    manifest_template().write_text(refreshed(), "utf-8")

"""The catalog's pages for people: a list of entries, and a page for each.

Owns the HTML; it is written from `catalog.json`'s document alone. No script, no font and no
picture from elsewhere: the pages work at a client without internet.

Layer: edge.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def write_pages(out: Path, document: Mapping[str, Any]) -> None:
    """Write the list of entries and a page for each into the site's folder."""
    entries = document["entries"]
    _write(out / "index.html", "list.html", entries=entries, root=".")
    for entry in entries:
        page = out / "entries" / entry["id"] / "index.html"
        _write(page, "entry.html", entry=entry, root="../..")
    style = Path(__file__).parent / "page_templates" / "style.css"
    (out / "style.css").write_bytes(style.read_bytes())


def _write(path: Path, template: str, **values: Any) -> None:
    """Render one page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_environment().get_template(template).render(**values), "utf-8")


@cache
def _environment() -> Environment:
    """The pages' templates; every value is escaped."""
    environment = Environment(
        loader=PackageLoader("catalogzero.entry", "page_templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["compact"] = _compact
    environment.filters["kind_of"] = _kind_of
    return environment


def _compact(value: object) -> str:
    """A value as one line of JSON."""
    return json.dumps(value, ensure_ascii=False)


def _kind_of(schema: Mapping[str, Any]) -> str:
    """The kind of value that a JSON Schema describes, in a word or a few."""
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind_of(part) for part in schema["anyOf"]))
    kind = str(schema.get("format") or schema.get("type") or "any")
    return f"{kind} of {_kind_of(schema['items'])}" if schema.get("items") else kind

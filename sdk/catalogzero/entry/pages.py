"""The catalog's pages: a list of entries and a page for each, for people; links, for pip.

Owns the HTML; it is written from the JSON documents beside it alone. No script, no font and no
picture from elsewhere: the pages work at a client without internet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from catalogzero.entry.catalog_file import Offer


def write_pages(out: Path, offers: Sequence[Offer]) -> None:
    """Write the list of entries and a page for each into the site's folder."""
    _write(out / "index.html", "list.html", entries=offers, root=".")
    for offer in offers:
        page = out / "entries" / offer.id / "index.html"
        _write(page, "entry.html", entry=offer, root="../..")
    style = Path(__file__).parent / "page_templates" / "style.css"
    (out / "style.css").write_bytes(style.read_bytes())


def write_links(folder: Path, document: Mapping[str, object]) -> None:
    """Write a document of the JSON index (PEP 691) as a page of links (PEP 503)."""
    parts = {"name": "", "projects": (), "files": (), **document}
    _write(folder / "index.html", "simple.html", **parts)


def _write(path: Path, template: str, **values: object) -> None:
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
    environment.filters.update(compact=_compact, kind_of=_kind_of, prose=_prose, when=_when)
    return environment


_KINDS = {
    "string": "text",
    "integer": "whole number",
    "boolean": "true or false",
    "object": "mapping",
    "array": "list",
    "password": "secret",
}


def _compact(value: object) -> str:
    """A value as one line of JSON; a text as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _kind_of(schema: Mapping[str, Any]) -> str:
    """The kind of value that a JSON Schema describes, in a word or a few; null goes unsaid."""
    if "enum" in schema:
        return " | ".join(map(_compact, schema["enum"]))
    if "anyOf" in schema:
        kinds = (_kind_of(part) for part in schema["anyOf"] if part.get("type") != "null")
        return " or ".join(dict.fromkeys(kinds))
    name = str(schema.get("format") or schema.get("type") or "any")
    kind = _KINDS.get(name, name)
    return f"{kind} of {_kind_of(schema['items'])}" if schema.get("items") else kind


def _prose(text: str) -> Markup:
    """A sentence, escaped, with what stands between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped


def _when(trigger: Mapping[str, Any]) -> str:
    """A trigger in words: when it fires."""
    fields = {name: value for name, value in trigger.items() if name != "type"}
    amounts = trigger["type"] == "interval"
    words = [f"{value} {name}" if amounts else f"{name} {value}" for name, value in fields.items()]
    prefix = {"interval": "every", "cron": "by cron:", "date": "once:"}.get(trigger["type"], "")
    return f"{prefix} {', '.join(words)}".strip()

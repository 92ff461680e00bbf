"""The catalog's pages: a list of entries and a page for each, for people; links, for pip.

Owns the HTML; it is written from `catalog.json` and the JSON index alone. No script, no font and no
picture from elsewhere: the pages work at a client without internet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from catalogzero.entry.catalog_file import Offer
from catalogzero.entry.manifest import compact, kind_of
from catalogzero.scheduler.trigger_forms import in_words


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
    environment.filters.update(compact=compact, kind_of=kind_of, prose=_prose, when=in_words)
    return environment


def _prose(text: str) -> Markup:
    """A sentence, escaped, with what stands between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped

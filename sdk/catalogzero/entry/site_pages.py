"""The catalog's pages: a list of entries and a page for each, for people; links, for pip.

Owns the HTML; it is written from `catalog.json` and the JSON index alone, in the style of all
pages. No script, no font and no picture from elsewhere: the pages work at a client without
internet, and without their scripts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from catalogzero.entry.catalog_file import Offer
from catalogzero.entry.manifest import compact, kind_of, properties_of
from catalogzero.scheduler.trigger_forms import trigger_words

SCRIPTS = "page_templates"
ASSETS = ("css", "js", "svg")


def write_pages(out: Path, offers: Sequence[Offer]) -> None:
    """Write the list of entries and a page for each into the site's folder."""
    _write(out / "index.html", "list.html", entries=offers, root=".")
    for offer in offers:
        page = out / "entries" / offer.id / "index.html"
        sizes = {one.file: (out / "files" / one.file).stat().st_size for one in offer.releases}
        _write(page, "entry.html", entry=offer, sizes=sizes, root="../..")
    # As files: the package that serves them to services has no part in a site of files.
    for part in (files("catalogzero") / "web" / "assets", files("catalogzero.entry") / SCRIPTS):
        for one in part.iterdir():
            if one.name.rpartition(".")[2] in ASSETS:
                _write_text(out / "assets" / one.name, one.read_text("utf-8"))


def write_links(folder: Path, document: Mapping[str, object]) -> None:
    """Write a document of the JSON index (PEP 691) as a page of links (PEP 503)."""
    parts = {"name": "", "projects": (), "files": (), **document}
    _write(folder / "index.html", "simple.html", **parts)


def _write(path: Path, template: str, **values: object) -> None:
    """Render one page; every value is escaped."""
    _write_text(path, TEMPLATES.get_template(template).render(**values))


def _write_text(path: Path, text: str) -> None:
    """Write a file, and the folder it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def prose(text: str) -> Markup:
    """A sentence, escaped, with what stands between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped


TEMPLATES = Environment(
    loader=PackageLoader("catalogzero.entry", "page_templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters.update(
    compact=compact, kind_of=kind_of, properties_of=properties_of, prose=prose, when=trigger_words
)

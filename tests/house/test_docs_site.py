"""The site of the documentation: no link is dead, nothing is fetched, everybody can read it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import catalogzero
import pytest
import typer
from catalogzero.cli.main import app
from catalogzero.config.settings import RuntimeSettings
from catalogzero.runtime.methods import CONTROL_METHODS

from docs.site_build.build import BESIDE, ROOT, build, for_the_site
from tests.axe import axe_source, serious_faults
from tests.house.test_command_line import commands

pytestmark = pytest.mark.xdist_group("docs-site")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-quic", "--no-first-run"),
]
NARROW = ("index.html", "docs/reference/command-line.html", "docs/reference/settings.html")
FETCHED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}


class Page(HTMLParser):
    """What a page has: its anchors, its links, what it fetches, and its text outside of code."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.prose = ""
        self._within = 0
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what an element names."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if FETCHED.get(tag) in given:
            self.fetched.append(given[FETCHED[tag]])
        self._within += tag in ("code", "pre", "script", "style")

    def handle_endtag(self, tag: str) -> None:
        """Leave code."""
        self._within -= tag in ("code", "pre", "script", "style")

    def handle_data(self, data: str) -> None:
        """Keep prose."""
        if not self._within:
            self.prose += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built; a warning of Zensical fails that."""
    return build(tmp_path_factory.mktemp("docs-site")).parent


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """Every page of it."""
    return {path: Page(path) for path in site.rglob("*.html")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a network; the tests are skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def test_every_page_of_the_docs_is_in_the_navigation(pages: dict[Path, Page], site: Path) -> None:
    start = pages[site / "index.html"]
    sources = [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in BESIDE)]
    named = {str(path.relative_to(ROOT).with_suffix(".html")) for path in sources}
    wanted = {name.replace("README.html", "index.html") for name in named}

    shown = {urlsplit(link).path.removeprefix("./") for link in start.links}

    assert wanted - shown == set()


def test_every_link_leads_to_a_page_and_an_anchor(pages: dict[Path, Page], site: Path) -> None:
    broken = []
    for path, page in pages.items():
        for link in {*page.links, *page.fetched}:
            parts = urlsplit(link)
            if parts.scheme or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            there = pages[target].anchors if target in pages else {anchor}
            if not target.is_file() or (anchor and anchor not in there):
                broken.append(f"{path.relative_to(site)}: {link}")

    assert broken == []


def test_no_page_fetches_anything_from_another_host(pages: dict[Path, Page], site: Path) -> None:
    fetched = {link for page in pages.values() for link in page.fetched}
    styles = "".join(path.read_text() for path in site.rglob("*.css"))

    assert {link for link in fetched if urlsplit(link).netloc} == set()
    assert re.findall(r"url\([\"']?(?:https?:)?//[^)]+|@import[^;]+", styles) == []


def test_no_markdown_is_left_in_the_text_of_a_page(pages: dict[Path, Page], site: Path) -> None:
    left = re.compile(r"```|^ *\d+\. |^ *[-*] \w|\]\(\w|^\|[- ]|<!-- from", re.MULTILINE)

    found = {
        str(path.relative_to(site)): left.findall(page.prose)[:3]
        for path, page in pages.items()
        if left.search(page.prose)
    }

    assert found == {}


def test_what_is_made_from_the_code_is_complete(pages: dict[Path, Page], site: Path) -> None:
    reference = site / "docs" / "reference"
    names = [" ".join(path) for path, _ in commands(typer.main.get_command(app))]
    settings = (reference / "all-settings.html").read_text()

    def headings(page: str) -> set[str]:
        text = (reference / page).read_text()
        return set(re.findall(r"<h3 id=\"[^\"]+\">([^<]+)<", text))

    assert set(names) - headings("command-line.html") == set()
    assert CONTROL_METHODS - headings("methods.html") == set()
    public = {name for name in catalogzero.__all__ if not name.startswith("_")}
    assert public - headings("python.html") == set()
    assert [name for name in RuntimeSettings.model_fields if f">{name}<" not in settings] == []
    assert " at 0x" not in (reference / "python.html").read_text()


def test_lists_of_the_checkout_are_lists_of_the_site() -> None:
    text = (
        "Text\n- one\n  more\n- two\n\n1. one\n\n   ```sh\n   - no item\n   ```\n2. two\n\nText\n"
    )

    assert for_the_site(text) == (
        "Text\n\n- one\n    more\n- two\n\n"
        "1. one\n\n    ```sh\n    - no item\n    ```\n\n2. two\n\nText\n"
    )


@pytest.mark.browser
def test_it_is_read_and_searched_from_a_folder_without_a_network(browser: Any, site: Path) -> None:
    context = browser.new_context(offline=True)
    page = context.new_page()
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((site / "docs" / "index.html").as_uri())

    page.locator(".md-search__button").first.click()
    page.locator("input[placeholder=Search]").fill("epoch")
    page.locator("a", has_text="Installations and epochs").first.click()
    page.wait_for_url("**/upload-protocol.html*")

    context.close()
    assert errors == []
    assert [url for url in asked if not url.startswith("file://")] == []


@pytest.mark.browser
def test_it_is_dark_where_the_reader_s_system_is_and_where_it_is_chosen(
    browser: Any, site: Path
) -> None:
    shade = "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
    shown = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto((site / "index.html").as_uri())
        shown[scheme] = page.evaluate(shade)
        if scheme == "light":
            for title in ("Switch to light mode", "Switch to dark mode"):
                page.locator(f"label[title='{title}']").click()
            page.goto((site / "docs" / "index.html").as_uri())
            shown["chosen"] = page.evaluate(shade)
        page.close()

    assert shown["light"] > 200
    assert max(shown["dark"], shown["chosen"]) < 60


@pytest.mark.browser
@pytest.mark.parametrize("path", NARROW)
def test_a_phone_scrolls_no_page_sideways(browser: Any, site: Path, path: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto((site / path).as_uri())

    width = page.evaluate("document.documentElement.scrollWidth")

    page.close()
    assert width <= 390


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser: Any, site: Path, scheme: str) -> None:
    script = axe_source()
    page = browser.new_page(color_scheme=scheme)
    page.goto((site / "docs" / "how-to" / "back-up-a-machine.html").as_uri())

    found = serious_faults(page, script, within="'article'")

    page.close()
    assert found == []

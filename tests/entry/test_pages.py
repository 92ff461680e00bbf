"""The catalog's pages in a real browser: readable by everybody, on a phone too."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from catalogzero.entry.index import publish
from catalogzero.entry.packaging import build_package
from catalogzero.entry.serving import CatalogServer

from tests.axe import axe_source

pytestmark = pytest.mark.browser
playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-quic", "--no-first-run"),
]
CATALOG = Path(__file__).parents[2] / "catalog"
PATHS = ("/", "/entries/file-processor/")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A catalog with the entry file-processor, served."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "site" / "files").mkdir(parents=True)
    wheel = build_package(CATALOG / "file-processor", folder / "dist")[-1]
    shutil.copy(wheel, folder / "site" / "files")
    (folder / "site" / "requirements").mkdir()
    for python in ("3.11", "3.13"):
        lock = f"requirements/file-processor-0.1.0-py{python}-linux_x86_64.txt"
        (folder / "site" / lock).write_text("")
    publish(folder / "site", {"file-processor==0.1.0": "a newer one is better"})
    with CatalogServer(folder / "site") as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.url
        server.shutdown()
        thread.join(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium; the tests are skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright_api.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core's script."""
    return axe_source()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PATHS)
def test_axe_finds_no_fault(browser: Any, axe: str, url: str, path: str, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme)
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.goto(url + path)
    page.evaluate(axe)

    result = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")

    page.close()
    found = [(fault["id"], fault["nodes"][0]["html"]) for fault in result["violations"]]
    assert (found, messages) == ([], [])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_scrolls_sideways(browser: Any, url: str, path: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 740})
    page.goto(url + path)

    needed = page.evaluate("document.documentElement.scrollWidth")

    page.close()
    assert needed <= width


def test_a_client_finds_what_it_wants_to_know_before_it_installs(browser: Any, url: str) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.get_by_role("link", name="File Processor").click()
    page.get_by_text("With every file pinned by its hash").click()

    text = " ".join(page.inner_text("main").split())

    page.close()
    for fact in (
        "What leaves your machine",
        f"--index-url {url}/simple file-processor",
        "Python 3.11, 3.13 on linux_x86_64",
        f"--require-hashes -r {url}/requirements/file-processor-0.1.0-py3.13-linux_x86_64.txt",
        "process_and_upload",
        "data_source text, required",
        "The only folders that a call's data_source may lie in.",
        "process_and_upload every day at 02:00",
        "yanked: a newer one is better",
    ):
        assert fact in text
    assert re.search(r"file_processor-0\.1\.0-\S+\.whl \d+\.\d kB", text)
    assert {address.startswith(url) for address in asked} == {True}


def test_without_a_script_the_commands_name_what_to_fill_in(browser: Any, url: str) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(f"{url}/entries/file-processor/")

    text = page.inner_text("main")

    page.close()
    assert "put this catalog's address in CATALOG first" in text
    assert '--index-url "$CATALOG/simple" file-processor' in text

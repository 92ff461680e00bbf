"""The documentation's site: the pages of the checkout, laid out as there, and what is generated.

Links between pages hold on the site as in the checkout, since each page has its path.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from docs.site_build import reference

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
BESIDE = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "catalog/conductor/README.md",
    "catalog/file-processor/README.md",
    "catalog/sql-processor/README.md",
    "catalog/singer-processor/README.md",
    "tests/models/README.md",
)
"""Pages outside of docs/ that the site has too."""

GENERATED: Mapping[str, Callable[[], str]] = {
    "command-line": reference.command_line,
    "methods": reference.methods,
    "settings": reference.settings,
    "python": reference.python,
}
"""What a page may have made from the code, by the name in its mark."""

_MARK = re.compile(r"<!-- from the code: ([a-z-]+) -->\n.*?<!-- end -->\n", re.DOTALL)
_ITEM = re.compile(r"^(\s*)(?:[-*+]|\d+[.)])\s+")
_LINK = re.compile(r"^- \[([^\]]+)\]\(([^)#]+)\)", re.MULTILINE)


def build(folder: Path) -> Path:
    """Build the site, and return its first page.

    Args:
        folder: Where to: `source` in it has the pages, `site` the site. Both are made again.

    Raises:
        RuntimeError: Zensical found a fault, such as a link that leads nowhere; says which.
    """
    source = folder / "source"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", source / "docs", ignore=shutil.ignore_patterns(HERE.name))
    for name in BESIDE:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    for name in ("extra.css", "iframe-worker.js"):
        shutil.copy(HERE / name, source)
    for page in source.rglob("*.md"):
        page.write_text(for_the_site(page.read_text()))
    config = folder / "zensical.toml"
    head, project, rest = (HERE / "zensical.toml").read_text().partition("[project]\n")
    config.write_text(f"{head}{project}nav = {navigation()}\n{rest}")
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(config)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not (folder / "site" / "index.html").is_file():
        raise RuntimeError(f"zensical: {done.stdout}{done.stderr}")
    return folder / "site" / "index.html"


def navigation() -> str:
    """The site's navigation as TOML: the sections of docs/index.md, with the links of each."""
    text = (ROOT / "docs" / "index.md").read_text()
    entries = ['{ "Start" = "README.md" }', '{ "All pages" = "docs/index.md" }']
    for section in text.split("\n## ")[1:]:
        pages = [
            f"{{ {json.dumps(title.replace('`', ''))} = {json.dumps(_of_the_site(link))} }}"
            for title, link in _LINK.findall(section)
        ]
        entries.append(f"{{ {json.dumps(section.splitlines()[0])} = [{', '.join(pages)}] }}")
    return f"[{', '.join(entries)}]"


def for_the_site(text: str) -> str:
    """A page of the checkout as Zensical reads it, with what is made from the code."""
    made = _MARK.sub(lambda found: GENERATED[found[1]](), text)
    return _with_wide_lists(made)


def _of_the_site(link: str) -> str:
    """The path on the site of a link in docs/index.md."""
    return str((ROOT / "docs" / link).resolve().relative_to(ROOT))


def _with_wide_lists(text: str) -> str:
    """Indent what belongs to an item of a list by four, and part a list from what is before it.

    That is what Python-Markdown asks for; the checkout's pages are indented as their items are.
    """
    lines: list[str] = []
    fence, width, before, has_blank = "", 0, "", False
    for line in text.splitlines():
        item = None if fence else _ITEM.match(line)
        mark = re.match(r"\s*(```+|~~~+)", line)
        if item and not item[1]:
            has_blank = has_blank and width > 0
            if before.strip() and (not width or has_blank):
                lines.append("")
            width = item.end()
        elif line.strip() and not line.startswith(" ") and not fence:
            width = 0
        has_blank = has_blank or not line.strip()
        inside = width and line.startswith(" " * width)
        lines.append(f"    {line[width:]}" if inside else line)
        if mark:
            fence = "" if fence and mark[1] == fence else fence or mark[1]
        before = line
    return "\n".join(lines) + "\n"

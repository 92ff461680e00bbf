"""What `docs/compare.md` counts is what stands in the examples."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "processors"
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(path: Path) -> int:
    """Lines of a module without those that are blank, a comment or part of a docstring."""
    text = path.read_text()
    held = set()
    for token in tokenize.tokenize(io.BytesIO(text.encode()).readline):
        if token.type not in _NO_CODE:
            held |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            said = node.body[0]
            held -= set(range(said.lineno, (said.end_lineno or said.lineno) + 1))
    return len(held)


def test_the_page_counts_what_is_there() -> None:
    page = (ROOT / "docs" / "compare.md").read_text()
    counted = re.findall(r"(\d+): `examples/processors/(\S+?\.py)`", page)
    found = {name: int(lines) for lines, name in counted}
    assert found == {name: code_lines(EXAMPLES / name) for name in found}
    modules = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("[!_]*.py")}
    assert set(found) == modules


def test_ours_is_no_longer_than_the_singer_sdks() -> None:
    ours, theirs = "rate_limited_api.py", "singer_sdk/orders_tap.py"
    assert code_lines(EXAMPLES / ours) <= code_lines(EXAMPLES / theirs)

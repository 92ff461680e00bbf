"""What of a text may be printed: to a terminal, into a log."""

from __future__ import annotations

import re

_UNSEEN = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_UNPRINTABLE = re.compile(rf"[{_UNSEEN}\ud800-\udfff]|\r(?!\n)")


def printable(text: str, *, one_line: bool = False) -> str:
    """A text without what a terminal obeys or hides: `\\u001b` for the byte that begins a command.

    Controls, marks that turn the direction of text, and half surrogates; valid in JSON, too.

    Args:
        text: Of a peer, an exception or a file: it may hold anything.
        one_line: Escape line ends and tabs as well, so that no text can pass for another line.
    """
    if text.isascii() and text.isprintable():
        return text

    def escaped(found: re.Match[str]) -> str:
        return f"\\u{ord(found[0]):04x}"

    text = _UNPRINTABLE.sub(escaped, text)
    return re.sub(r"[\r\n\t]", escaped, text) if one_line else text

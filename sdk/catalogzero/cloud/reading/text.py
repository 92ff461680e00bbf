"""Text: the bytes of a file as UTF-8, in blocks of whole lines, without a byte order mark.

An encoding is set or said by a mark; else it is UTF-8, and other bytes are refused with a hint.
"""

from __future__ import annotations

import codecs
import io
from typing import Any

from catalogzero.cloud.reading.records import ReadOptions
from catalogzero.errors import FailedError

SAMPLE_BYTES = 1 << 16
_LINE_BYTES = 1 << 26
_HINT_BYTES = 40
_MARKS = {  # UTF-32 first: its little-endian mark begins with that of UTF-16
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_MAGIC = {
    b"\x1f\x8b\x08": "bytes packed with gzip",
    b"\x28\xb5\x2f\xfd": "bytes packed with zstd",
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"PK\x05\x06": "an empty zip archive",
    b"\xfd7zXZ\0": "bytes packed with xz",
    b"BZh91AY&SY": "bytes packed with bzip2",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Excel workbook",
    b"PAR1\x15": "a Parquet file, which packs itself",
}
# Which of the old encodings a text is in cannot be known from its bytes, so a short list of those
# that exports are written in serves the hint: Western and Central Europe, Cyrillic, DOS, the Mac,
# Chinese and Japanese.
_OLDER = ("cp1250", "cp1251", "cp437", "mac_roman", "gb18030", "cp932")


class Text:
    """The text of a file.

    Args:
        content: The file's bytes, unpacked.
        name: The file's name in errors.
        options: `encoding` and `block_bytes` are heeded.
        line_ends: Where lines end: at LF, or at CR, LF and CRLF.

    Attributes:
        encoding: What it is read as.
        is_set: Whether `encoding` was set by hand, so that undecodable lines are bad records.
        line: The number of the first line that `block` gives next; counted by who takes lines.
        ended: Whether all bytes are read.

    Raises:
        FailedError: It is no text, the encoding is unknown, or a line is longer than 64 MiB.
    """

    def __init__(
        self, content: io.BufferedIOBase, name: str, options: ReadOptions, line_ends: bytes = b"\n"
    ) -> None:
        self.name, self.line, self.ended = name, 1, False
        self.is_set = options.encoding is not None
        self._content, self._block_bytes = content, options.block_bytes
        self._cuts_at_cr = b"\r" in line_ends
        start = content.read(16)
        for magic, kind in _MAGIC.items():
            if start.startswith(magic):
                raise FailedError(
                    f"{name} holds {kind} where text is expected: give CSV or JSON Lines, plain, "
                    "or packed once with gzip or zstd and named .gz or .zst"
                )
        self.encoding, mark = encoding_of(start, options.encoding, name)
        self._start = start[mark:]
        self._decoder = codecs.getincrementaldecoder(self.encoding)("one-invalid-byte")
        self._rest, self._kept = b"", 0

    def block(self, size: int | None = None, line_bytes: int = _LINE_BYTES) -> bytes:
        """The next whole lines as UTF-8, of about `size` bytes; nothing at the file's end.

        Undecodable parts are bytes that are not valid UTF-8. The last line ends as lines do.
        """
        rest, kept, cut = self._rest, self._kept, 0
        while not (self.ended or cut):
            rest += self._read(max(size or self._block_bytes, len(rest)))
            # What was put back is whole lines, so that an end of one behind them is looked for.
            cut = rest.rfind(b"\n", kept) + 1
            if not cut and self._cuts_at_cr:  # at the end, LF may follow
                cut = rest.rfind(b"\r", kept, len(rest) - 1) + 1
            if not cut and len(rest) - kept > line_bytes:
                line = self.line + line_ends(rest[:kept])
                raise FailedError(
                    f"{self.name}, line {line} is longer than {line_bytes >> 20} MiB, the most "
                    f"that a {'header' if line_bytes < _LINE_BYTES else 'line'} may have"
                )
        if self.ended:
            rest += b"" if not rest or rest.endswith((b"\n", b"\r")) else b"\n"
            cut = len(rest)
        self._rest, self._kept = rest[cut:], 0
        return rest[:cut]

    def put_back(self, lines: bytes) -> None:
        """Give whole lines back: the next block begins with them, and goes on behind them."""
        self._rest, self._kept = lines + self._rest, len(lines)

    def decoded(self, lines: bytes) -> tuple[str, bool]:
        """Lines as text, and whether all of them is valid; what is not is escaped.

        Raises:
            FailedError: Something is invalid, and no `encoding` is set.
        """
        try:
            return lines.decode(), True
        except UnicodeDecodeError as error:
            if self.is_set:
                return lines.decode("utf-8", "surrogateescape"), False
            raise self._refusal(lines, error.start) from error

    def _read(self, size: int) -> bytes:
        data, self._start = self._start, b""
        while len(data) < size and not self.ended:
            more = self._content.read(size - len(data))
            data, self.ended = data + more, not more
        if self.encoding == "utf-8":
            return data
        text = self._decoder.decode(data, final=self.ended)
        return text.encode("utf-8", "one-invalid-byte")

    def _refusal(self, lines: bytes, at: int) -> FailedError:
        """What is wrong with a byte, how others would read its line, and what to set."""
        where = f"{self.name}, line {self.line + line_ends(lines[:at])}"
        if self.encoding != "utf-8":
            return FailedError(
                f"{where}: not {self.encoding}, as the file's mark says: it is damaged; set "
                f"`encoding: {self.encoding}` to take such lines for bad records"
            )
        begin = max(lines.rfind(b"\n", 0, at) + 1, at - _HINT_BYTES)
        part = lines[begin : at + _HINT_BYTES].partition(b"\n")[0].rstrip(b"\r")
        read = {name: read_as(part, name) for name in ("cp1252", *_OLDER)}
        likely = sorted(_OLDER, key=lambda name: -read[name][0])[:2]
        shown = ", ".join(f"{name} {read[name][1]!r}" for name in ("cp1252", *likely))
        return FailedError(
            f"{where}: byte 0x{lines[at]:02x} is not UTF-8. Read as {shown}: set the encoding that "
            "gives the right text in the handler's config, such as `encoding: cp1252` "
            "(`encoding: utf-8` takes such lines for bad records)"
        )


def line_ends(lines: bytes | str) -> int:
    """How many lines end in it: at CR, LF or CRLF."""
    text: Any = lines
    lf, cr, crlf = ("\n", "\r", "\r\n") if isinstance(lines, str) else (b"\n", b"\r", b"\r\n")
    found: int = text.count(lf)
    return found + (text.count(cr) - text.count(crlf) if cr in text else 0)


def encoding_of(start: bytes, wanted: str | None, name: str) -> tuple[str, int]:
    """The encoding of a text, and the length of its mark.

    UTF-8's mark holds over any setting. Those of UTF-16 and 32 are letters in other encodings.
    """
    try:
        found = codecs.lookup(wanted or "utf-8").name.removesuffix("-sig")
        b"".decode(found)
    except LookupError as error:
        raise FailedError(f"{name}: {error}; set `encoding` to one that Python knows") from error
    for mark, said in _MARKS.items():
        if start.startswith(mark) and (said == "utf-8" or found.startswith("utf-")):
            return said, len(mark)
    return found, 0


def read_as(part: bytes, encoding: str) -> tuple[int, str]:
    """How many of the characters beyond ASCII are letters in an encoding, and the text."""
    text = part.decode(encoding, "replace")
    odd = [char for char in text if char > "\x7f"]
    return sum(char.isalpha() for char in odd) * 100 // max(len(odd), 1), text


def one_invalid_byte(error: UnicodeError) -> tuple[str | bytes, int]:
    """The codec error rule that keeps undecodable parts recognisable in UTF-8: as a byte FF."""
    if isinstance(error, UnicodeDecodeError):
        return "\udcff", error.end
    if isinstance(error, UnicodeEncodeError):
        return b"\xff" * (error.end - error.start), error.end
    raise error


codecs.register_error("one-invalid-byte", one_invalid_byte)

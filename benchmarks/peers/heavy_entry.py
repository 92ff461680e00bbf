"""Handlers whose isolated job makes and frees 300 MB, as a data library would."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from catalogzero import Batch, CloudProcessor, Handler, Params, job


class Heavy(Handler):
    """Work that takes memory."""

    @job(isolate=True)
    def crunch(self, megabytes: int) -> int:
        """Fill so much memory, and free it."""
        blocks = [bytes([number % 255 + 1]) * (1 << 20) for number in range(megabytes)]
        return sum(len(block) for block in blocks)

    async def echo(self, data: Any = None) -> Any:
        """A job that is not isolated."""
        return data

    @job(quiet=True)
    async def text(self, chars: int) -> str:
        """A text of that length; nothing is logged of it."""
        return "x" * chars


class HeavyProcessor(Heavy, CloudProcessor):
    """The same, and rows of a file sent as they are."""

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        """See `CloudProcessor.process`."""
        yield from batches

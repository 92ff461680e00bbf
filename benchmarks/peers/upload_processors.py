"""Processors that pass everything on: what is measured is the way, not the work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from catalogzero import Batch, CloudProcessor, Params


class Dicts(CloudProcessor):
    """Lists of dicts, as most vendors write it."""

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        """Pass on."""
        yield from batches


class Tables(Dicts):
    """Arrow tables, the fast way."""

    batch_type = "arrow"

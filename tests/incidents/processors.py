"""The processors on the machines of the incidents."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator

from catalogzero import Batch, CloudProcessor, Params, Rows


class Quoting(CloudProcessor):
    """Raises at a row whose name holds `unpriced`, and quotes it, as careless code does."""

    def process(self, batches: Iterable[Rows], params: Params) -> Iterator[Batch]:
        for batch in batches:
            for row in batch:
                if "unpriced" in row["name"]:
                    raise ValueError(f"no price for {row}")
            yield batch


class Exports(CloudProcessor):
    """Passes the rows of exports on."""

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        yield from batches


class Held(Exports):
    """Passes rows on once a file `go` lies beside the data root; says in `began` that it waits."""

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        folder = self.settings.data_roots[0].parent
        for batch in batches:
            (folder / "began").touch()
            while not (folder / "go").exists():
                threading.Event().wait(0.02)
            yield batch


class Hungry(Exports):
    """Needs 300 MiB of memory for what it does."""

    def process(self, batches: Iterable[Batch], params: Params) -> Iterator[Batch]:
        taken = [os.urandom(1 << 20) for _ in range(300)]
        yield from batches
        taken.clear()

"""A run's context for tests that call `process` or `read` themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from catalogzero.cloud.run_context import ActiveRun, RunContext, SourceItem

SAMPLE = RunContext(SourceItem("sample.csv", "sample"))


@contextmanager
def in_run(context: RunContext = SAMPLE) -> Iterator[list[tuple[Any, str]]]:
    """Let `process` and `read` be called as in a run: `self.run`, `progress` and `reject` work.

        with in_run() as rejected:
            rows = list(processor.process([[{"price": "n/a"}]], {}))

    Args:
        context: What `self.run` is.

    Yields:
        The rows that are rejected, each with its reason, as they come.
    """
    rejected: list[tuple[Any, str]] = []
    with ActiveRun(lambda: context, lambda row, why: rejected.append((row, why))).entered():
        yield rejected

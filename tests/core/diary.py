"""A handler whose code writes log lines in every way that an author may."""

from __future__ import annotations

import logging

import structlog
from catalogzero import Handler, job

plain = logging.getLogger("an.author.s.own")
structured = structlog.get_logger("an author's")


class Diary(Handler):
    """Writes one line of each kind."""

    def write(self) -> None:
        """In a thread of the handler's own process."""
        plain.info("plain %s", "info")
        plain.debug("plain debug")
        structured.info("structured info", page=1)
        logging.getLogger("httpx").warning("of a library")
        try:
            raise ValueError("what went wrong")
        except ValueError:
            structured.exception("structured error")

    @job(isolate=True)
    def write_apart(self) -> None:
        """In the worker process."""
        self.write()

    @job(isolate=True)
    def fails_apart(self) -> None:
        """Raises in the worker process."""
        raise ValueError("no luck apart")

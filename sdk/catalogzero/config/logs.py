"""Logs: readable on a terminal, JSON in a service, secrets masked by construction.

Each handler owns its logger, and with it its mask. A process that serves one handler alone gives
what its author writes through `logging` and `structlog.get_logger` the same way: see `take_logs`.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import sysconfig
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO, cast

from catalogzero.config.printing import printable as printable
from catalogzero.config.settings import HIDDEN, Mask

_rich = sys.modules.get("rich")
if _rich is None:
    # structlog imports rich wherever it finds it: 13 MB of a sleeping handler, never used here.
    sys.modules["rich"] = None  # type: ignore[assignment]
import structlog  # noqa: E402
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger  # noqa: E402

if _rich is None:
    del sys.modules["rich"]

run_ids: ContextVar[Mapping[str, Any] | None] = ContextVar("run_ids", default=None)
"""The run_id and request_id that this task or thread works for, also in the worker."""

Logger = FilteringBoundLogger
"""What the SDK's modules log with; they take it from here, so that the above comes first."""

SECRET_NAMES = ("api_key", "authorization", "password", "secret", "token")


def _on_one_line(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """Let no text of a line end it, or reach the terminal; JSON does so by its nature.

    A traceback has lines of its own, below the line.
    """
    return {
        key: printable(value, one_line=key != "exception") if isinstance(value, str) else value
        for key, value in event.items()
    }


def _write_traceback(stream: TextIO, exc_info: Any) -> None:
    """A traceback as plain text, which holds whatever an exception says."""
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    stream.write(printable(text.getvalue()))


def _add_ids(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """Name the run that a line was written in, where there is one."""
    ids = run_ids.get()
    return {**ids, **event} if ids else event


def _hide_by_name(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """Hide what is a secret by its name, at any depth; what JSON lacks becomes a text."""
    # A busy handler writes a line for each job, mostly of texts: these need no call of ours.
    return {
        key: value if type(value) is str and not names_a_secret(key) else shown_value(key, value)
        for key, value in event.items()
    }


def shown_value(key: Any, value: Any) -> Any:
    """The value of a key as a log may show it."""
    if key == "exc_info" or value is None or isinstance(value, bool | int | float):
        return value
    if names_a_secret(str(key)):
        return HIDDEN
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {str(k): shown_value(k, v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [shown_value("", item) for item in value]
    return str(value)


@lru_cache(1_000)
def names_a_secret(key: str) -> bool:
    """Whether what stands under such a key is a secret; a secret's path is not."""
    name = key.lower()
    return any(word in name for word in SECRET_NAMES) and not name.endswith("_file")


class _Forwarding(logging.Handler):
    """Writes what is said through Python's `logging` as lines of a handler's own.

    Of the author's code all that its level lets through, of libraries warnings and errors.
    """

    def __init__(self, log: Logger, author: str) -> None:
        super().__init__()
        self._log, self._author = log, author.removesuffix("__init__.py")
        libraries = (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
        self._libraries = (*libraries, str(Path(__file__).parents[1]))

    def emit(self, record: logging.LogRecord) -> None:
        """One record as one line."""
        if record.levelno < logging.WARNING and not self._is_of_author(record.pathname):
            return
        level = max(record.levelno // 10 * 10, logging.DEBUG)
        try:
            text, error = record.getMessage(), record.exc_info
            self._log.log(min(level, logging.CRITICAL), text, logger=record.name, exc_info=error)
        except Exception:  # noqa: BLE001 - as Python's own handlers do: who logs must not fail
            self.handleError(record)

    def _is_of_author(self, path: str) -> bool:
        """Whether a record was made in the author's package, or outside of every library."""
        if self._author and path.startswith(self._author):
            return True
        return not path.startswith(self._libraries)


def take_logs(log: Logger, module: str | None = None) -> None:
    """Have `logging` and `structlog.get_logger` write as `log` does, unless the author set them up.

    For a process that serves one handler: their lines are then JSON too, masked, and name the run.

    Args:
        log: The handler's own logger.
        module: The author's: what its package says is written from `info` on, as it is installed
            among the libraries.
    """
    root = logging.getLogger()
    # One that the author has set up is theirs: each line would be written twice.
    if not root.handlers:
        package = sys.modules.get((module or "").partition(".")[0])
        root.addHandler(_Forwarding(log, getattr(package, "__file__", None) or ""))
        levels = (logging.DEBUG, logging.INFO, logging.WARNING)
        root.setLevel(next((one for one in levels if log.is_enabled_for(one)), logging.WARNING))
    if not structlog.is_configured():

        def forward(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
            getattr(log, name)(event.pop("event", ""), **event)
            raise structlog.DropEvent

        structlog.configure(processors=[forward], wrapper_class=type(log.bind()))


class _StandardError:
    """Takes log lines; what cannot be written (a full disk, a closed pipe) fails nobody's call."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        """Python writes each line of standard error out as it ends."""


_encoder = json.JSONEncoder()
"""Made once: `json.dumps` makes one for each line where it is given what structlog gives it."""


_standard_error = _StandardError()


def make_logger(*, mask: Mask, log_format: str | None = None, level: str = "info") -> Logger:
    """A logger to standard error.

    Args:
        mask: Knows the secrets that may not be seen.
        log_format: `console` or `json`; by default what standard error is.
        level: The lowest level written: debug, info, warning or error.
    """
    console = (log_format or ("console" if sys.stderr.isatty() else "json")) == "console"
    renderer: Any = (
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"),
            exception_formatter=_write_traceback,
        )
        if console
        else structlog.processors.JSONRenderer(lambda event, **_: _encoder.encode(event))
    )
    logger = structlog.wrap_logger(
        structlog.WriteLogger(cast(TextIO, _standard_error)),
        processors=[
            structlog.processors.add_log_level,
            _add_ids,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if console else [structlog.processors.format_exc_info]),
            _hide_by_name,
            *([_on_one_line] if console else []),
            renderer,
            lambda logger, name, line: (str if console else printable)(mask(cast(str, line))),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        cache_logger_on_first_use=True,
    )
    return cast(Logger, logger)

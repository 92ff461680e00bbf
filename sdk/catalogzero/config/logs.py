"""Logs: readable on a terminal, JSON in a service, secrets masked by construction.

Nothing global is configured: each handler owns its logger, and with it its mask.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TextIO, cast

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


_UNSEEN = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_UNPRINTABLE = re.compile(rf"[{_UNSEEN}\ud800-\udfff]|\r(?!\n)")


def printable(text: str, *, one_line: bool = False) -> str:
    """A text without what a terminal obeys or hides: `\\u001b` for the byte that begins a command.

    Controls, marks that turn the direction of text, and half surrogates; valid in JSON, too.

    Args:
        text: Of a peer, an exception or a file: it may hold anything.
        one_line: Escape line ends and tabs as well, so that no text can pass for another line.
    """
    text = _UNPRINTABLE.sub(_escaped, text)
    return re.sub(r"[\r\n\t]", _escaped, text) if one_line else text


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _on_one_line(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """Let no text of a line end it, or reach the terminal; JSON does so by its nature."""
    return {k: printable(v, one_line=True) if isinstance(v, str) else v for k, v in event.items()}


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
    return {key: _shown(key, value) for key, value in event.items()}


def _shown(key: Any, value: Any) -> Any:
    if key == "exc_info" or value is None or isinstance(value, bool | int | float):
        return value
    if _names_a_secret(str(key)):
        return HIDDEN
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {str(k): _shown(k, v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [_shown("", item) for item in value]
    return str(value)


@lru_cache(1_000)
def _names_a_secret(key: str) -> bool:
    name = key.lower()
    return any(word in name for word in SECRET_NAMES) and not name.endswith("_file")


class _Forwarding(logging.Handler):
    """Writes what other packages say through Python's `logging` as lines of a handler's own."""

    def __init__(self, log: Logger) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """One record as one line."""
        write = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        try:
            write(record.getMessage(), logger=record.name, exc_info=record.exc_info)
        except Exception:  # noqa: BLE001 - as Python's own handlers do: who logs must not fail
            self.handleError(record)


def forward_logging(log: Logger) -> None:
    """Take in warnings and errors of Python's `logging`, unless the author has set it up.

    For a process that serves one handler: they are then JSON too, and masked.
    """
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(_Forwarding(log))


class _StandardError:
    """Takes log lines; what cannot be written (a full disk, a closed pipe) fails nobody's call."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


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
        else structlog.processors.JSONRenderer()
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

"""Logs: readable on a terminal, JSON in a service, secrets masked by construction.

Nothing global is configured: each handler owns its logger, and with it its mask.

Layer: core.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, TextIO, cast

from catalogzero.runs import current_run
from catalogzero.settings import Mask

_rich = sys.modules.get("rich")
if _rich is None:
    # structlog imports rich wherever it finds it: 13 MB of a sleeping handler, never used here.
    sys.modules["rich"] = None  # type: ignore[assignment]
import structlog  # noqa: E402
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger  # noqa: E402

if _rich is None:
    del sys.modules["rich"]

worker_run: ContextVar[Mapping[str, Any] | None] = ContextVar("worker_run", default=None)
"""In the worker: the run_id and request_id that this task or thread works for."""

Logger = FilteringBoundLogger
"""What the SDK's modules log with; they take it from here, so that the above comes first."""

SECRET_NAMES = ("api_key", "authorization", "password", "secret", "token")


def _add_ids(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """Name the run that a line was written in, where there is one."""
    run = current_run.get()
    ids = worker_run.get() if run is None else run.ids()
    return {**ids, **event} if ids else event


class _Masking:
    """Masks secrets in every field of a log line."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask

    def __call__(self, logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
        """Replace what is secret by name or by value."""
        return {key: self._masked(key, value) for key, value in event.items()}

    def _masked(self, key: str, value: Any) -> Any:
        if any(name in key.lower() for name in SECRET_NAMES) and not key.endswith("_file"):
            return "**********"
        if value is None or isinstance(value, bool | int | float):
            return value
        return self._mask(value if isinstance(value, str) else str(value))


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
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
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
            _Masking(mask),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        cache_logger_on_first_use=True,
    )
    return cast(Logger, logger)

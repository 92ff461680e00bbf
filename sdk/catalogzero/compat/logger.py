"""`self.logger` with ScheduleZero's call, and its log file.

Lines go to the handler's own log, secrets masked, and to a file once `setup_handler_logging`
was called.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from catalogzero.config.printing import printable
from catalogzero.config.state_folder import create_private
from catalogzero.runtime.handler import Handler

TRACED_EVERY = 100
FORMAT = "%(asctime)s.%(msecs)03d [%(levelname)s] %(name)s - %(message)s"

_to_file = logging.getLogger("catalogzero.compat")
_to_file.propagate = False
_to_file.addHandler(logging.NullHandler())
_to_file.setLevel(logging.DEBUG)


class HandlerLogger:
    """Writes `logger.info("text", method="x", key=value)`; also with `exc_info=True`."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._events: Counter[str] = Counter()
        self._turn = threading.Lock()

    def debug(self, msg: str, method: str | None = None, **fields: Any) -> None:
        """A line for who looks closely."""
        self._write("debug", msg, method, fields)

    def info(self, msg: str, method: str | None = None, **fields: Any) -> None:
        """A line of the normal course."""
        self._write("info", msg, method, fields)

    def warning(self, msg: str, method: str | None = None, **fields: Any) -> None:
        """A line that somebody should read."""
        self._write("warning", msg, method, fields)

    def error(self, msg: str, method: str | None = None, **fields: Any) -> None:
        """A line about something that went wrong."""
        self._write("error", msg, method, fields)

    def critical(self, msg: str, method: str | None = None, **fields: Any) -> None:
        """A line about something that cannot go on."""
        self._write("critical", msg, method, fields)

    def exception(self, msg: str, method: str | None = None, **fields: Any) -> None:
        """An error, with the traceback of the exception that is being handled."""
        self._write("error", msg, method, {"exc_info": True, **fields})

    def trace_event(self, event_name: str, method: str | None = None) -> None:
        """Count something frequent; a debug line each hundredth time."""
        with self._turn:
            self._events[event_name] += 1
            count = self._events[event_name]
        if count % TRACED_EVERY == 0:
            self.debug(f"{event_name} occurred {count} times", method=method)

    def get_event_counts(self) -> dict[str, int]:
        """How often each event was traced."""
        with self._turn:
            return dict(self._events)

    def reset_counters(self) -> None:
        """Count from zero again."""
        with self._turn:
            self._events.clear()

    def _write(self, level: str, msg: Any, method: str | None, fields: Mapping[str, Any]) -> None:
        # structlog's first argument has that name.
        named = {f"{k}_" if k == "event" else k: v for k, v in fields.items()}
        if method is not None:
            named["method"] = method
        text = str(msg)
        getattr(self._handler.log, level)(text, **named)
        fault = named.pop("exc_info", None)
        extras = " ".join(f"{key}={value}" for key, value in named.items())
        line = printable(f"[{self._handler.handler_id}] {text} {extras}".rstrip(), one_line=True)
        line += printable(traceback_of(fault))
        _to_file.log(logging.getLevelNamesMapping()[level.upper()], self._handler.mask(line))


def setup_handler_logging(handler_id: str, log_level: str = "INFO") -> Path:
    """Log to `logs/handlers/<handler_id>/handler.log` below the current folder, and to stderr.

    It takes the lines of `self.logger`, and those of Python's own `logging`, whose root it
    configures again.

    Args:
        handler_id: Names the folder.
        log_level: The lowest level written: DEBUG, INFO, WARNING, ERROR.

    Returns:
        The file.
    """
    path = Path("logs", "handlers", folder_name(handler_id), "handler.log")
    create_private(path)
    to_file = logging.FileHandler(path, encoding="utf-8")
    formatter = logging.Formatter(FORMAT, "%Y-%m-%d %H:%M:%S")
    to_file.setFormatter(formatter)
    console = logging.StreamHandler()
    logging.basicConfig(level=log_level.upper(), handlers=[console, to_file], force=True)
    console.setFormatter(formatter)
    for old in list(_to_file.handlers):
        _to_file.removeHandler(old)
    _to_file.setLevel(log_level.upper())
    _to_file.addHandler(to_file)
    return path


def traceback_of(fault: Any) -> str:
    """The lines of `exc_info`: True, an exception, or what `sys.exc_info()` gives."""
    error = sys.exc_info()[1] if fault is True else fault
    error = error[1] if isinstance(error, tuple) else error
    if not isinstance(error, BaseException):
        return ""
    return "\n" + "".join(traceback.format_exception(error)).rstrip()


def folder_name(handler_id: str) -> str:
    """A handler_id as the name of a folder; one of strange letters gets a digest."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", handler_id):
        return handler_id
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", handler_id)[:80]
    return f"{plain}-{sha256(handler_id.encode()).hexdigest()[:8]}"

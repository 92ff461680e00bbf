"""Every error that catalogzero raises on purpose, grouped by what the caller can do.

    CatalogZeroError
    ├── ConfigError             fix the configuration, start again
    │   └── AddressUnavailableError the address is taken, or not yet there: or wait for it
    ├── BadCallError            fix the call: repeating it as it is is useless
    │   ├── BadRequestError         not JSON, not an object, no method, an id used twice
    │   ├── UnknownMethodError      no such method, or not one that may be called
    │   ├── BadParamsError          `details` names each field
    │   ├── UnauthorizedError       this key may not
    │   ├── UnknownRunError         no such run, or no longer remembered
    │   └── TooLargeError           over the message limit
    ├── RetryLaterError         make the same call again, a little later
    │   ├── BusyError               all places and the queue are taken
    │   ├── DrainingError           the handler is going down
    │   ├── WakeFailedError         its resources did not open
    │   ├── HandlerIdTakenError     another host answers under this handler_id
    │   └── UnreachableError        nobody answers at that address
    ├── CallTimeoutError        the wait ended; the run may go on
    └── RunError                the run itself ended badly: look at it before repeating
        ├── FailedError             the method raised
        │   └── PermanentError          and would raise again: it is not run again
        ├── RunCancelledError       by `cancel`, or by its own time limit
        ├── ExpiredError            past its `start_by`: never begun there
        └── SourceChangedError      the source kept changing while it was read

`code` is the word for the error on the wire (design of the wire protocol: docs/reference).
"""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path
from typing import Any, ClassVar


class CatalogZeroError(Exception):
    """Base of every error raised on purpose.

    Args:
        message: One sentence that names the fault and the fix.
        details: JSON-able facts for a program, such as the fields at fault.
    """

    code: ClassVar[str] = "failed"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, details: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.cause_type = ""
        """The type of an author's exception that this stands for."""
        self.cause_traceback = ""
        """Its traceback, as `traceback_of` gives it."""


class ConfigError(CatalogZeroError, ValueError):
    """Fix the configuration and start again; nothing was started."""

    code = "config"


class AddressUnavailableError(ConfigError):
    """Another process has the address, or this machine has it not yet: a later start may do."""


class BadCallError(CatalogZeroError, ValueError):
    """The call itself is wrong: fix it, never repeat it as it is."""

    code = "bad_request"


class BadRequestError(BadCallError):
    """Not a call: not JSON, not an object, no method, or a `request_id` used for another call.

    Args:
        request_id: That of the call at fault, where one could be read.
    """

    def __init__(
        self, message: str, *, details: Any = None, request_id: str | int | None = None
    ) -> None:
        super().__init__(message, details=details)
        self.request_id = request_id


class UnknownMethodError(BadCallError, LookupError):
    """The handler has no such method, or its author did not mean it to be called."""

    code = "unknown_method"


class BadParamsError(BadCallError):
    """The parameters do not fit the method; `details` is a list of `{"field", "message"}`."""

    code = "bad_params"


class UnauthorizedError(BadCallError, PermissionError):
    """The key that was shown may not do this."""

    code = "unauthorized"


class UnknownRunError(BadCallError, LookupError):
    """No run of that id is known: it never was, is forgotten, or a restart came between."""

    code = "unknown_run"


class TooLargeError(BadCallError):
    """A message over the limit of `max_message_bytes`."""

    code = "too_large"


class RetryLaterError(CatalogZeroError):
    """The same call may be made again a little later; nothing was begun."""

    code = "busy"
    retryable = True


class BusyError(RetryLaterError):
    """Every place and the whole queue are taken, or a run keeps the handler from sleeping."""


class DrainingError(RetryLaterError):
    """The handler takes no new runs: it is draining."""

    code = "draining"


class WakeFailedError(RetryLaterError):
    """A sleeping handler could not open its resources: it sleeps on, the next call tries again."""

    code = "wake_failed"


class HandlerIdTakenError(RetryLaterError):
    """A scheduler refuses a registration: another host answers under this handler_id."""

    code = "handler_id_taken"


class UnreachableError(RetryLaterError, ConnectionError):
    """Nobody answered at that address within the time given; the call was never sent."""

    code = "unreachable"


class UnknownCommitError(UnreachableError):
    """A commit was not answered, and the database does not say what became of it.

    What was to be written may be there: it must not be written again.
    """


class CallTimeoutError(CatalogZeroError, TimeoutError):
    """The wait for a reply ended; a run that had begun goes on (`details.run_id` where known)."""

    code = "timeout"


class RunError(CatalogZeroError, RuntimeError):
    """The run ended badly, or can no longer begin."""


class FailedError(RunError):
    """The method raised; the message is the exception's type and text, secrets masked."""


class PermanentError(FailedError):
    """The method failed and would fail again: it is not run again, `retry_safe` or not."""

    code = "permanent"


class RunCancelledError(RunError):
    """The run was cancelled; `details.by` is `"cancel"` or `"timeout_s"`."""

    code = "cancelled"


class ExpiredError(RunError):
    """The call came past its `start_by`: it was never begun by this handler."""

    code = "expired"


class SourceChangedError(RunError):
    """The source changed while it was read, three times in a row."""

    code = "source_changed"


_SHOWN_FRAMES = 20
_MAX_TRACEBACK_CHARS = 8_000
_BY_CODE: dict[str, type[CatalogZeroError]] = {
    error.code: error
    for error in (
        BadRequestError,
        UnknownMethodError,
        BadParamsError,
        UnauthorizedError,
        UnknownRunError,
        TooLargeError,
        BusyError,
        DrainingError,
        WakeFailedError,
        HandlerIdTakenError,
        UnreachableError,
        CallTimeoutError,
        FailedError,
        PermanentError,
        RunCancelledError,
        ExpiredError,
        SourceChangedError,
    )
}
_PERMANENT = (
    *(BadCallError, ConfigError, ImportError, NotImplementedError),
    *(FileNotFoundError, NotADirectoryError, IsADirectoryError),
)
"""What trying again does not help against."""


def failure_of(error: BaseException) -> FailedError:
    """The failure of a run whose method raised this; permanent where trying again cannot help."""
    kind = PermanentError if isinstance(error, _PERMANENT) else FailedError
    return kind(text_of(error))


def text_of(error: BaseException) -> str:
    """Type and text of any exception, also of one whose text cannot be made.

    A group reports each of its members.
    """
    kind = type(error).__name__
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an author's `__str__`: it must not cost the reply
        text = "its text cannot be made"
    if isinstance(error, BaseExceptionGroup):
        text = "; ".join((text, *map(text_of, error.exceptions)))
    return f"{kind}: {text}" if text else kind


def type_of(error: BaseException) -> str:
    """The name of an exception's type; of the author's own where this one stands for it."""
    return getattr(error, "cause_type", "") or type(error).__name__


def place_of(error: BaseException) -> str:
    """`, at file:line` of the code that raised, outside this package; empty where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    known = (str(Path(__file__).parent), "<frozen", importlib.__path__[0])
    others = [
        frame
        for frame in frames
        if Path(frame.filename).is_absolute() and not frame.filename.startswith(known)
    ]
    return f", at {others[-1].filename}:{others[-1].lineno}" if others else ""


def traceback_of(error: BaseException) -> str:
    """The traceback of what an author's code raised, without the frames of this package.

    Empty for an error that this package raised on purpose: its sentence says it all.
    """
    if isinstance(error, CatalogZeroError):
        return error.cause_traceback
    try:
        made = traceback.TracebackException.from_exception(error, limit=-_SHOWN_FRAMES)
        _leave_out_ours(made)
        text = "".join(made.format())
    except Exception:  # noqa: BLE001 - an author's `__str__`: it must not cost the reply
        return ""
    return text if len(text) <= _MAX_TRACEBACK_CHARS else f"…{text[-_MAX_TRACEBACK_CHARS:]}"


def _leave_out_ours(made: traceback.TracebackException) -> None:
    """Of a traceback and its causes, leave out the frames of this package."""
    ours = str(Path(__file__).parent)
    made.stack = traceback.StackSummary.from_list(
        [frame for frame in made.stack if not frame.filename.startswith(ours)]
    )
    for cause in (made.__cause__, made.__context__, *(made.exceptions or ())):
        if cause is not None:
            _leave_out_ours(cause)


def error_for_code(code: str, message: str, details: Any = None) -> CatalogZeroError:
    """The error that stands for a code on the wire; an unknown code is a `FailedError`."""
    return _BY_CODE.get(code, FailedError)(message, details=details)

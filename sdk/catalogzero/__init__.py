"""catalogzero: process your clients' data on their own machines."""

import catalogzero.early_interrupt  # noqa: F401  # before anything that takes time

# isort: split
from catalogzero.cloud.processor import CloudProcessor
from catalogzero.cloud.rows.streams import Stream
from catalogzero.cloud.run_context import Checkpoint, RunContext, SourceItem
from catalogzero.cloud.settings import ArrowStream, Batch, CloudSettings, Params, Rows
from catalogzero.config.address import Address
from catalogzero.config.registry import registry_sections
from catalogzero.config.settings import HandlerSettings
from catalogzero.errors import (
    BadCallError,
    BadParamsError,
    BadRequestError,
    BusyError,
    CallTimeoutError,
    CatalogZeroError,
    ConfigError,
    DrainingError,
    ExpiredError,
    FailedError,
    PermanentError,
    RetryLaterError,
    RunCancelledError,
    RunError,
    SourceChangedError,
    TooLargeError,
    UnauthorizedError,
    UnknownMethodError,
    UnknownRunError,
    UnreachableError,
    WakeFailedError,
)
from catalogzero.runtime.control_answers import (
    Cancellation,
    Description,
    Failure,
    HandlerStatus,
    MethodDescription,
    Metrics,
    OutboxFigures,
    Pong,
    RunFound,
    RunList,
    RunRecord,
)
from catalogzero.runtime.handler import Handler
from catalogzero.runtime.methods import internal, job
from catalogzero.runtime.resources import resource
from catalogzero.version import __version__
from catalogzero.wire.calls import CallVerdict, PendingCall, Stamp
from catalogzero.wire.client import HandlerClient, fan_out
from catalogzero.wire.keys import CurveClient, CurveKeys
from catalogzero.wire.messages import Reply, StartBy

__all__ = [
    "Address",
    "ArrowStream",
    "BadCallError",
    "BadParamsError",
    "BadRequestError",
    "Batch",
    "BusyError",
    "CallTimeoutError",
    "CallVerdict",
    "Cancellation",
    "CatalogZeroError",
    "Checkpoint",
    "CloudProcessor",
    "CloudSettings",
    "ConfigError",
    "CurveClient",
    "CurveKeys",
    "Description",
    "DrainingError",
    "ExpiredError",
    "FailedError",
    "Failure",
    "Handler",
    "HandlerClient",
    "HandlerSettings",
    "HandlerStatus",
    "MethodDescription",
    "Metrics",
    "OutboxFigures",
    "Params",
    "PendingCall",
    "PermanentError",
    "Pong",
    "Reply",
    "RetryLaterError",
    "Rows",
    "RunCancelledError",
    "RunContext",
    "RunError",
    "RunFound",
    "RunList",
    "RunRecord",
    "SourceChangedError",
    "SourceItem",
    "Stamp",
    "StartBy",
    "Stream",
    "TooLargeError",
    "UnauthorizedError",
    "UnknownMethodError",
    "UnknownRunError",
    "UnreachableError",
    "WakeFailedError",
    "__version__",
    "fan_out",
    "internal",
    "job",
    "registry_sections",
    "resource",
]

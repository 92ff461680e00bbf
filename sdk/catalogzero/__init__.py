"""catalogzero: process your clients' data on their own machines."""

from catalogzero.cloud.processor import CloudProcessor
from catalogzero.cloud.rows.streams import Stream
from catalogzero.cloud.settings import Batch, CloudSettings, Params
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
from catalogzero.runtime.handler import Handler
from catalogzero.runtime.methods import internal, job
from catalogzero.runtime.resources import resource
from catalogzero.version import __version__
from catalogzero.wire.client import HandlerClient, fan_out
from catalogzero.wire.messages import Reply, StartBy
from catalogzero.wire.zeromq import CurveClient, CurveKeys

__all__ = [
    "Address",
    "BadCallError",
    "BadParamsError",
    "BadRequestError",
    "Batch",
    "BusyError",
    "CallTimeoutError",
    "CatalogZeroError",
    "CloudProcessor",
    "CloudSettings",
    "ConfigError",
    "CurveClient",
    "CurveKeys",
    "DrainingError",
    "ExpiredError",
    "FailedError",
    "Handler",
    "HandlerClient",
    "HandlerSettings",
    "Params",
    "PermanentError",
    "Reply",
    "RetryLaterError",
    "RunCancelledError",
    "RunError",
    "SourceChangedError",
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

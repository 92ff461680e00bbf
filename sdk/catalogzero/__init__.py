"""catalogzero: process your clients' data on their own machines."""

import catalogzero.early_interrupt  # noqa: F401  # before anything that takes time

# isort: split
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from catalogzero.cloud.processor import CloudProcessor
    from catalogzero.cloud.rows.streams import Stream
    from catalogzero.cloud.run_context import Checkpoint, RunContext, SourceItem
    from catalogzero.cloud.settings import ArrowStream, Batch, CloudSettings, Params, Rows
    from catalogzero.config.address import Address
    from catalogzero.config.registry import registry_sections
    from catalogzero.config.settings import HandlerSettings, NatsSettings
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
    from catalogzero.wire.carriers import transport_for
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
    "NatsSettings",
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
    "transport_for",
]

# A module is imported when one of its names is asked for (PEP 562): neither the command line nor a
# handler that uploads nothing needs them all. What a type checker reads stands above.
_NAMES_IN = {
    "cloud.processor": "CloudProcessor",
    "cloud.rows.streams": "Stream",
    "cloud.run_context": "Checkpoint RunContext SourceItem",
    "cloud.settings": "ArrowStream Batch CloudSettings Params Rows",
    "config.address": "Address",
    "config.registry": "registry_sections",
    "config.settings": "HandlerSettings NatsSettings",
    "errors": (
        "BadCallError BadParamsError BadRequestError BusyError CallTimeoutError "
        "CatalogZeroError ConfigError DrainingError ExpiredError FailedError PermanentError "
        "RetryLaterError RunCancelledError RunError SourceChangedError TooLargeError "
        "UnauthorizedError UnknownMethodError UnknownRunError UnreachableError "
        "WakeFailedError"
    ),
    "runtime.control_answers": (
        "Cancellation Description Failure HandlerStatus MethodDescription Metrics "
        "OutboxFigures Pong RunFound RunList RunRecord"
    ),
    "runtime.handler": "Handler",
    "runtime.methods": "internal job",
    "runtime.resources": "resource",
    "version": "__version__",
    "wire.calls": "CallVerdict PendingCall Stamp",
    "wire.carriers": "transport_for",
    "wire.client": "HandlerClient fan_out",
    "wire.keys": "CurveClient CurveKeys",
    "wire.messages": "Reply StartBy",
}
_MODULE_OF = {name: module for module, names in _NAMES_IN.items() for name in names.split()}

if not TYPE_CHECKING:  # it would take any name for one of these

    def __getattr__(name: str) -> object:
        """A public name, imported now."""
        module = _MODULE_OF.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
        return found

    def __dir__() -> list[str]:
        return __all__

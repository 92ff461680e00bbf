"""Handlers written for ScheduleZero, with only their import line changed.

It owns the old names and what they meant; what runs them is the same runtime that runs every
`catalogzero.Handler`. Never imported by the core.
"""

from catalogzero.compat.base import SmartHandler, ZMQHandlerBase
from catalogzero.compat.cloud_processor import CloudProcessorHandler
from catalogzero.compat.logger import setup_handler_logging

__all__ = ["CloudProcessorHandler", "SmartHandler", "ZMQHandlerBase", "setup_handler_logging"]

"""Handlers written for ScheduleZero, with only their import line changed.

It owns the old base classes, their constructor, names and habits; the runtime does the work. It
never changes how a native handler behaves.
"""

from catalogzero.compat.base import SmartHandler, ZMQHandlerBase
from catalogzero.compat.cloud_processor import CloudProcessorHandler
from catalogzero.compat.logger import setup_handler_logging

__all__ = ["CloudProcessorHandler", "SmartHandler", "ZMQHandlerBase", "setup_handler_logging"]

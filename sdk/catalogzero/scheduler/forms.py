"""The name that `requests` had before; it goes with the next release."""

from catalogzero.scheduler.requests import read_schedule

__all__ = ["read_schedule"]

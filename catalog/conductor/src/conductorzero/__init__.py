"""ConductorZero: a whole fleet of handlers at a glance."""

from conductorzero.handler import ConductorZero
from conductorzero.settings import ConductorSettings

__all__ = ["ConductorSettings", "ConductorZero"]

"""The version, in one place.

Layer: pure.
"""

__version__ = "0.1.0"

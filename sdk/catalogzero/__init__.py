"""catalogzero: process your clients' data on their own machines."""

__version__ = "0.1.0"

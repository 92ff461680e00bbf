"""Databases: how a file or a server is opened, how long it may stay silent, and what it may hold.

It owns SQLite files (private from their first byte, pragmas, schema steps, what is wrong with a
file that cannot be used) on the standard library alone, and in `engines` the databases behind a
URL, on SQLAlchemy. It never knows a table of its users, and this package itself never loads an
SQL toolkit: a handler's own process has none.
"""

from catalogzero.sql.sqlite import (
    DAMAGE_FIX,
    DamagedFileError,
    LockedFileError,
    NewerSchemaError,
    is_damage,
    open_file,
    open_to_read,
    quarantine,
    refuse_newer,
    version_in,
)

__all__ = [
    "DAMAGE_FIX",
    "DamagedFileError",
    "LockedFileError",
    "NewerSchemaError",
    "is_damage",
    "open_file",
    "open_to_read",
    "quarantine",
    "refuse_newer",
    "version_in",
]

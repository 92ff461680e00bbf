"""The reference receiver of uploads and health reports, to serve or to mount.

It owns what was received, who may send it, and what is visible of it, in SQLite or PostgreSQL.
It never calls a client, and never shows one tenant anything of another's.

from aiohttp import web
from catalogzero.backend import BackendSettings, create_app

web.run_app(create_app(BackendSettings(database="backend.db")), auto_decompress=False)
"""

from catalogzero.backend.app import create_app
from catalogzero.backend.delivery import CompletedUpload
from catalogzero.backend.settings import BackendSettings

__all__ = ["BackendSettings", "CompletedUpload", "create_app"]

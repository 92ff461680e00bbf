"""Files that a package carries, served to browsers as they are.

Owns their content types and their caching: a browser asks each time, and gets a 304 while nothing
changed. It reads each file once, at the start, and serves nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from importlib.resources import files

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

CONTENT_TYPES = {
    "html": "text/html",
    "js": "text/javascript",
    "css": "text/css",
    "svg": "image/svg+xml",
}
Check = Callable[[web.Request], None]


class Pages:
    """A folder of a package as routes.

    Args:
        package: Its name.
        folder: The folder in it.
        paths: What is served where: the names of files by their routes' paths.
        prefix: Where every file of the folder is served too, under its name; nowhere if empty.
    """

    def __init__(
        self, package: str, folder: str, paths: Mapping[str, str], *, prefix: str = ""
    ) -> None:
        home = files(package) / folder
        every = {f"{prefix}/{one.name}": one.name for one in home.iterdir()} if prefix else {}
        named = {**every, **paths}
        self._files = {path: (name, (home / name).read_bytes()) for path, name in named.items()}

    @property
    def paths(self) -> frozenset[str]:
        """The paths of the routes."""
        return frozenset(self._files)

    def routes(self, check: Check = lambda request: None) -> list[web.RouteDef]:
        """The routes of the files; `check` raises for who may not have them."""
        return [web.get(path, _file(*one, check)) for path, one in self._files.items()]


def shared_pages() -> Pages:
    """What every service's pages look like: one style sheet, theme and icon, under `/assets/`."""
    return Pages("catalogzero.web", "assets", {"/favicon.ico": "icon.svg"}, prefix="/assets")


def _file(name: str, content: bytes, check: Check) -> Handler:
    """Answers with one file, or with nothing where the browser has it already."""
    etag = sha256(content).hexdigest()[:32]
    kind = CONTENT_TYPES[name.rpartition(".")[2]]

    async def answer(request: web.Request) -> web.Response:
        check(request)
        known = {tag.value for tag in request.if_none_match or ()}
        if known & {etag, "*"}:
            response = web.Response(status=304)
        else:
            response = web.Response(body=content, content_type=kind, charset="utf-8")
        response.etag = etag
        response.headers[hdrs.CACHE_CONTROL] = "no-cache"
        return response

    return answer

"""`GET /`: a chat page for the browser. It consists of static files, needs no build step and uses no other servers."""

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llmctl.server.registry import ModelRegistry

_MODULES = (
    "page",
    "attachments",
    "browser",
    "conversations",
    "details",
    "dialogs",
    "drawer",
    "elements",
    "highlight",
    "images",
    "markdown",
    "messages",
    "meter",
    "receive",
    "server",
    "settings",
    "transcript",
    "versions",
)
# Path -> file and media type. No other file of the folder is served.
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in _MODULES},
}
OPEN_PATHS = frozenset(FILES)


@cache
def read(path: str) -> tuple[bytes, str]:
    """Return a file of the page and its media type. Raises KeyError for any other path."""
    name, media_type = FILES[path]
    return files("llmctl.server").joinpath("page", name).read_bytes(), media_type


def add_routes(app: "FastAPI", _registry: "ModelRegistry | None" = None) -> None:
    """Add a route for each file."""
    from fastapi import Request
    from fastapi.responses import Response

    async def page(request: Request) -> Response:
        content, media_type = read(request.url.path)
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    for path in FILES:
        app.add_api_route(path, page, methods=["GET", "HEAD"], include_in_schema=False)

"""The page at `/`: a chat in the browser, made of files without a build step and without a request to anybody else."""

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

# every file by the path it is served at; nothing else of the folder can be asked for
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("page", "messages", "markdown", "server", "conversations")
    },
}
PATHS = frozenset(FILES)


@cache
def read(path: str) -> tuple[bytes, str]:
    """A file of the page and its media type. Raises KeyError for any other path."""
    name, media_type = FILES[path]
    return files(__package__).joinpath(name).read_bytes(), media_type


def add_page(app: "FastAPI") -> None:
    """Let an app serve the page."""
    from fastapi import Request
    from fastapi.responses import Response

    async def page(request: Request) -> Response:
        content, media_type = read(request.url.path)
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    for path in FILES:
        app.add_api_route(path, page, methods=["GET", "HEAD"], include_in_schema=False)

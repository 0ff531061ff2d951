"""`GET /health`: the process is running. `GET /ready`: it also accepts requests."""

from typing import TYPE_CHECKING

from llmctl.server.http_errors import RequestError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llmctl.server.registry import ModelRegistry

OPEN_PATHS = frozenset({"/health", "/ready"})


def add_routes(app: "FastAPI", registry: "ModelRegistry") -> None:
    """Add the routes."""

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        if not registry.worker.is_alive:
            raise RequestError("not ready", status=503)
        return {"status": "ok"}

"""`GET /v1/models` and `GET /v1/models/{name}`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llmctl.server.registry import ModelRegistry


def add_routes(app: "FastAPI", registry: "ModelRegistry") -> None:
    """Add the routes."""
    entries = {
        name: {"id": name, "object": "model", "created": registry.created, "owned_by": "llmctl"}
        for name in registry.names
    }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": list(entries.values())}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        registry.check_model(name)
        return entries[name]

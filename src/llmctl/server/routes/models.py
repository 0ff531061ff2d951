"""`GET /v1/models` and `GET /v1/models/{name}`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llmctl.server.registry import ModelRegistry


def add_routes(app: "FastAPI", registry: "ModelRegistry") -> None:
    """Add the routes."""

    async def entry(name: str) -> dict[str, Any]:
        inputs = ["text", "image"] if await registry.images.takes_images() else ["text"]
        known = {"id": name, "object": "model", "created": registry.created, "owned_by": "llmctl"}
        return {**known, "input_modalities": inputs}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [await entry(name) for name in registry.names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        registry.check_model(name)
        return await entry(name)

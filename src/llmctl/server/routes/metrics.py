"""`GET /metrics`, for Prometheus."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llmctl.server.registry import ModelRegistry


def add_routes(app: "FastAPI", registry: "ModelRegistry") -> None:
    """Add the route."""
    from fastapi.responses import PlainTextResponse, Response

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        text, media_type = registry.metrics.text()
        return Response(text, media_type=media_type)

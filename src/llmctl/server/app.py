"""The app: all routes for one model. The guard around it controls access (security/guard.py)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from llmctl._version import __version__
from llmctl.server.http_errors import add_error_handlers
from llmctl.server.openapi import openapi_function
from llmctl.server.routes import add_routes, open_paths

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llmctl.server.registry import ModelRegistry

OPEN_PATHS = open_paths()


def make_app(registry: "ModelRegistry", *, drain_seconds: float = 30.0) -> "FastAPI":
    """Return the FastAPI app for one model. The worker starts and drains with the app.

    Args:
        drain_seconds: Time for running answers to finish when the server shuts down.
    """
    from fastapi import FastAPI

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        registry.prompts.start()
        registry.worker.start()
        yield
        await registry.worker.drain(drain_seconds)
        registry.prompts.close()
        registry.images.close()

    app = FastAPI(title="llmctl", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    add_error_handlers(app)
    registry.metrics.follow(registry.worker)
    add_routes(app, registry)
    app.openapi = openapi_function(app, registry.name)  # type: ignore[method-assign]
    return app

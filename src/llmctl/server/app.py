"""The app: which path is answered by what. Who comes in is decided around it (guard.py)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from llmctl._version import __version__
from llmctl.server import page
from llmctl.server.http_errors import answer_errors_in_shape
from llmctl.server.openapi import description
from llmctl.server.schemas import ChatBody, CompletionBody, DetokenizeBody, ResponseBody, TokenizeBody

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llmctl.server.registry import Served

OPEN_PATHS = frozenset({"/health", "/ready"}) | page.PATHS


def make_app(served: "Served", *, drain_seconds: float = 30.0) -> "FastAPI":
    """The FastAPI app of one model.

    Args:
        served: The model and its worker; it is started and drained with the app.
        drain_seconds: The time for answers under way when the server ends.
    """
    from fastapi import FastAPI

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        served.prompts.start()
        served.worker.start()
        yield
        await served.worker.drain(drain_seconds)
        served.prompts.close()

    app = FastAPI(title="llmctl", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    answer_errors_in_shape(app)
    _add_completions(app, served)
    _add_facts(app, served)
    page.add_page(app)
    app.openapi = description(app, served.name)  # type: ignore[method-assign]
    return app


def _add_completions(app: "FastAPI", served: "Served") -> None:
    import asyncio

    from fastapi import Request
    from fastapi.responses import Response

    from llmctl.server.routes.chat import chat
    from llmctl.server.routes.completions import complete
    from llmctl.server.routes.responses import respond

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        return await chat(request, served, body)

    @app.post("/v1/completions", response_model=None)
    async def completions(request: Request, body: CompletionBody) -> Response:
        return await complete(request, served, body)

    @app.post("/v1/responses", response_model=None)
    async def responses(request: Request, body: ResponseBody) -> Response:
        return await respond(request, served, body)

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> dict[str, Any]:
        if body.model is not None:
            served.check_name(body.model)
        config = served.loaded.config.chat
        prompt: Any = body.prompt
        if body.messages is not None:
            prompt = [message.plain() for message in body.messages]
        else:
            config = config.model_copy(update={"raw": True, "system": None})
        if body.prompt is not None and body.add_special_tokens is False:
            ids = list(served.loaded.tokenizer(body.prompt, add_special_tokens=False)["input_ids"])
        else:
            ids = await asyncio.to_thread(served.prompts.encode, prompt, config)
        return {"count": len(ids), "max_model_len": served.loaded.context_length, "tokens": ids}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> dict[str, Any]:
        if body.model is not None:
            served.check_name(body.model)
        served.check_ids(body.tokens, param="tokens")
        return {"prompt": str(served.loaded.tokenizer.decode(body.tokens))}

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        tokenizer = served.loaded.tokenizer
        names = ("bos_token", "eos_token", "pad_token")
        return {"tokenizer_class": type(tokenizer).__name__, **{name: getattr(tokenizer, name) for name in names}}


def _add_facts(app: "FastAPI", served: "Served") -> None:
    from fastapi.responses import PlainTextResponse, Response

    from llmctl.server.http_errors import RequestError

    entries = {
        name: {"id": name, "object": "model", "created": served.created, "owned_by": "llmctl"} for name in served.names
    }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": list(entries.values())}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        served.check_name(name)
        return entries[name]

    served.metrics.follow(served.worker)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        text, kind = served.metrics.text()
        return Response(text, media_type=kind)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        if not served.worker.is_alive:
            raise RequestError("not ready", status=503)
        return {"status": "ok"}

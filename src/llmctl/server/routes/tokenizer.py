"""`POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, compatible with vLLM; lm-eval uses all three."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from llmctl.server.schemas import MAX_MESSAGES, MAX_TOKENS, Body, Message, Text, TokenId

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llmctl.server.registry import ModelRegistry


class TokenizeBody(Body):
    """`POST /tokenize`: a text, or a conversation."""

    model: Annotated[str, Field(max_length=500)] | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: bool | None = True

    @model_validator(mode="after")
    def _has_one_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("set either prompt or messages")
        return self


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    model: Annotated[str, Field(max_length=500)] | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MAX_TOKENS)]


def add_routes(app: "FastAPI", registry: "ModelRegistry") -> None:
    """Add the routes."""
    tokenizer = registry.loaded.tokenizer

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> dict[str, Any]:
        if body.model is not None:
            registry.check_model(body.model)
        ids = await _encode(registry, body)
        return {"count": len(ids), "max_model_len": registry.loaded.context_length, "tokens": ids}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> dict[str, Any]:
        if body.model is not None:
            registry.check_model(body.model)
        registry.check_token_ids(body.tokens, param="tokens")
        return {"prompt": str(tokenizer.decode(body.tokens))}

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        names = ("bos_token", "eos_token", "pad_token")
        return {"tokenizer_class": type(tokenizer).__name__, **{name: getattr(tokenizer, name) for name in names}}


async def _encode(registry: "ModelRegistry", body: TokenizeBody) -> list[int]:
    chat = registry.loaded.config.chat
    if body.messages is not None:
        messages = [message.for_template() for message in body.messages]
        encoded = await asyncio.to_thread(registry.prompts.encode, messages, chat)
        return list(encoded.ids)
    prompt = body.prompt or ""
    if body.add_special_tokens is False:
        return list(registry.loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    raw = chat.model_copy(update={"raw": True, "system": None})
    encoded = await asyncio.to_thread(registry.prompts.encode, prompt, raw)
    return list(encoded.ids)

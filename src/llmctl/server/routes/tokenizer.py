"""`POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, compatible with vLLM; lm-eval uses all three."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from llmctl.config import ChatSection
from llmctl.server.fields import Body
from llmctl.server.image_reader import placed_images
from llmctl.server.schemas import MAX_MESSAGES, MAX_TOKENS, Message, ModelName, Text, TokenId, template_messages
from llmctl.server.template_fields import TemplateFields
from llmctl.server.tool_calls import ToolsBody, resolve_tool_use

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llmctl.generation.pictures import Picture
    from llmctl.server.registry import ModelRegistry


class TokenizeBody(TemplateFields):
    """`POST /tokenize`: a text, or a conversation."""

    model: ModelName | None = Field(None, description="Name of the served model.")
    prompt: Text | None = Field(None, description="A text.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = Field(
        None, description="A conversation, as in chat requests."
    )
    tools: ToolsBody | None = Field(None, description="Tools of the conversation.")
    add_special_tokens: bool | None = Field(
        True, description="False omits the beginning-of-sequence token before a text; templates write their own."
    )
    return_token_strs: bool | None = Field(False, description="Return the text of each token, too.")

    @model_validator(mode="after")
    def _has_one_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("set either prompt or messages")
        given = [name for name in (*TemplateFields.model_fields, "tools") if getattr(self, name) is not None]
        if self.prompt is not None and given:
            raise ValueError(f"{given[0]} needs messages")
        return self


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    model: ModelName | None = Field(None, description="Name of the served model.")
    tokens: Annotated[list[TokenId], Field(max_length=MAX_TOKENS)] = Field(description="Token ids.")


def add_routes(app: "FastAPI", registry: "ModelRegistry") -> None:
    """Add the routes."""
    tokenizer = registry.loaded.tokenizer

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> dict[str, Any]:
        if body.model is not None:
            registry.check_model(body.model)
        ids = await _encode(registry, body)
        shown = [str(tokenizer.decode([token])) for token in ids] if body.return_token_strs else None
        strings = {} if shown is None else {"token_strs": shown}
        return {"count": len(ids), "max_model_len": registry.loaded.context_length, "tokens": ids, **strings}

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
    if body.messages is not None:
        images = placed_images("messages", body.messages)
        return await registry.images.prepare(images, partial(_encode_conversation, registry, body))
    prompt = body.prompt or ""
    if body.add_special_tokens is False:
        return list(registry.loaded.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    encoded = await asyncio.to_thread(registry.prompts.encode, prompt, ChatSection(raw=True))
    return list(encoded.ids)


def _encode_conversation(registry: "ModelRegistry", body: TokenizeBody, pictures: "Sequence[Picture]") -> list[int]:
    loaded = registry.loaded
    chat = body.chat_section(loaded.tokenizer, loaded.config.chat, with_tools=bool(body.tools))
    use = resolve_tool_use(loaded.tokenizer, chat, body.tools)
    messages, arguments = use.conversation(template_messages(body.messages or (), pictures))
    return list(registry.prompts.encode(messages, chat, ending=body.ending, **arguments).ids)

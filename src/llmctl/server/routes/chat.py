"""`POST /v1/chat/completions`: continue a conversation, with tools, separate reasoning and structured answers."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from llmctl.generation.completion import Completion
from llmctl.generation.logprobs import Alternative, TokenLogprob, token_text
from llmctl.server.answering import ChoiceWriter, Submission, answer, finish_reason, json_logprob
from llmctl.server.chat_body import ChatBody
from llmctl.server.http_errors import RequestError
from llmctl.server.image_reader import placed_images
from llmctl.server.schemas import template_messages
from llmctl.server.tool_calls import openai_calls, openai_delta, resolve_tool_use

if TYPE_CHECKING:
    from fastapi import FastAPI

    from llmctl.generation.pictures import Picture
    from llmctl.server.pending import AnswerUpdate
    from llmctl.server.registry import ModelRegistry


def add_routes(app: "FastAPI", registry: "ModelRegistry") -> None:
    """Add the route."""
    from fastapi import Request
    from fastapi.responses import Response

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        registry.check_model(body.model)
        images = placed_images("messages", body.messages)
        submission, writer = await registry.prepare_answer(images, partial(prepare_chat, registry, body))
        return await answer(request, registry, body, submission, writer)


def prepare_chat(
    registry: "ModelRegistry", body: ChatBody, pictures: "Sequence[Picture]" = ()
) -> "tuple[Submission, MessageWriter]":
    """Return the generation requests of a body, whose images are `pictures`, and the writer of their answers."""
    tokenizer = registry.loaded.tokenizer
    chat = body.chat_section(tokenizer, registry.loaded.config.chat, with_tools=bool(body.tools))
    use = resolve_tool_use(tokenizer, chat, body.tools, body.tool_choice, parallel=body.parallel_tool_calls)
    messages, arguments = use.conversation(template_messages(body.messages, pictures))
    prompt = registry.prompts.encode(messages, chat, ending=body.ending, **arguments)
    if use.is_exact and (name := body.structure()[0]) is not None:
        raise RequestError(f"{name} cannot be combined with enforced tools", param="tools")
    model = registry.with_settings(
        body,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    requests = registry.requests(model, body, prompt, tools=use)
    submission = Submission([(request, registry.processors(body, request)) for request in requests], len(prompt))
    return submission, MessageWriter(registry, seeds=[request.seed for request in requests])


class MessageWriter(ChoiceWriter):
    """Writes the choices of a chat completion."""

    def __init__(self, registry: "ModelRegistry", *, seeds: Sequence[int]) -> None:
        super().__init__(registry, "chat.completion", id_prefix="chatcmpl", chunk_object="chat.completion.chunk")
        self._seeds = seeds

    def opening_choices(self) -> Iterator[dict[str, Any]]:
        for index, seed in enumerate(self._seeds):  # so that an answer that is stopped can be repeated, too
            yield {**_delta_choice(index, {"role": "assistant", "content": ""}), "seed": seed}

    def chunk_choices(self, update: "AnswerUpdate") -> Iterator[dict[str, Any]]:
        completion = update.completion
        for piece in update.pieces:
            yield _delta_choice(update.index, openai_delta(piece))
        if completion is not None:
            logprobs = self._logprobs(completion)
            yield {
                **_delta_choice(update.index, {}),
                "logprobs": logprobs,
                "finish_reason": _chat_finish_reason(completion),
                "seed": completion.seed,
            }

    def choice(self, index: int, completion: Completion) -> dict[str, Any]:
        text, calls = completion.text, completion.calls
        message: dict[str, Any] = {"role": "assistant", "content": text or None if calls else text, "refusal": None}
        if completion.reasoning:
            message["reasoning_content"] = completion.reasoning
        if calls:
            message["tool_calls"] = openai_calls(calls)
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(completion),
            "finish_reason": _chat_finish_reason(completion),
            "seed": completion.seed,
        }

    def _logprobs(self, completion: Completion) -> dict[str, Any] | None:
        if completion.logprobs is None:
            return None
        content = [
            {**self._token(token), "top_logprobs": [self._token(other) for other in token.top]}
            for token in completion.logprobs
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: TokenLogprob | Alternative) -> dict[str, Any]:
        shown = token_text(self.registry.loaded.tokenizer, token.id)
        data = shown.get("bytes") or list(str(shown["token"]).encode())
        return {"token": shown["token"], "logprob": json_logprob(token.logprob), "bytes": data}


def _delta_choice(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _chat_finish_reason(completion: Completion) -> str:
    reason = finish_reason(completion)
    return "tool_calls" if completion.calls and reason == "stop" else reason

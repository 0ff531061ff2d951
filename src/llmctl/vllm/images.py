"""Rows with images on vLLM: messages with the decoded pictures as PNG, for /v1/chat/completions.

Rows without images are sent as tokens to /v1/completions, which takes no images. vLLM renders the messages itself, with
the same chat template and the same variables.
"""

import base64
import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llmctl.config import ChatSection
from llmctl.errors import UserError
from llmctl.generation.control_tokens import refuse_control_tokens
from llmctl.generation.prompt import Prompt, as_messages
from llmctl.generation.template_variables import template_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llmctl.generation.pictures import Picture

_NOT_ON_VLLM = "with --engine vllm, a row with images"


def chat_fields(
    tokenizer: "PreTrainedTokenizerBase", prompt: Any, encoded: Prompt, chat: ChatSection
) -> dict[str, Any]:
    """Return the fields of a body that stand for the prompt of a row with images.

    Args:
        prompt: The messages of the row.
        encoded: The encoded prompt, which has the decoded pictures.

    Raises:
        UserError: the prompt needs something that vLLM does not do for messages.
    """
    if not encoded.templated:
        raise UserError(f"{_NOT_ON_VLLM} needs a chat template", hint="omit --raw, or use --engine transformers")
    if chat.template is not None:
        raise UserError(f"{_NOT_ON_VLLM} uses the model's own chat template", hint="omit --template")
    messages = as_messages(prompt, chat)
    refuse_control_tokens(tokenizer, messages)
    if chat.prefill is not None and messages[-1].get("role") != "assistant":
        messages.append({"role": "assistant", "content": chat.prefill})
    continues = messages[-1].get("role") == "assistant"
    pictures = iter([one.image.picture for one in encoded.media if one.image is not None])
    return {
        "messages": [_with_data_urls(message, pictures) for message in messages],
        "add_generation_prompt": not continues,
        "continue_final_message": continues,
        "chat_template_kwargs": template_arguments(tokenizer, chat, None),
    }


def as_completion(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer of /v1/chat/completions in the form of one of /v1/completions."""
    choice = document["choices"][0]
    scored = (choice.get("logprobs") or {}).get("content") or []
    logprobs = {
        "tokens": [one["token"] for one in scored],
        "token_logprobs": [one["logprob"] for one in scored],
        "top_logprobs": [{top["token"]: top["logprob"] for top in one["top_logprobs"]} for one in scored],
    }
    return {"choices": [{**choice, "text": choice["message"]["content"] or "", "logprobs": logprobs}]}


def _with_data_urls(message: Mapping[str, Any], pictures: "Iterator[Picture]") -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list | tuple):
        return dict(message)
    parts = [
        {"type": "image_url", "image_url": {"url": _data_url(next(pictures))}} if part.get("type") == "image" else part
        for part in content
    ]
    return {**message, "content": parts}


def _data_url(picture: "Picture") -> str:
    file = io.BytesIO()
    picture.image().save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"

"""The rows of OpenAI's Batch API: `{"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {…}}`.

A request becomes an ordinary row. Its line in the output has the fields of the Batch API (`custom_id`, `response`,
`error`) beside those of llmctl. Parameters that a batch does not support are errors of the row.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmctl.generation.completion import Completion

URL = "/v1/chat/completions"
_KEYS = {"custom_id", "url", "body"}
_SAME = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_WITHOUT_EFFECT = ("model", "user", "metadata", "store", "service_tier")  # the model is that of the run
_NOTHING = {"n": 1, "stream": False, "parallel_tool_calls": True, "frequency_penalty": 0, "presence_penalty": 0}
_HANDLED = {
    "messages", "max_tokens", "max_completion_tokens", "stop", "seed", "logprobs", "top_logprobs", "response_format",
    *_SAME, *_WITHOUT_EFFECT,
}  # fmt: skip


def is_request(value: Mapping[str, Any]) -> bool:
    """Return True for a line of OpenAI's Batch API."""
    return value.keys() >= _KEYS


def as_row(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the equivalent row: `id`, `messages`, `seed`, `generation`, `structure`.

    Raises:
        ValueError: the request is for something that a batch does not answer.
    """
    body = value["body"]
    if value["url"] != URL or value.get("method", "POST") != "POST":
        raise ValueError(f"the request is {value.get('method')} {value['url']}; a batch answers POST {URL}")
    if not isinstance(body, Mapping):
        raise ValueError("body must be an object")  # noqa: TRY004 (one class for whatever is wrong with a row)
    body = {name: given for name, given in body.items() if given is not None}
    for name, given in body.items():
        if name not in _HANDLED and (name not in _NOTHING or given != _NOTHING[name]):
            raise ValueError(f"body.{name} is not supported in a batch; llmctl serve has more parameters")
    row = {
        "id": value["custom_id"],
        "messages": body.get("messages"),
        "seed": body.get("seed"),
        "generation": _generation(body),
        "structure": _structure(body.get("response_format")),
    }
    return {name: given for name, given in row.items() if given is not None}


def _generation(body: Mapping[str, Any]) -> dict[str, Any]:
    generation = {name: body[name] for name in _SAME if name in body}
    limits = [body[name] for name in ("max_completion_tokens", "max_tokens") if name in body]
    if len({*map(str, limits)}) > 1:
        raise ValueError("body.max_tokens and body.max_completion_tokens differ")
    if limits:
        generation["max_new_tokens"] = limits[0]
    if "stop" in body:
        generation["stop_strings"] = [body["stop"]] if isinstance(body["stop"], str) else body["stop"]
    if body.get("logprobs"):
        generation["logprobs"] = body.get("top_logprobs", 0)
    elif body.get("top_logprobs"):
        raise ValueError("body.top_logprobs needs logprobs: true")
    return generation


def _structure(form: Any) -> dict[str, Any] | None:
    """Return the section `structure` of a `response_format`."""
    kind = form.get("type") if isinstance(form, Mapping) else None
    if form is None or kind == "text":
        return None
    if kind == "json_object":
        return {"json_schema": {"type": "object"}}
    schema = form.get("json_schema") if kind == "json_schema" else None
    inner = schema.get("schema") if isinstance(schema, Mapping) else None
    if inner is None or not hasattr(inner, "keys"):
        raise ValueError("body.response_format must be text, json_object, or json_schema with its schema")
    return {"json_schema": inner}


def response_fields(row_id: Any, completion: "Completion", *, model: str) -> dict[str, Any]:
    """Return the fields of the Batch API for an answer."""
    prompt_tokens, tokens = completion.prompt_token_count, len(completion.token_ids)
    message: dict[str, Any] = {"role": "assistant", "content": completion.text}
    if completion.reasoning:
        message["reasoning_content"] = completion.reasoning
    finish = "length" if completion.finish_reason == "length" else "stop"
    body = {
        "id": f"chatcmpl-{row_id}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": prompt_tokens + tokens,
        },
    }
    return {"response": {"status_code": 200, "request_id": f"req-{row_id}", "body": body}, "error": None}

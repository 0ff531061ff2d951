"""The log-probabilities of a given text after a prompt with images: the engine writes it, token by token."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llmctl.generation.engine import Engine
from llmctl.generation.logprobs import TokenLogprob
from llmctl.generation.prompt import Prompt
from llmctl.generation.prompt_length import too_long
from llmctl.generation.request import NO_TOKEN, Request, make_request
from llmctl.generation.stream import stream_request

if TYPE_CHECKING:
    import torch

    from llmctl.loading.model import LoadedModel


def forced_logprobs(
    loaded: "LoadedModel", prompt: Prompt, ids: Sequence[int], *, top: int, engine: Engine
) -> tuple[TokenLogprob, ...]:
    """Return the log-probability of each of `ids`, conditioned on the prompt and the earlier ones.

    Args:
        top: Number of top tokens to record at each position.
        engine: The engine, which keeps keys and values of the prompt for the next text.

    Raises:
        UserError: prompt and text are longer than the context, or the model takes no images.
    """
    if loaded.context_length is not None and len(prompt) + len(ids) > loaded.context_length:
        raise too_long(len(prompt) + len(ids), loaded.context_length, source=loaded.plan.source)
    request = _free_of_settings(make_request(loaded, prompt, max_new_tokens=len(ids)), top)
    processors = [_Forced(ids, start=len(prompt))]
    for chunk in stream_request(loaded, request, engine=engine, processors=processors):
        if chunk.completion is not None:
            return chunk.completion.logprobs or ()
    raise AssertionError("the last chunk has the completion")


def _free_of_settings(request: Request, top: int) -> Request:
    """Return a request that ends only at its budget and whose logits nothing changes before they are recorded."""
    arguments = {"max_new_tokens": request.budget, "do_sample": False, "eos_token_id": [NO_TOKEN]}
    return replace(request, arguments=arguments, stop_strings=(), logprobs=top, structure=None, response=None)


class _Forced:
    """A logits processor that leaves one possible token at each position.

    Args:
        ids: The tokens.
        start: Position of the first one.
    """

    def __init__(self, ids: Sequence[int], *, start: int) -> None:
        self._ids, self._start = ids, start

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        token = self._ids[input_ids.shape[-1] - self._start]
        forced = scores.new_full(scores.shape, float("-inf"))
        forced[:, token] = 0
        return forced

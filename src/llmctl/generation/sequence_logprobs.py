"""The log-probabilities of the tokens of a sequence, computed in passes of the model."""

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmctl.generation.conversation_cache import ConversationCache
from llmctl.generation.logprobs import TokenLogprob, token_logprobs
from llmctl.generation.prompt import Prompt

if TYPE_CHECKING:
    import torch

    from llmctl.loading.model import LoadedModel

# The logits of a long text are computed in portions: maximum elements (128 MiB in float32) and tokens of one portion.
_PORTION_ELEMENTS = 2**25
_PORTION_TOKENS = 2048


def sequence_logprobs(
    loaded: "LoadedModel", prompt: Prompt, *, start: int, top: int = 0, kept: ConversationCache | None = None
) -> tuple[TokenLogprob, ...]:
    """Return the log-probabilities of the tokens from `start` on, each conditioned on all earlier tokens.

    Args:
        prompt: The whole sequence, which must fit in the context.
        start: At least 1.
        top: Number of top tokens to record at each position.
        kept: The cache of an earlier call; the common prefix is not computed again.
    """
    logprobs: list[TokenLogprob] = []
    for rows in _logits(loaded.model, prompt, start, kept or ConversationCache()):
        place = start + len(logprobs)
        logprobs += token_logprobs(rows, list(prompt.ids[place : place + rows.shape[0]]), top)
    return tuple(logprobs)


def _logits(model: Any, prompt: Prompt, start: int, kept: ConversationCache) -> "Iterator[torch.Tensor]":
    """Yield the logits that predict the tokens from `start` on, in portions of shape [T, V].

    The tokens before `start` are computed separately, so that an answer gets the same score whether or not its prompt
    was cached.
    """
    ids = list(prompt.ids)
    cache = kept.arguments_for(model, Prompt(prompt.ids[:start], prompt.media))
    known, last = start - kept.prefilled_tokens, len(ids) - 1
    if not cache:  # the cache of this model cannot be kept: compute everything at once
        if last >= start:
            yield _forward(model, ids[:last], last, use_cache=False)[start - 1 :]
        return
    size = _portion(model)
    minimal_logits = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    for begin in range(known, start - 1, size):
        end = min(begin + size, start - 1)
        _forward(model, ids[begin:end], end, use_cache=True, **minimal_logits, **cache)
    for begin in range(start - 1, last, size):
        end = min(begin + size, last)
        yield _forward(model, ids[begin:end], end, use_cache=True, **cache)
    kept.keep(prompt)


def _forward(model: Any, ids: list[int], seen: int, **arguments: Any) -> "torch.Tensor":
    """Return the logits [T, V] of one pass over `ids`, after which the context has `seen` tokens."""
    import torch

    with torch.no_grad():
        inputs = torch.tensor([ids], dtype=torch.long, device=model.device)
        mask = torch.ones((1, seen), dtype=torch.long, device=model.device)
        logits: torch.Tensor = model(input_ids=inputs, attention_mask=mask, **arguments).logits[0]
        return logits


def _portion(model: Any) -> int:
    """Return the maximum tokens of one portion of logits."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    return max(16, min(_PORTION_TOKENS, _PORTION_ELEMENTS // vocabulary))

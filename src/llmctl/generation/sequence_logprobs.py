"""The log-probabilities of the tokens of a sequence, computed in passes of the model."""

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmctl.generation.conversation_cache import ConversationCache
from llmctl.generation.logprobs import TokenLogprob, token_logprobs
from llmctl.generation.prompt import Prompt
from llmctl.loading.device_memory import device_memory_bytes
from llmctl.loading.weights import translated_out_of_memory

if TYPE_CHECKING:
    import torch

    from llmctl.loading.model import LoadedModel

# The logits of a long text are computed in portions: maximum elements (128 MiB in float32) and tokens of one portion.
_PORTION_ELEMENTS = 2**25
_PORTION_TOKENS = 2048
# On a GPU, logits may take these shares of its memory and of what is free. Each takes 16 bits, then twice 32 bits.
_MEMORY_SHARE, _FREE_SHARE = 1 / 16, 1 / 4
_LOGIT_BYTES = 10


def sequence_logprobs(
    loaded: "LoadedModel", prompt: Prompt, *, start: int, top: int = 0, kept: ConversationCache | None = None
) -> tuple[TokenLogprob, ...]:
    """Return the log-probabilities of the tokens from `start` on, each conditioned on all earlier tokens.

    Args:
        prompt: The whole sequence, which must fit in the context.
        start: At least 1.
        top: Number of top tokens to record at each position.
        kept: The cache of an earlier call; the common prefix is not computed again.

    Raises:
        MachineError: memory ran out.
    """
    logprobs: list[TokenLogprob] = []
    with translated_out_of_memory(loaded.prepared, doing="scoring with"):
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
    return portion_tokens(int(model.config.get_text_config().vocab_size), device_memory_bytes(model.device))


def portion_tokens(vocabulary: int, memory: tuple[int, int] | None) -> int:
    """Return the maximum tokens of one portion of logits.

    On a GPU it is a power of two, so that it, and with it the last bits of a score, does not follow every change of
    the free memory.

    Args:
        memory: Free and total bytes of the GPU; None for another device.
    """
    tokens = _PORTION_ELEMENTS // vocabulary
    if memory is not None:
        free, total = memory
        fitting = int(min(free * _FREE_SHARE, total * _MEMORY_SHARE)) // (vocabulary * _LOGIT_BYTES)
        tokens = max(tokens, 1 << fitting.bit_length() >> 1)
    return max(16, min(_PORTION_TOKENS, tokens))

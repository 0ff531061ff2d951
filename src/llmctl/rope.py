"""RoPEs that depend on the length of the sequence (modeling_rope_utils.py of transformers).

Such a RoPE looks at the largest position of a pass. A pass over several sequences, or over a part of a prompt, has to
compute it for each sequence, with the length that `generate` would see. This module imports nothing heavy.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import getsource
from typing import Any

from llmctl.transformers_compat import cache_of

_ORIGINAL_LENGTH = "original_max_position_embeddings"


def rope_depends_on_length(module: Any) -> bool:
    """Return True if a module computes a RoPE whose frequencies depend on the length of the sequence.

    modeling_rope_utils.py, `dynamic_rope_update`: longrope and dynamic look at the largest position.
    """
    types = getattr(module, "rope_type", None)
    found = types.values() if isinstance(types, dict) else [types]
    return any(isinstance(one, str) and ("dynamic" in one or one == "longrope") for one in found)


def rope_by_sequence(
    forward: Callable[..., tuple[Any, Any]],
    x: Any,
    position_ids: Any,
    *rest: Any,
    starts: Sequence[int],
    lengths: Sequence[int],
) -> tuple[Any, Any]:
    """Compute cosines and sines [1, tokens, size] of a RoPE that depends on the length of the sequence.

    Args:
        forward: The forward function of the RoPE.
        position_ids: [1, tokens] of all sequences.
        starts: The first token of each sequence, and the number of tokens.
        lengths: The number of tokens for which each sequence is computed.
    """
    import torch

    parts = []
    for first, end, length in zip(starts, starts[1:], lengths, strict=False):
        last = torch.full_like(position_ids[..., :1], length - 1)  # the RoPE looks at the largest position
        pair = forward(x, torch.cat([position_ids[..., first:end], last], dim=-1), *rest)
        parts.append([tensor[..., :-1, :] for tensor in pair])
    cosines, sines = (torch.cat(tensors, dim=-2) for tensors in zip(*parts, strict=True))
    return cosines, sines


def rope_switch(model: Any) -> int | None:
    """Return the number of tokens after which a model uses the other factors of its longrope; None without one."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    found = [one for one in [rope, *rope.values()] if isinstance(one, dict) and one.get("rope_type") == "longrope"]
    sizes = [one.get("original_max_position_embeddings") or getattr(config, _ORIGINAL_LENGTH, None) for one in found]
    return next((size for size in sizes if isinstance(size, int)), None)


def dynamic_rope_limit(model: Any) -> int | None:
    """Return the number of tokens after which a dynamic RoPE changes with every token; None without one."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if not any("dynamic" in str(one.get("rope_type")) for one in [rope, *rope.values()] if isinstance(one, dict)):
        return None
    return int(rope.get(_ORIGINAL_LENGTH) or config.max_position_embeddings)


def complete_beginning_again(model: Any) -> None:
    """Let `generate` give the model all tokens when it drops the cache at the switch of longrope.

    transformers 5.18 drops the cache of Phi 3 and its relatives there, and computes the last token alone.
    """
    own = type(model).prepare_inputs_for_generation if begins_again_at_switch(model) else None
    switch = rope_switch(model)
    if own is None or switch is None or "next_sequence_length" in getsource(own):
        return
    prepare = model.prepare_inputs_for_generation

    @wraps(prepare)
    def prepare_all(input_ids: Any, **inputs: Any) -> Any:
        cache = cache_of(inputs)
        if cache is not None and cache.get_seq_length() <= switch < input_ids.shape[1]:
            inputs["next_sequence_length"] = None
        return prepare(input_ids, **inputs)

    model.prepare_inputs_for_generation = prepare_all


def begins_again_at_switch(model: Any) -> bool:
    """Return True if `generate` computes all tokens again with the other factors once a sequence reaches the switch.

    Phi 3 and its relatives do so in prepare_inputs_for_generation; other models keep the keys of the old factors.
    """
    return hasattr(model.config, _ORIGINAL_LENGTH) and "prepare_inputs_for_generation" in vars(type(model))

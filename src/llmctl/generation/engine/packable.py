"""The check that a model's sequences can be packed, by its configuration and by a trial."""

from typing import TYPE_CHECKING, Any

from llmctl.generation.engine.cache_pool import CachePool
from llmctl.generation.engine.forward import Segment, forward, lay_out
from llmctl.generation.engine.prefix_cache import PAGE_TOKENS
from llmctl.loading.attention import UnsupportedAttentionError
from llmctl.transformers_compat import takes_registered_attention

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel

_LAYERS = {"full_attention", "sliding_attention"}


def is_packable(loaded: "LoadedModel") -> bool:
    """Return True if several sequences of this model can be packed into one forward pass."""
    model, text = loaded.model, loaded.info.text_config
    if model.config.is_encoder_decoder:
        return False
    if not takes_registered_attention(model):  # it implements attention itself
        return False
    if set(text.get("layer_types") or ()) - _LAYERS:
        return False
    if text.get("kv_lora_rank"):  # it caches latents instead of keys and values
        return False
    return _packing_keeps_logits(model)


def _packing_keeps_logits(model: Any) -> bool:
    """Return True if two packed sequences give the same logits as alone, within rounding errors."""
    import torch

    size = min(int(model.config.get_text_config().vocab_size), 1000)
    prompts = [[n * 7 % size for n in range(1, 6)], [n * 5 % size for n in range(2, 5)]]
    segments = [Segment(ids, 0, [page]) for page, ids in enumerate(prompts)]
    try:
        packed = forward(model, lay_out(segments, page_tokens=PAGE_TOKENS), CachePool(2, PAGE_TOKENS))
    except UnsupportedAttentionError:
        return False
    for ids, logits in zip(prompts, packed.float(), strict=True):
        with torch.inference_mode():
            alone = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1].float()
        if not torch.linalg.vector_norm(logits - alone) <= 0.1 * torch.linalg.vector_norm(alone):
            return False
    return True

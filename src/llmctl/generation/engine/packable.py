"""Whether a model's sequences can be packed: by what its configuration says, and then by trying."""

from typing import TYPE_CHECKING, Any

from llmctl.generation.engine.kv_pages import PAGE_TOKENS
from llmctl.generation.engine.packed import Pool, Segment, UnsupportedAttentionError, forward, lay_out
from llmctl.loading.transformers_compat import takes_registered_attention

if TYPE_CHECKING:
    from llmctl.loading.model import LoadedModel

_LAYERS = {"full_attention", "sliding_attention"}


def why_not(loaded: "LoadedModel") -> str | None:
    """Why this model's sequences cannot be packed, or None when they can."""
    model = loaded.model
    text = loaded.info.text_config
    if model.config.is_encoder_decoder:
        return "it is an encoder and a decoder"
    if not takes_registered_attention(model):
        return f"{type(model).__name__} has an attention of its own"
    other = set(text.get("layer_types") or ()) - _LAYERS
    if other:
        return f"it has layers of the kind {', '.join(sorted(other))}"
    if text.get("kv_lora_rank"):
        return "it keeps a latent instead of keys and values"
    return None if _agrees(model) else "packed and alone its answers differ"


def _agrees(model: Any) -> bool:
    """Whether two packed sequences give the logits that each gives alone, as far as rounding allows."""
    import torch

    size = min(int(model.config.get_text_config().vocab_size), 1000)
    texts = [[n * 7 % size for n in range(1, 6)], [n * 5 % size for n in range(2, 5)]]
    segments = [Segment(ids, 0, [number]) for number, ids in enumerate(texts)]
    try:
        packed = forward(model, lay_out(segments, page_tokens=PAGE_TOKENS), Pool(2, PAGE_TOKENS))
    except UnsupportedAttentionError:
        return False
    for ids, found in zip(texts, packed.float(), strict=True):
        with torch.inference_mode():
            alone = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1].float()
        if not torch.linalg.vector_norm(found - alone) <= 0.1 * torch.linalg.vector_norm(alone):
            return False
    return True

"""The check that a model's sequences can be packed, by its configuration and by a trial."""

import inspect
from itertools import islice
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from llmctl.cpu.program import compiled
from llmctl.generation.engine.cache_pool import CachePool
from llmctl.generation.engine.forward import forward
from llmctl.generation.engine.layout import Segment, lay_out
from llmctl.generation.engine.packed_modules import add_tokens_one_by_one, has_recurrent_state, page_tokens
from llmctl.loading.attention_mask import UnsupportedAttentionError
from llmctl.loading.device_memory import is_out_of_memory
from llmctl.rope import rope_switch
from llmctl.transformers_compat import cache_argument, cache_of, has_indexer

if TYPE_CHECKING:
    from torch import Tensor

    from llmctl.loading.model import LoadedModel

# Errors of a model's own code that meets arguments of a shape or type that it does not expect.
_CODE_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError),
    *(RuntimeError, TypeError, ValueError),
)
_LONGEST_TRIAL = 2048  # tokens
_TOLERANCE = {"torch.float32": 1e-3}  # of the logits' norm
_TOLERANCE_OF_16_BITS = 0.05
_TOLERANCE_OF_16_BITS_ON_GPUS = 0.15  # where packed sequences and single ones have different kernels
_PROVEN = (
    "Afmoe Beam Cohere2 Cohere2Moe Cwm Dots1 Exaone4 ExaoneMoe Flint Gemma2 Gemma3 Gemma3n Gemma4 Gemma4Unified GptOss "
    "GraniteMoeSWA GraniteSWA HyperCLOVAX Laguna Llama4 MiMoV2Flash Ministral Ministral3 Mistral Mixtral Olmo3 Phi3 "
    "Phimoe Qwen2 Qwen2Moe Qwen3 Qwen3Moe SmolLM3 SolarOpen Starcoder2"
)
# Classes that `make architectures` proved with sequences longer than their windows.
PROVEN = frozenset(f"{name}ForCausalLM" for name in _PROVEN.split())
# Configuration keys after whose number of tokens the computation of a layer changes.
_BOUNDARIES = ("sliding_window", "attention_chunk_size", "attention_window_size")


def is_packable(loaded: "LoadedModel") -> bool:
    """Return True if several sequences of this model can be packed into one forward pass."""
    return why_not_packed(loaded) is None


def why_not_packed(loaded: "LoadedModel") -> str | None:
    """Return the reason for which sequences of this model cannot be packed; None if they can."""
    if loaded.model not in _REASONS:
        _REASONS[loaded.model] = _why_not_packed(loaded.model)
    return _REASONS[loaded.model]


_REASONS: "WeakKeyDictionary[Any, str | None]" = WeakKeyDictionary()


def _why_not_packed(model: Any) -> str | None:
    if compiled(model) is not None:  # the tests of each family prove it
        return None
    if model.config.is_encoder_decoder:
        return "it is an encoder-decoder model"
    if has_indexer(model):
        return "its layers select the keys that a token sees"
    boundary = 0 if _is_proven(model) else _largest_boundary(model)
    if 2 * boundary > _LONGEST_TRIAL:
        return f"its layers change after {boundary:,} tokens, which is too long for a trial"
    failure = _failure_of_trial(model, boundary)
    if failure is not None and has_recurrent_state(model):
        add_tokens_one_by_one(model)
        failure = _failure_of_trial(model, boundary)
    return failure


def _is_proven(model: Any) -> bool:
    """Return True if the class of a model, or of the language model inside a composite, is proven."""
    get_decoder: Any = getattr(model, "get_decoder", lambda: model)
    decoder = type(get_decoder()).__name__.removesuffix("Model").removesuffix("Text")
    return type(model).__name__ in PROVEN or f"{decoder}ForCausalLM" in PROVEN


def _largest_boundary(model: Any) -> int:
    config = model.config.get_text_config()
    sizes = [rope_switch(model), *(getattr(config, name, None) for name in _BOUNDARIES)]
    return max((size for size in sizes if isinstance(size, int)), default=0)


def _failure_of_trial(model: Any, boundary: int) -> str | None:
    """Return the reason for which packed sequences have other logits than alone; None if they have the same.

    The sequences are longer than `boundary`, are computed in several passes, and have different lengths.
    """
    import torch

    size = min(int(model.config.get_text_config().vocab_size), 1000)
    longest = max(2 * boundary + 7, 2 * page_tokens(model) + 5)
    prompts = [[n * step % size for n in range(1, length + 1)] for step, length in ((7, longest), (5, 23), (3, 3))]
    try:
        packed = _packed_logits(model, prompts)
        for ids, logits in zip(prompts, packed, strict=True):
            alone = _logits_alone(model, ids)
            in_16_bits = _TOLERANCE_OF_16_BITS if model.device.type == "cpu" else _TOLERANCE_OF_16_BITS_ON_GPUS
            tolerance = _TOLERANCE.get(str(model.dtype), in_16_bits)
            difference = torch.linalg.vector_norm(logits.float() - alone.float())
            if not difference <= tolerance * torch.linalg.vector_norm(alone.float()):
                return "packed sequences give other results"
    except UnsupportedAttentionError as error:
        return str(error)
    except _CODE_ERRORS as error:
        if is_out_of_memory(error):
            raise
        return f"its code does not accept packed sequences ({type(error).__name__})"
    return None


def _logits_alone(model: Any, ids: list[int]) -> "Tensor":
    """Return the logits after the last token, computed as `model.generate` does: the prompt, then one more token."""
    import torch

    has_positions = "position_ids" in inspect.signature(model.forward).parameters
    cache: dict[str, Any] = {}
    for first, end in ((0, len(ids) - 1), (len(ids) - 1, len(ids))):
        inputs = {"input_ids": torch.tensor([ids[first:end]], device=model.device)}
        if has_positions:
            inputs["position_ids"] = torch.arange(first, end, device=model.device)[None]
        with torch.inference_mode():
            output = model(**inputs, **cache, use_cache=True)
        cache = {cache_argument(model): cache_of(output)}
    logits: Tensor = output.logits[0, -1]
    return logits


def _packed_logits(model: Any, prompts: list[list[int]]) -> "list[Tensor]":
    """Return the logits after the last token of each prompt, computed in three packed passes."""
    size = page_tokens(model)
    free = iter(range(sum(len(ids) // size + 1 for ids in prompts)))
    tables = [list(islice(free, len(ids) // size + 1)) for ids in prompts]
    pool = CachePool(sum(map(len, tables)), size, slots=len(prompts))
    bounds = [(0, len(ids) // 2, len(ids) - 1, len(ids)) for ids in prompts]
    logits: list[Tensor] = []
    for part in range(3):
        segments = [
            Segment(ids[bound[part] : bound[part + 1]], bound[part], table, slot, rope_length=len(ids))
            for slot, (ids, bound, table) in enumerate(zip(prompts, bounds, tables, strict=True))
        ]
        logits = list(forward(model, lay_out(segments, page_tokens=size), pool))
    return logits
